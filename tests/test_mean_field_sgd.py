"""MeanFieldSGD against Keras's SGD, a NumPy implementation and hand-worked numbers."""

import math

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import ops

from mf_zoo.layers import MeanFieldStage
from mf_zoo.layers.particles import ParticleInfo
from mf_zoo.optimizers import MeanFieldSGD

NUM_PARTICLES = 3
HORIZON = 2.0


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class Particles(keras.layers.Layer):
    """Residual tanh blocks weighted by their times: a stage without order, for optimizer tests."""

    def __init__(self, train_times=True, **kwargs):
        super().__init__(**kwargs)
        self.train_times = train_times

    def build(self, input_shape):
        width = input_shape[-1]
        self.kernel = self.add_weight((NUM_PARTICLES, width, width), name="kernel")
        self.bias = self.add_weight((NUM_PARTICLES, width), name="bias", initializer="zeros")
        self.times = self.add_weight(
            (NUM_PARTICLES,), name="times", initializer="ones", trainable=self.train_times
        )
        for variable in (self.kernel, self.bias, self.times):
            kind = "time" if variable is self.times else "block"
            variable.mean_field = ParticleInfo(kind, NUM_PARTICLES, HORIZON)

    def call(self, x):
        for i in range(NUM_PARTICLES):
            weight = ops.cast(self.times[i], x.dtype)
            x = x + weight * ops.tanh(ops.matmul(x, self.kernel[i]) + self.bias[i])
        return x

    def get_config(self):
        return {**super().get_config(), "train_times": self.train_times}


def values(variables):
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def data(samples=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 4)).astype("float32")
    return x, (x[:, :1] ** 2 - x[:, 1:2]).astype("float32")


def particle_model(optimizer=None, seed=0, **compile_args):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4,)), Particles(), keras.layers.Dense(1)])
    if optimizer is not None:
        model.compile(optimizer, "mse", **compile_args)
    return model


def plain_model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    if type(optimizer) is not MeanFieldSGD:
        skipped = [v for v in model.trainable_variables if len(v.shape) <= 1]
        optimizer.exclude_from_weight_decay(var_list=skipped)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def bare_variables(rng, times=True):
    """A kernel and a bias outside stages; kernels, biases and times of two stages."""
    with keras.name_scope("stem"):
        variables = [keras.Variable(rng.normal(size=(3, 2)), dtype="float32", name="kernel")]
        variables.append(keras.Variable(rng.normal(size=(2,)), dtype="float32", name="bias"))
    for name, n, horizon in (("stage1", 4, 4.0), ("stage2", 5, 1.0)):
        block, time = (ParticleInfo(kind, n, horizon) for kind in ("block", "time"))
        with keras.name_scope(name):
            kernel = rng.normal(size=(n, 2, 2))
            variables.append(keras.Variable(kernel, dtype="float32", name="kernel"))
            variables[-1].mean_field = block
            bias = rng.normal(size=(n, 2))
            variables.append(keras.Variable(bias, dtype="float32", name="bias"))
            variables[-1].mean_field = block
            if times:
                start = rng.uniform(0, horizon, n)
                variables.append(keras.Variable(start, dtype="float32", name="times"))
                variables[-1].mean_field = time
    return variables


def apply(optimizer, gradients, variables):
    """One update, in the way of the active backend's training loop."""
    gradients = [ops.convert_to_tensor(g, "float32") for g in gradients]
    if not optimizer.built:
        optimizer.build(variables)
    if keras.backend.backend() != "jax":
        optimizer.apply(gradients, variables)
        return
    new_variables, new_state = optimizer.stateless_apply(
        [v.value for v in optimizer.variables], gradients, [v.value for v in variables]
    )
    for variable, value in zip(variables, new_variables, strict=True):
        variable.assign(value)
    for variable, value in zip(optimizer.variables, new_state, strict=True):
        variable.assign(value)


def numpy_sgd(
    weights,
    infos,
    steps,
    rate=0.1,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    coupled=False,
    time_multiplier=1.0,
    scaling=False,
    clipnorm=None,
    global_clipnorm=None,
    clipvalue=None,
    multipliers=None,
):
    """The optimizer in plain NumPy (float64); `rate` may be a function of the step."""
    multipliers = multipliers or [1.0] * len(weights)
    weights = [np.array(w, "float64") for w in weights]
    velocities = [np.zeros_like(w) for w in weights]
    for step, gradients in enumerate(steps):
        base_rate = rate(step) if callable(rate) else rate
        moving = [g for g, multiplier in zip(gradients, multipliers, strict=True) if multiplier]
        total = math.sqrt(sum((g**2).sum() for g in moving))
        for i, (g, info) in enumerate(zip(gradients, infos, strict=True)):
            if multipliers[i] == 0:
                continue
            is_time = info is not None and info.kind == "time"
            if clipnorm:
                g = g * min(1.0, clipnorm / np.linalg.norm(g))
            if global_clipnorm:
                g = g * min(1.0, global_clipnorm / total)
            if clipvalue:
                g = np.clip(g, -clipvalue, clipvalue)
            if scaling and info is not None:
                g = g * info.num_particles / info.horizon
            if weights[i].ndim >= (2 if info is None else 3):
                if coupled:
                    g = g + weight_decay * weights[i]
                else:
                    weights[i] = weights[i] * (1 - base_rate * multipliers[i] * weight_decay)
            own_rate = base_rate * multipliers[i] * (time_multiplier if is_time else 1.0)
            velocities[i] = momentum * velocities[i] - own_rate * g
            if nesterov:
                weights[i] = weights[i] + momentum * velocities[i] - own_rate * g
            else:
                weights[i] = weights[i] + velocities[i]
            if is_time:  # walk from wall to wall
                for j in range(info.num_particles):
                    while not 0 <= weights[i][j] <= info.horizon:
                        wall = 0.0 if weights[i][j] < 0 else info.horizon
                        weights[i][j] = 2 * wall - weights[i][j]
                        velocities[i][j] *= -1
    return weights, velocities


def check_golden(optimizer_args, reference_args, times=True, num_steps=7, optimizer=None):
    rng = np.random.default_rng(3)
    variables = bare_variables(rng, times)
    infos = [getattr(v, "mean_field", None) for v in variables]
    start = values(variables)
    steps = [[rng.normal(size=v.shape) for v in variables] for _ in range(num_steps)]
    optimizer = optimizer or MeanFieldSGD(**{"learning_rate": 0.1, **optimizer_args})
    for gradients in steps:
        apply(optimizer, gradients, variables)
    weights, velocities = numpy_sgd(start, infos, steps, **reference_args)
    for variable, expected in zip(variables, weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(variable), expected, rtol=2e-4, atol=2e-5)
    if reference_args.get("momentum"):
        for slot, expected in zip(optimizer.momentums, velocities, strict=True):
            np.testing.assert_allclose(ops.convert_to_numpy(slot), expected, rtol=2e-4, atol=2e-5)
    return start, weights


GOLDEN = {
    "plain": ({}, {}),
    "momentum": ({"momentum": 0.9}, {"momentum": 0.9}),
    "nesterov": ({"momentum": 0.8, "nesterov": True}, {"momentum": 0.8, "nesterov": True}),
    "decay": ({"weight_decay": 0.3}, {"weight_decay": 0.3}),
    "coupled decay": (
        {"momentum": 0.9, "weight_decay": 0.3, "coupled_weight_decay": True},
        {"momentum": 0.9, "weight_decay": 0.3, "coupled": True},
    ),
    "time rate": (
        {"momentum": 0.9, "time_learning_rate_multiplier": 5.0},
        {"momentum": 0.9, "time_multiplier": 5.0},
    ),
    "scaling": ({"mean_field_scaling": True}, {"scaling": True}),
    "clipnorm": (
        {"clipnorm": 0.7, "mean_field_scaling": True},
        {"clipnorm": 0.7, "scaling": True},
    ),
    "clipvalue": ({"clipvalue": 0.3}, {"clipvalue": 0.3}),
    "all, coupled": (
        {
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.2,
            "coupled_weight_decay": True,
            "time_learning_rate_multiplier": 3.0,
            "mean_field_scaling": True,
            "global_clipnorm": 1.5,
        },
        {
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.2,
            "coupled": True,
            "time_multiplier": 3.0,
            "scaling": True,
            "global_clipnorm": 1.5,
        },
    ),
    "all, decoupled": (
        {
            "momentum": 0.5,
            "weight_decay": 0.2,
            "time_learning_rate_multiplier": 0.5,
            "mean_field_scaling": True,
            "global_clipnorm": 1.5,
        },
        {
            "momentum": 0.5,
            "weight_decay": 0.2,
            "time_multiplier": 0.5,
            "scaling": True,
            "global_clipnorm": 1.5,
        },
    ),
    "multipliers, decoupled": (
        {
            "momentum": 0.9,
            "weight_decay": 0.3,
            "time_learning_rate_multiplier": 3.0,
            "global_clipnorm": 1.5,
            # The last that matches counts: of what "stage2" matches, one is left to it.
            "learning_rate_multipliers": {"*": 0.5, "stage2": 2.0, "stage?/times": 0.25, "bias": 0},
        },
        {
            "momentum": 0.9,
            "weight_decay": 0.3,
            "time_multiplier": 3.0,
            "global_clipnorm": 1.5,
            "multipliers": [0.5, 0, 0.5, 0, 0.25, 2.0, 0, 0.25],
        },
    ),
    "multipliers, coupled": (
        {
            "momentum": 0.8,
            "nesterov": True,
            "weight_decay": 0.3,
            "coupled_weight_decay": True,
            "mean_field_scaling": True,
            "clipnorm": 0.7,
            "learning_rate_multipliers": {"stem/*": 3.0, "*e1": 0.0, "stage2/[bt]*": 0.1},
        },
        {
            "momentum": 0.8,
            "nesterov": True,
            "weight_decay": 0.3,
            "coupled": True,
            "scaling": True,
            "clipnorm": 0.7,
            "multipliers": [3.0, 3.0, 0, 0, 0, 1.0, 0.1, 0.1],
        },
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_equals_numpy(case):
    check_golden(*GOLDEN[case])


def test_equals_numpy_with_frozen_times():
    check_golden(*GOLDEN["all, coupled"], times=False)


def test_equals_numpy_with_learning_rate_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.2, decay_steps=1, decay_rate=0.7)
    optimizer, reference = GOLDEN["all, decoupled"]
    check_golden(
        {**optimizer, "learning_rate": schedule}, {**reference, "rate": lambda i: 0.2 * 0.7**i}
    )


def test_weight_decay_skips_vectors_of_particles_times_and_what_the_user_names():
    for coupled in (False, True):
        rng = np.random.default_rng(0)
        variables = bare_variables(rng)
        variables.append(keras.Variable(rng.normal(size=(2, 2)), dtype="float32", name="spared"))
        variables.append(keras.Variable(rng.normal(size=(2, 2)), dtype="float32", name="listed"))
        before = values(variables)
        optimizer = MeanFieldSGD(0.5, weight_decay=0.1, coupled_weight_decay=coupled)
        optimizer.exclude_from_weight_decay(var_list=[variables[-1]], var_names=["spared"])
        apply(optimizer, [np.zeros(v.shape) for v in variables], variables)
        for i, (old, new) in enumerate(zip(before, values(variables), strict=True)):
            if i in (0, 2, 5):  # the kernels
                np.testing.assert_allclose(new, old * 0.95, rtol=1e-6)
            else:
                np.testing.assert_array_equal(new, old)


def test_weight_decay_with_nothing_to_decay():
    bias = keras.Variable([1.0, 2.0])
    apply(MeanFieldSGD(0.5, weight_decay=0.1), [np.ones(2)], [bias])
    np.testing.assert_allclose(ops.convert_to_numpy(bias), [0.5, 1.5])


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clipnorm": 0.1},
        {"momentum": 0.9, "gradient_accumulation_steps": 2, "use_ema": True},
    ],
    ids=["none", "momentum", "nesterov", "accumulation"],
)
def test_without_stages_equals_keras_sgd_to_the_bit(args):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 10)).astype("float32")
    y = rng.integers(0, 3, 24)
    weights = []
    # What is peculiar to particles must not touch variables that are none.
    particles = {"time_learning_rate_multiplier": 7.0, "mean_field_scaling": True}
    particles |= {"noise_temperature": 1.0, "seed": 0}
    optimizers = [keras.optimizers.SGD(0.1, **args), MeanFieldSGD(0.1, **args)]
    if "nesterov" in args:
        optimizers.append(MeanFieldSGD(0.1, **args, **particles))
    for optimizer in optimizers:
        model = plain_model(optimizer)
        start = values(model.trainable_variables)
        model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        weights.append(values(model.variables))
        assert not np.array_equal(start[0], weights[-1][0])
    for other in weights[1:]:
        for expected, got in zip(weights[0], other, strict=True):
            np.testing.assert_array_equal(got, expected)


def time_variable(times, horizon=1.0):
    variable = keras.Variable(np.array(times, "float32"))
    variable.mean_field = ParticleInfo("time", len(times), horizon)
    return variable


def test_times_are_reflected_and_their_momentum_is_turned():
    # T = 1, learning rate 1, momentum 1/2; every number is exact in binary.
    times = time_variable([0.5, 0.5, 0.75, 0.25])
    optimizer = MeanFieldSGD(1.0, momentum=0.5)
    # To -2.25, past the walls 0, 1 and 0 (odd): 0.25. To 3.0, past 1 and 0 (even), onto 1.
    # To 1.25, past 1: 0.75. To 0, on the wall: no reflection.
    apply(optimizer, [np.array([2.75, -2.5, -0.5, 0.25])], [times])
    np.testing.assert_array_equal(ops.convert_to_numpy(times), [0.25, 1.0, 0.75, 0.0])
    velocity = optimizer.momentums[0]
    np.testing.assert_array_equal(ops.convert_to_numpy(velocity), [2.75, 2.5, -0.5, -0.25])
    # Free flight: velocities halve, then carry on in the turned directions.
    # 0.25 + 1.375 = 1.625 -> 0.375; 1 + 1.25 = 2.25 -> -0.25 -> 0.25; 0.5; -0.125 -> 0.125.
    apply(optimizer, [np.zeros(4)], [times])
    np.testing.assert_array_equal(ops.convert_to_numpy(times), [0.375, 0.25, 0.5, 0.125])
    np.testing.assert_array_equal(ops.convert_to_numpy(velocity), [-1.375, 1.25, -0.25, 0.125])


def test_nesterov_momentum_is_turned_by_the_place_reached():
    # velocity = -0.5; place = 0.25 + 0.5 * -0.5 - 0.5 = -0.5 -> 0.5, velocity 0.5.
    times = time_variable([0.25])
    optimizer = MeanFieldSGD(1.0, momentum=0.5, nesterov=True)
    apply(optimizer, [np.array([0.5])], [times])
    np.testing.assert_array_equal(ops.convert_to_numpy(times), [0.5])
    np.testing.assert_array_equal(ops.convert_to_numpy(optimizer.momentums[0]), [0.5])


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    horizon=st.floats(2**-7, 100, width=32),
    momentum=st.sampled_from([0.0, 0.5, 0.99]),
    nesterov=st.booleans(),
    gradients=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=3
    ),
)
def test_times_stay_in_the_interval(horizon, momentum, nesterov, gradients):
    times = time_variable([0.0, horizon / 2, horizon], horizon)
    optimizer = MeanFieldSGD(0.5, momentum, nesterov, mean_field_scaling=True)
    for gradient in gradients:
        apply(optimizer, [np.array(gradient)], [times])
        got = ops.convert_to_numpy(times)
        assert np.all(got >= 0) and np.all(got <= np.float32(horizon)), got


def block_variable(start):
    variable = keras.Variable(np.array(start, "float32"))
    variable.mean_field = ParticleInfo("block", len(start), 1.0)
    return variable


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_noise_of_one_step(momentum):
    rate, multiplier, temperature, n = 0.04, 0.25, 0.3, 20_000
    variables = [block_variable(np.zeros(n)), block_variable(np.zeros((n, 1)))]
    variables.append(time_variable(np.full(n, 5.0), 10.0))
    plain = keras.Variable(np.zeros(n, "float32"))
    optimizer = MeanFieldSGD(
        rate,
        momentum,
        time_learning_rate_multiplier=multiplier,
        noise_temperature=temperature,
        seed=4,
    )
    steps = []
    for _ in range(2):
        before = values(variables)
        old = values(optimizer.momentums[:3]) if optimizer.built and momentum else [0, 0, 0]
        apply(optimizer, [np.zeros(v.shape) for v in [*variables, plain]], [*variables, plain])
        after = zip(values(variables), before, old, strict=True)
        # The kick of this step: displacement without what momentum carries on.
        steps.append([(new - w - momentum * v).ravel() for new, w, v in after])
    assert not np.any(ops.convert_to_numpy(plain))
    for step in steps:
        for kick, own_rate in zip(step, (rate, rate, rate * multiplier), strict=True):
            std = math.sqrt(2 * (1 - momentum) * temperature * own_rate)
            assert abs(kick.mean()) < 4 * std / math.sqrt(n)
            assert kick.std() == pytest.approx(std, rel=0.025)
    # Independent between variables and between steps.
    correlation = np.corrcoef(np.stack([*steps[0], *steps[1]])) - np.eye(6)
    assert np.abs(correlation).max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_noise_gives_the_gibbs_measure_of_a_quadratic_potential(momentum):
    rate, stiffness, temperature, n = 0.05, 2.0, 0.3, 20_000
    block = block_variable(np.zeros(n))
    optimizer = MeanFieldSGD(rate, momentum, noise_temperature=temperature, seed=0)
    for _ in range(100):
        apply(optimizer, [stiffness * ops.convert_to_numpy(block)], [block])
    got = ops.convert_to_numpy(block)
    # Gibbs: temperature / stiffness. A finite rate adds a known excess: the stationary variance
    # of w' = (1 + m - a) w - m w_before + noise with a = rate * stiffness.
    excess = 1 / (1 - rate * stiffness / (2 * (1 + momentum)))
    assert excess < 1.06
    assert got.var() == pytest.approx(temperature / stiffness * excess, rel=0.04)
    assert abs(got.mean()) < 5 * got.std() / math.sqrt(n)


def test_noise_alone_spreads_times_uniformly():
    times = time_variable(np.zeros(10_000), 2.0)
    optimizer = MeanFieldSGD(0.1, momentum=0.5, noise_temperature=1.0, seed=0)
    for _ in range(60):
        apply(optimizer, [np.zeros(10_000)], [times])
    counts, _ = np.histogram(ops.convert_to_numpy(times), bins=5, range=(0.0, 2.0))
    assert np.abs(counts - 2000).max() < 5 * math.sqrt(2000 * 0.8)


def test_noise_depends_on_the_seed_and_on_nothing_else():
    def kicks(seed, steps=2):
        block = block_variable(np.zeros((4, 3)))
        optimizer = MeanFieldSGD(1.0, noise_temperature=0.5, seed=seed)
        places = [values([block])[0]]
        for _ in range(steps):
            apply(optimizer, [np.zeros((4, 3))], [block])
            places.append(values([block])[0])
        return np.diff(places, axis=0)

    np.testing.assert_array_equal(kicks(5), kicks(5))
    # Neighbouring seeds share no stretch of noise, not even shifted.
    assert not np.isclose(kicks(5)[:, None], kicks(6)[None]).all(axis=(2, 3)).any()
    assert not np.allclose(kicks(None), kicks(None))


def test_no_noise_where_the_rate_is_zero():
    block, times = block_variable(np.zeros(3)), time_variable([0.5, 0.5], 1.0)
    optimizer = MeanFieldSGD(
        0.1, 0.9, time_learning_rate_multiplier=0.0, noise_temperature=1.0, seed=0
    )
    apply(optimizer, [np.ones(3), np.ones(2)], [block, times])
    assert np.all(ops.convert_to_numpy(block) != 0)
    np.testing.assert_array_equal(ops.convert_to_numpy(times), [0.5, 0.5])
    optimizer.learning_rate = 0.0
    velocity = values(optimizer.momentums)[0]
    before = values([block])[0]
    apply(optimizer, [np.ones(3), np.ones(2)], [block, times])
    np.testing.assert_allclose(ops.convert_to_numpy(block), before + 0.9 * velocity, rtol=1e-5)


def test_what_is_frozen_stays_to_the_bit():
    rng = np.random.default_rng(0)
    variables = bare_variables(rng)
    optimizer = MeanFieldSGD(
        0.1,
        0.9,
        weight_decay=0.1,
        noise_temperature=0.1,
        seed=0,
        use_ema=True,
        learning_rate_multipliers={"stage1": 0.0, "stem/bias": 0},
    )
    optimizer.build(variables)
    for slot in optimizer.momentums:  # of a training that did not freeze
        slot.assign(rng.normal(size=slot.shape))
    before, slots = values(variables), values(optimizer.momentums)
    for _ in range(4):
        apply(optimizer, [rng.normal(size=v.shape) for v in variables], variables)
    after = values(variables)
    optimizer.finalize_variable_values(variables)  # averages of weights
    for i, frozen in enumerate([False, True, True, True, True, False, False, False]):
        for new in (after[i], values(variables)[i]):
            assert np.array_equal(new, before[i]) == frozen
        assert np.array_equal(values(optimizer.momentums)[i], slots[i]) == frozen


def test_with_all_frozen_only_steps_are_counted():
    variables = bare_variables(np.random.default_rng(0))
    before = values(variables)
    optimizer = MeanFieldSGD(0.1, weight_decay=0.1, learning_rate_multipliers={"*": 0})
    apply(optimizer, [np.ones(v.shape) for v in variables], variables)
    for new, old in zip(values(variables), before, strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 1


@pytest.mark.once_on_torch
@pytest.mark.parametrize(
    "multipliers, message",
    [
        ({"stem": 1.0, "Stage*": 2.0}, r"such as 'stem/kernel'.* stem, stage1.*: 'Stage\*'$"),
        ({"stage1": -0.5}, r"`learning_rate_multipliers\['stage1'\]` must be .* Received: .*=-0.5"),
        ({"stage1": float("nan")}, "must be a finite number"),
        ({"stage1": "fast"}, "must be a finite number"),
        ({1: 1.0}, r"must map patterns.* Received: learning_rate_multipliers=\{1: 1.0\}"),
        ([("stage1", 1.0)], "must map patterns"),
    ],
)
def test_bad_multipliers_are_refused(multipliers, message):
    with pytest.raises(ValueError, match=message):
        MeanFieldSGD(learning_rate_multipliers=multipliers).build(
            bare_variables(np.random.default_rng(0))
        )


PATTERNS = {"*/kernel": 0.5, "times": 2.0}
FULL = {
    "learning_rate": 0.02,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.01,
    "coupled_weight_decay": True,
    "time_learning_rate_multiplier": 3.0,
    "mean_field_scaling": True,
    "noise_temperature": 1e-3,
    "seed": 7,
    "clipnorm": 1.0,
}


def test_compiled_training_equals_eager_training():
    x, y = data()
    results = []
    for eager in (True, False):
        model = particle_model(MeanFieldSGD(**FULL), run_eagerly=eager)
        for _ in range(3):
            model.train_on_batch(x, y)
        results.append(values(model.trainable_variables))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_restored_training_goes_on_with_the_same_weights(tmp_path):
    x, y = data()
    # A seed drawn at random: only the saved state of the generator can bring the noise back.
    arguments = {**FULL, "seed": None, "learning_rate_multipliers": PATTERNS}
    model = particle_model(MeanFieldSGD(**arguments))
    for _ in range(3):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    for _ in range(3):
        model.train_on_batch(x, y)
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert type(restored.optimizer) is MeanFieldSGD
    assert list(restored.optimizer.learning_rate_multipliers.items()) == list(PATTERNS.items())
    assert int(ops.convert_to_numpy(restored.optimizer.iterations)) == 3
    for _ in range(3):
        restored.train_on_batch(x, y)
    for expected, got in zip(values(model.variables), values(restored.variables), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_gradient_accumulation_equals_the_large_batch():
    x, y = data()
    args = {**FULL, "clipnorm": None, "learning_rate_multipliers": {**PATTERNS, "bias": 0.0}}
    large = particle_model(MeanFieldSGD(**args))
    small = particle_model(MeanFieldSGD(**args, gradient_accumulation_steps=2))
    for _ in range(3):
        large.train_on_batch(x, y)
        small.train_on_batch(x[:8], y[:8])
        small.train_on_batch(x[8:], y[8:])
    expected = values(large.trainable_variables)
    for a, b in zip(expected, values(small.trainable_variables), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def stage_model(optimizer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = MeanFieldStage(keras.layers.Dense(4, activation="tanh"), 3, horizon=1.5)(inputs)
    x = MeanFieldStage(keras.layers.Dense(4), 2, train_times=False)(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(optimizer, "mse")
    return model


def test_the_particles_of_real_stages_are_told_apart():
    x, y = data()
    moves = []
    for args in (None, {}, {"mean_field_scaling": True, "time_learning_rate_multiplier": 3.0}):
        optimizer = keras.optimizers.SGD(0.01) if args is None else MeanFieldSGD(0.01, **args)
        model = stage_model(optimizer)
        before = values(model.variables)
        model.train_on_batch(x, y)
        after = zip(values(model.variables), before, strict=True)
        moves.append([new - old for new, old in after])
    first, second, head = model.layers[1:]
    plain, default, scaled = moves
    for variable, a, b, c in zip(model.variables, plain, default, scaled, strict=True):
        # In the first stage n / T = 2; in the second T = n and the times are fixed.
        factor = 2.0 if any(variable is v for v in first.variables) else 1.0
        if variable is first.times:
            factor = 2.0 * 3.0
        assert np.any(a) == (variable is not second.times)
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(c, factor * a, rtol=1e-3, atol=1e-6)
    assert {id(v) for v in head.variables} < {id(v) for v in model.variables}


def test_weight_decay_and_walls_in_a_real_stage():
    x, y = data()
    model = stage_model(MeanFieldSGD(0.5, weight_decay=0.2, time_learning_rate_multiplier=1e4))
    first, second, head = model.layers[1:]
    kernels = [
        v for stage in (first, second) for v in stage.trainable_variables if len(v.shape) == 3
    ]
    assert len(kernels) == 2
    kernels.append(head.kernel)
    model.optimizer.build(model.trainable_variables)
    before = values(model.trainable_variables)
    apply(
        model.optimizer,
        [np.zeros(v.shape) for v in model.trainable_variables],
        model.trainable_variables,
    )
    after = values(model.trainable_variables)
    for variable, old, new in zip(model.trainable_variables, before, after, strict=True):
        factor = 0.9 if any(variable is kernel for kernel in kernels) else 1.0
        np.testing.assert_allclose(new, factor * old, rtol=1e-6)
    old = values([first.times])[0]
    model.train_on_batch(x, y)
    new = values([first.times])[0]
    assert np.all(new != old) and np.all(new >= 0) and np.all(new <= 1.5)


def test_exponential_moving_average():
    start = np.array([0.25, 0.5], "float32")
    times, block = time_variable(start), block_variable(np.array([1.0, -1.0]))
    optimizer = MeanFieldSGD(1.0, use_ema=True, ema_momentum=0.5)
    # Places: 0.25 - 0.5 -> 0.25, then 0.25 - 0.25 = 0; 0.5 + 0.75 -> 0.75, then 0.75 - 0.25 = 0.5.
    # Keras starts the average at the place after the first step.
    for gradient in ([0.5, -0.75], [0.25, 0.25]):
        apply(optimizer, [np.array(gradient), np.array([1.0, 0.0])], [times, block])
    np.testing.assert_array_equal(ops.convert_to_numpy(times), [0.0, 0.5])
    np.testing.assert_array_equal(ops.convert_to_numpy(block), [-1.0, -1.0])
    optimizer.finalize_variable_values([times, block])
    np.testing.assert_array_equal(ops.convert_to_numpy(times), [0.125, 0.625])
    np.testing.assert_array_equal(ops.convert_to_numpy(block), [-0.5, -1.0])


def test_loss_scale_optimizer_skips_non_finite_steps():
    optimizer, reference = GOLDEN["all, coupled"]
    rng = np.random.default_rng(1)
    variables = bare_variables(rng)
    infos = [getattr(v, "mean_field", None) for v in variables]
    start = values(variables)
    steps = [[rng.normal(size=v.shape) for v in variables] for _ in range(4)]
    scaler = keras.optimizers.LossScaleOptimizer(
        MeanFieldSGD(0.1, **optimizer), initial_scale=8.0, dynamic_growth_steps=100
    )
    scale = 8.0
    for i, gradients in enumerate(steps):
        gradients = [g * scale for g in gradients]
        if i == 2:
            gradients[3][0] = np.inf
            scale /= 2
        apply(scaler, gradients, variables)
    assert float(ops.convert_to_numpy(scaler.dynamic_scale)) == 4.0
    weights, _ = numpy_sgd(start, infos, [steps[i] for i in (0, 1, 3)], **reference)
    for variable, expected in zip(variables, weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(variable), expected, rtol=2e-4, atol=2e-5)


def test_mixed_float16_training_skips_a_non_finite_batch():
    x, y = data()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        arguments = {**FULL, "weight_decay": 0.1, "learning_rate_multipliers": PATTERNS}
        model = particle_model(MeanFieldSGD(**arguments))
    finally:
        keras.config.set_dtype_policy(policy)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.train_on_batch(x, y)
    before = values(model.trainable_variables)
    state = values(model.optimizer.inner_optimizer.variables)
    model.train_on_batch(np.full_like(x, np.inf), y)
    for expected, got in zip(before, values(model.trainable_variables), strict=True):
        np.testing.assert_array_equal(got, expected)
    inner = model.optimizer.inner_optimizer
    for expected, got in zip(state, values(inner.variables), strict=True):
        np.testing.assert_array_equal(got, expected)
    model.train_on_batch(x, y)
    after = values(model.trainable_variables)
    assert all(np.all(np.isfinite(w)) for w in after)
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_config_round_trip():
    optimizer = MeanFieldSGD(
        **FULL,
        use_ema=True,
        ema_momentum=0.9,
        name="particles",
        learning_rate_multipliers=PATTERNS,
    )
    config = optimizer.get_config()
    assert config["learning_rate_multipliers"] == PATTERNS
    assert {key: config[key] for key in FULL} == pytest.approx(FULL)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is MeanFieldSGD
    assert again.get_config() == config
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    again = MeanFieldSGD.from_config(MeanFieldSGD(schedule).get_config())
    assert float(again.learning_rate) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "args",
    [
        {"weight_decay": -0.1},
        {"time_learning_rate_multiplier": -1.0},
        {"time_learning_rate_multiplier": float("inf")},
        {"noise_temperature": -1e-3},
        {"noise_temperature": float("nan")},
        {"seed": -1},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_bad_arguments_are_refused(args):
    ((name, value),) = args.items()
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: {name}={value}"):
        MeanFieldSGD(**args)


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match="time_rate"):
        MeanFieldSGD(time_rate=2.0)
