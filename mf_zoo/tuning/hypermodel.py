"""The networks of the zoo and their recipes as a search space of keras-tuner."""

import contextlib
import inspect
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters

from mf_zoo import applications
from mf_zoo.training import runner
from mf_zoo.training.recipes import Recipe, get_recipe
from mf_zoo.training.schedules import learning_rate_schedule
from mf_zoo.tuning.space import MEAN_FIELD, SPACE, STAGES, check_space, recipe_values


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

    **What counts is the last epoch.** `fit` measures the validation images once, after it; so no
    lucky epoch is chosen, and the checkpoint of a trial is its last epoch's, with the optimizer's
    state. The learning rate's schedule always spans the recipe's `epochs`: a trial of Hyperband
    that trains 3 of 27 epochs is the beginning of the whole training, and one that is promoted goes
    on from there to the very weights of a training in one go (models with dropout excepted, whose
    random state is not in the checkpoint).

    Args:
        models: Name of a model of `mf_zoo.applications`, or several to choose from.
        classes: Number of classes; `None` for that of the registered weights, else 10.
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

    >>> import keras_tuner
    >>> hypermodel = mf_zoo.tuning.MeanFieldHyperModel(
    ...     "MFResNet20", recipe="quick", search=["learning_rate", "momentum"]
    ... )
    >>> tuner = keras_tuner.RandomSearch(hypermodel, "val_accuracy", max_trials=20, seed=0)
    >>> tuner.search(images, labels, validation_data=(x, y))  # doctest: +SKIP
    >>> hypermodel.recipe(tuner.get_best_hyperparameters()[0])  # doctest: +SKIP

    Source: O'Malley et al., *KerasTuner*, 2019, https://github.com/keras-team/keras-tuner.
    """

    def __init__(
        self,
        models: str | Sequence[str] = "MFResNet20",
        *,
        classes: int | None = None,
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
        self.models = {name: applications.get(name) for name in models}
        self.classes = classes
        self.base = get_recipe(recipe)
        self.weights = weights
        self.freeze = [freeze] if isinstance(freeze, str) else list(freeze)
        self.seed = seed
        if type(train_images) is not int or train_images < 1:
            raise ValueError(
                f"`train_images` must be a whole number from 1. Received: {train_images!r}"
            )
        self.train_images = train_images
        self.mean_field = [
            name
            for name, builder in self.models.items()
            if "quadrature" in inspect.signature(builder).parameters
        ]
        if search is None:
            left_out = STAGES if weights is not None else ()
            left_out = left_out if self.mean_field else MEAN_FIELD
            search = [name for name in SPACE if name not in left_out]
        self.space = check_space(search, self.base)
        useless = [name for name in self.space if name in MEAN_FIELD and not self.mean_field]
        if useless:
            raise ValueError(
                f"Plain models have no learned times, and nothing to search in {', '.join(useless)}"
                f". Received: models={models}"
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
            runner.augmentation(recipe)
        with runner.dtype_policy(recipe.dtype_policy):
            network = runner.build_network(
                self.models[model], recipe, self.classes, self.weights, self.freeze
            )
            runner.compile_network(
                network, recipe, learning_rate_schedule(recipe, steps), self._seed()
            )
        # So that a checkpoint, which holds the optimizer's state, finds where to put it.
        network.optimizer.build(network.trainable_variables)
        return network

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        validation_data: tuple[np.ndarray, np.ndarray],
        epochs: int | None = None,
        initial_epoch: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: str | int = 0,
    ) -> dict[str, float]:
        """Trains a model that `build` made, and measures it once, at the end.

        Args:
            hp: The hyperparameters that it was built of.
            model: The model.
            images: Training images, uint8 `(N, rows, cols, 3)`, 0..255.
            labels: Their classes, integers `(N,)`.
            validation_data: Images and classes to choose by: never the test images.
            epochs: Epoch to end with, `None` for the recipe's number. The schedule spans the
                recipe's epochs, of which these are the first.
            initial_epoch: Number of epochs that the model has been trained already.
            callbacks: Those of the tuner.
            verbose: As in `keras.Model.fit`.

        Returns:
            `loss`, `accuracy` and `nll` of the last epoch, the same of the validation images
            (`val_loss`, ...), and the `seconds` that it all took. A training whose loss is no
            finite number any more ends early, and is measured as it is.
        """
        recipe = self.recipe(hp)
        epochs = recipe.epochs if epochs is None else epochs
        if not 0 <= initial_epoch < epochs <= recipe.epochs:
            raise keras_tuner.errors.FatalValueError(
                f"`epochs` must be in 1..{recipe.epochs}, the recipe's number, and above "
                f"`initial_epoch`. Received: epochs={epochs}, initial_epoch={initial_epoch}"
            )
        begin = time.perf_counter()
        classes = model.output_shape[-1]
        batches = runner.make_batches(images, labels, recipe, self._seed(), classes)
        model.optimizer.learning_rate = learning_rate_schedule(recipe, len(batches))
        history = model.fit(
            batches,
            epochs=epochs,
            initial_epoch=initial_epoch,
            shuffle=False,  # `batches` shuffles.
            callbacks=[
                runner.SetEpoch(batches, batches.seed),
                keras.callbacks.TerminateOnNaN(),
                *callbacks,
            ],
            verbose=verbose,
        ).history
        x, y = validation_data
        if recipe.soft_labels:  # The metrics are those of one-hot labels.
            y = np.eye(classes, dtype="float32")[y]
        scores = model.evaluate(
            x, y, batch_size=runner.EVALUATION_BATCH, verbose=0, return_dict=True
        )
        return {
            **{key: float(values[-1]) for key, values in history.items()},
            **{f"val_{key}": float(value) for key, value in scores.items()},
            "seconds": time.perf_counter() - begin,
        }

    def model_name(self, hp: keras_tuner.HyperParameters) -> str:
        """The name of the model that hyperparameters choose."""
        given = _given(hp, "model")
        name = hp.Choice("model", list(self.models)) if given is None else hp.get("model")
        if name not in self.models:
            raise keras_tuner.errors.FatalValueError(
                f"`model` must be one of {list(self.models)}. Received: {name!r}"
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
                ("quadrature", "initial_times", "reorder", "noise_temperature"), *only_mean_field
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
