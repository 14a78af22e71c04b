"""The networks of the zoo and their recipes as a search space of keras-tuner."""

import contextlib
import time
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters
from keras_tuner.src.engine.tuner_utils import SaveBestEpoch

from mf_zoo import applications, data
from mf_zoo.data.batching import for_fit
from mf_zoo.training import assembly
from mf_zoo.training.callbacks import SetEpoch
from mf_zoo.training.recipes import Recipe, get_recipe
from mf_zoo.training.schedules import learning_rate_schedule
from mf_zoo.tuning import inputs
from mf_zoo.tuning.settings import SearchSettings
from mf_zoo.tuning.space import (
    BATCHES,
    MEAN_FIELD,
    check_recipe,
    check_space,
    default_search,
    recipe_values,
)


class MeanFieldHyperModel(keras_tuner.HyperModel):
    """A network of the zoo and the recipe that trains it, as a hypermodel of keras-tuner.

    What is searched are the model's name (`"model"`) and values of a `mf_zoo.training.Recipe`,
    under their names; the recipe holds all others. `build` makes and compiles the network, `fit`
    trains it in batches of the recipe's size and augmentation. A hyperparameter that matters under
    another one only is conditional on it:

    - those of learned times, on a mean-field model;
    - the rate of the times, on a quadrature rule whose steps depend on them;
    - `horizon` and `mean_field_scaling`, on `fixed_horizon`, which is whether there is a horizon
      other than the number of particles.

    Any tuner of keras-tuner runs it, by `objective="val_accuracy"`. The tuner's own ways to
    override a hyperparameter hold: those given to it as `hyperparameters=`, by `Fixed` or another
    range, conditional or not, with or without `tune_new_entries`.

    **What counts is the last epoch.** `fit` measures the validation images after it, and by default
    only then; so no lucky epoch is chosen, and the checkpoint of a trial is its last epoch's, with
    the optimizer's state. The learning rate's schedule always spans the recipe's `epochs`: a trial
    of Hyperband that trains 3 of 27 epochs is the beginning of the whole training, and one that is
    promoted resumes there and ends with the very weights of a training in one go (models with
    dropout excepted, whose random state is not in the checkpoint).

    `search` of a tuner takes what `keras.Model.fit` takes: see `fit`.

    Args:
        models: Name of a model of `mf_zoo.applications`, or several to choose from.
        classes: Number of classes; `None` for that of the registered weights, else of the dataset.
        dataset: Name of the dataset by whose classes and statistics the models are built, see
            `mf_zoo.data.names()`; `None` for CIFAR-10.
        normalization: Mean and standard deviation of each channel, 0..255; `None` for those of the
            weights, else of the dataset.
        recipe: A name of `mf_zoo.training.RECIPES`, a `.toml` file, or a `Recipe`: the values that
            are not searched, and, where they are among the choices, the defaults of those that
            are.
        search: What to search: names of recipe values, with the ranges of `mf_zoo.tuning.SPACE`,
            or a mapping from names to a list (a choice) or a pair `(low, high)` of numbers (a
            range, logarithmic from a decade on). `None` is all of `SPACE` that applies: without
            the values of learned times for plain models, and without those of the stages for
            pretrained weights, which were trained with theirs.
        weights: Registered weights to start from, such as `"cifar10"`, or a `.weights.h5` file.
            The head starts afresh for another number of `classes`. Where the recipe leaves
            quadrature and horizon at their defaults they are those of the weights.
        freeze: Layers that are not trained: names, or patterns as in a shell (`"stem*"`).
        train_images: Number of images that a model will be trained on, from which follows the
            length of the schedule of a model that comes from `build` and is trained without `fit`.
        seed: Non-negative integer from which initial weights and batches of each trial follow;
            `None` is another one for each. `executions_per_trial` makes sense with `None` only.
        name: Name of the hypermodel.

    Raises:
        ValueError: For models, values or layers that there are not.

    Example:

    ```python
    import keras_tuner

    hypermodel = mf_zoo.tuning.MeanFieldHyperModel(
        "MFResNet20", recipe="quick", search=["learning_rate", "momentum"]
    )
    tuner = keras_tuner.RandomSearch(hypermodel, "val_accuracy", max_trials=20, seed=0)
    tuner.search(images, labels, validation_split=0.1)
    recipe = hypermodel.recipe(tuner.get_best_hyperparameters()[0])
    ```

    Source: O'Malley et al., *KerasTuner*, 2019, https://github.com/keras-team/keras-tuner.
    """

    def __init__(
        self,
        models: str | Sequence[str] = "MFResNet20",
        *,
        classes: int | None = None,
        dataset: str | None = None,
        normalization: Any = None,
        recipe: str | Path | Recipe = "quick",
        search: Iterable[str] | Mapping[str, Any] | None = None,
        weights: str | None = None,
        freeze: Sequence[str] = (),
        train_images: int = 50_000,
        seed: int | None = 0,
        name: str | None = None,
    ):
        super().__init__(name=name)
        models = [models] if isinstance(models, str) else list(models)
        if not models or len(set(models)) < len(models):
            raise ValueError(
                f"`models` must be one name or several different ones. Received: {models}"
            )
        networks = [applications.network(name) for name in models]
        self.models = [network.name for network in networks]
        self.mean_field = [network.name for network in networks if network.mean_field]
        self.classes = classes
        self.dataset = dataset
        self.normalization = normalization
        self.base = get_recipe(recipe)
        check_recipe(self.base)
        self.weights = weights
        self.freeze = [freeze] if isinstance(freeze, str) else list(freeze)
        self.seed = seed
        if type(train_images) is not int or train_images < 1:
            raise ValueError(
                f"`train_images` must be a whole number from 1. Received: {train_images!r}"
            )
        self.train_images = train_images
        if search is None:
            search = default_search(self.models, weights is not None)
        self.space = check_space(search, self.base)
        useless = [name for name in self.space if name in MEAN_FIELD and not self.mean_field]
        if useless:
            raise ValueError(
                f"Plain models have no learned times, and nothing to search in {', '.join(useless)}"
                f". Received: models={models}"
            )

    @classmethod
    def from_settings(cls, settings: SearchSettings) -> "MeanFieldHyperModel":
        """The hypermodel of a search.

        Args:
            settings: The settings of the search.

        Raises:
            ValueError: For models or values that there are not.
        """
        return cls(
            settings.models,
            classes=data.get(settings.dataset).classes,
            dataset=settings.dataset,
            recipe=settings.recipe,
            search=settings.search,
            weights=settings.weights,
            freeze=settings.freeze,
            seed=settings.seed,
        )

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Builds and compiles the network that hyperparameters stand for.

        Args:
            hp: The hyperparameters; those of this hypermodel are added.

        Returns:
            A compiled model that ends in logits.

        Raises:
            ValueError: If `freeze` names no layer of the model.
        """
        model, recipe = self.model_name(hp), self.recipe(hp)
        steps = -(-self.train_images // recipe.batch_size)
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
            # It takes a seed of Keras's, and `train` makes it before the network: with it, the
            # recipe and the seed train there to the very weights of the trial.
            assembly.augmentation(recipe)
        with assembly.dtype_policy(recipe.dtype_policy):
            network = self.network(model, recipe)
            assembly.compile_network(
                network, recipe, learning_rate_schedule(recipe, steps), self._seed()
            )
        # So that a checkpoint, which holds the optimizer's state, finds where to put it.
        network.optimizer.build(network.trainable_variables)
        return network

    def network(self, model: str, recipe: Recipe) -> keras.Model:
        """Builds one of the models, not compiled.

        Args:
            model: Its name.
            recipe: Says how its stages are.

        Returns:
            A model that ends in logits.

        Raises:
            ValueError: For weights that there are not, or if `freeze` names no layer of the model.
        """
        given = {"dataset": self.dataset, "normalization": self.normalization}
        return assembly.build_network(
            model,
            recipe,
            self.classes,
            self.weights,
            self.freeze,
            **{name: value for name, value in given.items() if value is not None},
        )

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        verbose: str | int = 0,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] | None = None,
    ) -> dict[str, float]:
        """Trains a model that `build` made, and measures it at the end.

        It takes what `keras.Model.fit` takes, and so does `search` of a tuner, which hands it on.
        **Arrays** are trained in the recipe's batches with the recipe's augmentation. A **dataset**
        is trained as it is: its batches and its augmentation are its own, and what the recipe says
        of them has no effect.

        Args:
            hp: The hyperparameters that it was built of.
            model: The model.
            x: Training images, `(N, rows, cols, channels)`, 0..255; or a dataset: a
                `keras.utils.PyDataset` (such as `mf_zoo.data.Batches`), a `tf.data.Dataset`, a
                PyTorch `DataLoader`, a grain dataset, or a generator. All trials share the dataset;
                so a generator must have no end, and needs `steps_per_epoch`. An
                `mf_zoo.data.EpochDataset` begins anew with every trial, others may not.
            y: Their classes: integers `(N,)` or `(N, 1)`, or one-hot.
            batch_size: Images a batch, in place of the recipe's, which then must not be searched.
                Of no effect on a dataset.
            epochs: Epoch to end with, `None` for the recipe's number. The schedule spans the
                recipe's epochs, of which these are the first.
            verbose: As in `keras.Model.fit`.
            callbacks: As in `keras.Model.fit`; a tuner adds its own.
            validation_split: The fraction of the arrays that is not trained on, and measured
                instead. They are the last ones, before anything is shuffled. It gives way to
                `validation_data`.
            validation_data: What to choose by: `(x, y)`, `(x, y, sample_weight)` or a dataset.
                Never the test images. Without it there are no values to choose by but those of
                the training.
            shuffle: Whether the images are shuffled, anew in each epoch; of datasets, the batches
                of a `keras.utils.PyDataset`.
            class_weight: The weight in the loss of each class, 1 for those that are not named.
            sample_weight: The weight in the loss of each image. Where mixup or CutMix mixes two
                images, the loss of each label is weighted by its own image.
            initial_epoch: Number of epochs that the model has been trained already.
            steps_per_epoch: Number of batches in an epoch, by which the schedule counts too. The
                next epoch begins with the batch after them. `None` is the length of the data. (Of a
                dataset that does not tell its length the schedule is that of `train_images`.)
            validation_steps: Number of batches of a validation dataset to measure, `None` for all.
            validation_batch_size: Of validation arrays, `None` for 500.
            validation_freq: After which epochs to measure as well, as in `keras.Model.fit`, for
                callbacks that look at `val_loss` and the like. `None` is after the last epoch only.
                In any case the values and the checkpoint of the trial are those of the last epoch.

        Returns:
            `loss`, `accuracy` and `nll` of the last epoch, the same of the validation data
            (`val_loss`, ...), and the `seconds` that it all took. A training whose loss is no
            finite number any more ends early, and is measured as it is.

        Raises:
            keras_tuner.errors.FatalValueError: For arguments that no trial can be trained with. It
                ends the search.
        """
        recipe = self.recipe(hp)
        epochs = recipe.epochs if epochs is None else epochs
        if not 0 <= initial_epoch < epochs <= recipe.epochs:
            raise keras_tuner.errors.FatalValueError(
                f"`epochs` must be in 1..{recipe.epochs}, the recipe's number, and above "
                f"`initial_epoch`. Received: epochs={epochs}, initial_epoch={initial_epoch}"
            )
        begin = time.perf_counter()
        seed, classes = self._seed(), model.output_shape[-1]
        settings: dict[str, Any] = {}  # of `model.fit`
        with _fatal():
            if inputs.is_dataset(x):
                self._check_dataset(x, validation_split, steps_per_epoch)
                one_hot, batches = inputs.look(x)
                settings = {
                    # Keras warns of it where the order is the dataset's own.
                    "shuffle": shuffle and isinstance(x, keras.utils.PyDataset),
                    "steps_per_epoch": steps_per_epoch,
                    "class_weight": class_weight,
                    "y": y,
                    "sample_weight": sample_weight,
                }
                steps = steps_per_epoch or inputs.length(x)
                steps = steps or -(-self.train_images // recipe.batch_size)
            else:
                images, labels = inputs.array(x), inputs.integer_labels(y)
                if batch_size is not None:
                    recipe = self._with_batch_size(hp, recipe, batch_size)
                if validation_split and validation_data is None:
                    (images, labels, sample_weight), validation_data = inputs.split(
                        validation_split, images, labels, sample_weight
                    )
                one_hot = recipe.soft_labels
                batches = inputs.TrialBatches(
                    images,
                    labels,
                    recipe.batch_size,
                    shuffle=shuffle,
                    augment=assembly.augmentation(recipe),
                    seed=seed,
                    num_classes=classes,
                    sample_weight=inputs.image_weights(labels, sample_weight, class_weight),
                    steps_per_epoch=steps_per_epoch,
                )
                settings = {"shuffle": False}  # `batches` shuffles.
                steps = len(batches)
            validation = None
            if validation_data is not None:
                validation = _Validation(
                    validation_data, one_hot, classes, validation_batch_size, validation_steps
                )
        callbacks = list(callbacks or ())
        if validation_freq is not None and validation is not None:
            settings |= validation.of_fit(validation_freq)
            callbacks = [_of_last_epoch(callback) for callback in callbacks]
        if one_hot != recipe.soft_labels:
            _measure_labels(model, one_hot)
        model.optimizer.learning_rate = learning_rate_schedule(recipe, steps)
        # Where the epoch of a dataset cannot be set, the generators of random numbers are.
        numbered = batches if isinstance(batches, data.EpochDataset) else types.SimpleNamespace()
        history = model.fit(
            for_fit(batches) if isinstance(batches, inputs.TrialBatches) else batches,
            epochs=epochs,
            initial_epoch=initial_epoch,
            callbacks=[
                SetEpoch(numbered, seed),
                keras.callbacks.TerminateOnNaN(),
                *callbacks,
            ],
            verbose=verbose,
            **settings,
        ).history
        found = {key: float(values[-1]) for key, values in history.items()}
        if validation is not None:
            if validation.one_hot != one_hot:
                _measure_labels(model, validation.one_hot)
            scores = model.evaluate(**validation.of_evaluate(), verbose=0, return_dict=True)
            found |= {f"val_{key}": float(value) for key, value in scores.items()}
        return {**found, "seconds": time.perf_counter() - begin}

    def _check_dataset(self, x: Any, validation_split: float, steps_per_epoch: int | None) -> None:
        """Refuses what a dataset cannot be trained with, and warns of what is searched in vain."""
        if validation_split:
            raise ValueError(
                "`validation_split` needs arrays; give `validation_data` with a dataset. "
                f"Received: validation_split={validation_split}, a {type(x).__name__}"
            )
        if isinstance(x, types.GeneratorType) and steps_per_epoch is None:
            raise ValueError(
                "A generator must have no end, for all trials share it, and needs "
                "`steps_per_epoch`. Received: steps_per_epoch=None"
            )
        useless = [name for name in self.space if name in BATCHES]
        if useless:
            warnings.warn(
                f"A dataset has batches of its own, so that {', '.join(useless)} are searched in "
                "vain; leave them out of `search`, or give arrays.",
                stacklevel=3,
            )

    def _with_batch_size(
        self, hp: keras_tuner.HyperParameters, recipe: Recipe, batch_size: int
    ) -> Recipe:
        if "batch_size" in self.space or _given(hp, "batch_size"):
            raise ValueError(
                "`batch_size` is set or searched, not both; leave it out of `search`. "
                f"Received: batch_size={batch_size}"
            )
        return recipe.replace(batch_size=batch_size)

    def model_name(self, hp: keras_tuner.HyperParameters) -> str:
        """The name of the model that hyperparameters choose."""
        given = _given(hp, "model")
        name = hp.Choice("model", self.models) if given is None else hp.get("model")
        if name not in self.models:
            raise keras_tuner.errors.FatalValueError(
                f"`model` must be one of {self.models}. Received: {name!r}"
            )
        return name

    def recipe(self, hp: keras_tuner.HyperParameters, name: str = "tuned") -> Recipe:
        """The recipe that hyperparameters stand for.

        Numbers from a range are rounded to four digits. A value whose hyperparameter is not active
        is the default of `Recipe`.

        Args:
            hp: The hyperparameters; those of this hypermodel are added.
            name: Name of the recipe.

        Returns:
            The `Recipe`, for `mf_zoo.training.train` or `mf-zoo train --recipe`.
        """
        mean_field = self.model_name(hp) in self.mean_field
        only_mean_field = []
        if len(self.mean_field) < len(self.models):
            only_mean_field = [("model", self.mean_field)]
        values: dict[str, Any] = {}

        def declare(names: Iterable[str], *conditions: tuple[str, list]) -> None:
            # A condition must have been declared under those before it, or under none.
            while len(conditions) > 1 and _given(hp, conditions[-1][0]):
                conditions = conditions[1:]
            with contextlib.ExitStack() as scopes:
                for parent, active in conditions:
                    scopes.enter_context(hp.conditional_scope(parent, active))
                for name in names:
                    if name in self.space or name == "fixed_horizon" or _given(hp, name):
                        values[name] = self._value(hp, name)

        names = dict.fromkeys((*self.space, *recipe_values()))
        declare(name for name in names if name not in MEAN_FIELD)
        if self.mean_field:
            declare(
                ("quadrature", "initial_times", "reorder", "integrator", "noise_temperature"),
                *only_mean_field,
            )
            conditions = only_mean_field
            rules = [rule for one in hp.space if one.name == "quadrature" for rule in one.values]
            moving = [rule for rule in rules if rule != "uniform"]
            if len(moving) < len(rules):
                conditions = [*conditions, ("quadrature", moving)]
            if moving or not rules:
                declare(("time_learning_rate_multiplier",), *conditions)
            conditions = only_mean_field
            if "horizon" in self.space and not _given(hp, "horizon"):
                declare(("fixed_horizon",), *conditions)
                conditions = [*conditions, ("fixed_horizon", [True])]
            declare(("horizon", "mean_field_scaling"), *conditions)
        values.pop("fixed_horizon", None)
        if not mean_field:
            values |= dict.fromkeys(MEAN_FIELD)
        default = Recipe(name=name)
        values = {
            key: getattr(default, key) if value is None else value for key, value in values.items()
        }
        return self.base.replace(name=name, description="Found by mf_zoo.tuning.", **values)

    def _value(self, hp: keras_tuner.HyperParameters, name: str) -> Any:
        """The value of a hyperparameter, `None` if it is not active.

        It is declared here, unless it is there already without a condition: then it is one that
        the tuner was given, or ours from before.
        """
        given = _given(hp, name)
        if given is not None:
            value, ranged = hp.get(name), isinstance(given, hyperparameters.Float)
        else:
            value, ranged = self._declare(hp, name)
        return float(f"{value:.4g}") if ranged and value is not None else value

    def _declare(self, hp: keras_tuner.HyperParameters, name: str) -> tuple[Any, bool]:
        """Declares a hyperparameter; its value, and whether it is one of a range of floats."""
        if name == "fixed_horizon":
            return hp.Boolean(name, default=self.base.horizon is not None), False
        values, default = self.space[name], getattr(self.base, name)
        if isinstance(values, list):
            if values in ([False, True], [True, False]):
                return hp.Boolean(name, default=default), False
            return hp.Choice(name, values, default=default if default in values else None), False
        low, high = values
        default = low if default is None else min(max(default, low), high)
        sampling = "log" if low > 0 and high >= 10 * low else "linear"
        if isinstance(low, int):
            return hp.Int(name, low, high, sampling=sampling, default=default), False
        return hp.Float(name, low, high, sampling=sampling, default=default), True

    def _seed(self) -> int:
        return (
            int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        )


def _given(hp: keras_tuner.HyperParameters, name: str) -> Any:
    """The hyperparameter of that name that has no condition, if there is one."""
    return next((one for one in hp.space if one.name == name and not one.conditions), None)


@contextlib.contextmanager
def _fatal() -> Iterator[None]:
    """Turns a complaint about what every trial is given into one that ends the search."""
    try:
        yield
    except ValueError as error:
        raise keras_tuner.errors.FatalValueError(str(error)) from error


class _Validation:
    """What a trial is measured on, as `fit` and `evaluate` of a model take it.

    The labels of arrays are made as those of the training are; a dataset has its own.

    Attributes:
        one_hot: Whether the labels are one-hot.
    """

    def __init__(
        self,
        validation_data: Any,
        one_hot: bool,
        classes: int,
        batch_size: int | None,
        steps: int | None,
    ):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(validation_data)
        if y is None:
            self.one_hot, x = inputs.look(x)
        else:
            self.one_hot, labels = one_hot, inputs.integer_labels(y)
            y = np.eye(classes, dtype="float32")[labels] if one_hot else labels
        self.data = {"x": x, "y": y, "sample_weight": weights}
        self.batch_size = batch_size or assembly.EVALUATION_BATCH
        self.steps = steps

    def of_evaluate(self) -> dict[str, Any]:
        return {**self.data, "batch_size": self.batch_size, "steps": self.steps}

    def of_fit(self, frequency: int | Sequence[int]) -> dict[str, Any]:
        return {
            "validation_data": keras.utils.pack_x_y_sample_weight(*self.data.values()),
            "validation_batch_size": self.batch_size,
            "validation_steps": self.steps,
            "validation_freq": frequency,
        }


def _measure_labels(model: keras.Model, one_hot: bool) -> None:
    """Has the metrics of a compiled model take integer labels, or one-hot ones."""
    kind = "CategoricalCrossentropy" if one_hot else "SparseCategoricalCrossentropy"
    nll = getattr(keras.metrics, kind)(from_logits=True, name="nll")
    model.compile(
        optimizer=model.optimizer,
        loss=model.loss,
        weighted_metrics=["accuracy", nll],
        jit_compile=model.jit_compile,
    )


def _of_last_epoch(callback: keras.callbacks.Callback) -> keras.callbacks.Callback:
    return _LastEpoch(callback) if isinstance(callback, SaveBestEpoch) else callback


class _LastEpoch(keras.callbacks.Callback):
    """keras-tuner's checkpoint, kept of every epoch and not of the best: it sees no measures."""

    def __init__(self, checkpoint: SaveBestEpoch):
        super().__init__()
        self.checkpoint = checkpoint

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.checkpoint.set_model(model)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.checkpoint.on_epoch_end(epoch, {})
