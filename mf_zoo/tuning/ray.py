"""The search of `MeanFieldHyperModel` on Ray Tune."""

import os
from collections.abc import Mapping
from typing import Any

import keras
import keras_tuner

from mf_zoo.training.recipes import Recipe
from mf_zoo.tuning.hypermodel import MeanFieldHyperModel


def ray_space(hypermodel: MeanFieldHyperModel) -> dict[str, Any]:
    """The search space of a hypermodel as distributions of Ray Tune.

    It is flat: a value is drawn where it does not matter too, and `ray_recipe` leaves it out.

    Args:
        hypermodel: What is searched.

    Returns:
        A dictionary from the names of hyperparameters to `ray.tune` domains.
    """
    from ray import tune

    space: dict[str, Any] = {"model": tune.choice(hypermodel.models)}
    if "horizon" in hypermodel.space:
        space["fixed_horizon"] = tune.choice([False, True])
    for name, values in hypermodel.space.items():
        if isinstance(values, list):
            space[name] = tune.choice(values)
            continue
        low, high = values
        logarithmic = low > 0 and high >= 10 * low
        if isinstance(low, int):  # Ray leaves out the upper end.
            space[name] = (tune.lograndint if logarithmic else tune.randint)(low, high + 1)
        else:
            space[name] = (tune.loguniform if logarithmic else tune.uniform)(low, high)
    return space


def ray_recipe(hypermodel: MeanFieldHyperModel, config: Mapping[str, Any]) -> tuple[str, Recipe]:
    """The model and the recipe that a configuration of Ray stands for.

    Args:
        hypermodel: What was searched.
        config: Values drawn from `ray_space`, such as `results.get_best_result().config`.

    Returns:
        The model's name and the `Recipe`.
    """
    hp = _hyperparameters(config)
    return hypermodel.model_name(hp), hypermodel.recipe(hp)


def ray_tune(
    hypermodel: Mapping[str, Any],
    dataset: str = "cifar10",
    *,
    data_dir: str,
    num_samples: int = 20,
    holdout: int = 5000,
    limit: int | None = None,
    scheduler: Any = None,
    resources: Mapping[str, float] | None = None,
    run_config: Any = None,
    seed: int = 0,
) -> Any:
    """Runs a random search on Ray, in the cluster that `ray.init` has joined, else a local one.

    A trial reports after every epoch, measured on the last `holdout` training images, so that a
    scheduler such as `ray.tune.schedulers.ASHAScheduler` can stop it. Ray passes Python objects
    between its processes by pickling and listens at unencrypted ports: run it in a network that you
    trust.

    Args:
        hypermodel: Arguments of `MeanFieldHyperModel`; each worker makes it anew.
        dataset: Name of a dataset, see `mf_zoo.data.names()`.
        data_dir: Where `mf_zoo.data.load` finds the dataset on the workers.
        num_samples: Number of trials.
        holdout: Number of training images to choose by.
        limit: Use only the first `limit` training images (holdout included).
        scheduler: A scheduler of Ray Tune; `None` lets all trials train all epochs.
        resources: Of a trial, such as `{"cpu": 1, "gpu": 1}`; `None` for one CPU.
        run_config: A `ray.tune.RunConfig`, such as where to store the results.
        seed: Of the values drawn.

    Returns:
        A `ray.tune.ResultGrid`; its results' `config` is what `ray_recipe` reads.

    Raises:
        ValueError: For what `MeanFieldHyperModel` refuses, or no held-out images.

    Example:

    ```python
    results = ray_tune({"models": "MFResNet20"}, data_dir="data")
    results.get_best_result().metrics["val_accuracy"]
    ```

    Source: Liaw et al., *Tune: A Research Platform for Distributed Model Selection and Training*,
    2018, arXiv 1807.05118.
    """
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if type(holdout) is not int or holdout < 1:
        raise ValueError(
            "`holdout` must be a whole number from 1: choices are never made on test images. "
            f"Received: {holdout!r}"
        )
    settings = {
        "hypermodel": {"dataset": dataset, **hypermodel},
        "data": (dataset, str(data_dir), holdout, limit),
        "backend": keras.config.backend(),
    }
    trainable = tune.with_parameters(_trial, settings=settings)
    return tune.Tuner(
        tune.with_resources(trainable, dict(resources or {"cpu": 1})),
        param_space=ray_space(MeanFieldHyperModel(**hypermodel)),
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            num_samples=num_samples,
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(random_state=seed),
        ),
        run_config=run_config,
    ).fit()


def _hyperparameters(config: Mapping[str, Any]) -> keras_tuner.HyperParameters:
    hp = keras_tuner.HyperParameters()
    # Ray draws NumPy's numbers.
    hp.values = {key: getattr(value, "item", lambda v=value: v)() for key, value in config.items()}
    return hp


def _trial(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """A trial, in a process of Ray's."""
    os.environ.setdefault("KERAS_BACKEND", settings["backend"])
    from ray import tune

    from mf_zoo.training import assembly

    hypermodel = MeanFieldHyperModel(**settings["hypermodel"])
    hp = _hyperparameters(config)
    training, validation, _ = assembly.load_data(*settings["data"])
    model = hypermodel.build(hp)
    for epoch in range(hypermodel.base.epochs):
        found = hypermodel.fit(
            hp,
            model,
            *training,
            validation_data=validation,
            initial_epoch=epoch,
            epochs=epoch + 1,
        )
        tune.report({**found, "epoch": epoch + 1})
