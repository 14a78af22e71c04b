"""MeanFieldOptimizer against Keras's optimizers, MeanFieldSGD, NumPy and the mirror image."""

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import ops
from test_mean_field_sgd import (
    apply,
    bare_variables,
    data,
    particle_model,
    plain_model,
    stage_model,
    time_variable,
    values,
)

from mf_zoo import depth
from mf_zoo.layers import BasicBlock, MeanFieldStage
from mf_zoo.layers.particles import reflect
from mf_zoo.optimizers import MeanFieldOptimizer, MeanFieldSGD


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class HeavyBall(keras.optimizers.Optimizer):
    """A user's own optimizer."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.speeds = self.add_optimizer_variables(variables, "speed")

    def update_step(self, gradient, variable, learning_rate):
        speed = self.speeds[self._get_variable_index(variable)]
        rate = ops.cast(learning_rate, speed.dtype)
        self.assign(speed, ops.subtract(ops.multiply(speed, 0.9), ops.multiply(gradient, rate)))
        self.assign_add(variable, speed)


def free_variable(start):
    return keras.Variable(np.array(start, "float32"))


# --- The mirror image -------------------------------------------------------------------------

MIRRORED = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"weight_decay": 0.0},
    "Adamax": {},
    "Nadam": {},
    "Lion": {},
    "Muon": {},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "ScheduleFreeAdamW": {},
    "Adadelta": {"epsilon": 1e-2},
    "Adagrad": {},
    "HeavyBall": {},
}


@pytest.mark.parametrize("name", MIRRORED)
def test_between_walls_a_time_is_the_mirror_image_of_one_without_walls(name):
    cls = HeavyBall if name == "HeavyBall" else getattr(keras.optimizers, name)
    slots = {"speeds": "velocity"} if name == "HeavyBall" else None
    rate = 20.0 if name == "Adadelta" else 0.3
    horizon, start = 1.0, [0.1, 0.5, 0.9, 0.35]
    free, times = free_variable(start), time_variable(start, horizon)
    inner = {**MIRRORED[name], "learning_rate": rate}
    plain, wrapped = cls(**inner), MeanFieldOptimizer(cls(**inner), slots=slots)
    if name == "Muon":
        plain.exclude_from_weight_decay(var_list=[free])
    rng = np.random.default_rng(1)
    signs, crossings = np.ones(4), 0
    for _ in range(12):
        gradient = rng.normal(0.5, 1.0, size=4)
        apply(plain, [gradient], [free])
        apply(wrapped, [gradient * signs], [times])
        folded, sign = reflect(free, horizon)
        np.testing.assert_allclose(values([times])[0], values([folded])[0], atol=2e-4)
        before, signs = signs, ops.convert_to_numpy(sign)
        crossings += np.sum(before != signs)
    assert crossings >= 4


def test_a_trust_ratio_keeps_its_turned_momentum():
    # Lamb's step depends on the size of the weight, so its mirror image walks otherwise.
    times = time_variable([0.9, 0.5])
    optimizer = MeanFieldOptimizer(keras.optimizers.Lamb(0.9))
    apply(optimizer, [np.array([-1.0, 0.01])], [times])
    momentum = values(optimizer.inner_optimizer._momentums)[0]
    np.testing.assert_allclose(momentum, [0.1, -0.001], rtol=1e-5)  # past the walls 1 and 0
    assert values([times])[0].min() >= 0 and values([times])[0].max() <= 1


# --- NumPy ------------------------------------------------------------------------------------


def numpy_adamw(weights, infos, steps, rate, decay, multipliers, clipvalue):
    """AdamW (Loshchilov and Hutter, 2019, in Keras's form) of particles, in float64."""
    weights = [np.array(w, "float64") for w in weights]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for step, gradients in enumerate(steps, 1):
        for i, (g, info) in enumerate(zip(gradients, infos, strict=True)):
            g = np.clip(g, -clipvalue, clipvalue)
            if info is not None:
                g = g * info.num_particles / info.horizon
            if weights[i].ndim >= (2 if info is None else 3):
                weights[i] *= 1 - rate * multipliers[i] * decay
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            corrected = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            weights[i] -= multipliers[i] * corrected * first[i] / (np.sqrt(second[i]) + 0.01)
            if info is not None and info.kind == "time":
                for j in range(info.num_particles):
                    while not 0 <= weights[i][j] <= info.horizon:
                        wall = 0.0 if weights[i][j] < 0 else info.horizon
                        weights[i][j] = 2 * wall - weights[i][j]
                        first[i][j] *= -1
    return weights, first, second


def test_adamw_equals_numpy():
    rng = np.random.default_rng(5)
    variables = bare_variables(rng)
    infos = [getattr(v, "mean_field", None) for v in variables]
    start = values(variables)
    steps = [[rng.normal(size=v.shape) for v in variables] for _ in range(8)]
    inner = keras.optimizers.AdamW(0.2, weight_decay=0.3, epsilon=0.01, clipvalue=0.8)
    optimizer = MeanFieldOptimizer(
        inner, 2.0, True, learning_rate_multipliers={"stem": 3.0, "stage1/kernel": 0.5}
    )
    for gradients in steps:
        apply(optimizer, gradients, variables)
    assert optimizer.inner_optimizer is inner and isinstance(inner, keras.optimizers.AdamW)
    multipliers = [3.0, 3.0, 0.5, 1.0, 2.0, 1.0, 1.0, 2.0]
    expected = numpy_adamw(start, infos, steps, 0.2, 0.3, multipliers, 0.8)
    for received, wanted in zip(
        (variables, inner._momentums, inner._velocities), expected, strict=True
    ):
        for new, want in zip(values(received), wanted, strict=True):
            np.testing.assert_allclose(new, want, rtol=1e-3, atol=1e-4)


RATED = {name: args for name, args in MIRRORED.items() if name != "HeavyBall"}
RATED |= {"Lamb": {}, "Adafactor": {"relative_step": False}, "Ftrl": {"beta": 0.1}}


@pytest.mark.parametrize("name", RATED)
def test_a_multiplier_is_another_learning_rate(name):
    """Of each optimizer, with its weight decay and with what all variables share."""
    cls, rng = getattr(keras.optimizers, name), np.random.default_rng(2)
    start = rng.normal(size=(2, 3, 3))
    two = [keras.Variable(w, dtype="float32", name=n) for w, n in zip(start, "ab", strict=True)]
    alone = [free_variable(w) for w in start]
    arguments = {**RATED[name], "weight_decay": 0.1}
    wrapped = MeanFieldOptimizer(cls(0.02, **arguments), learning_rate_multipliers={"b": 3.0})
    plain = [cls(0.02, **arguments), cls(0.02 * 3.0, **arguments)]
    for _ in range(3):
        gradients = rng.normal(size=(2, 3, 3))
        apply(wrapped, list(gradients), two)
        for optimizer, gradient, variable in zip(plain, gradients, alone, strict=True):
            apply(optimizer, [gradient], [variable])
    for new, want, old in zip(values(two), values(alone), start, strict=True):
        np.testing.assert_allclose(new, want, rtol=2e-5, atol=1e-6)
        assert np.all(np.abs(new - old) > 1e-6)


# --- The same runs ----------------------------------------------------------------------------


def assert_wrapped_sgd_equals_mean_field_sgd(shared, rules):
    found = []
    for optimizer in (
        MeanFieldSGD(0.3, **shared, **rules),
        MeanFieldOptimizer(keras.optimizers.SGD(0.3, **shared), **rules),
    ):
        rng = np.random.default_rng(0)
        variables = bare_variables(rng)
        for _ in range(4):
            apply(optimizer, [rng.normal(size=v.shape) for v in variables], variables)
        optimizer.finalize_variable_values(variables)
        found.append(values([*variables, *optimizer.variables]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


PATTERNS = {"*": 0.5, "stage1": 0, "bias": 3}


def test_wrapped_sgd_equals_mean_field_sgd_to_the_bit():
    shared = {"momentum": 0.9, "weight_decay": 0.1, "clipnorm": 0.5, "use_ema": True}
    assert_wrapped_sgd_equals_mean_field_sgd(shared, {"learning_rate_multipliers": PATTERNS})


@pytest.mark.once_on_torch
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    shared=st.fixed_dictionaries(
        {
            "momentum": st.sampled_from([0.0, 0.9]),
            "nesterov": st.booleans(),
            "weight_decay": st.sampled_from([None, 0.1]),
            "use_ema": st.booleans(),
            "gradient_accumulation_steps": st.sampled_from([None, 2]),
        },
        optional={"global_clipnorm": st.just(0.5)},
    ),
    rules=st.fixed_dictionaries(
        {
            "time_learning_rate_multiplier": st.sampled_from([0.0, 1.0, 5.0]),
            "mean_field_scaling": st.booleans(),
            "learning_rate_multipliers": st.sampled_from([None, PATTERNS]),
        }
    ),
)
def test_wrapped_sgd_equals_mean_field_sgd_whatever_its_arguments(shared, rules):
    assert_wrapped_sgd_equals_mean_field_sgd(shared, rules)


INNER = {
    "AdamW": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.01, 8),
        use_ema=True,
        global_clipnorm=0.5,
        gradient_accumulation_steps=2,
    ),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Muon": lambda: keras.optimizers.Muon(0.01, loss_scale_factor=8.0),
}


@pytest.mark.parametrize(
    "name",
    ["AdamW", *(pytest.param(n, marks=pytest.mark.once_on_torch) for n in ("Nadam", "Muon"))],
)
def test_without_stages_equals_the_inner_optimizer_to_the_bit(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 10)).astype("float32"), rng.integers(0, 3, 24)
    found = []
    for optimizer in (INNER[name](), MeanFieldOptimizer(INNER[name](), 7.0, True)):
        model = plain_model(optimizer)
        start = values(model.trainable_variables)
        model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        found.append(values([*model.variables, *optimizer.variables]))
        assert not np.array_equal(start[0], found[-1][0])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_restored_training_goes_on_with_the_same_weights(tmp_path):
    x, y = data()
    multipliers = {"*": 0.5, "dense*": 2.0}
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9)
    inner = keras.optimizers.Adam(rate, weight_decay=0.1, clipnorm=1.0)
    model = particle_model(MeanFieldOptimizer(inner, 3.0, True, multipliers, name="particles"))
    for _ in range(3):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert type(restored.optimizer) is MeanFieldOptimizer
    assert restored.optimizer.get_config() == model.optimizer.get_config()
    assert int(ops.convert_to_numpy(restored.optimizer.iterations)) == 3
    for one in (model, restored):
        for _ in range(3):
            one.train_on_batch(x, y)
    state = [values([*one.variables, *one.optimizer.variables]) for one in (model, restored)]
    for expected, got in zip(*state, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.once_on_torch
def test_the_configuration_is_the_same_on_every_backend():
    optimizer = MeanFieldOptimizer("adamw", 0.5, slots={"_momentums": "velocity"})
    config = keras.optimizers.serialize(optimizer)
    inner = config["config"]["inner_optimizer"]
    assert (inner["module"], inner["class_name"]) == ("keras.optimizers", "AdamW")
    assert inner["config"] == keras.optimizers.AdamW(name=inner["config"]["name"]).get_config()
    again = keras.optimizers.deserialize(config)
    assert again.get_config() == optimizer.get_config()
    assert isinstance(again.inner_optimizer, type(keras.optimizers.AdamW()))


def test_callbacks_and_loss_scaling_reach_the_inner_optimizer():
    x, y = data()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inner = keras.optimizers.AdamW(0.5, use_ema=True, ema_momentum=0.5)
        model = particle_model(MeanFieldOptimizer(inner, learning_rate_multipliers={"bias": 0.0}))
    finally:
        keras.config.set_dtype_policy(policy)
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    biases = [v for v in model.trainable_variables if v.name == "bias"]
    before = values(biases)
    model.train_on_batch(x, y)
    state = values([*model.trainable_variables, *inner.variables])
    model.train_on_batch(np.full_like(x, np.inf), y)
    for old, new in zip(state, values([*model.trainable_variables, *inner.variables]), strict=True):
        np.testing.assert_array_equal(new, old)
    model.optimizer.learning_rate = 0.08
    model.fit(
        x,
        y,
        batch_size=8,
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=1e9),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        ],
    )
    assert float(inner.learning_rate) == pytest.approx(0.08 / 4)
    for new, old in zip(values(biases), before, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.once_on_torch
def test_one_of_several_optimizers():
    x, y = data()
    wrapped = MeanFieldOptimizer(keras.optimizers.Adam(0.4), learning_rate_multipliers={"*bias": 0})
    chosen = keras.optimizers.OptimizerMap(
        keras.optimizers.SGD(0.1), {"mean_field_stage.*": wrapped}
    )
    model = stage_model(keras.optimizers.MultiOptimizer(chosen))
    before = values(model.trainable_variables)
    model.fit(x, y, epochs=3, verbose=0)
    for variable, old, new in zip(
        model.trainable_variables, before, values(model.trainable_variables), strict=True
    ):
        frozen = variable.path.startswith("mean_field_stage") and "bias" in variable.name
        assert np.array_equal(new, old) == frozen, variable.path
        if variable.name == "times":
            assert new.min() >= 0 and new.max() <= 1.5


@pytest.mark.once_on_torch
def test_the_state_goes_along_to_another_depth():
    stage = MeanFieldStage(BasicBlock(4), 2, activation="relu", name="stage")
    flat = [keras.layers.Flatten(), keras.layers.Dense(3, name="head")]
    model = keras.Sequential([keras.layers.Input((6, 6, 4)), stage, *flat])
    inner = keras.optimizers.Adam(0.01)
    optimizer = MeanFieldOptimizer(inner, 2.0, learning_rate_multipliers={"head": 0.5})
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(6, 6, 6, 4)).astype("float32")
    model.fit(x, np.arange(6) % 3, batch_size=3, epochs=2, verbose=0)
    stage.times.assign([1.5, 0.5])
    deeper = depth.refine(model, (5,), optimizer=True)
    assert deeper.optimizer.get_config() == model.optimizer.get_config()
    assert int(ops.convert_to_numpy(deeper.optimizer.iterations)) == 4
    # Backward steps 0.5 and 1.0: the second in depth, particle 0, has 3 of 5 parts.
    source = [1, 1, 0, 0, 0]
    for name in ("_momentums", "_velocities"):
        slots = [values(getattr(m.optimizer.inner_optimizer, name)) for m in (model, deeper)]
        for slot, place in zip(*slots, strict=True):
            expected = slot[source] if place.shape[:1] == (5,) else slot
            np.testing.assert_allclose(place, expected, rtol=1e-6)
            assert np.any(expected)


# --- What cannot be done ----------------------------------------------------------------------


@pytest.mark.once_on_torch
def test_what_cannot_be_wrapped_is_refused():
    built = keras.optimizers.Adam()
    built.build([free_variable([1.0])])
    wrapped = MeanFieldOptimizer("adam")
    several = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(built))
    for optimizer, message in (
        (wrapped, r"must make its steps itself.* Received: MeanFieldOptimizer$"),
        (wrapped.inner_optimizer, r"does not know of particles yet\. Received: Adam$"),
        (MeanFieldSGD(), r"Received: MeanFieldSGD$"),
        (keras.optimizers.LossScaleOptimizer(built), r"Received: LossScaleOptimizer$"),
        (several, r"Received: MultiOptimizer$"),
        (built, r"before it is built.* Received: Adam with 4 variables$"),
    ):
        with pytest.raises(ValueError, match=message):
            MeanFieldOptimizer(optimizer)
    with pytest.raises(ValueError, match=r"'velocity' or 'place'\. Received: slots=.*'speed'"):
        MeanFieldOptimizer(HeavyBall(0.1), slots={"speeds": "speed"})
    inner = keras.optimizers.Adam()
    with pytest.raises(ValueError, match=r"`time_learning_rate_multiplier` must be .*=-1$"):
        MeanFieldOptimizer(inner, -1)
    MeanFieldOptimizer(inner, 1)  # what is refused is left as it was


@pytest.mark.once_on_torch
def test_slots_must_be_known_where_times_move():
    times, other = time_variable([0.5]), free_variable([0.5])
    for inner, slots, message in (
        (HeavyBall(0.1), None, r"`slots` must say .* Received: slots=None for HeavyBall$"),
        (HeavyBall(0.1), {"speed": "velocity"}, r"of which there are 2\. Received: 'speed', None$"),
        (keras.optimizers.Ftrl(0.1), None, r"by `time_learning_rate_multiplier=0`.*: Ftrl$"),
    ):
        again = type(inner)(0.1)
        with pytest.raises(ValueError, match=message):
            MeanFieldOptimizer(inner, slots=slots).build([times, other])
        MeanFieldOptimizer(again, 0.0).build([times, other])  # fixed times
    optimizer = MeanFieldOptimizer(HeavyBall(0.1), slots={})  # nothing is turned
    apply(optimizer, [np.array([10.0])], [time_variable([0.5])])
    assert values(optimizer.inner_optimizer.speeds)[0] == -1.0
