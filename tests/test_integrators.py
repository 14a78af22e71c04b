"""Integrators: their formulas and orders, and what a block that is evaluated twice does."""

import contextlib
import itertools

import keras
import numpy as np
import pytest
import scipy.linalg
from autodiff import value_and_gradients
from keras import layers, ops

from mf_zoo import depth
from mf_zoo.layers import (
    BasicBlock,
    BatchNormalization,
    EulerIntegrator,
    HeunIntegrator,
    Integrator,
    MeanFieldStage,
    MidpointIntegrator,
    integrators,
    register_integrator,
)

SHAPE = (6, 6, 4)
UNROLL = [True] if keras.backend.backend() == "tensorflow" else [True, False]
NAMES = ["euler", "midpoint", "heun"]
SECOND_ORDER = ["midpoint", "heun"]


def array(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def images(batch=5, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype("float32")


def randomize(layer, seed=0):
    """Gives every float weight but the times a random value fit for its part."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.path.endswith("times") or not weight.dtype.startswith("float"):
            continue
        value = rng.normal(size=weight.shape) * 0.3
        if "variance" in weight.path or "gamma" in weight.path:
            value = 0.5 + np.abs(value)
        weight.assign(value)


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class Scale(layers.Layer):
    """f(x) = a x."""

    def build(self, input_shape):
        self.a = self.add_weight(shape=(), initializer="ones", name="a")

    def call(self, inputs):
        return self.a * inputs


def scale_stage(factors, times, **kwargs):
    stage = MeanFieldStage(Scale(), len(factors), initial_times=times, **kwargs)
    stage.build((None, 1))
    stage.weights[1].assign(factors)
    return stage


@pytest.mark.parametrize(
    ("integrator", "activation", "expected"),
    [
        # f(x) = -3 x from 1 with a step of 1: Euler comes to -2, half a step of Euler to -1/2.
        ("euler", None, -2.0),
        ("midpoint", None, 1 - 3 * -0.5),
        ("heun", None, 1 + (-3 + 6) / 2),
        # ReLU puts both at 0, where f is 0.
        ("euler", "relu", 0.0),
        ("midpoint", "relu", 1.0),
        ("heun", "relu", 0.0),
    ],
)
def test_one_step_by_hand(integrator, activation, expected):
    stage = scale_stage([-3.0], [1.0], integrator=integrator, activation=activation)
    np.testing.assert_allclose(array(stage(np.ones((1, 1)))), [[expected]], rtol=1e-6)


def by_hand(integrator, x, step, f, activation):
    """A step by NumPy, from the formulas in textbooks."""
    if integrator == "euler":
        return activation(x + step * f(x))
    if integrator == "midpoint":
        return activation(x + step * f(activation(x + step / 2 * f(x))))
    return activation(x + step / 2 * (f(x) + f(activation(x + step * f(x)))))


@pytest.mark.parametrize("unroll", UNROLL)
@pytest.mark.parametrize("integrator", NAMES)
def test_a_stage_by_numpy(integrator, unroll):
    stage = MeanFieldStage(
        layers.Dense(4, activation="tanh"),
        3,
        activation="relu",
        initial_times=[2.5, 0.5, 1.0],
        integrator=integrator,
        unroll=unroll,
    )
    x = expected = images(shape=(4,))
    stage.build((None, 4))
    randomize(stage)
    kernels, biases = (array(weight) for weight in stage.weights[1:])
    for i, step in ((1, 0.5), (2, 0.5), (0, 1.5)):

        def f(x, i=i):
            return np.tanh(x @ kernels[i] + biases[i])

        expected = by_hand(integrator, expected, step, f, lambda x: np.maximum(x, 0))
    np.testing.assert_allclose(array(stage(x)), expected, rtol=1e-4, atol=1e-5)


@contextlib.contextmanager
def double_precision():
    """JAX has no float64 unless it is told to."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def errors_of(block, weights, parts, exact, x, **kwargs):
    """Errors of a stage whose particles are each split into equal parts, for each number."""
    found = []
    with double_precision():
        for count in parts:
            n = len(weights[0])
            stage = MeanFieldStage(
                block, n * count, horizon=float(n), dtype="float64", unroll=UNROLL[-1], **kwargs
            )
            stage.build((None, x.shape[-1]))
            for weight, value in zip(stage.weights[1:], weights, strict=True):
                weight.assign(np.repeat(value, count, axis=0))
            outputs = ops.convert_to_numpy(stage(x))
            assert outputs.dtype == "float64"
            found.append(np.abs(outputs - exact).max())
    return np.array(found)


def orders(errors):
    """From one number of parts to the double."""
    return np.log2(errors[:-1] / errors[1:])


@pytest.mark.parametrize("integrator", NAMES)
def test_order_on_linear_blocks_against_the_exponential(integrator):
    rng = np.random.default_rng(0)
    kernels, x = rng.normal(size=(3, 4, 4)) * 0.2, rng.normal(size=(2, 4))
    exact = x
    for kernel in kernels:
        exact = exact @ scipy.linalg.expm(kernel)
    block = layers.Dense(4, use_bias=False, dtype="float64")
    errors = errors_of(block, [kernels], (8, 16, 32), exact, x, integrator=integrator)
    assert orders(errors) == pytest.approx(integrators.get(integrator).order, abs=0.15)


@pytest.mark.parametrize("integrator", NAMES)
def test_order_on_smooth_blocks_against_a_fine_solution(integrator):
    rng = np.random.default_rng(1)
    kernels, biases = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3))
    x = exact = rng.normal(size=(2, 3))
    h = 1 / 200
    for kernel, bias in zip(kernels, biases, strict=True):  # the classical Runge-Kutta method

        def f(x, kernel=kernel, bias=bias):
            return np.tanh(x @ kernel + bias)

        for _ in range(200):
            k1 = f(exact)
            k2 = f(exact + h / 2 * k1)
            k3 = f(exact + h / 2 * k2)
            k4 = f(exact + h * k3)
            exact = exact + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    block = layers.Dense(3, activation="tanh", dtype="float64")
    weights = [kernels, biases]
    errors = errors_of(block, weights, (8, 16, 32), exact, x, integrator=integrator)
    assert orders(errors) == pytest.approx(integrators.get(integrator).order, abs=0.15)


@pytest.mark.parametrize(
    ("integrator", "quadrature", "order"),
    [
        ("euler", "midpoint", 1),
        ("midpoint", "midpoint", 2),
        ("heun", "midpoint", 2),
        ("midpoint", "backward", 1),
        ("heun", "backward", 1),
    ],
)
def test_where_weights_vary_with_time_the_quadrature_limits_the_order(
    integrator, quadrature, order
):
    """`dx/dt = cos(t) x` has the solution `exp(sin t)`."""
    errors = []
    with double_precision():
        for n in (16, 32, 64):
            stage = MeanFieldStage(
                Scale(dtype="float64"),
                n,
                quadrature,
                horizon=2.0,
                dtype="float64",
                integrator=integrator,
                unroll=UNROLL[-1],
            )
            stage.build((None, 1))
            stage.weights[1].assign(np.cos(ops.convert_to_numpy(stage.times)))
            errors.append(
                abs(ops.convert_to_numpy(stage(np.ones((1, 1))))[0, 0] - np.exp(np.sin(2)))
            )
    assert orders(np.array(errors)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("integrator", SECOND_ORDER)
def test_gradient_of_the_times_by_hand_and_by_finite_differences(integrator):
    """Of f(x) = a x both methods make 1 + z + z^2/2 with z = dt a; the rule is the backward one."""
    times, factors = np.array([2.1, 0.3, 1.2]), np.array([0.4, -0.3, 0.7])
    stage = scale_stage(factors, times, integrator=integrator)
    order = np.argsort(times)
    a, dt = factors[order], np.diff(times[order], prepend=0)
    growth = 1 + dt * a + (dt * a) ** 2 / 2
    product = growth.prod()
    of_steps = a * (1 + dt * a) * product / growth
    expected = np.empty(3)
    expected[order] = of_steps - np.append(of_steps[1:], 0)
    x = np.ones((1, 1), "float32")
    value, (gradient, of_factors) = value_and_gradients(stage, x, ops.sum)
    assert value == pytest.approx(product, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)
    np.testing.assert_allclose(
        of_factors[order], dt * (1 + dt * a) * product / growth, rtol=1e-4, atol=1e-6
    )


def squares(outputs):
    weights = np.random.default_rng(7).normal(size=tuple(outputs.shape[1:]))
    weights = ops.convert_to_tensor(weights, "float32")
    return ops.mean(ops.square(outputs) * weights) + ops.mean(outputs * weights)


@pytest.mark.once_on_torch
@pytest.mark.parametrize("integrator", SECOND_ORDER)
def test_gradient_of_the_times_of_convolutional_blocks_by_finite_differences(integrator):
    stage = MeanFieldStage(
        BasicBlock(4), 3, activation="relu", initial_times=[1.9, 0.6, 2.7], integrator=integrator
    )
    stage.build((None, *SHAPE))
    randomize(stage)
    _, gradients = value_and_gradients(stage, images(), squares, training=False)
    start = ops.convert_to_numpy(stage.times.value)
    for i in range(3):
        ends = []
        for shift in (5e-3, -5e-3):
            moved = start.copy()
            moved[i] += shift
            stage.times.assign(moved)
            ends.append(float(ops.convert_to_numpy(squares(stage(images(), training=False)))))
        assert (ends[0] - ends[1]) / 1e-2 == pytest.approx(gradients[0][i], rel=3e-2, abs=3e-3)


def test_the_folded_step_is_the_multiplied_one():
    class Unfolded(BasicBlock):
        output_scale_variables = ()

    found = []
    for block in (BasicBlock(4), Unfolded(4)):
        stage = MeanFieldStage(
            block, 2, activation="relu", initial_times=[1.7, 0.4], integrator="heun"
        )
        stage.build((None, *SHAPE))
        randomize(stage)
        found.append(value_and_gradients(stage, images(), squares, training=True))
    (value, gradients), (plain_value, plain_gradients) = found
    assert value == pytest.approx(plain_value, rel=1e-5)
    for got, want in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=5e-5)


@pytest.mark.parametrize("unroll", UNROLL)
@pytest.mark.parametrize("integrator", NAMES)
def test_statistics_are_updated_by_one_evaluation_after_the_other(integrator, unroll):
    block = BatchNormalization(momentum=0.9, epsilon=1e-3, center=False, scale=False)
    stage = MeanFieldStage(
        block, 2, initial_times=[1.5, 0.5], horizon=2.0, integrator=integrator, unroll=unroll
    )
    x = state = 2 + images(32, shape=(3,))
    stage(x, training=True)
    moving = {}
    for i, step in ((1, 0.5), (0, 1.0)):
        mean, variance = np.zeros(3), np.ones(3)

        def f(x):
            nonlocal mean, variance
            mean = 0.9 * mean + 0.1 * x.mean(0)
            variance = 0.9 * variance + 0.1 * x.var(0)
            return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)

        u = step * f(state)
        if integrator == "euler":
            state = state + u
        elif integrator == "midpoint":
            state = state + step * f(state + u / 2)
        else:
            state = state + (u + step * f(state + u)) / 2
        moving[i] = mean, variance
    means, variances = (array(weight) for weight in stage.non_trainable_weights)
    for i in range(2):
        np.testing.assert_allclose(means[i], moving[i][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variances[i], moving[i][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("integrator", SECOND_ORDER)
def test_statistics_estimated_anew_are_averages_over_the_evaluations(integrator):
    block = BatchNormalization(momentum=0.9, epsilon=1e-3, center=False, scale=False)
    stage = MeanFieldStage(block, 1, integrator=integrator)
    model = keras.Sequential([keras.Input((3,)), stage])
    x = 2 + images(32, shape=(3,))
    depth.recalibrate(model, x, batch_size=16)
    means, variances = [], []
    for part in (x[:16], x[16:]):
        u = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-3)
        for state in (part, part + (0.5 if integrator == "midpoint" else 1) * u):
            means.append(state.mean(0))
            variances.append(state.var(0))
    for got, expected in zip(stage.non_trainable_weights, (means, variances), strict=True):
        np.testing.assert_allclose(array(got)[0], np.mean(expected, axis=0), rtol=1e-3)


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class Penalized(Scale):
    """Adds a loss of its weight and one of its input."""

    def call(self, inputs):
        self.add_loss(10 * self.a**2)
        self.add_loss(ops.mean(inputs))
        return super().call(inputs)


@pytest.mark.parametrize("unroll", UNROLL)
@pytest.mark.parametrize("integrator", NAMES)
def test_losses_of_a_block_count_once(integrator, unroll):
    stage = MeanFieldStage(Penalized(), 2, integrator=integrator, unroll=unroll)
    stage.build((None, 1))
    stage.weights[1].assign([2.0, -1.0])
    stage(np.ones((4, 1)))
    # From 1 with a = 2: Euler's step ends at 3, half of it at 2, the two others' at 5. From there
    # with a = -1 Euler's step ends at 0, half of it at 5/2.
    inputs = {"euler": [1, 3], "midpoint": [(1 + 2) / 2, (5 + 2.5) / 2]}
    inputs["heun"] = [(1 + 3) / 2, (5 + 0) / 2]
    expected = 10 * (4 + 1) + sum(inputs[integrator])
    assert float(array(sum(stage.losses))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("unroll", UNROLL)
def test_dropout_in_a_block_draws_anew_for_every_evaluation(unroll):
    stage = MeanFieldStage(layers.Dropout(0.5, seed=3), 1, integrator="heun", unroll=unroll)
    x = np.ones((64, 32), "float32")
    first, second = (array(stage(x, training=True)) for _ in range(2))
    # Kept, a unit is doubled: 1 + (2 m + 2 n (1 + 2 m)) / 2 with m, n in {0, 1}.
    assert set(np.unique(first)) == {1.0, 2.0, 5.0}
    assert (first == 2).mean() == pytest.approx(0.5, abs=0.05)
    assert (first != second).any()
    np.testing.assert_array_equal(array(stage(x, training=False)), 2.5)


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class Everything(layers.Layer):
    """A block that draws, has statistics and adds losses."""

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        # Keras on TensorFlow adds up no losses of different dtypes.
        regularizer = "l2" if self.compute_dtype == "float32" else None
        self.dense = layers.Dense(4, activity_regularizer=regularizer, dtype=self.dtype_policy)
        self.bn = BatchNormalization(momentum=0.9, dtype=self.dtype_policy)
        self.dropout = layers.Dropout(0.4, seed=seed, dtype=self.dtype_policy)

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build(shape)

    def call(self, x, training=None):
        x = self.bn(self.dense(x), training=training)
        return self.dropout(ops.tanh(x), training=training)


def trained(integrator, policy, unroll, remat):
    """Loss and weights of a training step."""
    keras.utils.set_random_seed(2)
    stage = MeanFieldStage(
        Everything(seed=7, dtype=policy),
        2,
        activation="relu",
        initial_times=[1.7, 0.4],
        dtype=policy,
        integrator=integrator,
        unroll=unroll,
        remat=remat,
    )
    model = keras.Sequential([keras.Input((4,)), stage])
    randomize(stage)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = images(8, shape=(4,))
    return model.train_on_batch(x, 2 * x), stage.get_weights()


@pytest.mark.parametrize(
    ("integrator", "policy"),
    [
        ("midpoint", "float32"),
        pytest.param("heun", "mixed_bfloat16", marks=pytest.mark.once_on_torch),
    ],
)
def test_neither_recomputation_nor_scan_changes_a_result(integrator, policy):
    loss, weights = trained(integrator, policy, unroll=True, remat=False)
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-5 if policy == "float32" else 2e-2)
    for unroll in UNROLL:
        other, others = trained(integrator, policy, unroll, remat=unroll)
        np.testing.assert_allclose(other, loss, **tolerance)
        for got, want in zip(others, weights, strict=True):
            np.testing.assert_allclose(got, want, **tolerance)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("integrator", SECOND_ORDER)
def test_mixed_precision(integrator, policy):
    stages = [
        MeanFieldStage(BasicBlock(4), 2, activation="relu", integrator=integrator, dtype=dtype)
        for dtype in ("float32", policy)
    ]
    for stage in stages:
        stage.build((None, *SHAPE))
        randomize(stage)
    expected, outputs = (stage(images(), training=True) for stage in stages)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    error = np.abs(array(outputs) - array(expected)).max()
    assert error < 0.03 * np.abs(array(expected)).max()


def stage_model(**kwargs):
    stage = MeanFieldStage(BasicBlock(4), 2, activation="relu", **kwargs)
    model = keras.Sequential([keras.Input(SHAPE), stage])
    randomize(stage)
    return model, stage


@pytest.mark.parametrize("integrator", NAMES)
def test_it_is_saved_by_its_name(integrator, tmp_path):
    model, stage = stage_model(integrator=integrator)
    assert stage.get_config()["integrator"] == integrator
    again = MeanFieldStage.from_config(stage.get_config())
    assert type(again.integrator) is type(integrators.get(integrator))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )
    # What was saved before there were integrators.
    config = {key: value for key, value in stage.get_config().items() if key != "integrator"}
    assert type(MeanFieldStage.from_config(config).integrator) is EulerIntegrator


class Theta(Integrator):
    """A step with the two slopes weighted by 1 - theta and theta."""

    def __init__(self, theta=0.25):
        self.theta = theta

    def __call__(self, x, update, activation):
        first = update(x)
        second = update(activation(x + first))
        return activation(x + (1 - self.theta) * first + self.theta * second)

    def get_config(self):
        return {"theta": self.theta}


@pytest.fixture
def own_objects():
    """Classes that a test registers with Keras are forgotten after it."""
    objects = keras.saving.get_custom_objects()
    before = dict(objects)
    yield
    objects.clear()
    objects.update(before)


def test_an_integrator_of_the_users_own(registries, own_objects, tmp_path):
    assert integrators.names()[:3] == NAMES
    assert register_integrator("theta")(Theta) is Theta
    assert integrators.names()[-1] == "theta"
    # f(x) = -2 x from 1 with a step of 1: slopes -2 and 2.
    stage = scale_stage([-2.0], [1.0], integrator="theta")
    np.testing.assert_allclose(array(stage(np.ones((1, 1)))), [[1 - 1.5 + 0.5]], atol=1e-6)
    assert integrators.serialize(Theta(0.25)) == "theta"
    # With arguments it is more than its name.
    model, stage = stage_model(integrator=Theta(0.75))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].integrator.theta == 0.75
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )
    with pytest.raises(ValueError, match=r"no other integrator has; EulerIntegrator of .*has it"):
        register_integrator("euler")(Theta)
    with pytest.raises(ValueError, match=r"integrator must be a subclass of Integrator\. Received"):
        register_integrator("dict")(dict)


@pytest.mark.parametrize("wrong", ["runge", 4, HeunIntegrator])
def test_an_unknown_integrator_names_the_right_ones(wrong):
    message = r"'euler', 'midpoint', 'heun'.*`register_integrator`.*Received: integrator="
    with pytest.raises(ValueError, match=message):
        MeanFieldStage(BasicBlock(4), 2, integrator=wrong)
    with pytest.raises(NotImplementedError, match="Integrator must define `__call__`"):
        Integrator()(1.0, None, None)


def test_evaluations_are_counted():
    found = [integrators.evaluations(one) for one in (EulerIntegrator(), MidpointIntegrator())]
    assert found == [1, 2]
    assert integrators.evaluations(lambda x, update, activation: update(update(update(x)))) == 3


@pytest.mark.parametrize("unroll", UNROLL)
@pytest.mark.parametrize("integrator", NAMES)
def test_states_in_depth_order(integrator, unroll):
    factors, times = [0.4, -0.5, 2.0], [2.5, 0.5, 1.0]
    stage = scale_stage(factors, times, integrator=integrator, unroll=unroll, activation="relu")
    states = stage.states(2 * np.ones((1, 1)))
    expected = [2.0]
    for i, step in ((1, 0.5), (2, 0.5), (0, 1.5)):
        z = step * factors[i]
        expected.append(expected[-1] * (1 + z + (integrator != "euler") * z**2 / 2))
    np.testing.assert_allclose([array(x)[0, 0] for x in states], expected, rtol=1e-5)


@pytest.mark.parametrize("unroll", UNROLL)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_the_last_state_is_what_a_call_returns_and_nothing_changes(training, policy, unroll):
    def make():
        stage = MeanFieldStage(Everything(seed=7), 2, unroll=unroll, dtype=policy)
        stage.build((None, 4))
        randomize(stage)
        return stage

    stage, x = make(), images(shape=(4,))
    before = stage.get_weights()
    states = stage.states(x, training=training)
    assert not stage.losses
    for old, new in zip(before, stage.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(states) == 3
    kind = "float32" if policy == "float32" else "bfloat16"
    assert {keras.backend.standardize_dtype(state.dtype) for state in states} == {kind}
    np.testing.assert_array_equal(array(states[0]), array(ops.cast(x, kind)))
    # XLA may round another scan otherwise.
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-6 if policy == "float32" else 1e-2)
    np.testing.assert_allclose(array(states[-1]), array(stage(x, training=training)), **tolerance)
    changed = [not np.array_equal(a, b) for a, b in zip(before, stage.get_weights(), strict=True)]
    assert any(changed) is training


def test_states_of_values_in_a_scope():
    """As in a function that JAX transforms: the variables' values are those of the scope."""
    stage = scale_stage([1.0, 1.0], [1.0, 2.0])
    with keras.StatelessScope([(stage.weights[1], ops.convert_to_tensor([2.0, 3.0]))]):
        states = stage.states(np.ones((1, 1)))
    assert [array(x)[0, 0] for x in states] == [1, 3, 12]
    assert [array(x)[0, 0] for x in stage.states(np.ones((1, 1)))] == [1, 2, 4]
    # It builds the stage where nobody has.
    assert len(MeanFieldStage(Scale(), 2).states(np.ones((3, 5)))) == 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [Everything(seed=7), BasicBlock(4)])
def test_a_block_adds_to_any_state_what_it_adds_in_the_stage(block, training):
    """`Everything` takes the plain product with the step, `BasicBlock` has it folded."""
    shape = (4,) if isinstance(block, Everything) else (6, 6, 4)
    stage = MeanFieldStage(block, 3, initial_times=[2.5, 0.5, 1.0], activation="relu")
    x = images(shape=shape)
    states = stage.states(x)
    randomize(stage)
    before = stage.get_weights()
    states = stage.states(x, training=training)
    for position, (old, new) in enumerate(itertools.pairwise(states)):
        update = stage.update(old, position, training=training)
        np.testing.assert_allclose(array(ops.relu(old + update)), array(new), rtol=1e-5, atol=1e-5)
    assert not stage.losses
    for old, new in zip(before, stage.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match=r"from 0 to 2\. Received: position=3"):
        stage.update(x, 3)
