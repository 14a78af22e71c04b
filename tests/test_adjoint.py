"""The adjoint of a stage, the gradient field and states computed backwards."""

import itertools

import keras
import numpy as np
import pytest
from autodiff import value_and_gradients
from conftest import ROOT
from keras import layers, ops

import mf_zoo
from mf_zoo.layers import BasicBlock, BatchNormalization, MeanFieldStage, stages
from mf_zoo.theory import adjoint, adjoints, autodiff, gradient_field, reconstruct

CROSSED = [1.7, 0.4, 3.0, 2.2]


class Smooth(layers.Layer):
    """`tanh(x W + b)`: no scale that could take up a step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3, activation="tanh", dtype=self.dtype_policy)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


class Restless(Smooth):
    """One that draws at random, has statistics, and in training depends on the whole batch."""

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.bn = BatchNormalization(dtype=self.dtype_policy)
        self.dropout = layers.Dropout(0.4, seed=seed, dtype=self.dtype_policy)

    def build(self, shape):
        super().build(shape)
        self.bn.build(shape)

    def call(self, x, training=None):
        return self.dropout(self.bn(self.dense(x), training=training), training=training)


def array(x):
    return ops.convert_to_numpy(x)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make(block=None, times=CROSSED, shape=(3,), **kwargs):
    """A stage whose weights are random, statistics too."""
    block = block or Smooth(dtype=kwargs.get("dtype"))
    stage = MeanFieldStage(block, len(times), initial_times=times, **kwargs)
    stage.build((None, *shape))
    rng = np.random.default_rng(5)
    for weight in stage._stacked:
        if keras.backend.is_float_dtype(weight.dtype):
            value = 0.5 * rng.normal(size=weight.shape)
            positive = "variance" in weight.path or "gamma" in weight.path
            weight.assign(0.5 + np.abs(value) if positive else value)
    return stage


@pytest.mark.parametrize(
    ("make_block", "options", "training"),
    [
        (lambda: BasicBlock(3), {"activation": "relu"}, True),
        (lambda: BasicBlock(3), {"quadrature": "midpoint", "reorder": False}, False),
        (Smooth, {"quadrature": "midpoint", "integrator": "heun", "activation": "tanh"}, False),
        (
            lambda: Restless(seed=3),
            {"quadrature": "uniform_straight_through", "integrator": "midpoint", "remat": 2},
            True,
        ),
        (
            lambda: Restless(seed=3),
            {"quadrature": "uniform", "activation": "relu", "train_times": False},
            True,
        ),
    ],
)
def test_the_adjoint_is_automatic_differentiation(make_block, options, training):
    block = make_block()
    shape = (4, 4, 3) if isinstance(block, BasicBlock) else (3,)
    stage = make(block, shape=shape, **options)
    x, cotangent = normal(6, *shape), normal(6, *shape, seed=1)
    before = stage.get_weights()
    states = [array(state) for state in stage.states(x, training)]
    found = adjoint(stage, x, cotangent, training)
    for old, new in zip(before, stage.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(found.states, states, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.costates[-1], cotangent)

    def output(x):
        with keras.StatelessScope(stage._current()):
            return stage(x, training=training)

    _, (of_input,) = autodiff.vjp(output, [x], cotangent)
    np.testing.assert_allclose(found.costates[0], array(of_input), rtol=1e-4, atol=1e-5)
    _, (of_times,) = autodiff.variables_vjp(lambda: output(x), [stage.times], cotangent)
    np.testing.assert_allclose(found.times, array(of_times), rtol=1e-4, atol=1e-5)
    if options.get("quadrature") != "uniform":
        assert np.all(np.abs(found.times) > 1e-3)
    _, expected = value_and_gradients(
        stage, x, lambda y: ops.sum(ops.multiply(y, cotangent)), training
    )
    if stage.times.trainable:
        del expected[0]
    assert len(expected) > 1
    for variable, got, want in zip(
        stage.trainable_variables[-len(expected) :], found.weights, expected, strict=True
    ):
        assert "times" not in variable.path
        # A bias before BatchNormalization does nothing: its gradient is rounding.
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale, err_msg=variable.path)


def test_a_linear_stage_by_hand():
    """`X^l = X^(l-1) (1 + dt_l W_l)`: costates and gradients are matrix products."""
    block = layers.Dense(2, use_bias=False)
    stage = make(block, times=[2.0, 0.5, 3.0], shape=(2,))
    kernels, order, steps = array(stage._stacked[0]), [1, 0, 2], [0.5, 1.5, 1.0]
    x, p = [normal(4, 2)], [normal(4, 2, seed=1)]
    for i, step in zip(order, steps, strict=True):
        x.append(x[-1] + step * x[-1] @ kernels[i])
    for i, step in zip(order[::-1], steps[::-1], strict=True):
        p.insert(0, p[0] + step * p[0] @ kernels[i].T)
    found = adjoint(stage, x[0], lambda y: ops.multiply(ops.ones_like(y), p[-1]))
    np.testing.assert_allclose(found.states, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.costates, p, rtol=1e-5, atol=1e-5)
    weights = np.zeros_like(kernels)
    of_steps = []
    for depth, (i, step) in enumerate(zip(order, steps, strict=True)):
        weights[i] = step * x[depth].T @ p[depth + 1]
        of_steps.append(np.sum(x[depth] @ kernels[i] * p[depth + 1]))
    np.testing.assert_allclose(found.weights[0], weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.steps, of_steps, rtol=1e-4, atol=1e-5)
    # A time is the end of its own step and the start of the next.
    of_times = [of_steps[1] - of_steps[2], of_steps[0] - of_steps[1], of_steps[2]]
    np.testing.assert_allclose(found.times, of_times, rtol=1e-4, atol=1e-4)


@pytest.mark.once_on_torch
def test_frozen_parts_have_no_gradient():
    stage = make()
    stage.template().dense.trainable = False
    found = adjoint(stage, normal(4, 3), normal(4, 3))
    assert found.weights == [] and np.all(found.steps != 0)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch says what lives")
@pytest.mark.once_on_torch
def test_the_inside_of_one_block_lives_at_a_time(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.live_memory import peak_bytes

    def growth(run):
        """Activations that each further block adds to the peak."""
        peaks = []
        for n in (4, 12):
            stage = make(BasicBlock(3), np.linspace(0.5, n - 0.5, n).tolist(), (8, 8, 3))
            x = ops.convert_to_tensor(normal(32, 8, 8, 3))
            peaks.append(peak_bytes(lambda stage=stage, x=x: run(stage, x)))
        return (peaks[1] - peaks[0]) / 8 / (32 * 8 * 8 * 3 * 4)

    assert growth(lambda stage, x: ops.sum(stage(x, training=True)).backward()) > 3.5
    # A state and a costate.
    assert 1.5 < growth(lambda stage, x: adjoint(stage, x, x, training=True)) < 2.5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ending", ["softmax", None])
@pytest.mark.once_on_torch
def test_the_stages_of_a_model(ending, training):
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3, activation="relu")(layers.Rescaling(0.5)(inputs))
    x = MeanFieldStage(BasicBlock(3), 3, activation="relu", initial_times=[2.0, 0.5, 1.0])(x)
    x = BatchNormalization()(layers.Conv2D(4, 3, strides=2)(x))
    x = MeanFieldStage(BasicBlock(4), 2, activation="relu")(layers.ReLU()(x))
    outputs = layers.Dense(5, activation=ending)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    images, labels = normal(4, 8, 8, 2), np.array([0, 3, 1, 4])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=ending is None)
    given = {} if ending else {"loss": loss}
    before = model.get_weights()
    found = adjoints(model, images, labels, training=training, **given)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    _, gradients = value_and_gradients(model, images, lambda y: loss(labels, y), training)
    named = {v.path: g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    for stage, result in zip(stages(model), found, strict=True):
        times, *weights = stage.trainable_variables
        np.testing.assert_allclose(result.times, named[times.path], rtol=1e-3, atol=1e-6)
        for variable, got in zip(weights, result.weights, strict=True):
            np.testing.assert_allclose(got, named[variable.path], rtol=1e-3, atol=1e-5)
        assert np.abs(result.times).max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"integrator": "heun"}, {"reorder": False}])
@pytest.mark.once_on_torch
def test_the_field_at_its_own_point_is_the_derivative_of_the_step(options):
    stage = make(quadrature="midpoint", activation="relu", **options)
    x, cotangent = normal(6, 3), normal(6, 3, seed=1)
    times = np.sort(CROSSED)  # whatever the order, the block at depth l has the l-th smallest
    weights = [block.weights for block in stage.blocks()]
    field = gradient_field(stage, x, cotangent, weights, times)
    expected = adjoint(stage, x, cotangent).steps
    np.testing.assert_allclose(field, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.once_on_torch
def test_the_gradient_of_the_field_times_the_step_is_that_of_the_particle():
    """By hand: `F = <q, tanh(x W + b)>`, `q` the costate before the activation."""
    stage = make(activation="relu")
    x, cotangent = normal(6, 3), normal(6, 3, seed=1)
    found = adjoint(stage, x, cotangent)
    weights = [block.weights for block in stage.blocks()]
    other = [normal(3, 3, seed=8), normal(3, seed=9)]
    field = gradient_field(
        stage, x, cotangent, [*weights, *[other] * 4], [*np.sort(CROSSED), *np.sort(CROSSED)]
    )
    for depth, block in enumerate(stage.blocks()):
        q = found.costates[depth + 1] * (found.states[depth + 1] > 0)
        state = found.states[depth]
        for point, (kernel, bias) in ((depth, block.weights), (4 + depth, other)):
            value = np.sum(q * np.tanh(state @ kernel + bias))
            np.testing.assert_allclose(field[point], value, rtol=1e-4, atol=1e-5)
        slope = q * (1 - np.tanh(state @ block.weights[0] + block.weights[1]) ** 2)
        for got, want in zip(found.weights, (state.T @ slope, slope.sum(0)), strict=True):
            want = block.step * want
            np.testing.assert_allclose(got[block.particle], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("integrator", ["euler", "heun"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("time", [0.2, 1.0, 3.5])
def test_a_new_particle_of_small_step(time, activation, integrator):
    """`E(eps) = E(0) + eps F + O(eps^2)`, with a stage of one particle more."""
    steps, times = [0.5, 0.8, 0.4], [0.4, 1.7, 3.0]
    x = normal(6, 3)
    x = np.abs(x) if activation else x  # as it comes from a ReLU
    target = normal(6, 3, seed=1)
    new = [normal(3, 3, seed=8), normal(3, seed=9)]
    place = int(np.searchsorted(times, time))
    options = {"activation": activation, "integrator": integrator, "horizon": 4.0}

    def constant(values):
        return lambda times, horizon: ops.convert_to_tensor(values, "float32") + 0 * times

    stage = make(times=times, quadrature=constant(steps), **options)

    def loss(outputs):
        return np.sum((array(outputs).astype("float64") - target) ** 2)

    def loss_with(eps):
        larger = make(
            times=[*times, time],
            quadrature=constant([*steps[:place], eps, *steps[place:]]),
            **options,
        )
        blocks = [block.weights for block in stage.blocks()]
        larger.set_blocks([*blocks[:place], new, *blocks[place:]])
        return loss(larger(x))

    (field,) = gradient_field(stage, x, lambda y: 2 * ops.subtract(y, target), [new], [time])
    start, h = loss(stage(x)), 0.004
    np.testing.assert_allclose(loss_with(0.0), start, rtol=1e-6)
    slope = (4 * loss_with(h / 2) - loss_with(h) - 3 * start) / h
    assert abs(field) > 0.5
    np.testing.assert_allclose(field, slope, rtol=2e-2)


@pytest.mark.once_on_torch
def test_points_that_have_no_field():
    stage = make(activation="tanh")
    x, weights = normal(2, 3), [stage.blocks()[0].weights]
    for times, message in (
        ([5.0], r"a time in \[0, 4.0\].*Received: times=\[5.0\]"),
        ([1.0, 2.0], r"each of the 1 blocks.*Received: times=\[1.0, 2.0\]"),
        ([1.0], r"Received: time 1 and activation 'tanh' in stage"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_field(stage, x, x, weights, times)
    with pytest.raises(ValueError, match=r"arrays of 1 blocks.*Received: shapes"):
        gradient_field(stage, x, x, [weights[0][:1]], [0.4])
    assert np.isfinite(gradient_field(stage, x, x, weights, [0.4]))


@pytest.mark.once_on_torch
def test_shapes_that_do_not_fit():
    stage, x = make(), normal(2, 3)
    with pytest.raises(ValueError, match=r"`cotangent` .* \(2, 3\)\. Received: \(3,\)"):
        adjoint(stage, x, x[0])
    with pytest.raises(
        ValueError, match=r"`states` must be 5 .* \(2, 3\)\. Received: shapes \[\(2, 3\)\]"
    ):
        adjoint(stage, x, x, states=x[None])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.once_on_torch
def test_mixed_precision(policy):
    x, cotangent = normal(6, 4, 4, 3), normal(6, 4, 4, 3, seed=1)
    exact, found = (
        adjoint(make(BasicBlock(3), shape=(4, 4, 3), activation="relu", dtype=dtype), x, cotangent)
        for dtype in ("float32", policy)
    )
    for got, want in zip(
        [found.costates, found.times, *found.weights],
        [exact.costates, exact.times, *exact.weights],
        strict=True,
    ):
        assert got.dtype == np.float32
        assert np.linalg.norm(got - want) < 0.3 * np.linalg.norm(want)


@pytest.mark.once_on_torch
def test_a_contraction_can_be_undone():
    """Stepping backwards is off by the square of a step, iterations by its powers."""
    x = normal(8, 3)

    def errors(n, iterations):
        weights = [[0.6 * normal(3, 3, seed=8), normal(3, seed=9)]] * n
        stage = make(times=np.linspace(1 / n, 1, n).tolist(), horizon=1.0)
        stage.set_blocks(weights)
        return reconstruct(stage, x, iterations).errors

    first = [errors(n, 1)[0] for n in (8, 16)]
    for coarse, fine in itertools.pairwise(first):
        assert 1.7 < coarse / fine < 2.3  # n steps of an error dt^2 each
    repeated = [errors(8, k)[0] for k in (1, 2, 3)]
    assert repeated[1] < repeated[0] / 3 and repeated[2] < repeated[1] / 3
    assert errors(8, 15)[0] < 1e-5
    assert errors(8, 1)[-1] == 0


@pytest.mark.once_on_torch
def test_what_a_relu_cut_off_does_not_come_back():
    """`0.5 - 1` is cut to 0, and back to `0 + 1`."""
    block = layers.Dense(
        1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(-1.0)
    )
    stage = MeanFieldStage(block, 1, activation="relu")
    for iterations in (1, 5):
        found = reconstruct(stage, np.array([[0.5]], "float32"), iterations)
        np.testing.assert_array_equal(found.states.ravel(), [1.0, 0.0])
        np.testing.assert_allclose(found.errors[0], 1.0)


@pytest.mark.once_on_torch
def test_gradients_at_reconstructed_states():
    stage = make(times=np.linspace(0.125, 1, 8).tolist(), horizon=1.0)
    x, cotangent = normal(6, 3), normal(6, 3, seed=1)
    exact = adjoint(stage, x, cotangent)
    same = adjoint(stage, x, cotangent, states=exact.states)
    np.testing.assert_array_equal(same.steps, exact.steps)
    errors = []
    for iterations in (1, 10):
        states = reconstruct(stage, x, iterations).states
        steps = adjoint(stage, x, cotangent, states=states).steps
        errors.append(np.linalg.norm(steps - exact.steps) / np.linalg.norm(exact.steps))
    assert errors[0] > 1e-3 and errors[1] < 1e-4
    with pytest.raises(ValueError, match=r"at least 1\. Received: iterations=0"):
        reconstruct(stage, x, 0)


@pytest.mark.once_on_torch
def test_the_picture_shows_what_was_measured():
    from types import SimpleNamespace

    from matplotlib.figure import Figure

    from mf_zoo.theory.figures import adjoint as picture

    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=8, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    stage = MeanFieldStage(BasicBlock(4), 3, activation="relu", initial_times=[2.0, 0.5, 2.5])
    x = layers.GlobalAveragePooling2D()(stage(x))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    images, labels = (part[:8] for part in mf_zoo.data.sample("cifar10"))
    given = SimpleNamespace(images=images, labels=labels, networks={"Tiny": model})
    figure = Figure()
    rows = [row for row in picture.draw(figure, given) if row["network"] == "Tiny"]
    assert len({tuple(row) for row in rows}) == 1 and len(figure.axes) == 4
    found = adjoints(model, images, labels)[0]

    def values(quantity):
        return [row["value"] for row in rows if row["quantity"] == quantity]

    np.testing.assert_allclose(values("gradient of the time"), found.times[[1, 0, 2]], rtol=1e-5)
    np.testing.assert_allclose(values("field at its own time"), found.steps, rtol=1e-3, atol=1e-6)
    norms = np.sqrt(sum((part.reshape(3, -1) ** 2).sum(1) for part in found.weights))
    np.testing.assert_allclose(values("gradient norm"), norms[[1, 0, 2]], rtol=1e-4)
    norms = np.sqrt((found.costates.reshape(4, -1) ** 2).sum(1))
    np.testing.assert_allclose(values("costate norm"), norms, rtol=1e-5)
    # Before the first block, between two, after the last.
    assert len(values("field")) == 3 * 4
    errors = reconstruct(stage, found.states[0], 5).errors
    np.testing.assert_allclose(values("error of the state, 5 iterations"), errors, rtol=1e-3)
