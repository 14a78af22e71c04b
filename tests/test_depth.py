"""The same measure at another depth: rules, models, statistics, growth."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from networks import KINDS, outputs, randomized, small

from mf_zoo import applications, data, depth
from mf_zoo.layers import BasicBlock, MeanFieldStage, measures, stages
from mf_zoo.layers.measures import Measure
from mf_zoo.optimizers import MeanFieldSGD

ONCE, ONCE_ON_TORCH = pytest.mark.once, pytest.mark.once_on_torch
STEPS = st.lists(st.floats(0.01, 3.0), min_size=1, max_size=6).map(np.array)


def numbers(variable):
    return ops.convert_to_numpy(variable).astype("float64")


def images(count=8, seed=0, size=32):
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype("float32")


def measure(steps, seed=0):
    rng = np.random.default_rng(seed)
    kernels = rng.normal(size=(len(steps), 3, 2)).astype("float32")
    return Measure(np.asarray(steps, "float64"), [kernels], rng.normal(size=(len(steps), 7)))


# Rules.


@ONCE
@given(steps=STEPS, rule=st.sampled_from(depth.rules()), change=st.integers(0, 9))
@settings(deadline=None)
def test_every_rule_keeps_the_sum_of_steps_and_mixes_by_shares(steps, rule, change):
    count = len(steps) + change if "merge" not in rule else max(len(steps) - change, 1)
    found = measures.RULES[rule](measure(steps), count)
    assert found.steps.shape == (count,) and found.mixing.shape == (count, len(steps))
    assert np.all(found.steps > 0) and np.all(found.mixing >= 0)
    np.testing.assert_allclose(found.mixing.sum(axis=1), 1)
    np.testing.assert_allclose(found.steps.sum(), steps.sum())
    if rule in ("split", "merge"):
        # What each particle's weights stand for is its own step.
        np.testing.assert_allclose(found.steps @ found.mixing, steps)


@ONCE
@given(steps=STEPS, parts=st.integers(2, 4))
@settings(deadline=None)
def test_merging_what_was_split_gives_back_what_was_there(steps, parts):
    before = measure(steps)
    found = measures.split(before, parts * len(steps))
    after = Measure(found.steps, [found.apply(weight) for weight in before.weights])
    again = measures.merge(after, len(steps))
    np.testing.assert_allclose(again.steps, steps)
    np.testing.assert_allclose(again.mixing @ found.mixing, np.eye(len(steps)), atol=1e-12)


@ONCE
def test_rules_by_hand():
    found = measures.split(measure([1.0, 3.0, 1.0]), 6)
    # The longest part is divided next: 3, then 1.5; the third part makes 1.0, the first of equals
    # is then particle 0.
    np.testing.assert_allclose(found.steps, [0.5, 0.5, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.mixing.argmax(axis=1), [0, 0, 1, 1, 1, 2])
    # Cells (0, 1), (1, 4), (4, 5); new middles 5/6, 5/2, 25/6.
    found = measures.constant(measure([1.0, 3.0, 1.0]), 3)
    np.testing.assert_array_equal(found.mixing.argmax(axis=1), [0, 1, 2])
    # Middles of cells 0.5, 2.5, 4.5: 5/6 lies a sixth of the way to the second.
    found = measures.linear(measure([1.0, 3.0, 1.0]), 3)
    np.testing.assert_allclose(found.mixing, [[5 / 6, 1 / 6, 0], [0, 1, 0], [0, 1 / 6, 5 / 6]])
    # Ward's criterion: 0 and 1 are nearer, but a long step weighs more.
    kernels = np.array([0.0, 1.0, 2.1]).reshape(3, 1, 1)
    found = measures.merge(Measure(np.array([4.0, 4.0, 0.1]), [kernels]), 2)
    np.testing.assert_allclose(found.mixing, [[1, 0, 0], [0, 4 / 4.1, 0.1 / 4.1]])
    with pytest.raises(ValueError, match=r"at least as many .* 3\. Received: 2"):
        measures.split(measure([1.0, 1.0, 1.0]), 2)
    with pytest.raises(ValueError, match=r"at most as many .* 3\. Received: 4"):
        measures.merge(measure([1.0, 1.0, 1.0]), 4)
    with pytest.raises(ValueError, match="Received: images=None"):
        measures.merge_updates(Measure(np.ones(2), []), 1)
    with pytest.raises(ValueError, match="Received: rule='halve'"):
        measures.get("halve")


@ONCE
@pytest.mark.parametrize(("rule", "order"), [("constant", 1), ("linear", 2)])
def test_the_order_of_a_rule_on_weights_that_are_smooth_in_time(rule, order):
    def error(count):
        cells = (np.arange(count) + 0.5) / count
        coarse = Measure(np.full(count, 1 / count), [np.cos(3 * cells)[:, None]])
        fine = measures.RULES[rule](coarse, 64 * count).apply(coarse.weights[0])[:, 0]
        times = (np.arange(64 * count) + 0.5) / (64 * count)
        inside = (times > cells[0]) & (times < cells[-1])  # at the ends both are constant
        return np.max(np.abs(fine - np.cos(3 * times))[inside])

    slope = np.log2(error(16) / error(32))
    assert slope == pytest.approx(order, abs=0.15)


# Stages of a block with a known flow.


@keras.saving.register_keras_serializable(package="tests")
class Rotation(layers.Layer):
    """`f(x) = x A` with a matrix of its own; no variables that scale the output."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.matrix = self.add_weight(
            shape=(size, size), initializer=keras.initializers.RandomNormal(stddev=0.3)
        )

    def call(self, inputs):
        return inputs @ self.matrix


def flow(n, horizon=1.5, seed=1, **arguments):
    """A model of one stage whose matrices are drawn from a seed."""
    stage = MeanFieldStage(
        Rotation(dtype="float64"), n, horizon=horizon, dtype="float64", **arguments
    )
    model = keras.Sequential([layers.Input((3,), dtype="float64"), stage])
    rng = np.random.default_rng(seed)
    stage.set_blocks([[rng.normal(size=(3, 3)) * 0.5] for _ in range(n)])
    return model, stage


def test_splitting_is_euler_with_smaller_steps_and_of_first_order():
    model, stage = flow(2)
    x = np.random.default_rng(0).normal(size=(4, 3))
    blocks = stage.blocks()

    def by_hand(parts):
        y = x
        for block in blocks:
            one = np.eye(3) + block.step / parts * block.weights[0]
            y = y @ np.linalg.matrix_power(one, parts)
        return y

    limit, errors = by_hand(2**20), []
    for parts in (1, 4, 8, 16):
        deeper = depth.refine(model, (2 * parts,))
        y = numbers(deeper(x))
        np.testing.assert_allclose(y, by_hand(parts), rtol=1e-6)
        errors.append(np.max(np.abs(y - limit)))
    # Weights as they are, and times that share the horizon.
    (target,) = stages(deeper)
    assert target.horizon == 1.5 and numbers(target.times)[-1] == pytest.approx(1.5)
    np.testing.assert_allclose(numbers(target.step_sizes()), np.full(32, 1.5 / 32), rtol=1e-5)
    assert np.log2(errors[2] / errors[3]) == pytest.approx(1, abs=0.1)


@ONCE_ON_TORCH
def test_a_step_that_a_block_cannot_take_up_is_refused():
    model, _ = flow(2, horizon=None)  # which becomes the new number: the steps stay at 1
    with pytest.raises(ValueError, match="Rotation without it in stage"):
        depth.refine(model, (4,))


@ONCE_ON_TORCH
def test_random_times_and_any_rule_of_quadrature_keep_the_steps_of_each_block():
    for quadrature in ("backward", "midpoint", "uniform"):
        stage = MeanFieldStage(
            BasicBlock(4), 3, quadrature=quadrature, initial_times="random", seed=3, horizon=2.0
        )
        model = randomized(keras.Sequential([layers.Input((6, 6, 4)), stage]), 2)
        stage.times.assign([0.4, 1.9, 1.0])
        for resized in (depth.refine(model, (7,)), depth.refine(model, (3,))):
            assert _gains(resized) == pytest.approx(_gains(model), rel=1e-5)


def _gains(model):
    """For each particle of the first model the step times the last gamma, summed over its copies.

    Copies are told by their first kernel.
    """
    found = {}
    for stage in stages(model):
        names = [variable.path.rpartition("/")[2] for variable in stage.template().variables]
        scaled = {id(v) for v in stage.template().output_scale_variables}
        last = next(k for k, v in enumerate(stage.template().variables) if id(v) in scaled)
        first = names.index("kernel")
        for block in stage.blocks():
            key = (stage.name, float(block.weights[first].flat[0]))
            gain = block.step * float(block.weights[last].flat[-1])
            found[key] = found.get(key, 0.0) + gain
    return found


# Models of every kind.


@ONCE_ON_TORCH
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_is_refined_and_coarsened(kind):
    model = randomized(small(kind), 4)
    before = model.get_weights()
    wanted = tuple(2 * stage.num_particles + 1 for stage in stages(model))
    deeper = depth.refine(model, wanted)
    assert tuple(stage.num_particles for stage in stages(deeper)) == wanted
    assert _gains(deeper) == pytest.approx(_gains(model), rel=1e-4)
    x = images(2)
    again = depth.coarsen(deeper, [stage.num_particles for stage in stages(model)])
    np.testing.assert_allclose(outputs(again, x), outputs(model, x), rtol=1e-3, atol=1e-4)
    # What is asked for is the same number of particles: the same to the bit, times too.
    same = depth.refine(model, [stage.num_particles for stage in stages(model)])
    for received, expected, kept in zip(
        same.get_weights(), model.get_weights(), before, strict=True
    ):
        np.testing.assert_array_equal(received, expected)
        np.testing.assert_array_equal(expected, kept)


@ONCE_ON_TORCH
def test_a_named_network_is_that_of_the_zoo(tmp_path):
    model = randomized(applications.MFResNet20(classes=3), 1)
    deeper = depth.refine(model, "MFResNet32")
    plain = depth.refine(model, "ResNet32")
    deeper.save_weights(tmp_path / "deeper.weights.h5")
    plain.save_weights(tmp_path / "plain.weights.h5")
    x = images(2)
    for name, resized in (("MFResNet32", deeper), ("ResNet32", plain)):
        file = tmp_path / ("deeper.weights.h5" if resized is deeper else "plain.weights.h5")
        loaded = applications.get(name)(classes=3, weights=file)
        np.testing.assert_array_equal(outputs(loaded, x), outputs(resized, x))
        assert resized.name == loaded.name == name.lower()
    assert all(
        numbers(stage.step_sizes()).tolist() == [1.0] * len(stage.blocks())
        for stage in stages(plain)
    )
    assert not any(stage.times.trainable for stage in stages(plain))
    # Both are the same function, and a deeper file makes a shallower network.
    np.testing.assert_allclose(outputs(plain, x), outputs(deeper, x), rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match=r"merged, \(5, 4, 4\) particles a stage become \(3, 2"):
        again = applications.MFResNet20(classes=3, weights=tmp_path / "deeper.weights.h5")
    np.testing.assert_allclose(outputs(again, x), outputs(model, x), rtol=1e-3, atol=1e-4)


@ONCE_ON_TORCH
def test_registered_weights_of_another_depth_and_of_the_twin():
    x = data.sample("cifar10")[0][:100]
    shallow = applications.MFResNet20(weights="cifar10")
    with pytest.warns(UserWarning, match=r"'cifar10' of MFResNet20: blocks are split.*recalibrate"):
        deeper = applications.MFResNet32(weights="MFResNet20:cifar10")
    refined = depth.refine(shallow, "MFResNet32")
    np.testing.assert_allclose(outputs(deeper, x), outputs(refined, x), atol=1e-6)
    plain = applications.ResNet20(weights="MFResNet20:cifar10")
    np.testing.assert_allclose(outputs(plain, x), outputs(shallow, x), atol=1e-5)
    assert all(np.all(numbers(stage.step_sizes()) == 1) for stage in stages(plain))
    twin = applications.MFResNet20(weights="ResNet20:cifar10")
    source = applications.ResNet20(weights="cifar10")
    np.testing.assert_allclose(outputs(twin, x), outputs(source, x), atol=1e-6)
    assert all(stage.times.trainable for stage in stages(twin))
    with pytest.warns(UserWarning) as warned:
        five = applications.MFResNet32(weights="MFResNet20:cifar100", classes=5)
    said = [str(one.message) for one in warned if one.category is UserWarning]
    assert len(said) == 2 and "classifier for 5 classes starts afresh" in said[0]
    assert five.output_shape == (None, 5)
    with pytest.raises(ValueError, match="'MFResNet20:cifar10', where MFResNet20 is of another f"):
        applications.MFResNet164(weights="MFResNet20:cifar10")
    with pytest.raises(ValueError, match="Received: 'ResNet21'"):
        applications.MFResNet32(weights="ResNet21:cifar10")

    # New statistics bring the deeper network nearer to the one it is made of.
    def distance(model):
        return np.abs(outputs(model, x) - outputs(shallow, x)).mean()

    before = distance(deeper)
    depth.recalibrate(deeper, data.sample("cifar10")[0][100:], batch_size=50)
    assert 0 < distance(deeper) < 0.9 * before


@ONCE_ON_TORCH
def test_bad_requests_change_nothing():
    model = applications.MFResNet20()
    before = model.get_weights()
    for particles, message in {
        (3, 2): r"3 positive integers, .* \(3, 2, 2\), .*Received: particles=\(3, 2\)",
        (3, 2, 0): r"Received: particles=\(3, 2, 0\)",
        (3, 2, True): r"Received: particles=\(3, 2, True\)",
        9: "Received: particles=9",
        (4, 2, 1): "'stage3' would get fewer particles, which `refine` does not do: use `resize`",
        "MFResNet164": "MFResNet164 has 3 stages of BottleneckBlock|PreActBottleneckBlock",
        "MFWideResNet28_10": "MFWideResNet28_10 has 3 stages of PreActBasicBlock",
        "MFResNet21": "Received: 'MFResNet21'",
    }.items():
        with pytest.raises(ValueError, match=message):
            depth.refine(model, particles)
    with pytest.raises(ValueError, match="'stage1' would get more particles"):
        depth.coarsen(model, (4, 2, 2))
    with pytest.raises(ValueError, match="Received: images=None"):
        depth.coarsen(model, (2, 2, 2), "merge_updates")
    with pytest.raises(ValueError, match="compiled"):
        depth.refine(model, (4, 4, 4), optimizer=True)
    with pytest.raises(ValueError, match="Received: noise=-1"):
        depth.refine(model, (4, 4, 4), noise=-1)
    with pytest.raises(ValueError, match="Received: model=3"):
        depth.refine(3, (4, 4, 4))
    for received, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(received, kept)


def test_coarsening_by_what_blocks_do():
    """The block that does what its neighbour does gives its step away."""
    stage = MeanFieldStage(layers.Dense(2, use_bias=False), 4, horizon=1.0)
    model = keras.Sequential([layers.Input((2,)), stage])
    kernels = np.array([np.eye(2), -np.eye(2), 0.99 * np.eye(2), np.eye(2)], "float32")
    stage.set_blocks([[kernel] for kernel in kernels])
    coarser = depth.coarsen(model, (3,), "merge_updates", images=np.ones((5, 2), "float32"))
    (target,) = stages(coarser)
    np.testing.assert_allclose([block.step for block in target.blocks()], [0.25, 0.25, 0.5])
    np.testing.assert_allclose([b.weights[0][0, 0] for b in target.blocks()], [1, -1, 0.99])
    assert "call" not in vars(stage)  # it is no longer listened to


@ONCE_ON_TORCH
def test_noise_tells_copies_apart():
    model, _ = flow(2)
    deeper = depth.refine(model, (6,), noise=0.1, seed=5)
    clean = depth.refine(model, (6,))
    again = depth.refine(model, (6,), noise=0.1, seed=5)
    one, other, same = (
        np.stack([b.weights[0] for b in stages(m)[0].blocks()]) for m in (deeper, clean, again)
    )
    np.testing.assert_array_equal(one, same)
    deviations = np.std((one - other) / other.std(axis=(1, 2), keepdims=True))
    assert 0.05 < deviations < 0.15
    assert np.all(np.std(one[:3], axis=0) > 0)


# The optimizer's state.


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: MeanFieldSGD(0.01, momentum=0.9),
        lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.01, 10)),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01, momentum=0.9)),
    ],
    ids=["MeanFieldSGD", "AdamW", "LossScale"],
)
def test_the_state_of_the_optimizer_goes_along(optimizer):
    stage = MeanFieldStage(BasicBlock(4), 2, activation="relu", name="stage")
    model = keras.Sequential(
        [layers.Input((6, 6, 4)), stage, layers.Flatten(), layers.Dense(3, name="head")]
    )
    model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(6, 6, 6, 4)).astype("float32")
    y = np.arange(6) % 3
    model.fit(x, y, batch_size=3, epochs=2, verbose=0)
    stage.times.assign([1.5, 0.5])  # blocks in another order than they are stored in
    deeper = depth.refine(model, (5,), optimizer=True)
    old, new = (getattr(m.optimizer, "inner_optimizer", m.optimizer) for m in (model, deeper))
    assert int(numbers(new.iterations)) == int(numbers(old.iterations)) == 4
    slots = [v for v in old.variables if len(v.shape) > 0]
    places = [v for v in new.variables if len(v.shape) > 0]
    assert len(slots) == len(places) >= len(model.trainable_variables)
    # Backward steps 0.5 and 1.0: the second in depth, particle 0, has 3 of 5 parts.
    source = [1, 1, 0, 0, 0]
    for slot, place in zip(slots, places, strict=True):
        expected = numbers(slot)[source] if place.shape[:1] == (5,) else numbers(slot)
        np.testing.assert_allclose(numbers(place), expected, rtol=1e-6)
        assert np.any(expected)
    deeper.fit(x, y, batch_size=3, epochs=1, verbose=0)
    assert int(numbers(new.iterations)) == 6


@ONCE_ON_TORCH
def test_what_is_frozen_stays_frozen():
    model = small("basic")
    model.get_layer("stem_conv").trainable = False
    stages(model)[0].template().bn1.trainable = False
    stages(model)[1].trainable = False
    deeper = depth.refine(model, (4, 4, 4))
    assert not deeper.get_layer("stem_conv").trainable
    assert not stages(deeper)[0].template().bn1.trainable
    assert not stages(deeper)[1].trainable_variables
    paths = [[v.path for v in m.trainable_variables] for m in (model, deeper)]
    assert len(paths[0]) == len(paths[1])


# Statistics.


def test_statistics_are_the_average_of_those_of_batches():
    stage = MeanFieldStage(BasicBlock(2), 2, activation="relu", name="stage")
    first = layers.BatchNormalization(momentum=0.7, name="first")
    frozen = layers.BatchNormalization(name="frozen", trainable=False)
    model = keras.Sequential([layers.Input((5, 5, 2)), first, layers.Dropout(0.0), stage, frozen])
    randomized(model, 3)
    before = {v.path: numbers(v) for v in model.variables}
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(11, 5, 5, 2)).astype("float32")
    depth.recalibrate(model, x, batch_size=5)  # 5, 5, and one image that is not used
    batches = [x[:5].astype("float64"), x[5:10].astype("float64")]
    axes = (0, 1, 2)
    np.testing.assert_allclose(
        numbers(first.moving_mean), np.mean([b.mean(axes) for b in batches], axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        numbers(first.moving_variance), np.mean([b.var(axes) for b in batches], axis=0), rtol=1e-5
    )
    # The first normalisation of the block that comes first in depth, by plain Keras.
    order = np.argsort(numbers(stage.times))
    k = [v.path.endswith("bn1/moving_mean") for v in stage.template().variables].index(True)
    block = stage.blocks()[0]
    names = [v.path.split("/")[-2:] for v in stage.template().variables]
    kernel = block.weights[names.index(["conv1", "kernel"])]
    means = []
    for batch in batches:
        normal = (batch - batch.mean(axes)) / np.sqrt(batch.var(axes) + first.epsilon)
        normal = normal * numbers(first.gamma) + numbers(first.beta)
        y = ops.conv(normal.astype("float32"), kernel, padding="same", data_format="channels_last")
        means.append(numbers(y).mean(axes))
    np.testing.assert_allclose(
        numbers(stage._stacked[k])[order[0]], np.mean(means, axis=0), rtol=1e-3, atol=1e-4
    )
    for variable in model.variables:
        if "moving" not in variable.path or "frozen" in variable.path:
            np.testing.assert_array_equal(numbers(variable), before[variable.path])
    assert first.momentum == 0.7 and stage.template().bn1.momentum == 0.9


def test_batches_of_every_kind_give_the_same_statistics():
    x, y = np.random.default_rng(0).normal(1, 2, (7, 2)).astype("float32"), np.arange(7)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return x[4 * index : 4 * index + 4], y[4 * index : 4 * index + 4]

    expected = (4 * x[:4].mean(axis=0) + 3 * x[4:].mean(axis=0)) / 7
    for batches in (x, Batches(), [x[:4], x[4:]], ((x[i : i + 4], 0) for i in (0, 4))):
        model = keras.Sequential([layers.Input((2,)), layers.BatchNormalization(name="bn")])
        depth.recalibrate(model, batches, batch_size=4)
        received = numbers(model.get_layer("bn").moving_mean)
        np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_statistics_of_bad_images_change_nothing():
    model = keras.Sequential([layers.Input((2,)), layers.BatchNormalization()])
    before = model.get_weights()
    bad = np.full((4, 2), np.nan, "float32")
    with pytest.raises(ValueError, match="Received: some that are no numbers"):
        depth.recalibrate(model, bad)
    for none in (bad[:1], iter(()), [(bad[:1], 0)]):
        with pytest.raises(ValueError, match=r"at least 2 images.*Received: images of type"):
            depth.recalibrate(model, none)
    with pytest.raises(ValueError, match="Received: batch_size=1"):
        depth.recalibrate(model, bad, batch_size=1)
    with pytest.raises(ValueError, match="must be built and have a BatchNormalization"):
        depth.recalibrate(keras.Sequential([layers.Input((2,)), layers.Dense(1)]), bad)
    for received, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(received, kept)


# Growth.


@pytest.mark.once_on_torch
def test_growing_in_a_training_of_ones_own():
    stage = MeanFieldStage(BasicBlock(4), 2, activation="relu", name="stage")
    model = keras.Sequential(
        [layers.Input((6, 6, 4)), stage, layers.Flatten(), layers.Dense(3, name="head")]
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 6)
    model.compile(MeanFieldSGD(schedule), keras.losses.SparseCategoricalCrossentropy(True))
    x = np.random.default_rng(0).normal(size=(6, 6, 6, 4)).astype("float32")
    y = np.arange(6) % 3
    grow = depth.Grow({1: (4,), 2: (8,)}, images=x)
    arguments = {"batch_size": 3, "epochs": 3, "verbose": 0, "callbacks": [grow]}
    histories = [model.fit(x, y, **arguments)]
    while grow.epoch < 3:
        assert grow.model is not model
        histories.append(grow.model.fit(x, y, initial_epoch=grow.epoch, **arguments))
    assert [len(history.epoch) for history in histories] == [1, 1, 1]
    assert stages(grow.model)[0].num_particles == 8 and stage.num_particles == 2
    assert int(numbers(grow.model.optimizer.iterations)) == 6
    assert float(numbers(grow.model.optimizer.learning_rate)) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="Received: epoch 0"):
        depth.Grow({0: (4,)})
