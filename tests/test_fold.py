"""The network as plain Keras layers: the same outputs, nothing of mf_zoo, nothing lost."""

import keras
import numpy as np
import pytest
import tiny_zoo
from keras import layers
from networks import SMALL, close, outputs, randomized, small

from mf_zoo import applications, convert, data, deploy
from mf_zoo.layers import BasicBlock, MeanFieldStage, ResNeXtBlock, stages


def images(count=4):
    return data.sample("cifar10")[0][:count]


def kinds(model):
    """How many layers of each class a model and the models in it have."""
    names = [type(layer).__name__ for layer in model._flatten_layers(include_self=False)]
    return {name: names.count(name) for name in names}


def is_keras_alone(model):
    return all(type(layer).__module__.split(".")[0] == "keras" for layer in model._flatten_layers())


@pytest.mark.parametrize(
    ("kind", "split_groups"),
    [
        *((kind, False) for kind in SMALL if kind != "identity shortcuts"),
        ("ResNeXt", True),
        pytest.param("identity shortcuts", False, marks=pytest.mark.once_on_torch),
    ],
)
def test_same_outputs_in_plain_layers(kind, split_groups):
    model = randomized(small(kind, quadrature="midpoint", horizon=1.5))
    before = [np.array(weight) for weight in model.get_weights()]
    plain = deploy.fold(model, split_groups)
    assert is_keras_alone(plain) and not stages(plain)
    close(outputs(plain, images()), outputs(model, images()))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # A BatchNormalization that follows no convolution stays: the first of a block, the last one.
    blocks = sum(SMALL[kind].blocks)
    after_stem = SMALL[kind].has_entry[0]
    expected = blocks + 1 - after_stem if SMALL[kind].preactivation else 0
    assert kinds(plain).get("BatchNormalization", 0) == expected
    grouped = [layer for layer in plain.layers if getattr(layer, "groups", 1) > 1]
    assert len(grouped) == (blocks if kind == "ResNeXt" and not split_groups else 0)


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments",
    [{"reorder": False}, {"quadrature": "uniform_straight_through"}, {"integrator": "heun"}],
    ids=str,
)
def test_folding_and_twins_of_the_ablations(arguments):
    """With steps that are not 1 and times that are not in the order of storage."""
    model = randomized(small("basic", horizon=1.5, **arguments))
    stages(model)[0].times.assign([1.0, 0.25])
    expected = outputs(model, images())
    close(outputs(deploy.fold(model), images()), expected)
    plain = convert.to_plain(model)
    assert all(stage.reorder for stage in stages(plain))
    close(outputs(plain, images()), expected)
    twin = convert.to_mean_field(model, horizon=2.0)
    assert all(
        stage.reorder is model_stage.reorder
        for stage, model_stage in zip(stages(twin), stages(model), strict=True)
    )
    close(outputs(twin, images()), expected)


@pytest.mark.parametrize(
    ("kind", "integrator"), [("pre-activation", "midpoint"), ("ResNeXt", "heun")]
)
def test_a_block_that_is_evaluated_twice_has_its_layers_once(kind, integrator, tmp_path):
    model = randomized(small(kind, integrator=integrator))
    plain = deploy.fold(model, split_groups=True)
    expected = outputs(model, images())
    close(outputs(plain, images()), expected)
    euler = small(kind)
    euler.set_weights(model.get_weights())
    assert not np.allclose(outputs(euler, images()), expected, rtol=1e-2)
    for layer in ("Conv2D", "BatchNormalization"):
        assert kinds(plain).get(layer) == kinds(deploy.fold(euler, split_groups=True)).get(layer)
    plain.save(tmp_path / "plain.keras")
    close(outputs(keras.saving.load_model(tmp_path / "plain.keras"), images()), expected)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow's CPU convolves channels last only"
)
@pytest.mark.parametrize("split_groups", [False, True])
def test_channels_first(split_groups):
    keras.config.set_image_data_format("channels_first")
    try:
        model = randomized(small("ResNeXt"))
        plain = deploy.fold(model, split_groups)
        close(outputs(plain, images()), outputs(model, images()))
    finally:
        keras.config.set_image_data_format("channels_last")


def test_the_numbers_of_a_folded_stage():
    # One filter of 1 x 1 of 2 channels, worked out by hand.
    stage = MeanFieldStage(ResNeXtBlock(16, 4, 4, name="block"), 2, horizon=3.0, name="stage")
    model = randomized(keras.Sequential([keras.Input((4, 4, 64)), stage]))
    stage.times.assign([3.0, 2.0])  # particle 1 first, with a step of 2, then 0, with a step of 1
    values = {weight.name: np.array(weight) for weight in stage.weights}
    plain = deploy.fold(model, split_groups=False)
    names = [layer.name for layer in plain.layers if isinstance(layer, layers.Conv2D)]
    assert names == [f"stage_{i}_conv{j}" for i in (1, 0) for j in (1, 2, 3)]
    for particle, step in ((1, 2.0), (0, 1.0)):
        scale = step * values["bn3_gamma"][particle]
        scale = scale / np.sqrt(values["bn3_moving_variance"][particle] + 1.001e-5)
        shift = step * values["bn3_beta"][particle] - scale * values["bn3_moving_mean"][particle]
        kernel, bias = plain.get_layer(f"stage_{particle}_conv3").get_weights()
        np.testing.assert_allclose(kernel, values["conv3_kernel"][particle] * scale, rtol=1e-5)
        np.testing.assert_allclose(bias, shift, rtol=1e-5, atol=1e-6)
        first = plain.get_layer(f"stage_{particle}_conv1")
        assert first.activation is keras.activations.relu


def test_shipped_weights_with_a_head_of_ones_own():
    body = applications.MFResNet20(weights="cifar10", include_top=False, pooling="avg")
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.RandomFlip(),
            body,
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax", name="mine"),
        ]
    )
    plain = deploy.fold(model)
    assert is_keras_alone(plain)
    assert [layer.name for layer in plain.layers[1:]] == [layer.name for layer in model.layers]
    close(outputs(plain, images()), outputs(model, images()))


def test_half_precision_becomes_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small("basic")
    finally:
        keras.config.set_dtype_policy(before)
    reference = small("basic")
    reference.set_weights(model.get_weights())
    plain = deploy.fold(model)
    assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
    close(outputs(plain, images()), outputs(reference, images()))


def _branches(conv, norm, where):
    """Networks in which a BatchNormalization must not go into the convolution before it."""
    inputs = keras.Input((8, 8, 3))
    x = conv(inputs)
    if where == "the convolution is used twice":
        x = layers.Add()([x, norm(x)])
    elif where == "the convolution is called twice":
        x = layers.Add()([norm(x), conv(layers.ReLU()(inputs))])
    elif where == "the normalization is called twice":
        x = layers.Concatenate()([norm(x), norm(layers.Conv2D(4, 3)(inputs))])
    elif where == "the convolution is an output":
        return keras.Model(inputs, [x, norm(x)])
    elif where == "another axis":
        x = layers.BatchNormalization(axis=1)(x)
    elif where == "an activation in between":
        x = norm(layers.Activation("tanh")(x))
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    "where",
    [
        "the convolution is used twice",
        "the convolution is called twice",
        "the normalization is called twice",
        "the convolution is an output",
        "another axis",
        "an activation in between",
    ],
)
def test_what_must_not_be_folded(where):
    model = randomized(_branches(layers.Conv2D(4, 3), layers.BatchNormalization(), where))
    plain = deploy.fold(model)
    assert kinds(plain)["BatchNormalization"] == 1
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    received, expected = plain(x, training=False), model(x, training=False)
    for got, want in zip(keras.tree.flatten(received), keras.tree.flatten(expected), strict=True):
        close(*map(keras.ops.convert_to_numpy, (got, want)), 1e-5)


@pytest.mark.once
@pytest.mark.parametrize("activation", ["tanh", None, "relu"])
def test_activations_of_stages_and_layers(activation):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.DepthwiseConv2D(3),  # one that is not folded
            layers.BatchNormalization(scale=False, center=False),
            layers.Conv2D(4, 3, activation=activation),
            layers.BatchNormalization(scale=False),
            layers.ReLU(max_value=0.5),
            MeanFieldStage(BasicBlock(4), 2, activation=activation),
        ]
    )
    model = randomized(model)
    plain = deploy.fold(model)
    # A convolution that has an activation keeps what follows it.
    assert kinds(plain)["BatchNormalization"] == (1 if activation is None else 2)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    close(outputs(plain, x), outputs(model, x), 1e-5)


def doubled(x):
    return 2 * x


class _Own(keras.layers.Layer):
    def call(self, x):
        return 2 * x


class _Subclass(keras.Model):
    def call(self, x):
        return x


@pytest.mark.once
def test_models_that_cannot_be_folded():
    inputs = keras.Input((4, 4, 3))
    for layer, received in [
        (_Own(), "_Own in"),
        (layers.Activation(doubled), "doubled in"),
        (layers.Lambda(lambda x: 2 * x), "a lambda in"),
        (MeanFieldStage(layers.Dense(3), 2), "Dense in"),
        (MeanFieldStage(BasicBlock(3), 2, activation=doubled), "doubled in"),
    ]:
        with pytest.raises(ValueError, match=f"must be one of.*Received: {received}"):
            deploy.fold(keras.Model(inputs, layer(inputs)))
    for model in (_Subclass(), keras.Sequential([layers.Dense(2)]), "model"):
        with pytest.raises(ValueError, match=r"functional or Sequential.*Received: model="):
            deploy.fold(model)
    stage = MeanFieldStage(BasicBlock(3), 2)
    with pytest.raises(ValueError, match="called with training=True"):
        deploy.fold(keras.Model(inputs, stage(inputs, training=True)))


def test_a_step_of_nothing_is_kept():
    model = randomized(tiny_zoo.tiny(classifier_activation=None))
    stages(model)[0].times.assign([2.0, 2.0, 1.0])  # particle 1 takes no step
    plain = deploy.fold(model)
    kernel, _ = plain.get_layer("stage1_1_conv2").get_weights()
    assert np.all(kernel == 0)
    close(outputs(plain, images()), outputs(model, images()))
