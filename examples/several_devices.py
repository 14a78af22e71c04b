"""Train on any dataset of tensorflow-datasets, of any size, by all devices there are.

    python examples/several_devices.py imagenet2012 --data-dir data --model MFResNet56 \\
        --image-size 224 --batch 1024 --learning-rate 0.4 --epochs 90 --output imagenet.keras

trains on all devices of this machine (PyTorch: `torchrun --nproc-per-node N examples/...`). On JAX
several processes, of several machines too, train together with the environment variables of
`keras.distribution.initialize`. Batch and learning rate are those of all devices together. After
each epoch the model is saved; the same command resumes from the last one saved.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import keras

import mf_zoo
import mf_zoo.layers
import mf_zoo.optimizers  # Keras loads a saved model if it knows the classes in it.
from mf_zoo import files
from mf_zoo.errors import UserError
from mf_zoo.training import Recipe, distribution, learning_rate_schedule


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="one that tensorflow-datasets has prepared")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", default="MFResNet56")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=0.4)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--dtype-policy", default="float32")
    parser.add_argument("--output", type=Path, required=True, help="a .keras file that all see")
    options = parser.parse_args(arguments)
    try:
        with distribution.start("data") as group:
            train(options, group)
    except (UserError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def train(options: argparse.Namespace, group: distribution.Group) -> None:
    """Trains as a process of the group."""
    if options.batch % group.devices:
        raise UserError(
            "`--batch` must be a multiple of the number of devices. "
            f"Received: {options.batch}, {group.devices} devices"
        )
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(options.dtype_policy)
    resumed = group.from_main(options.output.exists)
    settings = {
        "batch_size": options.batch // group.processes,
        "data_dir": options.data_dir,
        "image_size": options.image_size,
        "crop": "random",
        "shuffle": True,
        "augment": mf_zoo.data.Augmentation(padding=0, flip=True),
        "drop_remainder": True,
        "shard": (group.process, group.processes),
    }
    data = mf_zoo.data.stream(options.dataset, options.split, **settings)
    with group.scope():
        model = keras.saving.load_model(options.output) if resumed else build(options, len(data))
        group.prepare(model)
        steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        epoch = steps // len(data)
        if epoch:
            data = mf_zoo.data.stream(
                options.dataset, options.split, **settings, initial_epoch=epoch
            )
        model.fit(
            data,
            epochs=options.epochs,
            initial_epoch=epoch,
            callbacks=[Save(options.output, group)] if group.is_main else [],
            verbose=2 if group.is_main else 0,
        )


def build(options: argparse.Namespace, steps: int) -> keras.Model:
    """The network, compiled with the settings of Goyal et al. 2017 (arXiv 1706.02677)."""
    model = mf_zoo.applications.get(options.model)(
        input_shape=(options.image_size, options.image_size, 3),
        classes=options.classes,
        classifier_activation=None,
    )
    recipe = Recipe(
        name="imagenet",
        epochs=options.epochs,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        schedule="cosine",
        warmup_epochs=min(5.0, options.epochs / 2),
    )
    model.compile(
        mf_zoo.optimizers.MeanFieldSGD(
            learning_rate_schedule(recipe, steps),
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            coupled_weight_decay=True,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class Save(keras.callbacks.Callback):
    """Saves the model after each epoch, in the main process; a kill leaves the file whole."""

    def __init__(self, path: Path, group: distribution.Group):
        super().__init__()
        self.path = path
        self.group = group

    def on_epoch_end(self, epoch, logs=None):
        with self.group.alone():
            files.write_atomically(self.path, self.model.save)


if __name__ == "__main__":
    main()
