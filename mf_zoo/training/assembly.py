"""What a run is assembled from: data, batches, network, optimizer."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from mf_zoo import applications, data, devices
from mf_zoo.errors import UserError, short, user_errors
from mf_zoo.training import pretrained
from mf_zoo.training.losses import SmoothedCrossentropy
from mf_zoo.training.recipes import Recipe

EVALUATION_BATCH = 500


def load_data(dataset: str, data_dir, holdout: int, limit: int | None):
    """Loads training and evaluation images, and names what is evaluated on.

    Args:
        dataset, holdout, limit: As in `RunSettings`.
        data_dir: Where `mf_zoo.data.load` finds the dataset.

    Returns:
        `(images, labels)` to train on, the same to evaluate on, and what the latter are:
        `"test"` or `"last 5000 training images"`.

    Raises:
        UserError: If the data cannot be loaded, or all of it would be held out.
    """
    with user_errors():
        images, labels = data.load(dataset, "train", data_dir=data_dir)
        images, labels = images[:limit], labels[:limit]
        if not holdout:
            test_images, test_labels = data.load(dataset, "test", data_dir=data_dir)
            return (images, labels), (test_images[:limit], test_labels[:limit]), "test"
    check_holdout(holdout, len(images))
    return (
        (images[:-holdout], labels[:-holdout]),
        (images[-holdout:], labels[-holdout:]),
        f"last {holdout} training images",
    )


def augmentation(recipe: Recipe) -> data.Augmentation:
    """The recipe's augmentation of training images."""
    return data.Augmentation(**recipe.values("augmentation"))


def make_batches(
    images, labels, recipe: Recipe, seed: int, classes: int, **parts: Any
) -> data.Batches:
    """The recipe's batches of training images, everything random in them drawn from `seed`."""
    # A `Batches` on TensorFlow too: its epoch can be set, whatever Keras looks at beforehand.
    return data.batches(
        images,
        labels,
        recipe.batch_size,
        shuffle=True,
        augment=augmentation(recipe),
        seed=seed,
        num_classes=classes,
        backend="pydataset",
        **parts,
    )


def builder_values(model: str, recipe: Recipe) -> dict[str, Any]:
    """The recipe's values that go to the builder of a network.

    Args:
        model: Name of the network.
        recipe: The recipe.

    Returns:
        The values by name: those of stages for a network with learned times only.

    Raises:
        UserError: If a network without learned times is given another value than the default.
    """
    stage, plain = recipe.values("stage"), Recipe(name="default")
    values = {key: value for key, value in recipe.values("network").items() if value is not None}
    if applications.network(model).mean_field:
        return {**values, **stage}
    for key, value in stage.items():
        if value != getattr(plain, key):
            raise UserError(
                f"{model} has no learned times and takes no `{key}`. Received: {key}={value!r}"
            )
    return values


def build_network(
    model: str,
    recipe: Recipe,
    classes: int | None = None,
    weights: str | None = None,
    freeze: Sequence[str] = (),
    **others: Any,
) -> keras.Model:
    """Builds a network of the zoo that ends in logits.

    Args:
        model: Name of the network.
        recipe: Its stage values go to networks with learned times.
        classes: Number of classes; `None` for that of the weights or the dataset.
        weights: Registered name or file to start from; `None` for random weights.
        freeze: Patterns of the names of layers that are not trained.
        **others: Further arguments of the builder, such as `dataset`.

    Returns:
        The model.
    """
    values = builder_values(model, recipe)
    if weights is not None:  # What the recipe leaves at its default is as the weights want it.
        plain = Recipe(name="default")
        values = {key: value for key, value in values.items() if value != getattr(plain, key)}
    network = applications.get(model)(
        weights=weights, classes=classes, classifier_activation=None, **values, **others
    )
    pretrained.freeze_layers(network, freeze)
    return network


def compile_network(network: keras.Model, recipe: Recipe, schedule, seed: int) -> None:
    """Compiles a network that ends in logits, as the recipe says."""
    from mf_zoo.optimizers import MeanFieldSGD

    values = recipe.values("optimizer", "times")
    optimizer = MeanFieldSGD(
        learning_rate=schedule,
        coupled_weight_decay=True,
        use_ema=recipe.ema_momentum > 0,
        ema_momentum=recipe.ema_momentum or 0.99,
        seed=seed,
        **{**values, "weight_decay": recipe.weight_decay or None},
    )
    metrics = keras.metrics
    if recipe.soft_labels:
        nll = metrics.CategoricalCrossentropy(from_logits=True, name="nll")
    else:
        nll = metrics.SparseCategoricalCrossentropy(from_logits=True, name="nll")
    network.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(recipe.label_smoothing),
        weighted_metrics=["accuracy", nll],  # Weights 0 and 1, where images fill up a batch.
        jit_compile=devices.jit_compile(),
    )


@contextlib.contextmanager
def dtype_policy(policy: str) -> Iterator[None]:
    """Sets the global dtype policy for a while."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def check_counts(**counts: int | None) -> None:
    """Refuses what is no whole number from 1 (`holdout`: from 0); `None` is left alone."""
    for name, value in counts.items():
        least = 0 if name == "holdout" else 1
        if value is not None and (not isinstance(value, int) or not least <= value < 2**63):
            upto = f" to {2**63 - 1}" if isinstance(value, int) and value > 0 else ""
            raise UserError(
                f"`{name}` must be a whole number from {least}{upto}. Received: {short(value)}"
            )


def check_on_device(on_device: bool) -> None:
    """Refuses `on_device` on a backend that cannot do it."""
    if on_device and keras.config.backend() != "jax":
        raise UserError(
            f"`on_device` needs the JAX backend. Received: backend={keras.config.backend()!r}"
        )


def check_holdout(holdout: int, images: int) -> None:
    """Refuses to hold out all training images."""
    if holdout >= images:
        raise UserError(
            f"`holdout` must be less than the {images} training images. Received: {holdout}"
        )
