import keras
import numpy as np
import pytest
import torch
from autodiff import value_and_gradients
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from mf_zoo.layers import BasicBlock, BatchNormalization, MeanFieldStage, QuadratureRule, stages
from mf_zoo.optimizers import MeanFieldSGD

SHAPE = (6, 6, 4)
UNROLL = [True] if keras.backend.backend() == "tensorflow" else [True, False]


def images(batch=5, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype("float32")


def randomize(layer, seed=0):
    """Gives every weight but the times a random value fit for its part."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.path.endswith("times"):
            continue
        value = rng.normal(size=weight.shape) * 0.3
        if "variance" in weight.path or "gamma" in weight.path:
            value = 0.5 + np.abs(value)
        weight.assign(value)


def make_stage(n=3, seed=0, block=None, shape=SHAPE, **kwargs):
    stage = MeanFieldStage(block or BasicBlock(shape[-1]), n, activation="relu", **kwargs)
    stage.build((None, *shape))
    randomize(stage, seed)
    return stage


def squares(outputs):
    weights = np.random.default_rng(7).normal(size=tuple(outputs.shape[1:]))
    weights = ops.convert_to_tensor(weights, "float32")
    return ops.mean(ops.square(outputs) * weights) + ops.mean(outputs * weights)


def names(stage):
    return [weight.path.split("/")[-1] for weight in stage.weights]


def numpy_weights(stage):
    return {
        name: ops.convert_to_numpy(weight.value)
        for name, weight in zip(names(stage), stage.weights, strict=True)
    }


class Reference:
    """The stage by hand in PyTorch, block after block in a given order: shares no code with it."""

    def __init__(self, weights, order, momentum=0.9, epsilon=1.001e-5):
        self.w = {k: torch.tensor(v, requires_grad="moving" not in k) for k, v in weights.items()}
        self.order, self.momentum, self.epsilon = order, momentum, epsilon

    def normalize(self, x, name, i, training):
        mean, variance = self.w[f"{name}_moving_mean"], self.w[f"{name}_moving_variance"]
        if training:
            m, v = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                mean[i] = mean[i] * self.momentum + m * (1 - self.momentum)
                variance[i] = variance[i] * self.momentum + v * (1 - self.momentum)
        else:
            m, v = mean[i], variance[i]
        shape = (1, -1, 1, 1)
        x = (x - m.view(shape)) / torch.sqrt(v.view(shape) + self.epsilon)
        return x * self.w[f"{name}_gamma"][i].view(shape) + self.w[f"{name}_beta"][i].view(shape)

    def __call__(self, inputs, steps, training):
        x = torch.tensor(inputs).permute(0, 3, 1, 2)
        for i, step in zip(self.order, steps, strict=True):
            y = x
            for number in (1, 2):
                kernel = self.w[f"conv{number}_kernel"][i].permute(3, 2, 0, 1)
                y = torch.nn.functional.conv2d(y, kernel, padding=1)
                y = self.normalize(y, f"bn{number}", i, training)
                y = torch.relu(y) if number == 1 else y
            x = torch.relu(x + step * y)
        return x.permute(0, 2, 3, 1)


def backward_steps(times, order):
    """The backward rule by hand, differentiable, in depth order."""
    return [times[i] - (times[order[k - 1]] if k else 0.0) for k, i in enumerate(order)]


@pytest.mark.parametrize("unroll", UNROLL)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("times", [[1.0, 2.0, 3.0], [2.2, 0.4, 1.7]])
def test_values_gradients_and_statistics_equal_an_independent_network(times, training, unroll):
    stage = make_stage(initial_times=times, unroll=unroll)
    reference = Reference(numpy_weights(stage), np.argsort(times))
    steps = backward_steps(reference.w["times"], np.argsort(times))
    expected = reference(images(), steps, training)
    np.testing.assert_allclose(
        ops.convert_to_numpy(stage(images(), training=False)),
        Reference(numpy_weights(stage), np.argsort(times))(images(), steps, False).detach(),
        rtol=1e-4,
        atol=1e-4,
    )
    factors = torch.tensor(np.random.default_rng(7).normal(size=SHAPE).astype("float32"))
    loss = (expected**2 * factors).mean() + (expected * factors).mean()
    loss.backward()
    got_loss, gradients = value_and_gradients(stage, images(), squares, training)
    assert got_loss == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    for variable, gradient in zip(stage.trainable_variables, gradients, strict=True):
        name = variable.path.split("/")[-1]
        want = reference.w[name].grad.numpy()
        np.testing.assert_allclose(gradient, want, rtol=2e-3, atol=2e-4, err_msg=name)
    for name, value in numpy_weights(stage).items():
        want = reference.w[name].detach().numpy()
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_training_step_equals_that_of_the_independent_network():
    """The same on every backend, because each equals the one reference."""
    times, rate = [2.2, 0.4, 1.7], 0.05
    inputs = keras.Input(SHAPE)
    stage = MeanFieldStage(BasicBlock(SHAPE[-1]), 3, activation="relu", initial_times=times)
    model = keras.Model(inputs, stage(inputs))
    randomize(stage)
    reference = Reference(numpy_weights(stage), np.argsort(times))
    steps = backward_steps(reference.w["times"], np.argsort(times))
    target = images(seed=9)
    loss = ((reference(images(), steps, True) - torch.tensor(target)) ** 2).mean()
    loss.backward()
    model.compile(MeanFieldSGD(rate, time_learning_rate_multiplier=4.0), "mse")
    assert model.train_on_batch(images(), target) == pytest.approx(loss.item(), rel=1e-4)
    for name, value in numpy_weights(stage).items():
        want = reference.w[name].detach().numpy()
        if reference.w[name].grad is not None:
            own_rate = 4 * rate if name == "times" else rate
            want = want - own_rate * reference.w[name].grad.numpy()
        np.testing.assert_allclose(value, want, rtol=1e-3, atol=1e-4, err_msg=name)
    assert not np.allclose(numpy_weights(stage)["times"], times)


def plain_network(stage, order):
    """The same network of ordinary Keras layers, step size 1."""
    w = numpy_weights(stage)
    x = inputs = keras.Input(SHAPE)
    values = []
    for i in order:
        y = x
        for number in (1, 2):
            y = layers.Conv2D(SHAPE[-1], 3, padding="same", use_bias=False)(y)
            y = layers.BatchNormalization(momentum=0.9, epsilon=1.001e-5)(y)
            y = layers.ReLU()(y) if number == 1 else y
            values += [w[f"conv{number}_kernel"][i]]
            values += [w[f"bn{number}_{k}"][i] for k in ("gamma", "beta")]
            values += [w[f"bn{number}_moving_{k}"][i] for k in ("mean", "variance")]
        x = layers.ReLU()(layers.Add()([x, y]))
    model = keras.Model(inputs, x)
    model.set_weights(values)
    return model


def test_at_grid_times_it_is_the_ordinary_resnet_in_keras_layers():
    stage = make_stage()
    plain = plain_network(stage, [0, 1, 2])
    loss, gradients = value_and_gradients(stage, images(), squares)
    plain_loss, plain_gradients = value_and_gradients(plain, images(), squares)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    per_block = ["conv1_kernel", "bn1_gamma", "bn1_beta", "conv2_kernel", "bn2_gamma", "bn2_beta"]
    by_name = {
        v.path.split("/")[-1]: g for v, g in zip(stage.trainable_variables, gradients, strict=True)
    }
    for i in range(3):
        for k, name in enumerate(per_block):
            np.testing.assert_allclose(
                by_name[name][i], plain_gradients[6 * i + k], rtol=1e-3, atol=2e-5, err_msg=name
            )
    # Moving statistics after that step, seen through inference.
    np.testing.assert_allclose(
        ops.convert_to_numpy(stage(images(seed=1), training=False)),
        ops.convert_to_numpy(plain(images(seed=1), training=False)),
        rtol=1e-4,
        atol=1e-4,
    )


@given(permutation=st.permutations(range(4)))
@settings(max_examples=6, deadline=None)
def test_the_order_of_storage_does_not_matter(permutation):
    stage = make_stage(4, initial_times=[0.5, 3.9, 1.0, 2.5])
    permuted = make_stage(4, initial_times=[0.5, 3.9, 1.0, 2.5])
    for weight, other in zip(stage.weights, permuted.weights, strict=True):
        other.assign(ops.convert_to_numpy(weight.value)[list(permutation)])
    np.testing.assert_allclose(
        ops.convert_to_numpy(stage(images(), training=True)),
        ops.convert_to_numpy(permuted(images(), training=True)),
        rtol=1e-5,
        atol=1e-5,
    )
    for name, weight, other in zip(names(stage), stage.weights, permuted.weights, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(weight.value)[list(permutation)],
            ops.convert_to_numpy(other.value),
            rtol=1e-4,
            atol=1e-5,
            err_msg=name,
        )


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class Scale(layers.Layer):
    """f(x) = a x: a stage of it multiplies by the product of 1 + dt_l a_l."""

    def build(self, input_shape):
        self.a = self.add_weight(shape=(), initializer="ones", name="a")

    def call(self, inputs):
        return self.a * inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def scale_stage(times, factors, **kwargs):
    stage = MeanFieldStage(Scale(), len(times), initial_times=times, **kwargs)
    stage.build((None, 1))
    stage._stacked[0].assign(factors)
    return stage


def gradient_of_times(quadrature, times, factors, horizon, reorder=True):
    """By hand: dL/d dt_l = a_l P / (1 + dt_l a_l) with P the product, then the rule's Jacobian."""
    order = np.argsort(times)
    t, a = np.array(times)[order], np.array(factors)[order if reorder else slice(None)]
    if quadrature == "backward":
        dt = np.diff(t, prepend=0)
    elif quadrature == "midpoint":
        dt = np.diff(np.concatenate([[0], (t[1:] + t[:-1]) / 2, [horizon]]))
    else:
        dt = np.full(len(t), horizon / len(t))
    product = np.prod(1 + dt * a)
    g = a * product / (1 + dt * a)
    following, previous = np.append(g[1:], 0), np.insert(g[:-1], 0, 0)
    if quadrature in (
        "backward",
        "uniform_straight_through",
    ):  # t^k opens step k+1 and closes step k
        sorted_gradient = g - following
    elif quadrature == "midpoint":  # t^k moves both edges of its cell by 1/2, walls stay
        right, left = (g - following) / 2, (previous - g) / 2
        right[-1], left[0] = 0, 0
        sorted_gradient = right + left
    else:
        sorted_gradient = np.zeros(len(t))
    gradient = np.empty(len(t))
    gradient[order] = sorted_gradient
    return product, gradient


@pytest.mark.parametrize(
    ("quadrature", "reorder"),
    [
        *(("backward", True), ("midpoint", True), ("uniform", True)),
        *(("backward", False), ("midpoint", False), ("uniform_straight_through", True)),
    ],
)
def test_gradient_of_the_times_by_hand_and_by_finite_differences(quadrature, reorder):
    times, factors, horizon = [2.1, 0.3, 1.2, 3.4], [0.4, -0.3, 0.2, 0.7], 4.0
    stage = scale_stage(times, factors, quadrature=quadrature, horizon=horizon, reorder=reorder)
    x = np.ones((1, 1), "float32")
    product, expected = gradient_of_times(quadrature, times, factors, horizon, reorder)
    loss, (gradient, _) = value_and_gradients(stage, x, ops.sum)
    assert loss == pytest.approx(product, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    if quadrature == "uniform_straight_through":  # no derivative of what is computed
        expected = np.zeros(4)
    for i in range(4):
        ends = []
        for shift in (1e-2, -1e-2):
            moved = np.array(times)
            moved[i] += shift
            stage.times.assign(moved)
            ends.append(float(ops.convert_to_numpy(stage(x))[0, 0]))
        difference = (ends[0] - ends[1]) / 2e-2
        assert difference == pytest.approx(expected[i], rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("quadrature", ["backward", "midpoint"])
def test_gradient_of_the_times_of_convolutional_blocks_by_finite_differences(quadrature):
    stage = make_stage(initial_times=[1.9, 0.6, 2.7], quadrature=quadrature)

    def loss():
        return float(ops.convert_to_numpy(squares(stage(images(), training=False))))

    _, gradients = value_and_gradients(stage, images(), squares, training=False)
    gradient = gradients[names(stage).index("times")]
    start = ops.convert_to_numpy(stage.times.value)
    for i in range(3):
        ends = []
        for shift in (5e-3, -5e-3):
            moved = start.copy()
            moved[i] += shift
            stage.times.assign(moved)
            ends.append(loss())
        assert (ends[0] - ends[1]) / 1e-2 == pytest.approx(gradient[i], rel=3e-2, abs=3e-3)


def test_a_forced_crossing_moves_block_and_statistics_in_depth():
    stage = make_stage(quadrature="uniform")
    stage(images(), training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(stage.depth_order()), [0, 1, 2])
    stage.times.assign([2.5, 2.0, 3.0])
    np.testing.assert_array_equal(ops.convert_to_numpy(stage.depth_order()), [1, 0, 2])
    rebuilt = plain_network(stage, [1, 0, 2])
    for training in (True, False):  # then the statistics of the training pass, in the new order
        np.testing.assert_allclose(
            ops.convert_to_numpy(stage(images(seed=2), training=training)),
            ops.convert_to_numpy(rebuilt(images(seed=2), training=training)),
            rtol=1e-4,
            atol=1e-4,
        )
    new = plain_network(stage, [1, 0, 2]).get_weights()
    for got, want in zip(new, rebuilt.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_without_reordering_a_crossing_changes_nothing():
    stage = make_stage(reorder=False)
    stage.times.assign([3.0, 1.0, 2.0])  # still equal steps
    rebuilt = plain_network(stage, [0, 1, 2])
    for training in (True, False):
        np.testing.assert_allclose(
            ops.convert_to_numpy(stage(images(), training=training)),
            ops.convert_to_numpy(rebuilt(images(), training=training)),
            rtol=1e-4,
            atol=1e-4,
        )
    for got, want in zip(
        plain_network(stage, [0, 1, 2]).get_weights(), rebuilt.get_weights(), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@given(times=st.lists(st.floats(0, 4, width=32, allow_subnormal=False), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_without_reordering_the_order_stays_and_steps_are_those_of_the_sorted_times(times):
    for quadrature, total in (("backward", max(times)), ("midpoint", 4.0)):
        stage = scale_stage([1.0] * 4, [1.0] * 4, quadrature=quadrature, reorder=False)
        stage.times.assign(times)
        assert ops.convert_to_numpy(stage.depth_order()).tolist() == [0, 1, 2, 3]
        steps = ops.convert_to_numpy(stage.step_sizes())
        assert (steps >= 0).all()
        assert steps.sum() == pytest.approx(total, rel=1e-5, abs=1e-5)
        reordering = scale_stage([1.0] * 4, [1.0] * 4, quadrature=quadrature)
        reordering.times.assign(times)
        np.testing.assert_array_equal(steps, ops.convert_to_numpy(reordering.step_sizes()))


def test_with_equal_steps_and_a_gradient_blocks_overtake():
    """Loss -x_1 of a stage whose first block matters more: its step would grow, so it moves on."""
    stage = scale_stage([0.9, 1.0], [1.0, 0.1], quadrature="uniform_straight_through", horizon=2.0)
    model = keras.Sequential([keras.Input((1,)), stage])
    stage._stacked[0].trainable = False
    model.compile(keras.optimizers.SGD(0.05), loss=lambda y, p: -ops.mean(p))
    x = np.ones((4, 1), "float32")
    for _ in range(3):
        model.train_on_batch(x, x)
    assert ops.convert_to_numpy(stage.depth_order()).tolist() == [1, 0]
    np.testing.assert_array_equal(ops.convert_to_numpy(stage.step_sizes()), [1.0, 1.0])


def test_gradient_descent_makes_blocks_overtake():
    """Loss -P: the particle with the larger factor gains from a longer step, and moves back."""
    stage = scale_stage([0.9, 1.0], [1.0, 0.1], horizon=2.0)
    model = keras.Sequential([keras.Input((1,)), stage])
    stage._stacked[0].trainable = False
    model.compile(keras.optimizers.SGD(0.05), loss=lambda y, p: -ops.mean(p))
    x = np.ones((4, 1), "float32")
    orders = []
    for _ in range(6):
        model.train_on_batch(x, x)
        orders.append(ops.convert_to_numpy(stage.depth_order()).tolist())
    assert orders[0] == [0, 1] and orders[-1] == [1, 0]


@pytest.mark.parametrize("training", [True, False])
def test_folding_the_step_changes_neither_values_nor_gradients(training):
    class Unfolded(BasicBlock):
        output_scale_variables = ()

    times = [1.7, 0.4, 2.9]
    folded = make_stage(initial_times=times)
    plain = make_stage(initial_times=times, block=Unfolded(SHAPE[-1]))
    assert folded._folded and not plain._folded
    loss, gradients = value_and_gradients(folded, images(), squares, training)
    plain_loss, plain_gradients = value_and_gradients(plain, images(), squares, training)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for name, got, want in zip(names(folded), gradients, plain_gradients, strict=False):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=5e-5, err_msg=name)


def test_one_step_of_any_keras_optimizer_keeps_times_inside():
    stage = scale_stage([0.1, 1.9], [0.5, -0.5], horizon=2.0)
    model = keras.Sequential([keras.Input((1,)), stage])
    model.compile(keras.optimizers.Adam(0.7), loss=lambda y, p: -ops.mean(p))
    x = np.ones((4, 1), "float32")
    for _ in range(12):
        model.train_on_batch(x, x)
        times = ops.convert_to_numpy(stage.times.value)
        assert ((times >= 0) & (times <= 2)).all()
    assert not np.allclose(times, [0.1, 1.9])


def test_ties_are_broken_by_storage_index():
    stage = make_stage(initial_times=[1.0, 1.0, 0.5])
    np.testing.assert_array_equal(ops.convert_to_numpy(stage.depth_order()), [2, 0, 1])
    np.testing.assert_allclose(ops.convert_to_numpy(stage.step_sizes()), [0.5, 0.5, 0.0])
    outputs = ops.convert_to_numpy(stage(images(), training=False))
    # The last of the tie has step 0: with a ReLU before it, it changes nothing.
    without = Reference(numpy_weights(stage), [2, 0])(images(), [0.5, 0.5], False)
    np.testing.assert_allclose(outputs, without.detach(), rtol=1e-4, atol=1e-4)


def test_one_particle():
    stage = make_stage(1, horizon=0.5)
    np.testing.assert_allclose(ops.convert_to_numpy(stage.step_sizes()), [0.5])
    expected = Reference(numpy_weights(stage), [0])(images(), [0.5], False)
    np.testing.assert_allclose(
        ops.convert_to_numpy(stage(images(), training=False)),
        expected.detach(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_multilayer_perceptron_as_residual_function():
    block = keras.Sequential([layers.Dense(7, activation="tanh"), layers.Dense(4)])
    stage = MeanFieldStage(block, 2, initial_times=[1.5, 0.5], horizon=2.0)
    stage.build((None, 4))
    k1, b1, k2, b2 = (ops.convert_to_numpy(w.value) for w in stage._stacked)
    assert k1.shape == (2, 4, 7) and not np.allclose(k1[0], k1[1])
    x = expected = images(shape=(4,))
    for i, step in ((1, 0.5), (0, 1.0)):
        expected = expected + step * (np.tanh(expected @ k1[i] + b1[i]) @ k2[i] + b2[i])
    np.testing.assert_allclose(ops.convert_to_numpy(stage(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    stage = make_stage()
    mixed = make_stage(block=BasicBlock(SHAPE[-1], dtype=policy), dtype=policy)
    mixed.set_weights(stage.get_weights())
    for training in (False, True):
        outputs = mixed(images(), training=training)
        assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
        expected = ops.convert_to_numpy(stage(images(), training=training))
        error = np.abs(ops.convert_to_numpy(ops.cast(outputs, "float32")) - expected)
        assert error.max() < 0.03 * np.abs(expected).max()
    for name, weight, other in zip(names(stage), mixed.weights, stage.weights, strict=True):
        assert keras.backend.standardize_dtype(weight.dtype) == "float32"
        scale = np.abs(ops.convert_to_numpy(other.value)).max()
        np.testing.assert_allclose(
            ops.convert_to_numpy(weight.value),
            ops.convert_to_numpy(other.value),
            atol=0.02 * scale,
            err_msg=name,
        )


def stage_model(**kwargs):
    inputs = keras.Input(SHAPE)
    stage = MeanFieldStage(BasicBlock(SHAPE[-1]), 3, activation="relu", **kwargs)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(stage(inputs))), stage


def test_save_and_load_give_an_equal_model(tmp_path):
    model, stage = stage_model(quadrature="midpoint", initial_times="random", horizon=1.5, seed=3)
    randomize(stage)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.fit(images(8), np.zeros((8, 4)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for got, want in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )
    for part in (model, loaded):  # the restored momentum goes on as well
        part.fit(images(8, seed=4), np.zeros((8, 4)), verbose=0)
    for got, want in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_weights_file_does_not_depend_on_whether_times_are_trained(tmp_path):
    model, stage = stage_model()
    randomize(stage)
    stage.times.assign([0.5, 2.5, 1.0])
    model.save_weights(tmp_path / "a.weights.h5")
    twin, twin_stage = stage_model(train_times=False)
    assert len(twin.trainable_variables) == len(model.trainable_variables) - 1
    twin.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(
        twin.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(twin_stage.depth_order()), [0, 2, 1])


def test_weights_of_another_stage_are_refused(tmp_path):
    model, _ = stage_model()
    model.save_weights(tmp_path / "a.weights.h5")
    inputs = keras.Input(SHAPE)
    other = keras.Model(inputs, MeanFieldStage(BasicBlock(SHAPE[-1]), 4)(inputs))
    with pytest.raises(ValueError, match=r"expects the shape \(4,\).*Received: \(3,\)"):
        other.load_weights(tmp_path / "a.weights.h5")


def test_clone_and_configuration_round_trip():
    model, stage = stage_model(quadrature="midpoint", horizon=2.0, initial_times=[0.1, 2.0, 1.0])
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        clone.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )
    for other in (
        stage,
        MeanFieldStage(BasicBlock(4), 2, "uniform_straight_through", reorder=False),
    ):
        again = MeanFieldStage.from_config(other.get_config())
        assert again.get_config() == other.get_config()
    assert not again.reorder and again.get_config()["quadrature"] == "uniform_straight_through"


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class ForwardRule(QuadratureRule):
    def __call__(self, times, horizon):
        return ops.concatenate([times[1:], ops.ones_like(times[:1]) * horizon]) - times


def test_a_rule_of_the_users_own_travels_with_the_model(tmp_path):
    model, stage = stage_model(quadrature=ForwardRule(), initial_times=[0.5, 1.0, 2.0])
    np.testing.assert_allclose(ops.convert_to_numpy(stage.step_sizes()), [0.5, 1.0, 1.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )


def test_copies_start_from_different_weights_also_under_an_explicit_seed():
    initializer = keras.initializers.HeNormal(seed=5)
    stage = MeanFieldStage(BasicBlock(4, kernel_initializer=initializer), 2)
    stage.build((None, *SHAPE))
    kernels = ops.convert_to_numpy(stage._stacked[0].value)
    assert not np.allclose(kernels[0], kernels[1])
    again = MeanFieldStage(BasicBlock(4, kernel_initializer=initializer), 2)
    again.build((None, *SHAPE))
    np.testing.assert_array_equal(kernels, ops.convert_to_numpy(again._stacked[0].value))
    assert kernels.std() == pytest.approx(np.sqrt(2 / 36), rel=0.2)  # He: fan-in of one block


def test_random_initial_times_are_uniform_unsorted_and_seeded():
    stage = MeanFieldStage(Scale(), 200, initial_times="random", horizon=3.0, seed=1)
    stage.build((None, 1))
    times = ops.convert_to_numpy(stage.times.value)
    assert times.min() >= 0 and times.max() <= 3 and (np.diff(times) < 0).any()
    assert times.mean() == pytest.approx(1.5, abs=0.25) and times.std() == pytest.approx(
        0.87, abs=0.15
    )
    assert (np.diff(times[ops.convert_to_numpy(stage.depth_order())]) >= 0).all()


def test_regularizers_and_constraints_act_on_each_particle():
    block = layers.Dense(
        3, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.1),
        kernel_constraint=keras.constraints.MaxNorm(0.5), use_bias=False,
    )  # fmt: skip
    stage = MeanFieldStage(block, 2)
    x = images(shape=(3,))
    stage(x)
    kernels = ops.convert_to_numpy(stage._stacked[0].value)
    # Keras's definition for one kernel: factor times the mean |cosine| of pairs of rows.
    expected = 0
    for kernel in kernels:
        rows = kernel / np.linalg.norm(kernel, axis=1, keepdims=True)
        expected += 0.1 * np.abs((rows @ rows.T)[np.triu_indices(3, 1)]).mean()
    assert float(ops.convert_to_numpy(sum(stage.losses))) == pytest.approx(expected, rel=1e-4)
    model = keras.Sequential([keras.Input((3,)), stage])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.train_on_batch(x, x * 3)
    norms = np.linalg.norm(ops.convert_to_numpy(stage._stacked[0].value), axis=1)
    assert norms.shape == (2, 3) and (norms <= 0.5 + 1e-5).all()


@pytest.mark.parametrize("unroll", UNROLL)
def test_losses_added_inside_a_block_reach_the_model(unroll):
    block = layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1), use_bias=False)
    stage = MeanFieldStage(block, 2, initial_times=[2.0, 1.0], unroll=unroll)
    x = images(shape=(3,))
    stage(x)
    k = ops.convert_to_numpy(stage._stacked[0].value)
    first = x @ k[1]
    second = (x + first) @ k[0]
    # An activity regularizer is divided by the batch size.
    expected = 0.1 * ((first**2).sum() + (second**2).sum()) / len(x)
    assert float(ops.convert_to_numpy(sum(stage.losses))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("unroll", UNROLL)
def test_dropout_in_a_block_draws_anew_for_every_particle_and_step(unroll):
    stage = MeanFieldStage(layers.Dropout(0.5, seed=3), 2, quadrature="uniform", unroll=unroll)
    x = np.ones((64, 32), "float32")
    first, second = (ops.convert_to_numpy(stage(x, training=True)) for _ in range(2))
    # A kept unit is doubled by Dropout, so x + f(x) = 3 x; dropped, x: 9 = both kept, 1 = none.
    assert set(np.unique(first)) == {1.0, 3.0, 9.0}
    assert (first == 3).mean() == pytest.approx(0.5, abs=0.05)
    assert (first != second).any()
    np.testing.assert_array_equal(ops.convert_to_numpy(stage(x, training=False)), 4)


@keras.saving.register_keras_serializable(package="tests")
class Restless(layers.Layer):
    """A block with everything that recomputation could get wrong: draws, statistics, losses."""

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
        x = self.dropout(ops.relu(self.bn(self.dense(x), training=training)), training=training)
        return x * ops.sigmoid(x)


@pytest.mark.parametrize(
    ("policy", "unroll", "remat", "times"),
    [
        ("float32", True, True, [1.7, 0.4]),
        ("mixed_bfloat16", UNROLL[-1], True, [1.7, 0.4]),
        # Segments of two blocks and one of what is left; as many states kept as computed again.
        ("float32", True, 2, [1.7, 0.4, 3.3, 2.6, 4.1]),
        ("float32", UNROLL[-1], 2, [1.7, 0.4, 3.3, 2.6, 4.1]),
        ("mixed_bfloat16", UNROLL[-1], "sqrt", [1.7, 0.4]),
    ],
)
def test_rematerialisation_changes_no_result(monkeypatch, policy, unroll, remat, times):
    calls, plain = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda f: calls.append(f) or plain(f))

    def trained(remat):
        """Loss and weights of a step, which changes them by the gradients."""
        keras.utils.set_random_seed(2)
        options = {"initial_times": times, "unroll": unroll, "remat": remat, "dtype": policy}
        block = Restless(seed=7, dtype=policy)
        stage = MeanFieldStage(block, len(times), activation="relu", **options)
        model = keras.Sequential([keras.Input((4,)), stage])
        randomize(stage)
        before = stage.get_weights()
        model.compile(keras.optimizers.SGD(0.5), "mse")
        x = images(8, shape=(4,))
        loss = model.train_on_batch(x, 2 * x)
        return loss, before, stage.get_weights(), names(stage)

    loss, before, expected, named = trained(False)
    assert not calls
    found = trained(remat)
    assert calls
    # A compiled step may keep a sum in float32 before it rounds it to bfloat16.
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-6 if policy == "float32" else 1e-2)
    np.testing.assert_allclose(found[0], loss, **tolerance)
    for name, old, new, value in zip(named, before, expected, found[2], strict=True):
        assert np.abs(new - old).max() > 1e-3, name
        np.testing.assert_allclose(value, new, err_msg=name, **tolerance)


@pytest.mark.parametrize("unroll", UNROLL)
def test_segments_have_all_states(unroll):
    times = [1.7, 0.4, 3.3, 2.6, 4.1]
    x = images(2)
    expected = make_stage(n=5, initial_times=times).states(x)
    found = make_stage(n=5, initial_times=times, remat=2, unroll=unroll).states(x)
    assert len(found) == 6
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(got), ops.convert_to_numpy(want), rtol=1e-5, atol=1e-5
        )


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch says what it keeps")
def test_rematerialisation_keeps_the_input_of_each_block():
    def kept(remat):
        stage = make_stage(n=4, remat=remat)
        x, sizes = ops.convert_to_tensor(images(64)), {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = ops.sum(stage(x, training=True))
        found = sum(sizes.values()) / (64 * 4 * np.prod(SHAPE))
        del loss
        return found

    # Four inputs and what the weights take, in units of an activation; else four of each block.
    assert 4 <= kept(True) < 4.5 and kept(False) > 16
    assert 2 <= kept(2) < 2.5 and 2 <= kept("sqrt") < 2.5  # every second input
    assert 2 <= kept(3) < 2.5  # the first and the fourth
    assert 1 <= kept(9) < 1.5  # the first alone


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch says what lives")
def test_segments_are_computed_again_one_at_a_time(monkeypatch):
    """With `k` the backward pass holds `n / k` states, `k` of a segment and one block's inside."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.live_memory import peak_bytes

    def peak(remat):
        stage = make_stage(n=9, remat=remat)
        x = ops.convert_to_tensor(images(64))

        def step():
            ops.sum(stage(x, training=True)).backward()

        return peak_bytes(step) / (64 * 4 * np.prod(SHAPE))

    found = {remat: peak(remat) for remat in (False, True, "sqrt")}
    # Four activations of a block are kept, and some more live while one is computed.
    assert found[False] > 9 * 4
    assert 9 < found[True] < 9 + 10
    assert found["sqrt"] < found[True] - 3  # three kept and three of a segment in place of nine


@pytest.mark.once
@pytest.mark.parametrize("remat", [0, -1, 2.0, "root", None])
def test_what_cannot_be_rematerialised(remat):
    message = r'`remat` must be True, False, an integer of at least 1 or "sqrt"\. Received: remat='
    with pytest.raises(ValueError, match=message):
        MeanFieldStage(layers.Dense(4), 2, remat=remat)


@pytest.mark.once
@pytest.mark.parametrize("remat", [False, True, 3, "sqrt"])
def test_a_configuration_says_what_is_rematerialised(remat):
    stage = MeanFieldStage(layers.Dense(4), 2, remat=remat)
    again = MeanFieldStage.from_config(stage.get_config())
    assert again.remat == remat and type(again.remat) is type(remat)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA is told what to keep apart")
def test_rematerialisation_holds_each_block_apart():
    import jax

    for remat, unroll, barriers in (
        (True, True, 2),
        (True, False, 1),
        (False, True, 0),
        (2, True, 3),  # of the segment, and of each block in it
        (2, False, 3),
    ):
        stage = make_stage(n=2, remat=remat, unroll=unroll)

        def loss(trainable, frozen, x, stage=stage):
            outputs, frozen = stage.stateless_call(trainable, frozen, x, training=True)
            return squares(outputs), frozen

        values = [
            [v.value for v in part]
            for part in (stage.trainable_variables, stage.non_trainable_variables)
        ]
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        text = step.lower(*values, images()).as_text()
        assert text.count("optimization_barrier") == barriers


@pytest.mark.parametrize("reorder", [True, False])
def test_blocks_in_depth_order_and_back(reorder):
    stage = make_stage(initial_times=[2.5, 0.5, 1.5], reorder=reorder)
    blocks = stage.blocks()
    order = [1, 2, 0] if reorder else [0, 1, 2]
    times = [2.5, 0.5, 1.5]
    assert [block.particle for block in blocks] == order
    assert [block.time for block in blocks] == [times[i] for i in order]
    assert [block.step for block in blocks] == [0.5, 1.0, 1.0]
    named = numpy_weights(stage)
    for block in blocks:
        for variable, array in zip(stage.template().variables, block.weights, strict=True):
            name = "_".join(variable.path.split("/")[-2:])
            np.testing.assert_array_equal(array, named[name][block.particle])
    before, outputs = stage.get_weights(), ops.convert_to_numpy(stage(images()))
    stage.set_blocks([block.weights for block in blocks[::-1]])
    for one, two in zip(stage.blocks(), blocks[::-1], strict=True):
        for got, want in zip(one.weights, two.weights, strict=True):
            np.testing.assert_array_equal(got, want)
    stage.set_blocks([block.weights for block in blocks])  # copies, which no assignment changes
    for got, want in zip(stage.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    # With steps: the same blocks do as they did, whatever the times are by now.
    stage.times.assign([0.2, 1.0, 3.0])
    stage.set_blocks([block.weights for block in blocks], [block.step for block in blocks])
    np.testing.assert_allclose(ops.convert_to_numpy(stage(images())), outputs, atol=1e-4, rtol=1e-4)


def test_blocks_that_do_not_fit_change_nothing():
    stage = make_stage()
    blocks = [block.weights for block in stage.blocks()]
    before = stage.get_weights()
    for weights, steps, message in (
        (blocks[:2], None, r"arrays of 3 blocks.*Received: shapes"),
        ([*blocks[:2], blocks[2][:-1]], [1, 1, 1], r"arrays of 3 blocks.*Received: shapes"),
        ([*blocks[:2], [array[..., :1] for array in blocks[2]]], None, "Received: shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            stage.set_blocks(weights, steps)
    stage.times.assign([1.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"positive step.*Received: step sizes \[1\.0, 0\.0"):
        stage.set_blocks(blocks, [1, 1, 1])
    for got, want in zip(stage.get_weights()[1:], before[1:], strict=True):
        np.testing.assert_array_equal(got, want)


def computing(stage):
    """The layers of a block that compute: a `Sequential` and its input do not."""
    parts = stage.template()._flatten_layers()
    return [part for part in parts if not isinstance(part, (keras.Model, layers.InputLayer))]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_a_block_without_a_policy_gets_that_of_the_stage(policy):
    default = keras.config.dtype_policy()
    inside = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(4)])
    for block, shape in ((BasicBlock(4), SHAPE), (inside, (4,))):
        stage = MeanFieldStage(block, 2, dtype=policy)
        outputs = stage(images(shape=shape), training=True)
        assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
        assert {part.dtype_policy.name for part in computing(stage)} == {policy}
        # A saved stage keeps it, whatever the global policy is where it is loaded.
        keras.config.set_dtype_policy(policy)
        try:
            again = MeanFieldStage.from_config(stage.get_config())
            again.build((None, *shape))
        finally:
            keras.config.set_dtype_policy(default)
        assert {part.dtype_policy.name for part in computing(again)} == {policy}
        assert again.get_config() == stage.get_config()


def test_a_block_with_a_policy_of_its_own_keeps_it():
    stage = MeanFieldStage(BasicBlock(4, dtype="mixed_bfloat16"), 2)
    outputs = stage(images(), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert stage.template().conv1.compute_dtype == "bfloat16"
    # So does one that was loaded where its policy is the global one.
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        again = MeanFieldStage.from_config(stage.get_config())
    finally:
        keras.config.set_dtype_policy("float32")
    again.build((None, *SHAPE))
    assert again.template().conv1.compute_dtype == "bfloat16" and again.compute_dtype == "float32"


def test_a_frozen_stage_keeps_its_statistics_and_thaws():
    stage = make_stage()
    before = stage.get_weights()
    stage.trainable = False
    assert stage.trainable_variables == []
    inference = ops.convert_to_numpy(stage(images(), training=False))
    np.testing.assert_allclose(ops.convert_to_numpy(stage(images(), training=True)), inference)
    for got, want in zip(stage.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    stage.trainable = True
    stage(images(), training=True)
    assert any((a != b).any() for a, b in zip(stage.get_weights(), before, strict=True))
    assert len(stage.trainable_variables) == 7


def test_inference_changes_no_weight():
    stage = make_stage()
    before = stage.get_weights()
    stage(images(), training=False)
    for got, want in zip(stage.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="what TensorFlow refuses")
def test_scan_is_refused_where_the_backend_cannot_train_through_it():
    with pytest.raises(ValueError, match=r"jax or torch\. Received: unroll=False on the tens"):
        MeanFieldStage(Scale(), 2, unroll=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": "conv"}, "`block` must be a keras.layers.Layer. Received: block='conv'"),
        ({"num_particles": 0}, "at least 1. Received: num_particles=0"),
        ({"horizon": -1.0}, "positive number. Received: horizon=-1.0"),
        ({"initial_times": [0.0, 3.0]}, r"2 numbers in \[0, 2.0\]. Received: initial_times="),
        ({"initial_times": "sorted"}, '"grid", "random" or'),
        ({"quadrature": "simpson"}, "Received: quadrature='simpson'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeanFieldStage(**{"block": Scale(), "num_particles": 2, **arguments})


def test_a_block_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"must preserve the shape.*Received: block='wide'"):
        MeanFieldStage(layers.Dense(5, name="wide"), 2).build((None, 4))


@pytest.mark.once
def test_stages_come_from_input_to_output_in_nested_models_too():
    def stage(name):
        return MeanFieldStage(layers.Dense(4), 2, name=name)

    shared = stage("c")
    inner = keras.Sequential([keras.Input((4,)), stage("a"), stage("b")])
    last = keras.Sequential([keras.Input((4,)), shared, keras.Sequential([stage("d"), shared])])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(4), last, stage("e")])
    assert [found.name for found in stages(model)] == ["a", "b", "c", "d", "e"]
    assert stages(shared) == [shared]
