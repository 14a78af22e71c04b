"""A training run: `model.fit` between a config that says everything and a measured result."""

import contextlib
import inspect
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mf_zoo import applications, data, devices, files
from mf_zoo import weights as registry
from mf_zoo.devices import accelerator
from mf_zoo.errors import UserError, user_errors
from mf_zoo.training import distribution, pretrained, runs
from mf_zoo.training.callbacks import (
    AverageLogs,
    Checkpoint,
    DepthOrder,
    History,
    random_states,
)
from mf_zoo.training.evaluation import Evaluation, evaluate
from mf_zoo.training.losses import SmoothedCrossentropy
from mf_zoo.training.on_device import train_on_device
from mf_zoo.training.recipes import Recipe, get_recipe, stored_values
from mf_zoo.training.schedules import learning_rate_schedule

_STAGE_VALUES = ("quadrature", "horizon", "initial_times", "reorder")
EVALUATION_BATCH = 500


def train(
    model: str,
    dataset: str = "cifar10",
    *,
    output: str | Path,
    data_dir: str | Path | None = None,
    recipe: str | Path | Recipe = "paper",
    seed: int = 0,
    resume: bool = False,
    eval_every: int = 1,
    holdout: int = 0,
    limit: int | None = None,
    threads: int | None = None,
    on_device: bool = False,
    distribute: str | None = None,
    weights: str | Path | None = None,
    freeze: Sequence[str] = (),
    tensorboard: bool = False,
    verbose: str | int = "auto",
    command: str | None = None,
) -> dict[str, Any]:
    """Trains a model of `mf_zoo.applications` and writes a run folder.

    The folder holds `config.json` (every setting, versions, device), `history.csv` and
    `times.csv` (a row per epoch, and per epoch and particle), the last epoch's checkpoint with
    `state.json`, and at the end `final.weights.h5` and `result.json`. What counts is the last
    epoch; the test error of the other ones is a record and chooses nothing.

    On one machine's CPU a run killed at any moment and resumed ends with the same weights, to
    the bit, as one that was let alone.

    Args:
        model: Name of a model, see `mf_zoo.applications.list_models()`.
        dataset: `"cifar10"` or `"cifar100"`.
        output: The run folder; must not hold a run unless `resume`.
        data_dir: Where `mf_zoo.data.load` finds the dataset.
        recipe: A name of `RECIPES`, a `.toml` file, or a `Recipe`.
        seed: Of the initial weights and of the order and augmentation of the images.
        resume: Go on with the run in `output`, which must have been started with the same
            settings; starts it if there is none.
        eval_every: Evaluate after so many epochs, and always after the last.
        holdout: Train without the last `holdout` training images and evaluate on them instead
            of on the test images; for making choices.
        limit: Use only the first `limit` images of each split; for trying things out.
        threads: Limit for the threads of the backend (TensorFlow, PyTorch).
        on_device: On the JAX backend, keep the images on the device and run the steps of an epoch
            in one dispatch; the same batches and steps, and nothing to wait for in between.
        distribute: `"data"` divides each batch among all devices, of several processes too; see
            `mf_zoo.training.distribution`. Whatever their number, the run is, up to rounding, that
            of one device with the whole batch: gradients are averaged and BatchNormalization's
            statistics are those of the whole batch, of which at most `devices - 1` images are left
            out at the end of an epoch. (What a dropout drops depends on the number; the zoo's
            networks have none.) All processes must see `output`; the main one writes it.
        weights: Registered weights to start from, such as `"cifar10"`, or a `.weights.h5` file.
            Where the recipe leaves quadrature and horizon at their defaults they are those of
            registered weights; for another number of classes the head starts afresh.
        freeze: Layers that are not trained: names, or patterns as in a shell (`"stage*"`).
        tensorboard: Write TensorBoard logs to the folder's `tensorboard/`.
        verbose: As in `keras.Model.fit`; `"auto"` is a progress bar on a terminal, else a line
            per epoch.
        command: The command line to record.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: If the input is bad, the folder cannot be used, or the loss is no number.

    Example:

    >>> from mf_zoo.training import train
    >>> result = train("MFResNet20", recipe="quick", output="runs/a")  # doctest: +SKIP
    >>> result["test_error"]  # doctest: +SKIP
    """
    with user_errors():
        recipe = get_recipe(recipe)
        builder = applications.get(model)
        model = name_of(builder, model)
        start = pretrained.settings(weights, freeze)
        recipe = pretrained.with_stages_of(weights, model, recipe)
    check_on_device(on_device)
    if on_device and distribute:
        raise UserError(
            "`on_device` keeps all images on one device and excludes `distribute`. "
            f"Received: distribute={distribute!r}"
        )
    check_counts(eval_every=eval_every, holdout=holdout, limit=limit, threads=threads)
    folder = Path(output)
    options = {
        "model": model,
        "dataset": dataset,
        "seed": seed,
        "recipe": recipe.to_dict(),
        "eval_every": eval_every,
        "holdout": holdout,
        "limit": limit,
        **start,
    }
    if threads and not devices.limit_threads(threads):
        print(
            f"note: --threads has no effect on {keras.config.backend()} here; "
            "limit the process with taskset",
            file=sys.stderr,
        )
    with contextlib.ExitStack() as stack, distribution.start(distribute) as group:

        def open_run() -> dict[str, Any]:
            stack.enter_context(files.locked(folder))
            return _open_run(folder, options, resume)

        return _train(
            folder,
            builder,
            recipe,
            options,
            group.from_main(open_run),
            group,
            data_dir=data_dir,
            threads=threads,
            on_device=on_device,
            distribute=distribute,
            tensorboard=tensorboard,
            verbose=verbose,
            command=command or shlex.join(sys.argv),
        )


def _train(
    folder: Path,
    builder,
    recipe: Recipe,
    options: dict[str, Any],
    state: dict[str, Any],
    group: distribution.Group,
    *,
    data_dir: str | Path | None,
    threads: int | None,
    on_device: bool,
    distribute: str | None,
    tensorboard: bool,
    verbose: str | int,
    command: str,
) -> dict[str, Any]:
    """The run itself, in a folder that is ours, from `state` on."""
    dataset, seed, eval_every = options["dataset"], options["seed"], options["eval_every"]
    epoch = state["epoch"]
    if recipe.batch_size % group.devices:
        raise UserError(
            "`batch_size` must be a multiple of the number of devices that share a batch. "
            f"Received: batch_size={recipe.batch_size}, {group.devices} devices"
        )
    keras.utils.set_random_seed(seed)
    (images, labels), (test_images, test_labels), split = load_data(
        dataset, data_dir, options["holdout"], options["limit"]
    )
    with user_errors():
        classes = len(data.class_names(dataset))
        batches = make_batches(
            images,
            labels,
            recipe,
            seed,
            classes,
            divisible_by=group.devices,
            part=(group.process, group.processes),
        )
        schedule = learning_rate_schedule(recipe, len(batches))
    config = {
        **options,
        "train_images": len(images),
        "evaluated_on": split,
        "evaluation_images": len(test_images),
        "steps_per_epoch": len(batches),
        "backend": keras.config.backend(),
        "versions": devices.versions(),
        "device": devices.device(threads),
        "threads": threads,
        "on_device": on_device,
        "distribute": distribute,
        "processes": group.processes,
        "devices": group.devices,
        "data_dir": None if data_dir is None else str(data_dir),
        "command": command,
        "date": devices.now(),
    }
    with group.scope():
        if epoch == 0:
            with user_errors(), dtype_policy(recipe.dtype_policy):
                network = build_network(
                    builder, recipe, classes, options["weights"], options["freeze"]
                )
                compile_network(network, recipe, schedule, seed)
        else:
            network = _load_checkpoint(folder, state)
            if group.is_main:
                print(f"resuming {folder} after epoch {epoch} of {recipe.epochs}", file=sys.stderr)
        group.prepare(network)
    if group.is_main:
        _prepare_files(folder, config, epoch)

    if epoch < recipe.epochs:
        test_targets = test_labels
        if recipe.soft_labels:
            test_targets = np.eye(classes, dtype="float32")[test_labels]
        mine = _part_of(group, test_images, test_targets)
        callbacks = [
            SetEpoch(batches, seed),
            DepthOrder(folder / runs.TIMES if group.is_main else None),
            History(folder / runs.HISTORY if group.is_main else None, batches.count),
        ]
        if group.metrics_are_local:
            share = float(mine[2].sum()) / len(test_images) if len(mine) == 3 else 1.0
            callbacks.insert(0, AverageLogs(group, share * group.processes))
        if group.is_main:
            callbacks.append(Checkpoint(folder, group))
        if tensorboard and group.is_main:
            callbacks.append(_tensorboard(folder))
        if not group.is_main:
            verbose = 0
        elif verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        evaluated = {*range(eval_every, recipe.epochs, eval_every), recipe.epochs}
        training_data = batches
        if on_device:
            # Builds the metrics, which Keras would build from a batch of images in `fit`.
            first = slice(EVALUATION_BATCH)
            network.evaluate(test_images[first], test_targets[first], verbose=0)
            training_data = train_on_device(network, batches)
        with group.scope():
            network.fit(
                training_data,
                epochs=recipe.epochs,
                initial_epoch=epoch,
                shuffle=False,  # `batches` shuffles; Keras would add an order no seed can repeat.
                validation_data=mine,
                validation_batch_size=_evaluation_batch(group),
                validation_freq=sorted(evaluated),
                callbacks=callbacks,
                verbose=verbose,
            )

    with dtype_policy("float32"):
        final = build_network(builder, recipe, classes)
    final.set_weights(network.get_weights())
    scores = _evaluate(final, dataset, test_images, test_labels)
    return group.from_main(lambda: _write_result(folder, config, recipe, final, scores))


def evaluate_weights(
    run_dir: str | Path, weights: str | Path, *, data_dir: str | Path | None = None
) -> Evaluation:
    """Measures a weight file as a finished run measured its own.

    Args:
        run_dir: The run folder, which says what the network is and what it is evaluated on.
        weights: A `.weights.h5` file, or the `.weights.json` index of shards.
        data_dir: As in `train`.

    Returns:
        An `Evaluation`.

    Raises:
        UserError: If the folder holds no run, or the data cannot be loaded.
        ValueError: If the weights are missing, damaged, or of another network.

    Example:

    >>> file = "runs/a/final.weights.h5"
    >>> evaluate_weights("runs/a", file, data_dir="D").error  # doctest: +SKIP
    8.92
    """
    folder = Path(run_dir)
    config = files.read_json(folder / runs.CONFIG)
    if config is None:
        raise UserError(f"A run folder must hold a {runs.CONFIG}. Received: {folder}")
    _, (images, labels), _ = load_data(
        config["dataset"], data_dir, config["holdout"], config["limit"]
    )
    with user_errors(), dtype_policy("float32"):
        recipe = Recipe(**config["recipe"])
        classes = len(data.class_names(config["dataset"]))
        network = build_network(applications.get(config["model"]), recipe, classes)
    registry.load(network, weights)
    return _evaluate(network, config["dataset"], images, labels)


def _evaluate(network: keras.Model, dataset: str, images, labels) -> Evaluation:
    groups = data.superclasses(dataset)
    return evaluate(
        network, images, labels, EVALUATION_BATCH, from_logits=True, superclasses=groups
    )


def _prepare_files(folder: Path, config: dict[str, Any], epoch: int) -> None:
    """Has the run folder hold what it does after `epoch`, and no more."""
    if epoch == 0:
        with files.writing(folder):
            for name in (runs.HISTORY, runs.TIMES):
                (folder / name).unlink(missing_ok=True)
        files.write_json(folder / runs.CONFIG, config)
        return
    for name in (runs.HISTORY, runs.TIMES):
        runs.drop_rows_after(folder / name, epoch)


def _part_of(group: distribution.Group, images, targets) -> tuple[np.ndarray, ...]:
    """The evaluation images of one process, those that only fill up a batch without weight."""
    if group.devices == 1:
        return images, targets
    count = -(-len(images) // group.devices) * group.devices
    size = count // group.processes
    mine = np.arange(group.process * size, (group.process + 1) * size)
    weights = (mine < len(images)).astype("float32")
    return images[mine % len(images)], targets[mine % len(images)], weights


def _evaluation_batch(group: distribution.Group) -> int:
    """Evaluation images that one process takes at a time."""
    return max(EVALUATION_BATCH // group.devices, 1) * group.devices // group.processes


def _write_result(
    folder: Path, config: dict[str, Any], recipe: Recipe, final: keras.Model, scores: Any
) -> dict[str, Any]:
    """Writes the weights and `result.json`, the end of a run."""
    weights = folder / runs.WEIGHTS
    digest = files.write_atomically(weights, final.save_weights)
    history = files.read_rows(folder / runs.HISTORY)
    seconds = sum(float(row["seconds"]) for row in history)
    result = {
        "model": config["model"],
        "dataset": config["dataset"],
        "evaluated_on": config["evaluated_on"],
        "test_error": round(scores.error, 6),
        "test_top5_error": round(scores.top5_error, 6),
        "test_coarse_error": None if scores.coarse_error is None else round(scores.coarse_error, 6),
        "test_loss": scores.nll,
        "test_ece": scores.ece,
        "train_loss": float(history[-1]["loss"]),
        "train_error": 100 * (1 - float(history[-1]["accuracy"])),
        "epochs": recipe.epochs,
        "recipe": recipe.name,
        "seed": config["seed"],
        "parameters": final.count_params(),
        "order_swaps": sum(int(row["order_swaps"]) for row in history),
        "train_seconds": round(seconds, 1),
        "images_per_second": round(config["train_images"] * len(history) / seconds, 1),
        "backend": config["backend"],
        "device": config["device"],
        "command": (files.read_json(folder / runs.CONFIG) or config)["command"],
        "date": devices.now(),
        "file": runs.WEIGHTS,
        "size": weights.stat().st_size,
        "sha256": digest,
    }
    files.write_json(folder / runs.RESULT, result)
    return result


class SetEpoch(keras.callbacks.Callback):
    """Makes everything random in an epoch a function of the seed and the epoch.

    The batches are by themselves. Keras's dropout on PyTorch draws from the global generator,
    which no checkpoint keeps.
    """

    def __init__(self, batches, seed: int):
        super().__init__()
        self.batches = batches
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
        keras.utils.set_random_seed(
            int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
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


def name_of(builder, name: str) -> str:
    """The model's name as its builder spells it."""
    return getattr(builder, "__name__", name)


def check_counts(**counts: int | None) -> None:
    """Refuses what is no whole number from 1 (`holdout`: from 0); `None` is left alone."""
    for name, value in counts.items():
        least = 0 if name == "holdout" else 1
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"`{name}` must be a whole number from {least}. Received: {value!r}")


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


def open_folder(
    folder: Path,
    options: dict[str, Any],
    resume: bool,
    *,
    file: str = runs.CONFIG,
    kind: str = "run",
) -> bool:
    """Checks that what is asked for can be done in a folder.

    Args:
        folder: The folder, which exists.
        options: The settings, those of the recipe under `"recipe"`.
        resume: Whether to go on with what is in the folder.
        file: Name of the file that holds the settings of what is in the folder.
        kind: What that is, for messages.

    Returns:
        Whether there is something to go on with.

    Raises:
        UserError: If it is finished, has other settings, is not to be resumed, or is no such
            folder.
    """
    config = files.read_json(folder / file)
    if (folder / runs.RESULT).exists():
        raise UserError(f"The {kind} in {folder} is finished: see {folder / runs.RESULT}")
    if config is None:
        names = {path.name for path in folder.iterdir()} - {files.LOCK}
        if names and f"partial-{file}" not in names:
            raise UserError(f"The output folder must be new or empty. Received: {folder}")
        return False
    if not resume:
        raise UserError(
            f"{folder} holds a {kind} already: go on with it by --resume, or name another folder"
        )
    now = {**options, "backend": keras.config.backend()}
    differing = [
        f"{key} is {there.get(key)!r} there and {value!r} here"
        for there, here in (
            (config, now),
            (stored_values(config["recipe"]), options["recipe"]),
        )
        for key, value in here.items()
        if key != "recipe" and there.get(key) != value
    ]
    if differing:
        raise UserError(
            f"A {kind} is resumed with the settings it was started with. {folder}: "
            + "; ".join(differing)
        )
    return True


def _open_run(folder: Path, options: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Looks at the run folder, and reads from `state.json` where to go on."""
    if not open_folder(folder, options, resume):
        return {"epoch": 0}
    state = files.read_json(folder / runs.STATE)
    if state is None:
        return {"epoch": 0}
    path = folder / state["checkpoint"]
    if not path.exists() or files.sha256(path) != state["sha256"]:
        raise UserError(
            f"The checkpoint {path} is missing or damaged: it does not have the SHA-256 in "
            f"{folder / runs.STATE}"
        )
    return state


def load_data(dataset: str, data_dir, holdout: int, limit: int | None):
    """Loads training and evaluation images, and names what is evaluated on."""
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
    return data.Augmentation(
        **{key: getattr(recipe, key) for key in ("padding", "flip", "cutout", "mixup", "cutmix")}
    )


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


def stage_values(builder, name: str, recipe: Recipe) -> dict[str, Any]:
    """The recipe's values that go to the builder of a model with learned times.

    Raises:
        UserError: If a model without learned times is given another value than the default.
    """
    known = inspect.signature(builder).parameters
    values = {key: getattr(recipe, key) for key in _STAGE_VALUES}
    plain = Recipe(name="default")
    for key in [key for key in values if key not in known]:
        if values.pop(key) != getattr(plain, key):
            raise UserError(
                f"{name} has no learned times and takes no `{key}`. "
                f"Received: {key}={getattr(recipe, key)!r}"
            )
    return values


def build_network(
    builder,
    recipe: Recipe,
    classes: int | None,
    weights: str | None = None,
    freeze: Sequence[str] = (),
) -> keras.Model:
    """Builds the model, ending in logits; stage settings go to builders that know them."""
    values = stage_values(builder, name_of(builder, "This model"), recipe)
    if weights is not None:  # What the recipe leaves at its default is as the weights want it.
        plain = Recipe(name="default")
        values = {key: value for key, value in values.items() if value != getattr(plain, key)}
    network = builder(weights=weights, classes=classes, classifier_activation=None, **values)
    pretrained.freeze_layers(network, freeze)
    return network


def compile_network(network: keras.Model, recipe: Recipe, schedule, seed: int) -> None:
    """Compiles a network that ends in logits, as the recipe says."""
    from mf_zoo.optimizers import MeanFieldSGD

    optimizer = MeanFieldSGD(
        learning_rate=schedule,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay or None,
        coupled_weight_decay=True,
        time_learning_rate_multiplier=recipe.time_learning_rate_multiplier,
        mean_field_scaling=recipe.mean_field_scaling,
        noise_temperature=recipe.noise_temperature,
        seed=seed,
    )
    metrics = keras.metrics
    if recipe.soft_labels:
        nll = metrics.CategoricalCrossentropy(from_logits=True, name="nll")
    else:
        nll = metrics.SparseCategoricalCrossentropy(from_logits=True, name="nll")
    # Measured on TensorFlow's CPU, ResNet-20: a step takes about twice as long with XLA.
    slow_jit = keras.config.backend() == "tensorflow" and accelerator() is None
    network.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(recipe.label_smoothing),
        weighted_metrics=["accuracy", nll],  # Weights 0 and 1, where images fill up a batch.
        jit_compile=False if slow_jit else "auto",
    )


def _load_checkpoint(folder: Path, state: dict[str, Any]) -> keras.Model:
    # Imported for the classes that they register with Keras.
    import mf_zoo.layers
    import mf_zoo.optimizers  # noqa: F401

    path = folder / state["checkpoint"]
    try:
        network = keras.saving.load_model(path)
        for variable, value in zip(
            random_states(network), state.get("random_states", []), strict=True
        ):
            variable.assign(np.asarray(value, dtype=variable.dtype))
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise UserError(f"The checkpoint {path} cannot be loaded: {error}") from error
    return network


def _tensorboard(folder: Path) -> keras.callbacks.Callback:
    try:
        import tensorboard  # noqa: F401
        import tensorflow  # noqa: F401  # Keras's callback writes through it on every backend.
    except ImportError as error:
        raise UserError(
            f"TensorBoard logs need the packages tensorflow and tensorboard. Received: {error}"
        ) from error
    return keras.callbacks.TensorBoard(str(folder / runs.TENSORBOARD), write_graph=False)
