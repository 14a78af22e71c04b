"""Frozen layers stay frozen: in configurations, clones and files, and in the training after."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import small

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

SHAPE = (6, 6, 4)
# What makes each layer of ours, of 4 channels.
LAYERS = {
    "BasicBlock": lambda **kwargs: BasicBlock(4, **kwargs),
    "PreActBasicBlock": lambda **kwargs: PreActBasicBlock(4, **kwargs),
    "BottleneckBlock": lambda **kwargs: BottleneckBlock(1, **kwargs),
    "PreActBottleneckBlock": lambda **kwargs: PreActBottleneckBlock(1, **kwargs),
    "ResNeXtBlock": lambda **kwargs: ResNeXtBlock(16, cardinality=2, width=4, **kwargs),
    "Conv2D": lambda **kwargs: Conv2D(4, 3, **kwargs),
    "GroupedConv2D": lambda **kwargs: GroupedConv2D(4, 3, groups=2, **kwargs),
    "BatchNormalization": lambda **kwargs: BatchNormalization(**kwargs),
    "MeanFieldStage": lambda **kwargs: MeanFieldStage(BasicBlock(4), 2, **kwargs),
}


def flags(model):
    """Every flag that counts: of layers, of what particles share, and of variables."""
    found = [layer.trainable for layer in model._flatten_layers()]
    for layer in model._flatten_layers():
        if isinstance(layer, MeanFieldStage) and layer.built:
            found += [part.trainable for part in layer.template()._flatten_layers()]
    return found, [variable.trainable for variable in model.variables]


def again(layer):
    return type(layer).from_config(layer.get_config())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("when", ["made", "built"])
def test_a_frozen_layer_is_frozen_in_all_its_parts_and_so_is_its_copy(kind, when):
    layer = LAYERS[kind](trainable=when != "made")
    if when == "built":
        layer.build((None, *SHAPE))
    if when != "made":
        layer.trainable = False
    for one in (layer, again(layer)):
        assert not any(part.trainable for part in one._flatten_layers())
        if not one.built:
            one.build((None, *SHAPE))
        assert not any(map(any, flags(one)))
        # Thawed, all of it is trained, as is any layer of Keras.
        one.trainable = True
        assert all(flags(one)[0])
        fresh = LAYERS[kind]()
        fresh.build((None, *SHAPE))
        assert flags(one) == flags(fresh)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "Block" in kind])
def test_a_frozen_part_of_a_block_is_frozen_in_its_copies_and_in_a_stage(kind):
    block = LAYERS[kind]()
    assert "frozen_parts" not in block.get_config()
    block.bn2.trainable = False
    copy = again(block)
    assert [part.name for part in copy.chain() if not part.trainable] == ["bn2"]
    if kind == "ResNeXtBlock":
        return  # of another shape than its input
    stage = MeanFieldStage(block, 2)
    for one in (stage, again(stage)):
        one.build((None, *SHAPE))
        frozen = {weight.name for weight in one.weights if not weight.trainable}
        assert {name for name in frozen if "moving" not in name} == {"bn2_gamma", "bn2_beta"}
        assert not one.template().bn2.trainable


def test_a_thawed_part_of_a_frozen_block():
    block = BasicBlock(4, trainable=False)
    block.conv1.trainable = True
    assert [part.name for part in again(block).chain() if part.trainable] == ["conv1"]


@keras.saving.register_keras_serializable(package="mf_zoo_tests")
class Silent(layers.Layer):
    """A block whose configuration says nothing of its parts."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4, name="inner")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.inner.build(shape)
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.norm(self.inner(x), training=training)


def test_parts_of_any_block_are_frozen_in_all_particles():
    block = Silent()
    block.inner.trainable = False
    stage = MeanFieldStage(block, 2)
    assert again(stage).get_config() == stage.get_config()
    for one in (stage, again(stage)):
        one.build((None, 4))
        assert [weight.name for weight in one.trainable_weights] == ["times", *NORM]
        assert not one.template().inner.trainable
    # In a stage that is built the template's flags are those of all particles.
    stage.template().norm.trainable = False
    assert [weight.name for weight in stage.trainable_weights] == ["times"]
    before = stage.get_weights()
    stage(np.ones((3, 4), "float32"), training=True)
    for old, new in zip(before, stage.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    copy = again(stage)
    copy.build((None, 4))
    assert flags(copy) == flags(stage)
    assert [w.name for w in copy.weights] == [w.name for w in stage.weights]
    stage.trainable = False  # for TensorFlow's layers ignore a value that they have already
    stage.trainable = True
    assert len(stage.trainable_weights) == 5 and stage.template().inner.trainable


NORM = ["norm_gamma", "norm_beta"]


def test_a_configuration_from_before_has_no_frozen_parts():
    for layer, key in (
        (BasicBlock(4, trainable=False), "frozen_parts"),
        (MeanFieldStage(BasicBlock(4), 2, trainable=False), "trainable_parts"),
    ):
        layer.build((None, *SHAPE))
        config = layer.get_config()
        assert key not in config
        copy = type(layer).from_config(config)
        copy.build((None, *SHAPE))
        assert copy.trainable_variables == []


def partly_frozen():
    """A model with frozen layers and parts of every kind, and something to train."""
    x = inputs = keras.Input(SHAPE)
    x = layers.Conv2D(4, 1, trainable=False, name="stem")(x)
    x = BasicBlock(4, trainable=False, name="frozen_block")(x)
    half = BasicBlock(4, name="half_block")
    half.bn1.trainable = False
    x = half(x)
    given = BasicBlock(4)
    given.conv1.trainable = False
    x = MeanFieldStage(given, 2, name="given")(x)
    x = MeanFieldStage(BasicBlock(4), 2, trainable=False, name="frozen_stage")(x)
    x = MeanFieldStage(BasicBlock(4, trainable=False), 2, name="times_only")(x)
    late = MeanFieldStage(BasicBlock(4), 2, name="late")
    x = late(x)
    late.template().bn2.trainable = False
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    model.get_layer("half_block").bn2.trainable = False
    return model


def frozen_weights(model):
    """What a step of training may not change."""
    parts = [model.get_layer(name) for name in ("stem", "frozen_block", "frozen_stage")]
    parts += [model.get_layer("half_block").bn1, model.get_layer("half_block").bn2]
    found = [variable for part in parts for variable in part.variables]
    stages = {name: model.get_layer(name) for name in ("given", "times_only", "late")}
    found += [w for w in stages["given"].weights if w.name == "conv1_kernel"]
    found += [w for w in stages["times_only"].weights if w.name != "times"]
    found += [w for w in stages["late"].weights if w.name.startswith("bn2")]
    return [ops.convert_to_numpy(variable.value) for variable in found]


def fit(model):
    model.run_eagerly = True  # compilation takes longest, and shows nothing here
    x = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype("float32")
    model.fit(x, np.eye(2, dtype="float32")[[0, 1] * 4], shuffle=False, verbose=0)


def test_clones_and_files_train_what_the_model_trains(tmp_path):
    keras.utils.set_random_seed(0)
    model = partly_frozen()
    model.compile(MeanFieldSGD(0.1, momentum=0.9, weight_decay=1e-3), "mse")
    expected = flags(model)
    kept = frozen_weights(model)
    assert len(kept) > 30
    fit(model)
    for old, new in zip(kept, frozen_weights(model), strict=True):
        np.testing.assert_array_equal(old, new)

    clone = keras.models.clone_model(model)
    assert flags(clone) == expected
    clone.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert flags(loaded) == expected
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))
    clone.compile(keras.optimizers.SGD(0.1), "mse")
    for one in (model, loaded, clone):
        trained = one.get_layer("head").kernel
        before = ops.convert_to_numpy(trained.value)
        fit(one)
        assert (ops.convert_to_numpy(trained.value) != before).any()
        for old, new in zip(kept, frozen_weights(one), strict=True):
            np.testing.assert_array_equal(old, new)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["basic", "pre-activation bottleneck", "ResNeXt"])
def test_a_clone_of_a_frozen_network_has_nothing_to_train(kind):
    model = small(kind)
    model.trainable = False
    assert keras.models.clone_model(model).trainable_variables == []
