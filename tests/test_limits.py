"""Errors to the limit in depth and width, refined stages, smoothness of weights in depth."""

import itertools
import math
import types

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from networks import outputs, randomized, small

import mf_zoo
from mf_zoo import theory
from mf_zoo.layers import BasicBlock, MeanFieldStage, stages
from mf_zoo.theory import limits

ONCE, ONCE_ON_TORCH = pytest.mark.once, pytest.mark.once_on_torch


def number(x):
    return ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")


# Random networks.


def _by_hand(x, y, inner, outer, width, alpha, steps, rate):
    """One network in NumPy, with its own backward pass: outputs after each number of steps."""
    inner, outer = inner[:, :, :width].astype("float64"), outer[:, :width].astype("float64")
    depth, found = len(inner), []
    for _ in range(steps + 1):
        states, hidden = [x], []
        for u, v in zip(inner, outer, strict=True):
            hidden.append(np.tanh(states[-1] @ u))
            states.append(states[-1] + alpha / depth / width * hidden[-1] @ v)
        found.append(states[-1])
        p = (states[-1] - y) / len(x)
        scale = rate * depth * width / alpha**2 * alpha / depth / width
        for k in reversed(range(depth)):
            slope = (p @ outer[k].T) * (1 - hidden[k] ** 2)
            step_outer, step_inner = hidden[k].T @ p, states[k].T @ slope
            p = p + alpha / depth / width * slope @ inner[k].T
            outer[k] -= scale * step_outer
            inner[k] -= scale * step_inner
    return found


@pytest.mark.once_on_torch
def test_the_stage_does_what_a_loop_in_numpy_does():
    x, y, mean = limits._problem(3, 5, seed=1)
    networks = [1, 4, 2]
    weights = limits._draw(np.random.default_rng(2), 6, networks, 1.5 * mean)
    # Weights of neurons that a narrower network has not must not matter.
    found = limits._outputs(x, y, weights, networks, 2.0, (0, 3), 0.2)
    for k, width in enumerate(networks):
        inner, outer = (weight[:, k] for weight in weights)
        expected = _by_hand(x, y, inner, outer, width, 2.0, 3, 0.2)
        np.testing.assert_allclose(found[0][k], expected[0], atol=1e-5)
        np.testing.assert_allclose(found[1][k], expected[3], atol=1e-4)
        assert np.abs(expected[3] - expected[0]).max() > 0.1


@ONCE
@pytest.mark.once_on_torch
def test_deep_and_wide_networks_follow_the_mean_flow():
    """`E[v tanh(u . x)] = drift C x E[1 - tanh^2(|x| z / sqrt(D))]`, by Stein's identity."""
    x, y, mean = limits._problem(4, 3, seed=0)
    drift, alpha = 1.5, 1.3
    weights = limits._draw(np.random.default_rng(5), 64, [256] * 8, drift * mean)
    (found,) = limits._outputs(x, y, weights, [256] * 8, alpha, (0,), 1.0)
    nodes, shares = np.polynomial.hermite_e.hermegauss(60)
    shares = shares / shares.sum()

    def flow(_, flat):
        state = flat.reshape(x.shape)
        size = np.linalg.norm(state, axis=1, keepdims=True) / np.sqrt(4)
        slope = (1 - np.tanh(size * nodes) ** 2) @ shares
        return (alpha * drift * slope[:, None] * state @ mean.T).ravel()

    exact = scipy.integrate.solve_ivp(flow, (0, 1), x.ravel(), rtol=1e-8).y[:, -1].reshape(x.shape)
    assert np.linalg.norm(found.mean(axis=0) - exact) < 0.02 * np.linalg.norm(exact)
    assert np.linalg.norm(exact - x) > 0.3 * np.linalg.norm(exact)


@ONCE_ON_TORCH
@pytest.mark.once_on_torch
def test_the_two_terms_of_the_rate():
    small_ones = {"seeds": 16, "reference": (128, 64), "inputs": 8}
    found = theory.depth_error([4, 16, 64], [1, 16], **small_ones)
    assert [(r.depth, r.width) for r in found[:3]] == [(4, 1), (4, 16), (16, 1)]
    neurons = [r.depth * r.width for r in found]
    assert abs(theory.depth_exponent(neurons, [r.spread for r in found]) - 0.5) < 0.05
    for record in found:
        square = record.bias**2 + record.spread**2 * 15 / 16
        assert record.error**2 == pytest.approx(square, rel=1e-6)
        assert record.bias < 3 * record.spread / 4  # none but that of few networks
    assert theory.fit_depth_error(found).share.max() < 0.2
    (twice,) = theory.depth_error([64], [16], alpha=2.0, **small_ones)
    assert twice.spread / found[-1].spread == pytest.approx(2, rel=0.15)
    # After training the limit moves, and Euler's error shows where the draw's is small.
    wide = theory.depth_error(
        [4, 8, 16], [256], steps=(0, 4), learning_rate=0.5, seeds=4, reference=(64, 256)
    )
    start, trained = wide[:3], wide[3:]
    assert {r.steps for r in start} == {0} and {r.steps for r in trained} == {4}
    assert trained[0].loss < 0.6 * start[0].loss
    gaps = [1 / r.depth - 1 / 64 for r in trained]  # less the reference's own
    slope = np.polyfit(np.log(gaps), np.log([r.bias for r in trained]), 1)[0]
    assert abs(slope - 1) < 0.2
    assert trained[0].bias > 2 * trained[0].spread


def _record(depth, width, error, alpha=1.0, reference=10**9):
    return limits.DepthError(depth, width, alpha, 0, 2, error, 0.0, 0.0, 0.0, (reference, 1))


@ONCE
@given(a=st.floats(0.0, 5.0), b=st.floats(0.01, 5.0), form=st.sampled_from(["sum", "squares"]))
@settings(deadline=None)
@pytest.mark.once_on_torch
def test_the_fit_finds_what_made_the_errors(a, b, form):
    records, shares = [], []
    for depth, width, alpha in itertools.product((4, 16, 64), (1, 8, 64), (1.0, 3.0)):
        one, other = a / depth, b * alpha / np.sqrt(depth * width)
        error = one + other if form == "sum" else np.hypot(one, other)
        shares.append(one / error if form == "sum" else (one / error) ** 2)
        records.append(_record(depth, width, error, alpha))
    fit = theory.fit_depth_error(records, form)
    np.testing.assert_allclose([fit.a, fit.b], [a, b], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fit.share, shares, atol=1e-3)
    np.testing.assert_allclose(fit.fitted, [r.error for r in records], rtol=1e-4)
    assert fit.misfit < 1e-4


@ONCE
@pytest.mark.once_on_torch
def test_the_fit_knows_that_the_reference_has_a_depth():
    records = [_record(depth, 1, 3 * (1 / depth - 1 / 64), reference=64) for depth in (4, 8, 16)]
    fit = theory.fit_depth_error(records)
    assert fit.a == pytest.approx(3) and fit.b == pytest.approx(0, abs=1e-9)


@ONCE
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": []}, r"`depths` must be integers of at least 1\. Received: depths=\[\]"),
        ({"widths": [0]}, r"`widths` must be .* at least 1\. Received: widths=\[0\]"),
        ({"steps": [1.5]}, r"`steps` must be .* at least 0\. Received: steps=\[1\.5\]"),
        ({"seeds": 1}, r"`seeds` must be .* at least 2"),
        ({"alpha": 0.0}, r"`alpha` must be a positive number\. Received: alpha=0\.0"),
        ({"reference": (128, 4)}, r"above all of `depths`.*Received: reference=\(128, 4\)"),
    ],
)
@pytest.mark.once_on_torch
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.depth_error(**arguments)


@ONCE
@pytest.mark.once_on_torch
def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match=r"at least two\. Received: 1 records"):
        theory.fit_depth_error([_record(1, 1, 1.0)])
    with pytest.raises(ValueError, match=r'"squares" or "sum"\. Received: form=\'max\''):
        theory.fit_depth_error([_record(1, 1, 1.0)] * 2, "max")


# Refined stages.


def _equal_parts(measure, count):
    """A rule that cuts every particle into as many parts, however long it is."""
    parts = count // len(measure.steps)
    mixing = np.repeat(np.eye(len(measure.steps)), parts, axis=0)
    return mf_zoo.layers.measures.Resampling(np.repeat(measure.steps / parts, parts), mixing)


@pytest.mark.once_on_torch
def test_a_linear_stage_converges_to_the_matrix_exponential():
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(2, 3, 3)) / 2
    steps = [0.5, 1.0]
    stage = MeanFieldStage(
        layers.Dense(3, use_bias=False), 2, horizon=1.5, initial_times=[1.5, 0.5]
    )
    stage.build((None, 3))
    stage.set_blocks([[matrix.astype("float32")] for matrix in matrices])  # in depth order
    x = rng.normal(size=(4, 3)).astype("float32")

    def euler(*counts):
        """So many equal steps with each of the matrices."""
        state = x
        for step, matrix, count in zip(steps, matrices, counts, strict=True):
            state = state @ np.linalg.matrix_power(np.eye(3) + step / count * matrix, count)
        return state

    # "split" cuts the longest step first: of 6 particles 4 are parts of the second.
    found = number(limits.refined_output(stage, x, 3))
    np.testing.assert_allclose(found, euler(2, 4), atol=1e-5)
    found = number(limits.refined_output(stage, x, 4, _equal_parts))
    np.testing.assert_allclose(found, euler(4, 4), atol=1e-5)
    first, second = (scipy.linalg.expm(s * m) for s, m in zip(steps, matrices, strict=True))
    exact = x @ first @ second
    found = theory.refinement_error(stage, x, 6, _equal_parts)
    assert [(r.parts, r.particles) for r in found] == [(2**k, 2 ** (k + 1)) for k in range(7)]
    for record in found[2:5]:
        assert abs(record.order - 1) < 0.1
    # From 32 parts to 64 half of the error goes: what is left is as much.
    finest = number(limits.refined_output(stage, x, 64, _equal_parts))
    left = np.linalg.norm(finest - exact) / np.linalg.norm(exact)
    assert found[-2].error == pytest.approx(left, rel=0.1)
    assert found[-1].error == 0 and np.isnan(found[-1].change) and np.isnan(found[-2].order)


@pytest.mark.parametrize(("kind", "rule"), [("basic", "linear"), ("pre-activation", "split")])
@pytest.mark.once_on_torch
def test_a_refined_model_gives_what_is_measured(kind, rule):
    model = randomized(small(kind, horizon=1.5))
    images = np.random.default_rng(1).uniform(size=(2, 32, 32, 3)).astype("float32")
    before = [np.array(number(v)) for v in model.variables]
    found = theory.refinement_error(model, images, 1, rule)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, number(variable))
    counts = [2 * stage.num_particles for stage in stages(model)]
    refined = outputs(mf_zoo.depth.refine(model, counts, rule), images)
    expected = np.linalg.norm(outputs(model, images) - refined) / np.linalg.norm(refined)
    names = ["stage1", "stage2", "stage3", "output"]
    assert [r.name for r in found] == [name for name in names for _ in range(2)]
    assert found[-2].error == found[-2].change == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert expected > 1e-4
    assert found[-1].particles == sum(counts)
    # A stage by itself is measured at the inputs that it has in the model.
    parts = theory.cut(model)
    state = ops.convert_to_tensor(images)
    for piece, stage in zip(parts.pieces, parts.stages[:1], strict=False):
        state = piece(state, training=False)
        alone = theory.refinement_error(stage, state, 1, rule)
        assert alone[0].error == pytest.approx(found[0].error, rel=1e-5)


@pytest.mark.once_on_torch
def test_wrong_numbers_of_doublings():
    stage = MeanFieldStage(layers.Dense(2), 1)
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match=r"`doublings` must be a positive integer\. Received"):
            theory.refinement_error(stage, np.ones((1, 2)), wrong)


# Smoothness.


def _with_kernels(kernels, **arguments):
    """A stage of layers without bias whose kernels, in depth order, are these rows."""
    kernels = np.asarray(kernels, "float32")
    stage = MeanFieldStage(layers.Dense(2, use_bias=False), len(kernels), **arguments)
    stage.build((None, 2))
    stage.set_blocks([[kernel.reshape(2, 2)] for kernel in kernels])
    return stage


@pytest.mark.once_on_torch
def test_weights_that_are_linear_in_depth():
    direction = np.array([1.0, 2.0, 2.0, 0.0])  # of norm 3
    kernels = [level * direction for level in (-2, -1, 0, 1, 2)]
    stage = _with_kernels(kernels, initial_times=[0.1, 4.0, 2.0, 3.0, 5.0])
    for found in theory.smoothness(stage)[:2]:
        # |theta|^2 / 9 = 4, 1, 0, 1, 4: a mean of 2. Pairs: 4 at 1, 3 at 2, 2 at 3, 1 at 4.
        assert found.distance == pytest.approx(1 / np.sqrt(2), rel=1e-5)
        assert found.pairs == pytest.approx(2 / np.sqrt(2), rel=1e-5)
        assert found.ratio == pytest.approx(0.5, rel=1e-5)
        assert found.cosine == pytest.approx((1 + 0 + 0 + 1) / 4, abs=1e-6)
        assert found.p_value == pytest.approx(2 / 120)
    assert [record.what for record in theory.smoothness(stage)] == [
        "kernels",
        f"{stage.template().name}_kernel",
    ]


@ONCE
@pytest.mark.once_on_torch
def test_independent_blocks_are_not_smooth():
    stage = MeanFieldStage(layers.Dense(60, use_bias=False), 6)
    stage.build((None, 60))
    rng = np.random.default_rng(0)
    stage.set_blocks([[rng.normal(size=(60, 60)).astype("float32")] for _ in range(6)])
    found = theory.smoothness(stage)[0]
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert found.distance == pytest.approx(np.sqrt(2), abs=0.03)
    assert abs(found.cosine) < 0.03 and found.p_value > 0.05


@ONCE
@given(seed=st.integers(0, 1000), count=st.integers(3, 5))
@settings(deadline=None, max_examples=20)
@pytest.mark.once_on_torch
def test_the_p_value_counts_orders(seed, count):
    kernels = np.random.default_rng(seed).integers(-2, 3, size=(count, 4)).astype("float64")
    if len(np.unique(kernels, axis=0)) == 1:
        return

    def length(order):
        steps = itertools.pairwise(order)
        return sum(np.linalg.norm(kernels[i] - kernels[j]) for i, j in steps)

    lengths = [length(order) for order in itertools.permutations(range(count))]
    as_near = sum(value <= length(range(count)) + 1e-9 for value in lengths)
    found = theory.smoothness(_with_kernels(kernels))[0]
    assert found.p_value == pytest.approx(as_near / len(lengths))


@ONCE
@pytest.mark.once_on_torch
def test_many_particles_are_compared_with_orders_drawn_at_random():
    line = np.outer(np.arange(12), np.ones(4))
    assert theory.smoothness(_with_kernels(line))[0].p_value == 1 / 20_000
    mixed = line[np.random.default_rng(3).permutation(12)]
    assert theory.smoothness(_with_kernels(mixed))[0].p_value > 0.05


@ONCE
@pytest.mark.once_on_torch
def test_one_or_two_particles_and_equal_blocks_say_nothing():
    found = theory.smoothness(_with_kernels([[1, 0, 0, 0], [0, 1, 0, 0]]))[0]
    assert found.distance == found.pairs == pytest.approx(np.sqrt(2))
    assert np.isnan(found.ratio) and np.isnan(found.p_value)
    assert np.isnan(theory.smoothness(_with_kernels([[1, 0, 0, 0]]))[0].distance)
    equal = theory.smoothness(_with_kernels([[1, 2, 3, 4]] * 3))[0]
    assert equal.distance == equal.pairs == 0 and np.isnan(equal.ratio)
    assert equal.cosine == pytest.approx(1)
    with pytest.raises(ValueError, match=r"`stage` must be built\. Received"):
        theory.smoothness(MeanFieldStage(layers.Dense(2), 1))


@pytest.mark.once_on_torch
def test_channels_that_are_permuted_within_a_block_do_the_same():
    """Weights are far, and what blocks do is equal."""
    stage = MeanFieldStage(BasicBlock(8), 3, activation="relu")
    stage.build((None, 6, 6, 8))
    names = [variable.path.split("/")[-2:] for variable in stage.template().variables]
    first = stage.blocks()[0].weights
    blocks, rng = [], np.random.default_rng(0)
    for _ in range(3):
        order = rng.permutation(8)
        changed = []
        for (layer, _), weight in zip(names, first, strict=True):
            if layer == "conv1":
                weight = weight[..., order]
            elif layer == "bn1":
                weight = weight[order]
            elif layer == "conv2":
                weight = weight[:, :, order]
            changed.append(weight)
        blocks.append(changed)
    stage.set_blocks(blocks)
    x = rng.normal(size=(2, 6, 6, 8)).astype("float32")
    rows = {record.what: record for record in theory.smoothness(stage, x)}
    assert rows["updates"].distance < 1e-3 and rows["updates"].cosine > 0.9999
    assert rows["kernels"].distance > 1 and rows["conv1_kernel"].distance > 1
    assert rows["bn2_gamma"].distance == 0


@ONCE_ON_TORCH
@pytest.mark.once_on_torch
def test_a_network_that_was_just_grown_is_smooth():
    model = randomized(small("basic"))
    rng = np.random.default_rng(0)
    for stage in stages(model):
        stage._stacked[0].assign(rng.normal(size=stage._stacked[0].shape))
    grown = stages(mf_zoo.depth.refine(model, [8, 8, 8]))[0]
    found = theory.smoothness(grown)[0]
    # Two runs of equal blocks, of which the first has so many:
    kernels = number(grown._stacked[0])
    copies = int(np.sum([np.array_equal(kernel, kernels[0]) for kernel in kernels]))
    assert 0 < copies < 8
    assert found.ratio == pytest.approx(1 / 7 / (copies * (8 - copies) / 28), rel=1e-4)
    assert found.p_value == pytest.approx(2 / math.comb(8, copies))


@ONCE
@pytest.mark.once_on_torch
def test_the_exponent_tells_smooth_from_random():
    rng = np.random.default_rng(0)
    depths = (4, 8, 16, 32)
    kernels = {
        1.0: lambda n: np.stack([np.cos(np.linspace(0, 3, n) + k) for k in range(4)], 1),
        0.5: lambda n: np.cumsum(rng.normal(size=(n, 4)), axis=0) / np.sqrt(n),
        0.0: lambda n: rng.normal(size=(n, 4)),
    }
    for exponent, make in kernels.items():
        units = []
        for depth in depths:
            weights = make(depth)
            found = theory.smoothness(_with_kernels(weights))[0]
            size = np.sqrt(np.mean(np.sum(weights**2, axis=1)))
            units.append(found.distance * size)  # in units that depth does not change
        assert abs(theory.depth_exponent(depths, units) - exponent) < 0.15
    for wrong in (([1], [1.0]), ([1, 1], [1.0, 2.0]), ([1, 2], [1.0, 0.0])):
        with pytest.raises(ValueError, match=r"two different positive numbers.*Received: depths="):
            theory.depth_exponent(*wrong)


@pytest.mark.once_on_torch
def test_mixed_precision_is_measured_in_float32():
    results = []
    for policy in ("float32", "mixed_bfloat16"):
        stage = MeanFieldStage(BasicBlock(4), 3, activation="relu", dtype=policy)
        stage.build((None, 6, 6, 4))
        rng = np.random.default_rng(0)
        for weight in stage._stacked:
            weight.assign(rng.uniform(0.5, 1.0, size=weight.shape))
        x = rng.normal(size=(2, 6, 6, 4)).astype("float32")
        rows = theory.smoothness(stage, x)
        results.append([*theory.refinement_error(stage, x, 2), *rows])
    plain, mixed = results
    assert mixed[0].error == pytest.approx(plain[0].error, rel=0.1)
    for one, other in zip(plain[3:], mixed[3:], strict=True):
        assert other.distance == pytest.approx(one.distance, abs=0.02)


# Pictures.


@ONCE_ON_TORCH
@pytest.mark.once_on_torch
def test_the_pictures_give_what_they_show(monkeypatch):
    from matplotlib.figure import Figure

    from mf_zoo.theory.figures import limits as limits_picture
    from mf_zoo.theory.figures import smoothness as smoothness_picture

    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    networks = {"one": small("basic"), "other": small("pre-activation")}
    inputs = types.SimpleNamespace(images=images, networks=networks)
    for name, value in (("DEPTHS", (2, 4)), ("REFERENCE", (8, 256)), ("DOUBLINGS", 2)):
        monkeypatch.setattr(limits_picture, name, value)
    monkeypatch.setattr(smoothness_picture, "REFINED", (4, 3, 3))
    rows = limits_picture.draw(Figure(layout="constrained"), inputs)
    # Two numbers of steps, depths and three widths; two networks, 3 stages and scores, 3 levels.
    assert len(rows) == 2 * 2 * 3 + 2 * 4 * 3
    assert all(row.keys() == rows[0].keys() for row in rows)
    rows = smoothness_picture.draw(Figure(layout="constrained"), inputs)
    assert len(rows) == 3 * 3 * 2
    grown = [row for row in rows if row["network"] == "one, refined to 56"]
    assert [row["particles"] for row in grown] == [4, 4, 3, 3, 3, 3]
    # The first stage has 2 particles, the others 1, of which all are copies.
    assert grown[0]["ratio"] < 0.9
    assert [row["distance"] for row in grown[2::2]] == [0, 0]
