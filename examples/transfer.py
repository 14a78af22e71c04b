"""What pretrained weights are worth: fine-tuned on the other CIFAR, against training from scratch.

    python examples/transfer.py --data-dir D --output transfer.csv

`D` is a folder that `mf_zoo.data.load` reads: with `cifar10.npz` and `cifar100.npz`, or one of
tensorflow-datasets. Each network is trained twice on each dataset by `model.fit`, with the same
images in the same order, the same recipe and the same number of epochs: once from the weights of
the other dataset with a fresh head, once from random weights. Runs that the output file holds are
not run again.
"""

import argparse
import datetime
import time
import warnings
from pathlib import Path

import keras

import mf_zoo
from mf_zoo import files, markdown

OTHER = {"cifar100": "cifar10", "cifar10": "cifar100"}
SETTINGS = ("model", "weights", "digest", "dataset", "images", "epochs", "learning_rate", "seed")
COLUMNS = (*SETTINGS, "test_images", "test_error", "seconds", "backend", "keras", "date")


def train(settings: dict, data_dir: str) -> dict:
    """Trains one network and returns its row of the table.

    Args:
        settings: A value for each name of `SETTINGS`; `weights` is `""` for random weights, and
            `digest` then too. Else that is the first digits of the digest of the weights.
        data_dir: Where `mf_zoo.data.load` finds the dataset.

    Returns:
        A value for each name of `COLUMNS`.
    """
    dataset, images = settings["dataset"], settings["images"]
    keras.utils.set_random_seed(settings["seed"])
    train_images, train_labels = mf_zoo.data.load(dataset, f"train[:{images}]", data_dir=data_dir)
    test_images, test_labels = mf_zoo.data.load(dataset, "test", data_dir=data_dir)
    augment = mf_zoo.data.Augmentation(padding=4, flip=True)
    batches = mf_zoo.data.batches(
        train_images, train_labels, 128, shuffle=True, augment=augment, seed=settings["seed"]
    )
    with warnings.catch_warnings():
        # "The body is loaded, the head starts afresh" is what is wanted here.
        warnings.filterwarnings("ignore", message=".*the body is loaded")
        model = mf_zoo.applications.get(settings["model"])(
            weights=settings["weights"] or None,
            classes=len(mf_zoo.data.class_names(dataset)),
            classifier_activation=None,
        )
    steps = settings["epochs"] * len(batches)
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - warmup),
        warmup_target=settings["learning_rate"],
        warmup_steps=warmup,
    )
    model.compile(
        mf_zoo.optimizers.MeanFieldSGD(
            schedule, momentum=0.9, nesterov=True, weight_decay=5e-4, coupled_weight_decay=True
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # On TensorFlow's CPU compilation by XLA makes a training step slower.
        jit_compile=keras.config.backend() == "jax",
    )
    start = time.perf_counter()
    # `shuffle=False`: the batches shuffle themselves, in an order that the seed repeats.
    model.fit(batches, epochs=settings["epochs"], shuffle=False, verbose=2)
    seconds = time.perf_counter() - start
    accuracy = model.evaluate(test_images, test_labels, batch_size=500, verbose=0)[1]
    return {
        **settings,
        "test_images": len(test_images),
        "test_error": f"{100 * (1 - accuracy):.2f}",
        "seconds": f"{seconds:.0f}",
        "backend": keras.config.backend(),
        "keras": keras.__version__,
        "date": datetime.date.today().isoformat(),
    }


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table, both starts of a network side by side."""
    header = ["model", "dataset", "images", "epochs", "from scratch", "pretrained on", "fine-tuned"]
    lines = []
    keys = [key for key in SETTINGS if key not in ("weights", "digest")]
    errors = {(*(str(r[k]) for k in keys), r["weights"]): r["test_error"] for r in rows}
    for row in rows:
        key = tuple(str(row[k]) for k in keys)
        if row["weights"] and (scratch := errors.get((*key, ""))):
            cells = [f"`{row['model']}`", row["dataset"], f"{int(row['images']):,}"]
            cells += [str(row["epochs"]), scratch, row["weights"], row["test_error"]]
            lines.append(cells)
    return markdown.table(header, lines)


def main(arguments: list[str] | None = None) -> list[dict]:
    """Trains what is missing in the output file, prints the table and returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--models", nargs="+", default=["MFResNet20", "ResNet20"])
    parser.add_argument("--datasets", nargs="+", default=[*OTHER], choices=[*OTHER])
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.1, help="the peak, of all runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("transfer.csv"))
    options = parser.parse_args(arguments)

    rows = files.read_rows(options.output)
    done = {tuple(row.get(key, "") for key in SETTINGS) for row in rows}
    for dataset in options.datasets:
        for model in options.models:
            for weights in ("", OTHER[dataset]):
                settings = {
                    "model": model,
                    "weights": weights,
                    "digest": mf_zoo.weights.get(model, weights).sha256[:12] if weights else "",
                    "dataset": dataset,
                    "images": options.images,
                    "epochs": options.epochs,
                    "learning_rate": options.learning_rate,
                    "seed": options.seed,
                }
                if tuple(map(str, settings.values())) in done:
                    continue
                print(f"{model} on {dataset}, {weights or 'random'} weights", flush=True)
                # In place of a row of weights of that name that have been trained anew since.
                keys = [key for key in SETTINGS if key != "digest"]
                rows = [row for row in rows if any(row[k] != str(settings[k]) for k in keys)]
                found = train(settings, options.data_dir)
                rows.append({key: str(value) for key, value in found.items()})
                files.write_rows(options.output, rows, COLUMNS)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
