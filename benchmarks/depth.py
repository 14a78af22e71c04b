"""`python -m benchmarks.depth --data-dir D`: trained weights at other depths.

Registered weights, or those of finished runs, are brought to several depths by the rules of
`mf_zoo.depth`. Their test error is measured with the statistics of BatchNormalization that come
along, with statistics estimated anew on training images, and after some training at that depth.
`--coarsen` brings them to fewer particles instead. What is done is in the CSV file at once. Rows
that are there are not measured again, but for those of weights that were trained anew since.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import growth, harness
from mf_zoo import files

COLUMNS = (
    "date",
    "backend",
    "versions",
    "machine",
    "model",
    "weights",
    "digest",
    "rule",
    "depth",
    "particles",
    "state",
    "error",
    "loss",
    "test_images",
    "statistics_images",
    "training_images",
    "learning_rate",
    "multiply_adds",
    "seconds",
)
_KEY = (
    *("model", "weights", "rule", "particles", "state"),
    *("test_images", "statistics_images", "training_images", "learning_rate"),
)
AS_IT_IS, RECALIBRATED = "as it is", "recalibrated"


def particles_at(architecture: Any, depth: int) -> tuple[int, ...]:
    """Numbers of particles of a network of some depth, with equal numbers of blocks a stage.

    Args:
        architecture: A network of the family.
        depth: Number of layers: those of the stem and the classifier, and of all blocks.

    Raises:
        ValueError: If no network has this depth.
    """
    layers = _layers_of_a_block(architecture) * len(architecture.filters)
    blocks, rest = divmod(depth - 2, layers)
    if rest or blocks < 2:
        raise ValueError(f"`depths` must be 2 and a multiple of {layers}. Received: {depth}")
    return tuple(blocks - entry for entry in architecture.has_entry)


def _layers_of_a_block(architecture: Any) -> int:
    filters, arguments = architecture.filters[0], architecture.block_arguments
    return len(architecture.chain.convolutions(filters, **arguments))


def training_epochs(state: str) -> int:
    """The number of epochs of a state such as `"2 epochs"`; 0 for the others."""
    number = state.split()[0]
    return int(number) if number.isdigit() else 0


class Bench:
    """Measures states of networks; what is measured already is left alone.

    Args:
        options: Those of the command.
        output: The CSV file.
    """

    def __init__(self, options: argparse.Namespace, output: Path):
        self.options, self.output = options, output
        self.rows: list[dict[str, Any]] = [*files.read_rows(output)]
        self.data: dict[str, Any] = {}

    def images(self, dataset: str) -> tuple[Any, Any, Any, Any]:
        """Training images and labels, test images and labels."""
        from mf_zoo import data

        if dataset not in self.data:
            train = data.load(dataset, "train", data_dir=self.options.data_dir)
            test = data.load(dataset, "test", data_dir=self.options.data_dir)
            self.data[dataset] = (*train, *(part[: self.options.images] for part in test))
        return self.data[dataset]

    def measure(self, model: str, name: str, rule: str, particles: tuple[int, ...]) -> None:
        """Measures all states of one network, of registered weights or those of a run folder."""
        from mf_zoo import applications, data, depth
        from mf_zoo.cli.common import load_trained

        source, dataset = load_trained(model, name, None, None)
        *_, x, y = self.images(dataset)
        architecture = applications.architecture(model).with_particles(particles)
        options = self.options
        settings = {
            "model": model,
            "weights": Path(name).name,
            "digest": harness.digest(model, name),
            "rule": rule,
            "depth": 2 + sum(architecture.blocks) * _layers_of_a_block(architecture),
            "particles": " ".join(map(str, particles)),
            "test_images": len(x),
            "multiply_adds": architecture.multiply_adds(),
        }

        def resized(*, recalibrated: bool) -> Any:
            images, labels, *_ = self.images(dataset)
            deeper = sum(particles) > sum(applications.architecture(model).particles)
            chosen = {"refine" if deeper else "coarsen": rule}
            network = depth.resize(source, particles, images=images[:100], **chosen)
            if recalibrated:
                some = slice(options.statistics)
                augment = data.Augmentation(padding=4, flip=True)  # as they were trained
                batches = data.batches(images[some], labels[some], 500, augment=augment, seed=0)
                depth.recalibrate(network, batches)
            return network

        for state in (AS_IT_IS, RECALIBRATED, *(f"{n} epochs" for n in options.epochs)):
            epochs = training_epochs(state)
            row = {
                **settings,
                "state": state,
                "statistics_images": 0 if state == AS_IT_IS else options.statistics,
                "training_images": options.train_images if epochs else 0,
                "learning_rate": options.rate if epochs else 0.0,
            }
            if self.known(row):
                continue
            start = time.perf_counter()
            network = resized(recalibrated=state != AS_IT_IS)
            if epochs:
                self.train(network, dataset, epochs)
            self.add(row, network, x, y, start)

    def train(self, network: Any, dataset: str, epochs: int) -> None:
        """Trains for some epochs: one cycle of the learning rate."""
        from mf_zoo import data
        from mf_zoo.data.batching import for_fit
        from mf_zoo.training import assembly, get_recipe
        from mf_zoo.training.callbacks import SetEpoch
        from mf_zoo.training.schedules import learning_rate_schedule

        images, labels, *_ = self.images(dataset)
        count = self.options.train_images
        recipe = get_recipe("quick", epochs=epochs, learning_rate=self.options.rate)
        classes = data.get(dataset).classes
        batches = assembly.make_batches(images[:count], labels[:count], recipe, 0, classes)
        schedule = learning_rate_schedule(recipe, len(batches))
        assembly.compile_network(network, recipe, schedule, 0)
        network.fit(
            for_fit(batches),
            epochs=epochs,
            shuffle=False,
            callbacks=[SetEpoch(batches, 0)],
            verbose=0,
        )

    def known(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is in the file already, of the same weights."""
        return any(_same(row, one) and row["digest"] == one.get("digest") for one in self.rows)

    def add(self, row: dict[str, Any], network: Any, x: Any, y: Any, start: float) -> None:
        """Measures a network and writes its row."""
        from mf_zoo.training import evaluate

        scores = evaluate(network, x, y, 250, from_logits=True)
        found = harness.circumstances(0, self.options.threads)
        found |= {**row, "error": f"{scores.error:.2f}", "loss": f"{scores.nll:.4f}"}
        found["seconds"] = f"{time.perf_counter() - start:.1f}"
        self.rows = [one for one in self.rows if not _same(row, one)]
        self.rows.append({key: found[key] for key in COLUMNS})
        files.write_rows(self.output, self.rows, COLUMNS)
        print({key: found[key] for key in (*_KEY[:5], "error", "seconds")}, flush=True)


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows are of the same state, of weights of the same name."""
    return all(str(row[key]) == str(other[key]) for key in _KEY)


def _column(row: Mapping[str, Any]) -> tuple[int, float, int, bool, str]:
    """The state of a row as a column: what it is sorted by, and at last its name."""
    epochs, images = training_epochs(row["state"]), int(row["training_images"])
    rate = float(row["learning_rate"])
    name = row["state"]
    if epochs:
        name = f"{epochs} epoch{'s' * (epochs > 1)} of {images:,} at {rate:g}"
    return images, rate, epochs, row["state"] != AS_IT_IS, name


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown table: a line for each network and rule, a column for each state."""
    states = [column[-1] for column in sorted(set(map(_column, rows)))]
    errors: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["model"], row["weights"], row["rule"], row["depth"], row["particles"])
        errors.setdefault(tuple(map(str, key)), {})[_column(row)[-1]] = row["error"]
    yield f"| network | weights | rule | depth | particles | {' | '.join(states)} |"
    yield "|---|---|---|---:|---|" + "---:|" * len(states)
    for key, found in sorted(errors.items(), key=lambda item: (*item[0][:3], int(item[0][3]))):
        yield f"| {' | '.join(key)} | {' | '.join(found.get(s, '') for s in states)} |"


def readme_table() -> str:
    """The table of the stored results."""
    return "\n".join(table(files.read_rows(harness.RESULTS / "depth.csv")))


def coarsening_table() -> str:
    """The table of grown networks that were made shallower again, with their training by its cell
    in the table of `growth`. A network that keeps its depth has no rule."""
    from mf_zoo import applications

    trained = {
        row["run"]: f"{cell.epochs}, of these {cell.start}" if cell.start else str(cell.epochs)
        for campaign in growth.CAMPAIGNS
        for row in growth.finished(campaign)
        for cell in growth.cells([row])
    }
    rows = []
    for row in files.read_rows(harness.RESULTS / "coarsening.csv"):
        own = " ".join(map(str, applications.architecture(row["model"]).particles))
        rule = "" if row["particles"] == own else row["rule"]
        rows.append({**row, "weights": trained[row["weights"]], "rule": rule})
    return "\n".join(table(rows)).replace("| weights |", "| epochs |", 1)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws error against depth: a panel for each dataset, a colour for each state."""
    rows = [row for row in rows if row["rule"] == "split"]
    if not (names := sorted({row["weights"] for row in rows})):
        return
    states = [column[-1] for column in sorted(set(map(_column, rows)))]
    if (figure := harness.figure(4.2 * len(names) + 1.6, 3.6)) is None:
        return
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, state in enumerate(states):
            for model in sorted({row["model"] for row in rows}):
                points = sorted(
                    (int(row["depth"]), float(row["error"]))
                    for row in rows
                    if (row["weights"], _column(row)[-1], row["model"]) == (name, state, model)
                )
                if points:
                    plain = not model.startswith("MF")
                    label = f"{'plain' if plain else 'mean-field'}, {state}"
                    style = {"linestyle": "--" if plain else "-", "markersize": 4}
                    style["marker"] = "^" if plain else "o"
                    axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label, **style)
        axes.set(xscale="log", xlabel="depth", title=name, ylim=(0, None))
        depths = sorted({int(row["depth"]) for row in rows})
        axes.set_xticks(depths, [str(depth) for depth in depths], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test error, %")
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    harness.save_figure(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="Trained weights at other depths.")
    parser.add_argument("--data-dir", type=Path, metavar="D")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="NETWORK:NAME",
        help="names of registered weights, or folders of finished runs",
        default=[f"{m}:{d}" for d in ("cifar10", "cifar100") for m in ("MFResNet20", "ResNet20")],
    )
    parser.add_argument("--depths", type=harness.positive, nargs="+", default=[32, 56, 110, 218])
    parser.add_argument(
        "--coarsen", nargs="+", metavar="N,N,N", default=[], help="particles a stage, not depths"
    )
    parser.add_argument("--rules", nargs="+", default=["split"])
    parser.add_argument("--images", type=harness.positive, default=10_000, help="test images")
    parser.add_argument("--statistics", type=harness.positive, default=5_000, metavar="N")
    parser.add_argument("--epochs", type=harness.positive, nargs="*", default=[])
    parser.add_argument("--train-images", type=harness.positive, default=50_000, metavar="N")
    parser.add_argument("--rate", type=float, default=0.1, help="peak learning rate")
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the CSV file; and a .png")
    parser.add_argument("--summary", action="store_true", help="only table and picture of the file")
    options = parser.parse_args(arguments)
    if options.data_dir is None and not options.summary:
        parser.error("give --data-dir, or --summary")
    output = options.output or harness.RESULTS / "depth.csv"
    if not options.summary:
        harness.limit_threads(options.threads)
        from mf_zoo import applications

        bench = Bench(options, output)
        for pair in options.weights:
            model, _, name = pair.partition(":")
            architecture = applications.architecture(model)
            wanted = [tuple(map(int, text.split(","))) for text in options.coarsen]
            if not wanted:
                wanted = [particles_at(architecture, depth) for depth in options.depths]
            for rule in options.rules:
                for particles in wanted:
                    bench.measure(model, name, rule, particles)
    rows = files.read_rows(output)
    print("\n".join(table(rows)))
    draw(rows, output.with_suffix(".png"))
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
