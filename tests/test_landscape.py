"""Many narrow networks at once: the same networks as stages of the zoo, and where they end."""

import keras
import numpy as np
import pytest
from keras import ops

import mf_zoo
from mf_zoo.layers import MeanFieldStage
from mf_zoo.optimizers import MeanFieldSGD
from mf_zoo.theory import (
    NarrowNetworks,
    Network,
    Problem,
    ResidualUnit,
    ShallowStage,
    image_problem,
    initial_weights,
    minima,
    sphere,
)


def _numpy(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def _lift(x):
    return np.concatenate([x, np.ones_like(x[:, :1]), np.zeros_like(x[:, :1])], 1)


@pytest.mark.once_on_torch
@pytest.mark.parametrize("kind", [MeanFieldStage, ShallowStage])
def test_each_network_is_a_stage_and_trains_as_one(kind):
    """Two networks side by side against two models of stages, after two steps of `fit`."""
    n, width, features, rate = 3, 2, 5, 0.05
    deep = kind is MeanFieldStage
    rng = np.random.default_rng(0)
    layer = NarrowNetworks(2, n, width, deep=deep, horizon=1.5)
    x = rng.normal(size=(7, 2, features - 2)).astype("float32")
    y = rng.normal(size=(7, 2)).astype("float32")
    layer.build(x.shape)
    layer.inner.assign(rng.normal(size=(2, n, features, width)))
    layer.outer.assign(rng.normal(size=(2, n, width, features)))
    layer.times.assign([[1.4, 0.3, 0.8], [0.2, 1.0, 1.1]])

    def optimizer():
        return MeanFieldSGD(rate, momentum=0.9, mean_field_scaling=True)

    singles = []
    for k in range(2):
        stage = kind(ResidualUnit(width), n, horizon=1.5)
        stage.build((None, features))
        stage.times.assign(_numpy(layer.times)[k])
        stage._stacked[0].assign(_numpy(layer.inner)[k])
        stage._stacked[1].assign(_numpy(layer.outer)[k])
        singles.append(keras.Sequential([keras.Input((features,)), stage]))
        np.testing.assert_allclose(
            _numpy(layer(x))[:, k], _numpy(stage(_lift(x[:, k])))[:, -1], atol=1e-5
        )
        singles[k].compile(optimizer(), lambda y, p: ops.square(p[:, -1] - ops.reshape(y, (-1,))))
        singles[k].fit(_lift(x[:, k]), y[:, k], batch_size=7, epochs=2, verbose=0)
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model.compile(optimizer(), lambda y, p: ops.sum(ops.square(p - y), -1))
    model.fit(x, y, batch_size=7, epochs=2, verbose=0)
    for k, single in enumerate(singles):
        stage = single.layers[0]
        np.testing.assert_allclose(_numpy(layer.times)[k], _numpy(stage.times), atol=1e-5)
        np.testing.assert_allclose(_numpy(layer.inner)[k], _numpy(stage._stacked[0]), atol=1e-5)
        # Of a shallow block's outer factor the other columns have no gradient in either.
        np.testing.assert_allclose(_numpy(layer.outer)[k], _numpy(stage._stacked[1]), atol=1e-5)


@pytest.mark.once_on_torch
def test_a_linear_problem_ends_at_the_least_squares_solution():
    """A shallow network of linear neurons is an affine function: NumPy says how well it can do."""
    rng = np.random.default_rng(5)
    problem = Problem("line", rng.uniform(-1, 1, (12, 2)), rng.normal(size=12))
    design = np.column_stack([problem.x, np.ones(12)])
    _, residual, *_ = np.linalg.lstsq(design, problem.y, rcond=None)
    assert problem.linear_loss == pytest.approx(residual[0] / 12, rel=1e-6)
    networks = {"linear": Network(deep=False, learning_rate=0.02, time_rate=0.0)}
    (run,) = minima([problem], [2], networks=networks, steps=400, activation="linear")
    assert run.loss == pytest.approx(residual[0] / 12, rel=1e-3)
    assert run.initial_loss > 1.2 * run.loss


@pytest.mark.once_on_torch
def test_equal_particles_of_a_shallow_network_stay_equal_and_noise_parts_them():
    def spread(deep, temperature):
        layer = NarrowNetworks(1, 4, 1, deep=deep, train_times=False)
        problem = sphere(6, 2)
        x, y = problem.x[:, None].astype("float32"), problem.y[:, None].astype("float32")
        layer.build(x.shape)
        inner, outer = initial_weights("equal", (4, 4, 1), 0)
        layer.inner.assign(inner[None])
        layer.outer.assign(outer[None])
        model = keras.Sequential([keras.Input(x.shape[1:]), layer])
        optimizer = MeanFieldSGD(
            0.01, 0.9, mean_field_scaling=True, noise_temperature=temperature, seed=0
        )
        model.compile(optimizer, lambda y, p: ops.sum(ops.square(p - y), -1))
        model.fit(x, y, batch_size=6, epochs=20, verbose=0)
        weights = _numpy(layer.inner)[0]
        assert np.abs(weights - inner).max() > 1e-3  # they did move
        return np.ptp(weights, axis=0).max()

    assert spread(deep=False, temperature=0.0) == 0.0
    assert spread(deep=False, temperature=1e-3) > 0
    # In depth they see different states and costates: no noise is needed.
    assert spread(deep=True, temperature=0.0) > 0


@pytest.mark.once_on_torch
def test_stationary_starts_stay_and_a_zero_output_does_not():
    problem = sphere(8, 3, seed=3)
    zero_loss = np.mean(problem.y**2)
    network = {"mean-field": Network()}
    starts = ("zero", "dead", "zero output")
    runs = minima([problem], [3], networks=network, starts=starts, steps=60, activation="relu")
    zero, dead, output = runs
    for run in runs:  # the output is 0
        assert run.initial_loss == pytest.approx(zero_loss, rel=1e-6)
    assert zero.loss == zero.initial_loss
    assert dead.loss == dead.initial_loss
    assert output.loss < 0.95 * zero_loss
    assert [run.start for run in runs] == list(starts)


@pytest.mark.once_on_torch
def test_the_loss_falls_with_the_number_of_blocks():
    problems = [sphere(6, 2, seed=seed) for seed in (0, 1)]
    network = {"mean-field": Network(learning_rate=0.01)}
    runs = minima(problems, [1, 6], widths=[1], networks=network, steps=100)
    assert [(run.particles, run.seed, run.parameters) for run in runs] == [
        *((1, 0, 8), (1, 1, 8), (6, 0, 48), (6, 1, 48)),
    ]
    assert sum(run.loss for run in runs[2:]) < 0.5 * sum(run.loss for run in runs[:2])
    again = minima(problems, [1], widths=[1], networks=network, steps=100)
    np.testing.assert_allclose([run.loss for run in again], [run.loss for run in runs[:2]])


@pytest.mark.once
def test_problems():
    images, labels = mf_zoo.data.sample("cifar10")
    problem = image_problem(images, labels, samples=10, dimension=3, classes=(0, 9))
    np.testing.assert_allclose(np.linalg.norm(problem.x, axis=1), 1)
    assert problem.y.tolist() == [-1] * 5 + [1] * 5
    assert len(np.unique(problem.x.round(9), axis=0)) == 10
    other = image_problem(images, labels, samples=10, dimension=3, classes=(0, 9), seed=1)
    assert not np.allclose(other.x, problem.x)
    with pytest.raises(ValueError, match=r"30 images of each class\. Received: 20 of class 3"):
        image_problem(images, labels, samples=60)
    points = sphere(5, 3, seed=2)
    assert points.seed == 2 and np.all(np.abs(points.y) <= 1)
    with pytest.raises(ValueError, match=r"as many samples.*Received: inputs of the shapes"):
        minima([points, sphere(6, 3)])
    with pytest.raises(ValueError, match=r"`starts` must be.*Received: starts=\('bad',\)"):
        minima([points], starts=["bad"])


@pytest.mark.once
def test_initial_weights():
    inner, outer = initial_weights("dead", (3, 6, 2), seed=0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert np.all(np.einsum("sd,ndw->nsw", _lift(x), inner) < 0)
    assert np.any(outer)
    wide = initial_weights("random", (64, 6, 8), seed=0, mean_field=False)[1]
    assert wide.std() == pytest.approx(1 / np.sqrt(512), rel=0.05)
    inner, outer = initial_weights("equal", (3, 6, 2), seed=0)
    assert np.ptp(inner, axis=(0, 2)).max() == np.ptp(outer, axis=(0, 1)).max() == 0
