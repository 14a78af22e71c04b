"""The report of one run or several: an HTML page that needs no other file and no host."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo import __version__, applications, data, files
from mf_zoo.errors import UserError, user_errors
from mf_zoo.markdown import signed
from mf_zoo.reporting import page, plots
from mf_zoo.reporting.page import Page
from mf_zoo.reporting.run import Run, record_file
from mf_zoo.reporting.statistics import mcnemar
from mf_zoo.training import RECIPES, Machine, Recipe, RunSettings, recipes, runs

if TYPE_CHECKING:
    from mf_zoo.reporting.predictions import Predictions

PAGE = "report.html"
_WORST = 24
_MOST_CONFUSED = 5


def run_report(
    folders: Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Path:
    """Writes an HTML page about runs, finished or not, that opens without a network.

    It has the settings, the curves of error, loss and learning rate, the depth order moving over
    the epochs, the step sizes, and a table that compares several runs. With the images it also has
    for each finished run the confusion matrix, the calibration and the worst-confused images, and
    for a mean-field network and its plain twin the images that only one of them gets right.

    Args:
        folders: The run folders, which `mf_zoo.training.train` has written.
        output: The page; `None` for `report.html` in the folder of a single run.
        data_dir: Where `mf_zoo.data.load` finds the images; `None` to leave out what needs them.

    Returns:
        The path of the page.

    Raises:
        UserError: If a folder holds no run, a file of it is not what it must be, the images cannot
            be loaded, plotly is not installed, or there are several runs and no `output`.

    Example:

    ```python
    mf_zoo.reporting.run_report(["runs/a", "runs/b"], "a-and-b.html", data_dir="data")
    ```
    """
    folders = [Path(folder) for folder in folders]
    if output is None and len(folders) != 1:
        raise UserError(
            f"`output` must be given for a report on several runs. Received: {len(folders)} runs"
        )
    target = folders[0] / PAGE if output is None else Path(output)
    plots.graph_objects()  # says at once that plotly is missing
    names = [folder.resolve().name for folder in folders]
    found = [
        Run.of_folder(folder, None if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]
    measured = [None if data_dir is None else _measured(run, Path(data_dir)) for run in found]
    write_page(found, measured, target)
    return target


def _measured(run: Run, data_dir: Path) -> "Predictions | None":
    """What a finished run's network says of the images that the run was evaluated on."""
    if not run.finished:
        return None
    from mf_zoo.reporting.predictions import Predictions
    from mf_zoo.training import assembly, evaluate_weights

    weights = run.place / runs.WEIGHTS
    with user_errors():
        found = files.sha256(weights) if weights.is_file() else "no file"
        if found != run.facts["sha256"]:
            raise UserError(
                f"The weights of a finished run, {weights}, must be those that its {runs.RESULT} "
                f"names by their sha256. Received: {found}"
            )
        evaluation = evaluate_weights(run.place, weights, data_dir=data_dir)
        settings = RunSettings.from_dict(run.config)
    _, (images, labels), split = assembly.load_data(
        settings.dataset, data_dir, settings.holdout, settings.limit
    )
    names = data.class_names(settings.dataset)
    return Predictions(evaluation, images, labels, names, _images(split, settings.limit))


def _images(split: str, limit: int | None) -> str:
    """What the images are that a run is evaluated on."""
    some = "" if limit is None else f", of the first {limit:,} of the split"
    return "the test images" + some if split == "test" else f"the {split}{some}, held out"


def write_page(
    found: Sequence[Run], measured: "Sequence[Predictions | None]", output: Path
) -> None:
    """Writes the page.

    Args:
        found: The runs.
        measured: For each run what its network says of images, if that is known.
        output: The page.

    Raises:
        UserError: Without plotly, or if it cannot be written.
    """
    several = len(found) > 1
    first = found[0]
    title = f"{len(found)} runs" if several else f"{first.facts['model']} on {_title(first)}"
    header = "" if several else page.facts(_header(first, output))
    made = page.Page(title, header, page.paragraph(f"Made by mf_zoo {__version__}."))
    if several:
        made.add("Comparison", _comparison(found, measured), _pairs(found, measured))
    settled = [run for run in found if run.config is not None]
    if settled:
        made.add("Settings", _settings(settled))
    if any(run.history for run in found):
        figures = plots.curves(found)
        drawn = "".join(made.figure(figure, name) for name, figure in figures.items())
        made.add(
            "Error, loss and learning rate",
            page.paragraph(
                "Solid lines are of the images evaluated on, dotted ones of the training images as "
                "they were trained on, with augmentation."
            ),
            f'<div class="wide">{drawn}</div>',
        )
    else:
        made.add("Error, loss and learning rate", page.paragraph("No epoch is finished yet."))
    for run, answers in zip(found, measured, strict=True):
        if several:
            made.add(
                run.name,
                page.facts(_header(run, output)),
                page.heading(3, "Depth order"),
                *_depth(made, run),
                page.heading(3, "Predictions"),
                *_answers(made, run, answers, 4),
            )
        else:
            made.add("Depth order", *_depth(made, run))
            made.add("Predictions", *_answers(made, run, answers, 3))
    made.write(output)


def _title(run: Run) -> str:
    with user_errors():
        return data.get(run.facts["dataset"]).title


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} %"


def _header(run: Run, output: Path) -> Iterator[tuple[str, str]]:
    """The facts of a run: names, and HTML."""
    said, escape = run.facts, page.html.escape
    yield "model", escape(said["model"])
    yield "dataset", escape(_title(run))
    yield "recipe", escape(f"{said['recipe']}, seed {said['seed']}")
    done, planned = run.epochs, run.planned_epochs
    state = "" if run.finished else "; the run is not finished"
    yield "epochs", f"{done if done else planned if run.finished else 0} of {planned}{state}"
    what = "final error" if run.finished else "error so far"
    where = said.get("evaluated_on", "test")
    images = "test images" if where == "test" else where
    yield what, escape(f"{_percent(run.error)} on the {images}")
    for key, name in (("test_loss", "loss"), ("test_ece", "calibration error (ECE)")):
        if said.get(key) is not None:
            yield name, f"{said[key]:.4f}" if key == "test_loss" else _percent(said[key])
    if run.stages:
        yield "swaps in the depth order", f"{run.swaps:,}"
    if "parameters" in said:
        yield "parameters", f"{said['parameters']:,}"
    yield "training took", f"{run.seconds:,.0f} seconds"
    if said.get("device"):
        yield "device", escape(f"{said['device']}; backend {said.get('backend', 'unknown')}")
    if said.get("date"):
        yield "date", escape(said["date"])
    if said.get("command"):
        yield "command", page.code(said["command"])
    record = run.record()
    if record is not None:
        file = record_file(record)
        loaded = page.code(f'{record.model}(weights="{record.name}")')
        yield "registered weights", f"{page.link(file, output, file.name)}, loaded by {loaded}"
    if run.config is not None:
        yield "run folder", page.link(run.place, output, str(run.place))


# --- Settings --------------------------------------------------------------------------------


def _values(run: Run) -> dict[str, tuple[Any, Any]]:
    """Each setting of a run with its default: that of its recipe, if it has one of ours."""
    config = run.config
    recipe = config["recipe"]
    base = RECIPES.get(recipe["name"], Recipe(name="default"))
    found = {key: (recipe.get(key), getattr(base, key)) for key in recipes.fields()}
    for kind in (RunSettings, Machine):
        for field in dataclasses.fields(kind):
            if field.name not in ("recipe", "model"):
                default = field.default
                if default is dataclasses.MISSING:
                    default = config.get(field.name)
                found[field.name] = (config.get(field.name), default)
    return found


def _shown(value: Any) -> str:
    if value is None or value == "" or value == [] or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def _settings(found: Sequence[Run]) -> str:
    if len(found) == 1:
        values = _values(found[0])
        changed = [_shown(value) != _shown(default) for value, default in values.values()]
        rows = [
            (key, _shown(value) + (" (changed)" if new else ""), _shown(default))
            for (key, (value, default)), new in zip(values.items(), changed, strict=True)
        ]
        said = f"{sum(changed)} of {len(rows)} settings differ from the defaults of the recipe "
        said += f"{found[0].facts['recipe']} and of the command."
        header = ["setting", "value", "default"]
        different = [row for row, new in zip(rows, changed, strict=True) if new]
        return "\n".join(
            [
                page.paragraph(said),
                page.table(header, different) if different else "",
                page.fold("All settings", page.table(header, rows, changed)),
            ]
        )
    values = [_values(run) for run in found]
    rows = [[key, *(_shown(one[key][0]) for one in values)] for key in values[0]]
    rows.insert(0, ["model", *(run.facts["model"] for run in found)])
    rows.insert(1, ["recipe", *(run.facts["recipe"] for run in found)])
    different = [row for row in rows if len(set(row[1:])) > 1]
    header = ["setting", *(run.name for run in found)]
    alike = "The runs have the same settings."
    return "\n".join(
        [
            page.table(header, different) if different else page.paragraph(alike),
            page.fold("All settings", page.table(header, rows, [row in different for row in rows])),
        ]
    )


# --- Depth order -----------------------------------------------------------------------------


def _depth(made: Page, run: Run) -> list[str]:
    """The moving depth order, and the step sizes."""
    stages = list(run.stages.values())
    if not stages:
        plain = not applications.network(run.facts["model"]).mean_field
        why = (
            f"{run.facts['model']} is a plain network: its blocks have a fixed order and steps."
            if plain
            else "No times are recorded yet."
        )
        return [page.paragraph(why)]
    figure, said = plots.depth_order(stages)
    parts = [
        page.paragraph(
            "A line is a particle, its height its time: the lower one is applied earlier. Where "
            "lines cross, particles swap places; one that has just moved has a dark ring."
        ),
        made.figure(figure, "Times of the particles over the epochs", said),
    ]
    steps = plots.step_sizes(stages)
    if steps is None:
        parts.append(page.paragraph("No step sizes: the quadrature rule is not recorded."))
    else:
        parts.append(made.figure(steps, "Step sizes over the epochs"))
    return parts


# --- Predictions -----------------------------------------------------------------------------


def _answers(made: Page, run: Run, answers: "Predictions | None", level: int) -> list[str]:
    """Confusion matrix, calibration and worst-confused images, under headings of a level."""
    if answers is None:
        why = (
            "The confusion matrix, the calibration and the worst-confused images need the images: "
            "mf-zoo report RUN --data-dir D."
            if run.finished
            else "The run is not finished: it has no final weights to measure."
        )
        return [page.paragraph(why)]
    measured = answers.evaluation
    names = answers.class_names
    counts = answers.confusion()
    confused = sorted(
        ((int(counts[i, j]), i, j) for i, j in zip(*counts.nonzero(), strict=True) if i != j),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    parts = [
        page.paragraph(
            f"Measured on {measured.images:,} images: {answers.evaluated_on}. "
            f"{int(answers.correct.sum()):,} are right, the error is {measured.error:.2f} %."
        ),
        '<div class="wide"><div>',
        page.heading(level, "Confusion matrix"),
        made.figure(plots.confusion(answers), "Number of images by true and predicted class"),
    ]
    if confused:
        most = "; ".join(
            f"{names[i]} taken for {names[j]}, {count:,} of {int(counts[i].sum()):,}"
            for count, i, j in confused[:_MOST_CONFUSED]
        )
        parts.append(page.paragraph(f"Most often: {most}."))
    confidence = 100 * float(answers.confidence.mean())
    parts += [
        "</div><div>",
        page.heading(level, "Calibration"),
        page.paragraph(
            f"The expected calibration error (ECE) is {measured.ece:.2f} %. The mean confidence is "
            f"{confidence:.2f} %, the accuracy {measured.top1:.2f} %."
        ),
        made.figure(plots.reliability(answers), "Right answers by confidence"),
        "</div></div>",
        page.heading(level, "Worst-confused images"),
        _worst(answers),
    ]
    return parts


def _worst(answers: "Predictions") -> str:
    """The images that the network is surest to be of a class that they are not of."""
    worst = answers.worst(_WORST)
    if not worst:
        return page.paragraph("No image is classified wrongly.")
    items = []
    for i in worst:
        true = answers.class_names[answers.labels[i]]
        taken = answers.class_names[answers.classes[i]]
        sure = f"{100 * answers.confidence[i]:.1f} %"
        picture = page.image(answers.images[i], f"{true}, taken for {taken}, {sure}")
        said = page.html.escape(f"{taken}, {sure}"), page.html.escape(f"true: {true}")
        items.append(f"<li>{picture}<strong>{said[0]}</strong><br>{said[1]}</li>")
    said = "The wrong answers of the highest probability: predicted class with its probability, "
    return page.paragraph(said + "and true class.") + f'<ul class="images">{"".join(items)}</ul>'


# --- Several runs ----------------------------------------------------------------------------


def _comparison(found: Sequence[Run], measured: "Sequence[Predictions | None]") -> str:
    rows = []
    for run, answers in zip(found, measured, strict=True):
        ece = answers.evaluation.ece if answers else run.facts.get("test_ece")
        state = "finished" if run.finished else f"epoch {run.epochs} of {run.planned_epochs}"
        rows.append(
            [
                run.name,
                run.facts["model"],
                state,
                _number(run.error, ".2f"),
                _number(run.loss, ".4f"),
                _number(ece, ".2f"),
                f"{run.swaps:,}" if run.stages else "",
                _number(run.seconds, ",.0f"),
                _number(run.facts.get("parameters"), ",d"),
            ]
        )
    header = ["run", "model", "state", "error in %", "loss", "ECE in %", "swaps", "seconds"]
    return page.table([*header, "parameters"], rows, numbers=6)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _pairs(found: Sequence[Run], measured: "Sequence[Predictions | None]") -> str:
    """Mean-field networks beside their plain twins, by their answers to each image."""
    twins = [(i, j) for i in range(len(found)) for j in _twins(found, i)]
    if not twins:
        return ""
    rows = []
    for i, j in twins:
        one, two = found[i], found[j]
        row = [f"{one.name} and {two.name}"]
        row.append("" if None in (one.error, two.error) else signed(one.error - two.error))
        first, second = measured[i], measured[j]
        if first is not None and second is not None:
            only = [
                int((a & ~b).sum())
                for a, b in itertools.permutations((first.correct, second.correct))
            ]
            row += [f"{only[0]:,}", f"{only[1]:,}", f"{mcnemar(*only):.3g}"]
        else:
            row += [""] * 3
        rows.append(row)
    header = ["mean-field and plain", "difference of errors in points"]
    header += ["only mean-field right", "only plain right", "p (McNemar)"]
    parts = [page.heading(3, "Mean-field networks and their plain twins")]
    parts.append(page.table(header, rows, numbers=4))
    if any(measured[k] is None for pair in twins for k in pair):
        said = "Which images only one of the two gets right needs the images: "
        parts.append(page.paragraph(said + "mf-zoo report RUN... --output FILE --data-dir D."))
    return "\n".join(parts)


def _twins(found: Sequence[Run], i: int) -> Iterator[int]:
    """The plain twins of a mean-field run: trained and evaluated alike but for the times."""
    with user_errors():
        network = applications.network(found[i].facts["model"])
    if not network.mean_field:
        return
    for j, other in enumerate(found):
        if other.facts["model"] == network.architecture.name and _alike(found[i], other):
            yield j


def _alike(one: Run, two: Run) -> bool:
    if one.config is None or two.config is None:  # a record does not have all settings
        return False
    without = recipes.fields("stage", "times")

    def rest(values: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        machine = [field.name for field in dataclasses.fields(Machine)]
        left_out = (*without, *machine, "eval_every")
        return {key: value for key, (value, _) in values.items() if key not in left_out}

    return rest(_values(one)) == rest(_values(two))
