"""Shallow ensembles, their gradients beside a ResNet's, and the bounds of the theory."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from networks import randomized, small

import mf_zoo
from mf_zoo.layers import MeanFieldStage, stages
from mf_zoo.theory import (
    Constants,
    GradientGapLog,
    ResidualUnit,
    ShallowStage,
    autodiff,
    compare_bounds,
    costate_bounds,
    gradient_gap,
    shallow_twin,
)

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def _numpy(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def _stage(n, horizon=None, activation=None, unit="tanh", seed=0, **arguments):
    """A stage of units with weights drawn by NumPy."""
    stage = MeanFieldStage(
        ResidualUnit(3, unit), n, horizon=horizon, activation=activation, **arguments
    )
    stage.build((None, 4))
    rng = np.random.default_rng(seed)
    stage.set_blocks([[rng.normal(size=(4, 3)), rng.normal(size=(3, 4))] for _ in range(n)])
    return stage


def _model(*stages, head=True):
    inputs = keras.Input((4,))
    x = inputs
    for stage in stages:
        x = stage(x)
    if head:
        x = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=1))(x)
    return keras.Model(inputs, x)


def test_the_twin_is_the_sum_over_the_blocks_by_hand():
    stage = _stage(3, initial_times=[2.0, 0.5, 2.5], activation="relu")
    expected = X.astype("float64")
    for block in stage.blocks():
        inner, outer = block.weights
        expected = expected + block.step * np.tanh(X @ inner) @ outer
    twin = shallow_twin(stage)
    np.testing.assert_allclose(_numpy(twin(X)), np.maximum(expected, 0), atol=1e-5)
    states = twin.states(X)
    assert len(states) == 4
    np.testing.assert_array_equal(_numpy(states[-1]), _numpy(twin(X)))
    np.testing.assert_array_equal(_numpy(states[0]), X)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.once_on_torch
def test_the_twin_of_a_single_block_is_the_stage(activation):
    stage = _stage(1, activation=activation)
    np.testing.assert_array_equal(_numpy(shallow_twin(stage)(X)), _numpy(stage(X)))


@pytest.mark.once_on_torch
def test_the_outputs_differ_by_the_square_of_the_horizon():
    """The terms that the ensemble leaves out are products of two residual functions and more."""
    gaps = []
    for horizon in (0.2, 0.1, 0.05):
        stage = _stage(4, horizon)
        gap = _numpy(stage(X)).astype("float64") - _numpy(shallow_twin(stage)(X))
        gaps.append(np.abs(gap).max())
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    np.testing.assert_allclose(orders, 2, atol=0.25)


def test_a_twin_has_the_variables_of_its_source():
    model = _model(_stage(3))
    stage, twin = stages(model)[0], shallow_twin(model)
    assert {id(v) for v in twin.variables} == {id(v) for v in model.variables}
    assert len(twin.trainable_variables) == len(model.trainable_variables)
    assert twin.layers[-1] is model.layers[-1]
    before = [value.copy() for value in stage.get_weights()]
    outputs = _numpy(model(X))
    twin.compile(keras.optimizers.SGD(0.1), "mse")
    twin.fit(X, np.ones((6, 3)), batch_size=6, verbose=0)
    for old, new in zip(before, stage.get_weights(), strict=True):
        assert not np.array_equal(old, new)
    assert not np.array_equal(outputs, _numpy(model(X)))


@pytest.mark.once_on_torch
def test_a_step_of_training_is_one_of_the_two_layer_network():
    """One step of gradient descent on the twin, by the formula for the outer factors."""
    stage = _stage(2, train_times=False)
    blocks = stage.blocks()
    model = _model(stage, head=False)
    twin = shallow_twin(model)
    residual = _numpy(twin(X))
    twin.compile(keras.optimizers.SGD(0.5), "mse")
    twin.fit(X, np.zeros((6, 4)), batch_size=6, verbose=0)
    for old, new in zip(blocks, stage.blocks(), strict=True):
        gradient = np.tanh(X @ old.weights[0]).T @ (2 * residual / 24) * old.step
        np.testing.assert_allclose(new.weights[1], old.weights[1] - 0.5 * gradient, atol=1e-5)


@pytest.mark.once_on_torch
def test_a_copy_is_trained_and_recalibrated_beside_its_source():
    images, _ = mf_zoo.data.sample("cifar10")
    model = randomized(small("basic"))
    twin = shallow_twin(model, share=False)
    assert not {id(v) for v in twin.variables} & {id(v) for v in model.variables}
    before = [value.copy() for value in model.get_weights()]
    x = images[:4].astype("float32")
    same = shallow_twin(model)
    np.testing.assert_allclose(
        _numpy(twin(x, training=False)), _numpy(same(x, training=False)), atol=1e-5
    )
    mf_zoo.depth.recalibrate(twin, images[:8].astype("float32"), 4)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    stage = twin.get_layer(stages(model)[0].name)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(stage.get_weights(), stages(model)[0].get_weights(), strict=True)
    ]
    assert sum(moved) == 4  # mean and variance of two BatchNormalizations


@pytest.mark.once_on_torch
def test_in_training_mode_a_block_normalises_the_input_of_the_stage():
    """Two blocks of BatchNormalization alone: their statistics become those of `X(0)`."""
    block = keras.layers.BatchNormalization(momentum=0.0, epsilon=1e-6)
    stage = MeanFieldStage(block, 2)
    stage.build((None, 4))
    twin = shallow_twin(stage, share=False)
    output = _numpy(twin(X, training=True))
    normal = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-6)
    np.testing.assert_allclose(output, X + 2 * normal, atol=1e-4)
    for block in twin.blocks():
        np.testing.assert_allclose(block.weights[2], X.mean(0), atol=1e-5)
    np.testing.assert_array_equal(stage.blocks()[0].weights[2], np.zeros(4))


@pytest.mark.once_on_torch
def test_twins_are_saved_and_loaded(tmp_path):
    model = _model(_stage(2, activation="relu", initial_times=[1.5, 0.5]))
    twin = shallow_twin(model)
    expected = _numpy(twin(X))
    twin.save(tmp_path / "twin.keras")
    loaded = keras.saving.load_model(tmp_path / "twin.keras")
    assert type(stages(loaded)[0]) is ShallowStage
    np.testing.assert_array_equal(_numpy(loaded(X)), expected)


@pytest.mark.once_on_torch
def test_a_twin_of_frozen_parts_and_other_arguments():
    stage = _stage(2, integrator="heun", remat=True)
    stage.template().trainable = False
    twin = shallow_twin(stage)
    assert twin.trainable_variables == [stage.times]
    assert [v.trainable for v in stage.weights] == [True, False, False]
    plain = _stage(2)
    np.testing.assert_allclose(_numpy(twin(X)), _numpy(shallow_twin(plain)(X)), atol=1e-6)


@pytest.mark.once_on_torch
def test_a_sequential_model_has_a_twin():
    model = keras.Sequential([keras.Input((4,)), _stage(2), keras.layers.Dense(1)])
    expected = _numpy(model.layers[1](shallow_twin(model.layers[0])(X)))
    np.testing.assert_allclose(_numpy(shallow_twin(model)(X)), expected, atol=1e-6)


@pytest.mark.once_on_torch
def test_what_has_no_twin():
    unbuilt = MeanFieldStage(ResidualUnit(1), 2)
    with pytest.raises(ValueError, match=r"has been built.*Received: .*not been built"):
        shallow_twin(unbuilt)
    with pytest.raises(ValueError, match=r"model with stages\. Received: source="):
        shallow_twin(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    inner = _model(_stage(2), head=False)
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match=r"among its layers\. Received: .*0 of 1 stages"):
        shallow_twin(keras.Model(inputs, inner(inputs)))
    with pytest.raises(ValueError, match=r'must be "euler".*Received: integrator='):
        ShallowStage(ResidualUnit(1), 2, integrator="heun")


@pytest.mark.once_on_torch
def test_the_gap_is_that_of_gradients_by_hand():
    """Two stages, square loss: each stage and its twin, at the ResNet's input and cotangent."""
    first, second = _stage(2, 1.0), _stage(3, 1.0, seed=1, initial_times=[0.9, 0.2, 0.5])
    model = _model(first, second)
    y = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
    before = [value.copy() for value in model.get_weights()]
    gap = gradient_gap(model, X, y, "mse", batch_size=4)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    outputs = _numpy(model(X))
    np.testing.assert_allclose(gap.loss, np.mean((outputs - y) ** 2), rtol=1e-5)
    shallow = _numpy(shallow_twin(model)(X))
    np.testing.assert_allclose(gap.ensemble_loss, np.mean((shallow - y) ** 2), rtol=1e-5)
    # The ResNet's are the gradients of its loss.
    stage_gap = gap.stages[1]
    assert stage_gap.particles.tolist() == [1, 2, 0]
    variables = [second.times, *second._stacked]
    _, found = autodiff.variables_vjp(
        lambda: ops.mean(ops.square(model(X, training=False) - ops.convert_to_tensor(y))),
        variables,
    )
    times, inner, outer = (_numpy(gradient) for gradient in found)
    np.testing.assert_allclose(stage_gap.resnet_times, times[[1, 2, 0]], rtol=1e-3, atol=1e-6)
    norms = [np.hypot(np.linalg.norm(inner[i]), np.linalg.norm(outer[i])) for i in (1, 2, 0)]
    np.testing.assert_allclose(stage_gap.resnet, norms, rtol=1e-4)
    # The ensemble's, with the formulas for a two-layer network.
    start = _numpy(first(X))
    kernel = _numpy(model.layers[-1].kernel)
    cotangent = 2 * (outputs - y) / outputs.size @ kernel.T
    for depth, block in enumerate(second.blocks()):
        a, b = block.weights
        hidden = np.tanh(start @ a)
        by_outer = block.step * hidden.T @ cotangent
        by_inner = block.step * start.T @ ((cotangent @ b.T) * (1 - hidden**2))
        norm = np.hypot(np.linalg.norm(by_outer), np.linalg.norm(by_inner))
        np.testing.assert_allclose(stage_gap.ensemble[depth], norm, rtol=1e-4)
    rows = gap.rows()
    assert [(row["stage"], row["particle"]) for row in rows[2:]] == [
        (second.name, 1),
        (second.name, 2),
        (second.name, 0),
    ]
    np.testing.assert_allclose(rows[-1]["ratio"], stage_gap.ratios[-1])


@pytest.mark.once_on_torch
def test_the_ratio_goes_to_one_as_the_horizon_goes_to_zero():
    y = np.ones((6, 3), "float32")
    found = []
    for horizon in (0.4, 0.04, 0.004):
        gap = gradient_gap(_model(_stage(4, horizon)), X, y, "mse").stages[0]
        found.append([np.abs(gap.ratios - 1).max(), 1 - gap.cosine.min(), abs(gap.times_ratio - 1)])
    found = np.array(found)
    assert np.all(found[1] < 0.2 * found[0])
    assert np.all(found[2] < 0.02)


@pytest.mark.once_on_torch
def test_batches_of_every_kind_and_logits_give_the_same():
    model = _model(_stage(2))
    labels = np.array([0, 1, 2, 2, 1, 0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    whole = gradient_gap(model, X, labels, loss)
    probable = keras.Model(model.input, keras.layers.Softmax()(model.output))

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            part = slice(4 * index, 4 * index + 4)
            return X[part], labels[part]

    for gap in (
        gradient_gap(probable, Data()),
        gradient_gap(model, ((X[k : k + 3], labels[k : k + 3]) for k in (0, 3)), loss=loss),
    ):
        np.testing.assert_allclose(gap.stages[0].ratios, whole.stages[0].ratios, rtol=1e-3)
        np.testing.assert_allclose([gap.loss, gap.ratio], [whole.loss, whole.ratio], rtol=1e-3)


@pytest.mark.once_on_torch
@pytest.mark.parametrize("kind", ["basic", "pre-activation"])
def test_networks_of_the_zoo_in_both_modes(kind):
    images, labels = mf_zoo.data.sample("cifar10")
    keras.utils.set_random_seed(0)
    model = small(kind, classifier_activation="softmax")
    before = [value.copy() for value in model.get_weights()]
    for training in (False, True):
        gap = gradient_gap(model, images[:4], labels[:4], training=training)
        assert all(np.all(stage.ratios > 0) for stage in gap.stages)
        # The last block's output is the stage's, so it sees the same cotangent, to its ReLU.
        assert all(np.all(np.abs(stage.cosine) <= 1 + 1e-6) for stage in gap.stages)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.once_on_torch
def test_mixed_precision_is_close_to_single():
    y = np.ones((6, 3), "float32")
    exact = gradient_gap(_model(_stage(3, 1.0)), X, y, "mse").stages[0]
    rounded = gradient_gap(_model(_stage(3, 1.0, dtype="mixed_bfloat16")), X, y, "mse").stages[0]
    np.testing.assert_allclose(rounded.ratios, exact.ratios, rtol=0.05)


@pytest.mark.once_on_torch
def test_what_a_gap_cannot_be_measured_of():
    stage = _stage(2)
    model = _model(stage)
    with pytest.raises(ValueError, match=r"a target for each sample.*Received: 6 samples, no"):
        gradient_gap(model, X)
    with pytest.raises(ValueError, match=r"at least one sample\. Received: none"):
        gradient_gap(model, X[:0], X[:0], "mse")
    with pytest.raises(ValueError, match=r"mean over the samples.*Received: reduction='sum'"):
        gradient_gap(model, X, X, keras.losses.MeanSquaredError(reduction="sum"))
    with pytest.raises(ValueError, match=r"`every` must be.*Received: every=0"):
        GradientGapLog(X, X, every=0)
    stage.template().trainable = False
    with pytest.raises(ValueError, match=r"not frozen.*Received: stage"):
        gradient_gap(model, X, X[:, :3], "mse")


@pytest.mark.once_on_torch
def test_the_log_of_a_training_measures_at_its_steps():
    y = np.ones((6, 3), "float32")
    first = gradient_gap(_model(_stage(2)), X, y, "mse")
    model = _model(_stage(2))
    log = GradientGapLog(X, y, "mse", every=3)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(X, y, batch_size=2, epochs=2, verbose=0, callbacks=[log])
    assert [row["step"] for row in log.rows] == [0, 3, 6]
    np.testing.assert_allclose(log.rows[0]["ratio"], first.stages[0].ratio, rtol=1e-5)
    last = gradient_gap(model, X, y, "mse")
    np.testing.assert_allclose(log.rows[-1]["ratio"], last.stages[0].ratio, rtol=1e-5)
    np.testing.assert_allclose(log.rows[-1]["loss"], last.loss, rtol=1e-5)


@pytest.mark.once_on_torch
def test_constants_of_a_stage_by_hand():
    stage = MeanFieldStage(ResidualUnit(2), 1, horizon=0.5)
    stage.build((None, 2))
    stage.set_blocks([[np.diag([3.0, 1.0]), np.diag([0.5, 2.0])]])
    known = Constants.of(stage)
    assert known.lipschitz[0] == pytest.approx(6.0)  # 3 x 2
    assert known.growth[0] == pytest.approx(2 * np.sqrt(2))
    assert known.offset[0] == 0
    np.testing.assert_allclose(known.gradient, [[np.sqrt(2), 2.0]], rtol=1e-6)
    curvature = np.abs(np.diff(np.tanh(np.linspace(-3, 3, 6001)), 2)).max() / 1e-6
    np.testing.assert_allclose(known.gradient_lipschitz, [[np.sqrt(13), 6 * curvature]], rtol=1e-3)
    lower, upper = costate_bounds(known, [0.5])
    assert lower.tolist() == [0.0, 1.0] and upper.tolist() == [4.0, 1.0]
    with pytest.raises(ValueError, match=r"stage of ResidualUnits.*Received: .*Dense"):
        dense = MeanFieldStage(keras.layers.Dense(2), 1)
        dense.build((None, 2))
        Constants.of(dense)
    with pytest.raises(ValueError, match=r"no activation.*Received: activation="):
        compare_bounds(_stage(1, activation="relu"), X, X)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 4),
    horizon=st.floats(0.01, 3),
    unit=st.sampled_from(["tanh", "sigmoid", "relu", "linear"]),
)
@pytest.mark.once_on_torch
def test_the_bounds_hold(seed, n, horizon, unit):
    stage = _stage(n, horizon, unit=unit, seed=seed)
    rng = np.random.default_rng(seed)
    stage.times.assign(rng.uniform(0, horizon, n))
    x, p = rng.normal(size=(2, 3, 4))
    for row in compare_bounds(stage, x, p):
        slack = 1e-4
        assert row["moved"] <= row["moved_upper"] * (1 + slack) + slack
        assert row["costate_least"] >= row["costate_lower"] * (1 - slack) - slack
        assert row["costate_most"] <= row["costate_upper"] * (1 + slack)
        assert row["costate_lower"] <= np.exp(-row["exponent"]) * (1 + 1e-12)
        assert row["costate_upper"] <= np.exp(row["exponent"]) * (1 + 1e-12)
        if not np.isnan(row["ratio"]):
            assert row["ratio_lower"] - slack <= row["ratio"]
            assert row["ratio"] <= row["ratio_upper"] * (1 + slack)


@pytest.mark.once_on_torch
def test_the_costate_reaches_its_bounds():
    """`f(x) = c x` turns the inequalities into equalities, whatever the sign of `c`."""
    for sign, key, bound in ((1, "costate_most", "upper"), (-1, "costate_least", "lower")):
        stage = MeanFieldStage(ResidualUnit(2, "linear"), 3, horizon=0.9)
        stage.build((None, 2))
        stage.set_blocks([[np.eye(2), sign * np.eye(2)]] * 3)
        first = compare_bounds(stage, np.eye(2), np.ones((2, 2)))[0]
        assert first[key] == pytest.approx((1 + 0.3 * sign) ** 3, rel=1e-5)
        assert first[f"costate_{bound}"] == pytest.approx((1 + 0.3 * sign) ** 3, rel=1e-5)
