"""Fine-tuning, step by step: a network trained on CIFAR-10 learns the 100 classes of CIFAR-100.

    python examples/fine_tune.py --data-dir D

`D` is a folder that `mf_zoo.data.load` reads: with a `cifar100.npz`, or one of tensorflow-datasets
(downloaded there if need be). All of it is plain Keras: what is shown here works with any data.
"""

import argparse

import keras

import mf_zoo


def load(options: argparse.Namespace) -> tuple:
    """Training images with labels, and test images with labels."""
    train = mf_zoo.data.load("cifar100", f"train[:{options.images}]", data_dir=options.data_dir)
    test = f"test[:{min(options.images, 10_000)}]"
    return train, mf_zoo.data.load("cifar100", test, data_dir=options.data_dir)


def build(options: argparse.Namespace) -> tuple[keras.Model, keras.Model]:
    """A pretrained body with a new head: the body, and the whole network."""
    # Without the top a network ends in features. (With `classes=100` it would get a fresh head of
    # its own, which is all you need if you do not freeze anything.)
    body = mf_zoo.applications.get(options.model)(
        weights="cifar10", include_top=False, pooling="avg"
    )
    inputs = keras.Input(body.input_shape[1:])
    features = body(inputs)
    outputs = keras.layers.Dense(100, name="cifar100")(features)
    return body, keras.Model(inputs, outputs, name="fine_tuned")


def compile_model(model: keras.Model, learning_rate: float) -> None:
    """Compiles for training on logits; any Keras optimizer does, this one knows of times."""
    model.compile(
        mf_zoo.optimizers.MeanFieldSGD(learning_rate, momentum=0.9, weight_decay=1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # On TensorFlow's CPU compilation by XLA makes a training step slower.
        jit_compile=keras.config.backend() == "jax",
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the guide; returns the accuracies that it prints, by phase."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", default="MFResNet20", help="one with cifar10 weights")
    parser.add_argument("--images", type=int, default=10_000, help="of each split")
    parser.add_argument("--epochs", type=int, nargs=2, default=(2, 2), help="frozen, unfrozen")
    parser.add_argument("--output", help=".keras file to save the fine-tuned network in")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    (images, labels), test = load(options)
    augment = mf_zoo.data.Augmentation(padding=4, flip=True)
    batches = mf_zoo.data.batches(images, labels, 128, shuffle=True, augment=augment, seed=0)
    body, model = build(options)
    found = {}

    def fit(phase: str, epochs: int) -> None:
        # `shuffle=False`: the batches shuffle themselves, in an order that the seed repeats.
        model.fit(batches, epochs=epochs, shuffle=False, verbose=2)
        found[phase] = model.evaluate(*test, batch_size=500, verbose=0)[1]
        print(f"{phase}: accuracy {100 * found[phase]:.1f} % on {len(test[0])} test images")

    # 1. The body is frozen: only the head learns, and random gradients from a head that knows
    #    nothing yet spoil nothing. A frozen BatchNormalization keeps its statistics, and frozen
    #    times stay where they are.
    body.trainable = False
    compile_model(model, learning_rate=0.1)
    fit("frozen body", options.epochs[0])

    # 2. Everything learns, at a lower rate. `trainable` counts when the model is compiled, so
    #    compile again. Blocks may change places in depth now: the order is part of the weights.
    body.trainable = True
    compile_model(model, learning_rate=0.02)
    fit("all unfrozen", options.epochs[1])

    for stage in mf_zoo.layers.stages(model):
        order = keras.ops.convert_to_numpy(stage.depth_order()).tolist()
        times = ", ".join(f"{time:.3f}" for time in keras.ops.convert_to_numpy(stage.times))
        print(f"{stage.name}: particles in the order of depth {order}, times {times}")
    if options.output:
        model.save(options.output)  # keras.saving.load_model reads it where mf_zoo is imported
    return found


if __name__ == "__main__":
    main()
