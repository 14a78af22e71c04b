"""Keras's own checks: of layers on every layer of ours, of optimizers on `MeanFieldSGD`."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.src import testing

from mf_zoo.data import Augmentation
from mf_zoo.layers import (
    BasicBlock,
    BatchNormalization,
    BottleneckBlock,
    Conv2D,
    GroupedConv2D,
    MeanFieldStage,
    PreActBasicBlock,
    PreActBottleneckBlock,
    ResNeXtBlock,
)
from mf_zoo.optimizers import MeanFieldSGD

SHAPE = (2, 4, 4, 4)
ON_THE_CPU = keras.backend.backend() == "tensorflow"  # whose convolutions want channels last


class Conventions(testing.TestCase):
    def tearDown(self):
        keras.config.enable_traceback_filtering()  # which `setUp` turns off
        super().tearDown()

    def check(self, cls, arguments, shape=SHAPE, output=None, trained=None, fixed=None):
        self.run_layer_test(
            cls,
            arguments,
            input_shape=shape,
            expected_output_shape=output or shape,
            expected_num_trainable_weights=trained,
            expected_num_non_trainable_weights=fixed,
            expected_num_seed_generators=0,
            expected_num_losses=0,
            supports_masking=False,
        )

    def test_basic_block(self):
        self.check(BasicBlock, {"filters": 4}, trained=6, fixed=4)

    def test_preact_basic_block_with_stride(self):
        arguments = {"filters": 6, "strides": 2, "first_activation": False}
        self.check(PreActBasicBlock, arguments, output=(2, 2, 2, 6), trained=4, fixed=2)

    def test_bottleneck_block(self):
        self.check(BottleneckBlock, {"filters": 1}, trained=9, fixed=6)

    def test_preact_bottleneck_block(self):
        self.check(PreActBottleneckBlock, {"filters": 1}, trained=9, fixed=6)

    def test_resnext_block(self):
        arguments = {"filters": 16, "cardinality": 2, "width": 4}
        self.check(ResNeXtBlock, arguments, output=(2, 4, 4, 64), trained=9, fixed=6)

    def test_convolution(self):
        self.run_layer_test(
            Conv2D,
            {"filters": 6, "kernel_size": 3, "strides": 2},
            input_shape=SHAPE,
            expected_output_shape=(2, 1, 1, 6),
            expected_num_trainable_weights=2,
            expected_num_non_trainable_weights=0,
        )

    def test_grouped_convolution(self):
        arguments = {"filters": 6, "kernel_size": 3, "groups": 2}
        self.run_layer_test(
            GroupedConv2D,
            arguments,
            input_shape=SHAPE,
            expected_output_shape=(2, 2, 2, 6),
            expected_num_trainable_weights=2,
            expected_num_non_trainable_weights=0,
        )

    def test_batch_normalization(self):
        self.run_layer_test(
            BatchNormalization,
            {"momentum": 0.9, "epsilon": 1e-3},
            input_shape=SHAPE,
            expected_output_shape=SHAPE,
            expected_num_trainable_weights=2,
            expected_num_non_trainable_weights=2,
            supports_masking=True,  # as Keras's own
        )

    def test_stage(self):
        arguments = {"block": BasicBlock(4), "num_particles": 3, "activation": "relu"}
        self.check(MeanFieldStage, arguments, trained=7, fixed=4)

    def test_stage_of_a_frozen_block(self):
        arguments = {
            "block": keras.layers.Dense(4, trainable=False),
            "num_particles": 2,
            "quadrature": "midpoint",
            "initial_times": [1.5, 0.25],
        }
        self.check(MeanFieldStage, arguments, shape=(2, 4), trained=1, fixed=2)

    def test_augmentation(self):
        self.run_layer_test(
            Augmentation,
            {"padding": 1, "seed": 1},
            input_shape=SHAPE,
            expected_output_shape=SHAPE,
            run_training_check=False,  # of images, whose values it gives back
            run_mixed_precision_check=False,
        )

    def test_channels_first(self):
        if ON_THE_CPU:
            self.skipTest("TensorFlow has no such convolutions on the CPU")
        block = BottleneckBlock(1, data_format="channels_first")
        arguments = {"block": block, "num_particles": 2}
        self.check(MeanFieldStage, arguments, shape=(2, 4, 5, 5), trained=10, fixed=6)

    # As in keras/src/optimizers/sgd_test.py; matrices, for vectors do not decay here.

    def test_config(self):
        optimizer = MeanFieldSGD(
            learning_rate=0.5,
            momentum=0.06,
            nesterov=True,
            weight_decay=0.004,
            noise_temperature=0.1,
            seed=3,
        )
        self.run_class_serialization_test(optimizer)

    def test_single_step(self):
        optimizer = MeanFieldSGD(learning_rate=0.5)
        self.assertEqual(len(optimizer.variables), 2)
        grads = ops.array([1.0, 6.0, 7.0, 2.0])
        variable = keras.Variable([1.0, 2.0, 3.0, 4.0])
        optimizer.build([variable])
        optimizer.apply_gradients(zip([grads], [variable], strict=True))
        self.assertAllClose(variable, [0.5, -1.0, -0.5, 3.0], rtol=1e-4, atol=1e-4)
        self.assertEqual(len(optimizer.variables), 2)
        self.assertEqual(optimizer.variables[0], 1)
        self.assertEqual(optimizer.variables[1], 0.5)

    def test_invalid_momentum(self):
        for momentum in (-1.0, 2.0):
            with self.assertRaisesRegex(ValueError, "`momentum` must be a float between"):
                MeanFieldSGD(momentum=momentum)

    def test_weight_decay(self):
        for coupled in (False, True):
            grads = ops.zeros((1, 1))
            decayed, excluded, listed = (
                keras.Variable([[2.0]], name=name) for name in ("decayed", "exclude", "listed")
            )
            arguments = {"learning_rate": 1.0, "weight_decay": 0.004}
            optimizer = MeanFieldSGD(**arguments, coupled_weight_decay=coupled)
            optimizer.exclude_from_weight_decay(var_names=["exclude"], var_list=[listed])
            variables = [decayed, excluded, listed]
            optimizer.apply_gradients(zip([grads] * 3, variables, strict=True))
            self.assertAllClose(decayed, [[1.992]])
            self.assertAllClose(excluded, [[2.0]])
            self.assertAllClose(listed, [[2.0]])
            # With nothing left to decay: PyTorch refuses an empty list.
            for exclusion in ({"var_names": ["exclude"]}, {"var_list": [excluded]}):
                optimizer = MeanFieldSGD(**arguments, coupled_weight_decay=coupled)
                optimizer.exclude_from_weight_decay(**exclusion)
                optimizer.apply_gradients(zip([grads], [excluded], strict=True))
                self.assertAllClose(excluded, [[2.0]])

    def test_correctness_with_golden(self):
        optimizer = MeanFieldSGD(nesterov=True)
        x = keras.Variable(np.ones([10]), dtype="float32")
        grads = ops.arange(0.1, 1.1, 0.1)
        optimizer.apply_gradients(zip([ops.full((10,), 0.01)], [x], strict=True))
        for step in range(5):
            golden = 0.9999 - step * 0.01 * np.arange(0.1, 1.05, 0.1)
            self.assertAllClose(x, golden, rtol=5e-4, atol=5e-4)
            optimizer.apply_gradients(zip([grads], [x], strict=True))

    def test_clipping(self):
        gradient = [np.array([100.0, 100.0])]
        clipped = MeanFieldSGD(clipnorm=1)._clip_gradients(gradient)
        self.assertAllClose(clipped[0], [2**0.5 / 2, 2**0.5 / 2])
        clipped = MeanFieldSGD(clipvalue=1)._clip_gradients(gradient)
        self.assertAllClose(clipped[0], [1.0, 1.0])


# --- What every Keras optimizer can be given, over a stage ------------------------------------

OPTIMIZERS = {
    "sgd": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "MeanFieldSGD": MeanFieldSGD,
}
ARGUMENTS = {
    "none": {},
    "scaling": {"loss_scale_factor": 8.0},
    "accumulation": {"gradient_accumulation_steps": 2},
    "norm": {
        "clipnorm": 0.1,
        "weight_decay": 0.1,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
    },
    "global norm": {"global_clipnorm": 0.1},
    "value": {"clipvalue": 0.01, "loss_scale_factor": 8.0, "gradient_accumulation_steps": 2},
}


def trained(optimizer, steps=4, eagerly=True):
    """Weights before and after steps on one batch, compiled for no more than is to be shown."""
    keras.utils.set_random_seed(0)
    stage = MeanFieldStage(keras.layers.Dense(3, activation="tanh"), 3, initial_times=[2.0, 0.5, 1])
    model = keras.Sequential([keras.Input((3,)), stage, keras.layers.Dense(1)])
    model.compile(optimizer, "mse", run_eagerly=eagerly, jit_compile=False)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    found = [model.get_weights()]
    for _ in range(steps):
        model.train_on_batch(x, x[:, :1] ** 2)
        found.append(model.get_weights())
    return found


def assert_close(received, expected):
    for new, want in zip(received, expected, strict=True):
        np.testing.assert_allclose(new, want, rtol=1e-4, atol=1e-5)


# Of Keras's own, whose code is the same on each backend, one backend is enough.
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.once_on_torch) for name in ("sgd", "adam", "adamw")),
        "MeanFieldSGD",
    ],
)
def test_everything_that_an_optimizer_can_be_given(name):
    found = {}
    for case, arguments in ARGUMENTS.items():
        steps = trained(OPTIMIZERS[name](0.01, **arguments))
        for old, new in zip(steps[0], steps[-1], strict=True):
            assert np.isfinite(new).all() and (old != new).any(), case
        assert steps[-1][0].min() >= 0 and steps[-1][0].max() <= 3  # times, between the walls
        found[case] = steps
    assert_close(found["scaling"][4], found["none"][4])
    # Two times the same batch, accumulated, are one step.
    assert_close(found["accumulation"][4], found["none"][2])
    for case in ("norm", "global norm", "value"):
        assert any((a != b).any() for a, b in zip(found[case][4], found["none"][4], strict=True))
    scaler = keras.optimizers.LossScaleOptimizer(OPTIMIZERS[name](0.01), initial_scale=8.0)
    assert_close(trained(scaler)[4], found["none"][4])


def test_scaled_gradients_in_a_compiled_step():
    compiled = trained(keras.optimizers.Adam(0.01, loss_scale_factor=8.0), steps=2, eagerly=False)
    assert_close(compiled[2], trained(keras.optimizers.Adam(0.01), steps=2)[2])


@pytest.mark.parametrize("name", [*OPTIMIZERS, "mf_zoo>MeanFieldSGD"])
def test_optimizers_by_name(name):
    cls = OPTIMIZERS[name.removeprefix("mf_zoo>")]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(name, "mse")
    assert isinstance(model.optimizer, cls)
    assert model.optimizer.get_config() == cls(name=model.optimizer.name).get_config()
