"""Lesions, shuffles and path lengths, on networks small enough to compute by hand."""

import collections
import itertools
import math
import random

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies
from keras import layers, ops

import mf_zoo
from mf_zoo.layers import BasicBlock, MeanFieldStage, PreActBasicBlock, orders, stages
from mf_zoo.theory import autodiff, interventions, lesion, path_lengths, paths, shuffle
from mf_zoo.training import callbacks

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Of a state z the scores are (0, z / 4): class 1 where z > 0.
X = np.array([[1.0], [-0.5], [0.25], [2.0]], "float32")
Y = np.array([1, 1, 0, 0])


class Affine(layers.Layer):
    """`f(x) = scale * x + shift`, whose steps are folded or not."""

    def __init__(self, folded=False, **kwargs):
        super().__init__(**kwargs)
        self.folded = folded

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.shift = self.add_weight(shape=(), initializer="zeros", name="shift")

    def call(self, x):
        return self.scale * x + self.shift

    @property
    def output_scale_variables(self):
        return [self.scale, self.shift] if self.folded else []

    def get_config(self):
        return {**super().get_config(), "folded": self.folded}


class Counted(layers.Layer):
    """The identity; says how often it was called, and fails when told so."""

    calls, fails = 0, False

    def call(self, x):
        type(self).calls += 1
        if self.fails:
            raise RuntimeError("told so")
        return x


def affine(parts, sizes=(None,), folded=False, softmax=False, counted=False, **arguments):
    """A model of affine maps, whose particles have the scales and shifts `parts`."""
    inputs = z = keras.Input((1,))
    parts = np.asarray(parts, "float32")
    start = 0
    for k, size in enumerate(sizes):
        size = size or len(parts)
        stage = MeanFieldStage(Affine(folded), size, name=f"stage{k + 1}", **arguments)
        z = stage(z)
        for weight, value in zip(stage._stacked, parts[start : start + size].T, strict=True):
            weight.assign(value)
        start += size
    if counted:
        z = Counted()(z)
    scores = layers.Concatenate()([z * 0, z / 4])
    return keras.Model(inputs, layers.Softmax()(scores) if softmax else scores)


def by_hand(z, labels=Y):
    """Error in % and mean cross-entropy of states."""
    z = np.asarray(z, "float64")[:, 0] / 4
    signs = 2 * labels - 1
    return 100 * np.mean((z > 0) != labels), np.mean(np.log1p(np.exp(-signs * z)))


def same(record, expected, **tolerances):
    error, loss = expected
    assert record.error == pytest.approx(error)
    assert record.loss == pytest.approx(loss, **({"rel": 1e-5} | tolerances))


def values(model):
    return [np.array(ops.convert_to_numpy(variable)) for variable in model.variables]


def unchanged(model, before):
    assert not any("_schedule" in stage.__dict__ for stage in stages(model))
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)


# Times 1.5, 0.5 and 3: the particles come as 1, 0, 2, with the steps 0.5, 1 and 1.5.
PARTS = [(1.0, 0.5), (-3.0, 0.25), (2.0, -1.0)]
TIMES = [1.5, 0.5, 3.0]
STEPS = [1.0, 0.5, 1.5]


def run(order, steps, x=X):
    for particle, step in zip(order, steps, strict=True):
        scale, shift = PARTS[particle]
        x = x + step * (scale * x + shift)
    return x


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_lesions_by_hand(folded, softmax):
    model = affine(PARTS, folded=folded, softmax=softmax, initial_times=TIMES)
    before = values(model)
    loss = "sparse_categorical_crossentropy" if softmax else LOGITS
    found = lesion(model, X, Y, loss=loss, batch_size=3)
    assert [one.blocks for one in found] == [
        (mf_zoo.theory.Removed("stage1", particle, position, TIMES[particle], STEPS[particle]),)
        for position, particle in enumerate([1, 0, 2])
    ]
    for position, one in enumerate(found):
        steps = [0.5, 1.0, 1.5]
        assert (one.intact_error, one.intact_loss) == pytest.approx(
            by_hand(run([1, 0, 2], steps)), rel=1e-5
        )
        steps[position] = 0  # the others keep theirs
        same(one, by_hand(run([1, 0, 2], steps)))
    unchanged(model, before)


@pytest.mark.once_on_torch
def test_lesions_where_the_order_is_that_of_storage():
    """Without `reorder` the block at depth `l` has the `l`-th step."""
    model = affine(PARTS, initial_times=TIMES, reorder=False)
    for position, one in enumerate(lesion(model, X, Y, loss=LOGITS)):
        steps = [0.5, 1.0, 1.5]
        assert (one.blocks[0].particle, one.blocks[0].step) == (position, steps[position])
        steps[position] = 0
        same(one, by_hand(run([0, 1, 2], steps)))


@pytest.mark.once_on_torch
def test_without_any_block_the_network_is_what_lies_between_the_stages():
    model = affine([*PARTS, *PARTS], sizes=(2, 4))
    (one,) = lesion(model, X, Y, loss=LOGITS, count=6, samples=1)
    assert [(block.stage, block.position) for block in one.blocks] == [
        *(("stage1", 0), ("stage1", 1)),
        *(("stage2", position) for position in range(4)),
    ]
    same(one, by_hand(X))


@pytest.mark.once_on_torch
def test_the_activation_remains_where_a_block_is_missing():
    model = affine([(1.0, 0.0), (1.0, 0.0)], activation="relu")
    found = lesion(model, X, Y, loss=LOGITS, count=[1, 2], samples=1)
    same(found[0], by_hand(2 * np.maximum(X, 0)))
    same(found[1], by_hand(np.maximum(X, 0)))


@pytest.mark.once_on_torch
def test_random_sets_of_blocks():
    model = affine([*PARTS, *PARTS], sizes=(2, 4))
    found = lesion(model, X, Y, loss=LOGITS, count=[0, 2], samples=40, seed=3)
    assert [len(one.blocks) for one in found] == [0] * 40 + [2] * 40
    assert all(one.error == one.intact_error and one.loss == one.intact_loss for one in found[:40])
    sets = collections.Counter(one.blocks for one in found[40:])
    assert len(sets) > 10  # of 15 there are
    again = lesion(model, X, Y, loss=LOGITS, count=2, samples=40, seed=3)
    assert [one.blocks for one in again] == [one.blocks for one in found[40:]]
    other = lesion(model, X, Y, loss=LOGITS, count=2, samples=40, seed=4)
    assert [one.blocks for one in again] != [one.blocks for one in other]


@pytest.mark.once_on_torch
def test_all_orders_by_hand_with_steps_that_move_along():
    model = affine(PARTS, initial_times=TIMES)
    before = values(model)
    found = shuffle(model, X, Y, loss=LOGITS, samples=25)
    assert [one.distance for one in found] == [k for k in range(4) for _ in range(25)]
    assert {one.orders[0] for one in found} == set(itertools.permutations(range(3)))
    for one in found:
        (order,) = one.orders
        assert one.distance == orders.order_swaps([1, 0, 2], order)
        same(one, by_hand(run(order, [STEPS[particle] for particle in order])))
        assert (one.intact_error, one.intact_loss) == (found[0].error, found[0].loss)
    assert len({round(one.loss, 4) for one in found}) == 6  # the maps do not commute
    unchanged(model, before)


def test_distance_0_is_the_network_itself():
    model = affine(PARTS, initial_times=TIMES, softmax=True)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = model.evaluate(X, Y, verbose=0)
    (one,) = shuffle(model, X, Y, 0, samples=1)
    same(one, (100 * (1 - accuracy), loss))
    assert one.orders == ((1, 0, 2),)


def test_reversed_times_make_the_reversed_order():
    model = affine(PARTS, initial_times=TIMES, quadrature="uniform")
    (one,) = shuffle(model, X, Y, 3, samples=1, loss=LOGITS)
    assert one.orders == ((2, 0, 1),)
    stages(model)[0].times.assign([3.0 - time for time in TIMES])
    same(one, by_hand(4 * ops.convert_to_numpy(model(X))[:, 1:]))


@pytest.mark.once_on_torch
def test_one_stage_is_shuffled():
    model = affine([*PARTS, *PARTS], sizes=(2, 4))
    found = shuffle(model, X, Y, stage="stage2", samples=3, loss=LOGITS)
    assert {one.distance for one in found} == set(range(7))
    assert {one.orders[0] for one in found} == {(0, 1)}
    assert [one.orders[1] for one in found[-3:]] == [(3, 2, 1, 0)] * 3


@pytest.mark.once_on_torch
def test_it_is_compiled_once():
    model = affine(PARTS, counted=True)
    evaluate = interventions.Evaluator(model, X, Y, 4, LOGITS)
    whole = interventions.schedules(model)
    first = evaluate(whole)
    calls = Counted.calls
    results = {evaluate([whole[0].permuted(p)]) for p in itertools.permutations(range(3))}
    assert len(results) == 6 and first in results
    if keras.backend.backend() != "torch":  # which compiles nothing
        assert Counted.calls == calls


@pytest.mark.once_on_torch
def test_an_error_leaves_everything_as_it_was(monkeypatch):
    model = affine(PARTS, initial_times=TIMES, counted=True)
    before = values(model)
    expected = ops.convert_to_numpy(model(X))
    monkeypatch.setattr(Counted, "fails", True)
    with pytest.raises(Exception, match="told so"):
        lesion(model, X, Y, loss=LOGITS)
    monkeypatch.setattr(Counted, "fails", False)
    unchanged(model, before)
    np.testing.assert_array_equal(ops.convert_to_numpy(model(X)), expected)

    def bad_loss(labels, outputs):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        shuffle(model, X, Y, loss=bad_loss)
    unchanged(model, before)


class Data(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2, None]


@pytest.mark.once_on_torch
def test_data_in_batches():
    model = affine(PARTS)
    expected = lesion(model, X, Y, loss=LOGITS)
    for data in (Data(), (Data()[i] for i in range(2)), [(X, Y)]):
        for one, other in zip(lesion(model, data, loss=LOGITS), expected, strict=True):
            same(one, (other.error, other.loss))


def convolutional(**arguments):
    """Two stages, one with an activation after its steps and one without; times off the grid."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, padding="same", name="stem", **arguments)(inputs)
    x = layers.ReLU(**arguments)(x)
    x = MeanFieldStage(
        BasicBlock(3), 2, activation="relu", initial_times=[1.6, 0.7], name="post", **arguments
    )(x)
    x = layers.Conv2D(4, 3, strides=2, name="between", **arguments)(x)
    x = MeanFieldStage(
        PreActBasicBlock(4), 1, initial_times=[0.8], horizon=1.0, name="pre", **arguments
    )(x)
    x = layers.GlobalAveragePooling2D(**arguments)(x)
    x = layers.Dense(3, name="scores", **arguments)(x)
    model = keras.Model(inputs, layers.Softmax(dtype="float32")(x))
    rng = np.random.default_rng(1)
    for stage in stages(model):
        for weight in stage._stacked:
            low, high = (0.5, 1.5) if "variance" in weight.path else (-1.0, 1.0)
            weight.assign(rng.uniform(low, high, weight.shape))
    images = rng.normal(size=(12, 6, 6, 2)).astype("float32")
    return model, images, rng.integers(0, 3, 12)


@pytest.mark.once_on_torch
def test_statistics_estimated_anew_for_a_lesion():
    """A block whose last scale and shift are 0 is missing as well."""
    model, images, labels = convolutional()
    before = values(model)
    (found,) = lesion(model, images, labels, count=2, samples=1, recalibrate_on=iter([images]))
    unchanged(model, before)
    (plain,) = lesion(model, images, labels, count=2, samples=1)
    assert found.blocks == plain.blocks and abs(found.loss - plain.loss) > 1e-3
    for block in found.blocks:
        stage = model.get_layer(block.stage)
        for k in stage._folded:
            value = np.array(ops.convert_to_numpy(stage._stacked[k]))
            value[block.particle] = 0
            stage._stacked[k].assign(value)
    mf_zoo.depth.recalibrate(model, images)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    same(found, (100 * (1 - accuracy), loss), rel=1e-4)


@pytest.mark.once_on_torch
def test_mixed_precision():
    model, images, labels = convolutional()
    mixed, _, _ = convolutional(dtype="mixed_bfloat16")
    for variable, value in zip(mixed.variables, values(model), strict=True):
        variable.assign(value)
    for one, other in zip(
        lesion(mixed, images, labels), lesion(model, images, labels), strict=True
    ):
        assert one.loss == pytest.approx(other.loss, rel=0.05)
    assert mf_zoo.theory.path_lengths(mixed, images, labels).share.sum() == pytest.approx(1)


@pytest.mark.once_on_torch
def test_messages():
    model = affine(PARTS)
    with pytest.raises(ValueError, match=r"`count` must be .* from 0 to 3\. Received: count=4"):
        lesion(model, X, Y, count=4)
    with pytest.raises(ValueError, match=r"`samples` must be .* at least 1\. Received: samples=0"):
        lesion(model, X, Y, count=1, samples=0)
    with pytest.raises(ValueError, match=r"`k` must be .* from 0 to 3\. Received: k=\[1, 5\]"):
        shuffle(model, X, Y, [1, 5])
    with pytest.raises(ValueError, match=r"`k` must be .*Received: k=1\.5"):
        shuffle(model, X, Y, 1.5)
    with pytest.raises(ValueError, match=r"one of the model's stages.*Received: stage='stage9'"):
        shuffle(model, X, Y, stage="stage9")
    with pytest.raises(ValueError, match=r"4 images, 2 labels"):
        lesion(model, X, Y[:2])
    with pytest.raises(ValueError, match=r"Labels must be integers.*float"):
        lesion(model, X, Y / 2)
    with pytest.raises(ValueError, match=r"labels must be classes.*labels from 0 to 7"):
        lesion(model, X, np.array([0, 1, 7, 1]), loss=LOGITS)
    with pytest.raises(ValueError, match=r"`y` must be the labels.*Received: y=None"):
        shuffle(model, X)
    with pytest.raises(ValueError, match=r"at least one image\. Received: none"):
        shuffle(model, X[:0], Y[:0])
    with pytest.raises(ValueError, match=r"pairs of images and labels\. Received: .* ndarray"):
        lesion(model, [X])
    with pytest.raises(ValueError, match=r"must be built and have a MeanFieldStage"):
        lesion(keras.Sequential([layers.Input((1,)), layers.Dense(2)]), X, Y)
    heun = affine(PARTS, integrator="heun")
    assert len(lesion(heun, X, Y, loss=LOGITS)) == 3
    with pytest.raises(ValueError, match=r"once a step.*Received: HeunIntegrator.*'stage1'"):
        path_lengths(heun, X, Y)


@pytest.mark.once
@hypothesis.given(strategies.data())
def test_the_distance_of_an_order_that_is_drawn(data):
    sizes = data.draw(strategies.lists(strategies.integers(1, 7), min_size=1, max_size=3))
    distance = data.draw(strategies.integers(0, orders.largest_distance(sizes)))
    generator = random.Random(data.draw(strategies.integers(0, 2**32)))
    drawn = orders.sample_at_distance(sizes, distance, generator)
    assert [sorted(order) for order in drawn] == [list(range(n)) for n in sizes]
    assert distance == sum(orders.order_swaps(range(len(order)), order) for order in drawn)


@pytest.mark.once
@pytest.mark.parametrize("sizes", [(4,), (3, 2)])
def test_orders_are_drawn_with_equal_probability(sizes):
    by_distance = collections.defaultdict(list)
    for drawn in itertools.product(*(itertools.permutations(range(n)) for n in sizes)):
        by_distance[sum(orders.order_swaps(range(len(p)), p) for p in drawn)].append(drawn)
    assert sorted(by_distance) == list(range(orders.largest_distance(sizes) + 1))
    generator = random.Random(0)
    # 99.9 % points of chi-square for 1 to 5 degrees of freedom.
    bounds = {0: 0.0, 1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}
    for distance, expected in by_distance.items():
        assert orders.count_at_distance(sizes, distance) == len(expected)
        draws = 200 * len(expected)
        found = collections.Counter(
            tuple(map(tuple, orders.sample_at_distance(sizes, distance, generator)))
            for _ in range(draws)
        )
        assert set(found) <= set(expected)
        chi2 = sum((found[order] - 200) ** 2 / 200 for order in expected)
        assert chi2 <= bounds[len(expected) - 1]


@pytest.mark.once
def test_orders_of_many_particles():
    """Of 54 blocks there are more orders than numbers of 64 bits."""
    counts = [orders.count_at_distance([18, 18, 18], k) for k in range(3 * 153 + 1)]
    assert sum(counts) == math.factorial(18) ** 3
    assert counts == counts[::-1]
    drawn = orders.sample_at_distance([54], 700, random.Random(1))
    assert orders.order_swaps(range(54), drawn[0]) == 700
    with pytest.raises(ValueError, match=r"from 0 to 3, .*\[3\] particles\. Received: 4"):
        orders.sample_at_distance([3], 4, random.Random(1))
    assert callbacks.order_swaps is orders.order_swaps


def linear(matrices, times):
    """A stage of linear maps with scores for three classes, and its gradients by enumeration."""
    inputs = keras.Input((2,))
    stage = MeanFieldStage(layers.Dense(2, use_bias=False), len(matrices), initial_times=times)
    z = stage(inputs)
    stage._stacked[0].assign(np.asarray(matrices, "float32"))
    classify = layers.Dense(3)
    model = keras.Model(inputs, classify(z))
    classify.set_weights([np.array([[1.0, -1.0, 0.5], [0.2, 0.7, -0.3]]), np.zeros(3)])
    x = np.random.default_rng(0).normal(size=(5, 2))
    y = np.array([0, 1, 2, 2, 0])

    def parts():
        order = np.argsort(times)
        steps = np.diff(np.sort(times), prepend=0)
        maps = [step * np.asarray(matrices[i]) for i, step in zip(order, steps, strict=True)]
        state = x
        for part in maps:
            state = state @ (np.eye(2) + part)
        scores = state @ ops.convert_to_numpy(classify.kernel)
        softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        end = (softmax - np.eye(3)[y]) @ ops.convert_to_numpy(classify.kernel).T
        found = np.zeros((len(maps) + 1, 5, 2))
        singles = collections.defaultdict(list)
        for taken in itertools.product([False, True], repeat=len(maps)):
            gradient = end
            for part, through in reversed(list(zip(maps, taken, strict=True))):
                gradient = gradient @ part.T if through else gradient
            found[sum(taken)] += gradient
            singles[sum(taken)].append(np.linalg.norm(gradient, axis=1))
        return found, singles

    return model, x.astype("float32"), y, parts()


@pytest.mark.once_on_torch
def test_parts_of_the_gradient_against_all_paths():
    matrices = np.random.default_rng(2).normal(size=(4, 2, 2))
    model, x, y, (expected, singles) = linear(matrices, [0.3, 2.5, 1.1, 3.9])
    found = mf_zoo.theory.gradient_parts(model, x, y, loss=LOGITS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    lengths = path_lengths(model, x, y, loss=LOGITS, samples=400, batch_size=3)
    assert lengths.paths.tolist() == [1, 4, 6, 4, 1]
    assert lengths.layers.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(
        lengths.norm, np.linalg.norm(expected, axis=2).mean(axis=1), rtol=1e-4
    )
    whole = expected.sum(axis=0)
    np.testing.assert_allclose(
        lengths.share, np.sum(expected * whole, axis=(1, 2)) / np.sum(whole**2), rtol=1e-3
    )
    assert lengths.gradient_norm == pytest.approx(np.linalg.norm(whole, axis=1).mean(), rel=1e-4)
    for k, norms in singles.items():  # 2000 random paths of each length; images differ
        mean, deviation = np.mean(norms), np.std(norms)
        assert lengths.path_norm[k] == pytest.approx(mean, abs=4 * deviation / 2000**0.5 + 1e-6)
        assert lengths.path_deviation[k] == pytest.approx(deviation, rel=0.1, abs=1e-5)
    np.testing.assert_allclose(lengths.total, lengths.paths * lengths.path_norm)


@pytest.mark.once_on_torch
def test_paths_of_equal_blocks_in_closed_form():
    """Blocks `f(x) = x / 4`: each path of length `k` carries `4^-k` of the gradient at the end."""
    n = 6
    model, x, y, (expected, _) = linear([np.eye(2) / 4] * n, np.arange(1.0, n + 1))
    found = path_lengths(model, x, y, loss=LOGITS, samples=2)
    end = np.linalg.norm(expected[0], axis=1).mean()
    weights = np.array([math.comb(n, k) * 4.0**-k for k in range(n + 1)])
    np.testing.assert_allclose(found.path_norm, end * 4.0 ** -np.arange(n + 1), rtol=1e-4)
    np.testing.assert_allclose(found.norm, end * weights, rtol=1e-4)
    np.testing.assert_allclose(found.total, found.norm, rtol=1e-4)
    np.testing.assert_allclose(found.share, weights / 1.25**n, rtol=1e-4)
    assert found.carriers(0.9) == (0, 2)  # 1, 1.5 and 0.94 of 3.81
    none = path_lengths(model, x, y, loss=LOGITS, samples=0)
    np.testing.assert_array_equal(none.norm, found.norm)
    assert np.isnan(none.path_norm).all()


@pytest.mark.once_on_torch
def test_paths_of_a_convolutional_network_add_up_to_its_gradient():
    model, images, labels = convolutional()
    before = values(model)
    found = mf_zoo.theory.gradient_parts(model, images, labels)
    unchanged(model, before)
    targets = ops.convert_to_tensor(labels)

    def loss(x):
        chosen = ops.take_along_axis(model(x, training=False), targets[:, None], axis=1)
        return -ops.sum(ops.log(chosen))

    _, (expected,) = autodiff.vjp(loss, [images])
    expected = ops.convert_to_numpy(expected)
    np.testing.assert_allclose(found.sum(axis=0), expected, atol=1e-5 * np.abs(expected).max())
    assert all(np.abs(part).max() > 1e-3 * np.abs(expected).max() for part in found)


@pytest.mark.once_on_torch
def test_single_paths_add_up_to_the_parts():
    """All eight paths through three blocks, one by one."""
    model, images, labels = convolutional()
    masks = np.array(list(itertools.product([False, True], repeat=3)))
    taken = np.broadcast_to(masks.reshape(2, 4, 1, 3), (2, 4, 12, 3))
    loss = interventions.per_image("sparse_categorical_crossentropy")
    exact, single = paths._gradients(paths._checked(model), images, labels, loss, taken)
    single = single.reshape(8, *images.shape)
    for k in range(4):
        np.testing.assert_allclose(
            single[masks.sum(axis=1) == k].sum(axis=0), exact[k], atol=1e-5 * np.abs(exact).max()
        )
    # Of the three blocks one lies behind the other stage: its derivative is in no other path.
    lengths = path_lengths(model, images, labels)
    np.testing.assert_allclose(lengths.path_norm[[0, 3]], lengths.norm[[0, 3]], rtol=1e-4)
    assert lengths.layers.tolist() == [0, 2, 4, 6]


@pytest.mark.once
def test_random_paths_have_their_length():
    taken = paths._random_paths(5, 300, 2, np.random.default_rng(0))
    assert taken.shape == (300, 6, 2, 5)
    np.testing.assert_array_equal(
        taken.sum(axis=3), np.arange(6)[None, :, None] + 0 * taken[..., 0]
    )
    frequencies = taken.mean(axis=(0, 2))  # of each particle: k / L
    np.testing.assert_allclose(frequencies, np.arange(6)[:, None] / 5 * np.ones(5), atol=0.1)
