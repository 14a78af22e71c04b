"""The search on Ray Tune, by a local Ray."""

import keras
import numpy as np
import pytest

from mf_zoo.training import RECIPES, assembly
from mf_zoo.tuning import MeanFieldHyperModel, ray_recipe, ray_space, ray_tune
from mf_zoo.tuning.ray import _hyperparameters

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'mf_zoo[ray]'")
pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install 'mf_zoo[ray]'")
pytestmark = pytest.mark.once

# Two epochs of two steps.
RECIPE = RECIPES["quick"].replace(epochs=2, warmup_epochs=0.5, batch_size=8)
MODEL = {"models": ["MFResNet20"], "classes": 10, "recipe": RECIPE}


def test_the_space_is_the_hypermodels():
    search = {"learning_rate": (0.01, 1.0), "cutout": (0, 3), "horizon": None, "flip": None}
    hypermodel = MeanFieldHyperModel(["MFResNet20", "ResNet20"], recipe=RECIPE, search=search)
    rng = np.random.RandomState(0)
    space = ray_space(hypermodel)
    configs = [
        {name: domain.sample(random_state=rng) for name, domain in space.items()}
        for _ in range(300)
    ]
    found = [ray_recipe(hypermodel, config) for config in configs]
    assert {model for model, _ in found} == {"MFResNet20", "ResNet20"}
    assert {recipe.cutout for _, recipe in found} == {0, 1, 2, 3}
    assert {recipe.flip for _, recipe in found} == {False, True}
    rates = [recipe.learning_rate for _, recipe in found]
    assert 0.01 <= min(rates) < max(rates) <= 1.0
    assert 0.4 < np.mean(np.array(rates) < 0.1) < 0.6  # logarithmic
    for (model, recipe), config in zip(found, configs, strict=True):
        fixed = model == "MFResNet20" and config["fixed_horizon"]
        assert recipe.horizon == (float(f"{config['horizon']:.4g}") if fixed else None)


def test_choices_are_never_made_on_test_images():
    with pytest.raises(ValueError, match=r"never made on test images\. Received: 0"):
        ray_tune(MODEL, data_dir="unused", holdout=0)


def test_a_trial_is_the_training_of_its_recipe(cifar10_dir, tmp_path, monkeypatch):
    from ray import tune

    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        results = ray_tune(
            {**MODEL, "search": {"learning_rate": (0.001, 0.005)}},
            data_dir=cifar10_dir,
            num_samples=1,
            holdout=10,
            limit=26,
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
            seed=3,
        )
    finally:
        ray.shutdown()
    assert not results.errors
    (result,) = results
    assert result.metrics["epoch"] == 2 and len(result.metrics_dataframe) == 2

    hypermodel = MeanFieldHyperModel(**MODEL, search={"learning_rate": (0.001, 0.005)})
    hp = _hyperparameters(result.config)
    training, validation, _ = assembly.load_data("cifar10", cifar10_dir, 10, 26)
    model = hypermodel.build(hp)
    expected = hypermodel.fit(hp, model, *training, validation_data=validation)
    # Another process may have another number of threads, and so another order of sums.
    for name in ("loss", "val_loss"):
        assert result.metrics[name] == pytest.approx(expected[name], rel=1e-2)
    name, recipe = ray_recipe(hypermodel, results.get_best_result().config)
    assert name == "MFResNet20" and 0.001 <= recipe.learning_rate <= 0.005
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 4
