"""Intermediate states: those that a pass by hand has, whatever the times are at the moment."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import SMALL, close, small

import mf_zoo
from mf_zoo import applications, data, deploy
from mf_zoo.applications.architectures import Stem
from mf_zoo.applications.assembly import assemble
from mf_zoo.applications.families.wide_resnet import wide_resnet
from mf_zoo.layers import BasicBlock, MeanFieldStage, StageStates, stages
from mf_zoo.theory import cut, vjp

BACKEND = keras.config.backend()
IMAGES = data.sample("cifar10")[0][:2].astype("float32")
CROPS = IMAGES[:, 10:16, 10:16]
ALL = ["*", "*/*"]


def randomized(model):
    """The model with random weights, times and statistics, of which ReLU leaves something."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "gamma" in variable.path or "variance" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.dtype.startswith("float"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
    for stage in stages(model):
        stage.times.assign(rng.uniform(0, stage.horizon, stage.num_particles))
    return model


def run(model, images=IMAGES, training=False):
    """What a model puts out, as arrays in float32, without compilation."""
    found = model(images, training=training)
    return {name: ops.convert_to_numpy(ops.cast(part, "float32")) for name, part in found.items()}


def convolution(x, kernel):
    """3 x 3, padded with zeros, in float64."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, cols = x.shape[1:3]
    return sum(
        padded[:, i : i + rows, j : j + cols] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def by_hand(stage, x):
    """`X^0 ... X^n` of a stage of basic blocks, from the blocks in the order of their times."""
    places = {
        "/".join(variable.path.split("/")[-2:]): k for k, variable in enumerate(_template(stage))
    }
    states = [np.asarray(x, "float64")]
    for block in sorted(stage.blocks(), key=lambda block: block.time):

        def part(name, block=block):
            return np.asarray(block.weights[places[name]], "float64")

        def normalized(y, name, part=part):
            variance = part(f"{name}/moving_variance") + 1.001e-5
            scaled = (y - part(f"{name}/moving_mean")) / np.sqrt(variance)
            return scaled * part(f"{name}/gamma") + part(f"{name}/beta")

        y = normalized(convolution(states[-1], part("conv1/kernel")), "bn1")
        y = normalized(convolution(np.maximum(y, 0), part("conv2/kernel")), "bn2")
        states.append(np.maximum(states[-1] + block.step * y, 0))
    return states


def _template(stage):
    return stage.template().variables


def tiny(name="tiny", **arguments):
    """A model of a few layers for crops of images, which every backend is quick to run."""
    first = keras.config.image_data_format() == "channels_first"
    model = keras.Sequential(
        [
            keras.Input((3, 6, 6) if first else (6, 6, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same", name="first"),
            MeanFieldStage(BasicBlock(4), 3, activation="relu", name="one", **arguments),
            layers.GlobalAveragePooling2D(name="pooled"),
            layers.Dense(2, name="scores"),
        ],
        name=name,
    )
    return randomized(model)


@pytest.mark.once_on_torch
def test_states_are_those_of_a_pass_by_hand():
    model = randomized(small("basic"))
    found = run(mf_zoo.features(model, [*ALL, "stem_relu", "predictions"]))
    for stage in stages(model):
        for position, state in enumerate(by_hand(stage, found[f"{stage.name}/entry"])):
            name = f"{stage.name}/{position - 1}" if position else f"{stage.name}/entry"
            close(found[name], state)
            assert 0.1 < np.mean(state > 0) < 1
        np.testing.assert_array_equal(found[stage.name], found[name])
    # Between stages and at the ends they fit together.
    np.testing.assert_array_equal(found["stem"], found["stem_relu"])
    np.testing.assert_array_equal(found["stem"], found["stage1/entry"])
    kernel, bias = model.get_layer("predictions").get_weights()
    close(found["features"].mean((1, 2)) @ kernel + bias, found["predictions"])
    close(found["predictions"], ops.convert_to_numpy(model(IMAGES, training=False)))


def test_blocks_are_counted_in_the_order_of_their_times_at_the_time_of_the_call():
    model = tiny()
    (stage,) = stages(model)
    names = ["one/entry", *(f"one/{position}" for position in range(3))]
    extractor, seen = mf_zoo.features(model, names), []
    for times in ([0.5, 1.5, 3.0], [1.5, 0.5, 3.0], [3.0, 0.2, 0.1]):
        stage.times.assign(times)
        # `predict` is compiled at the first time and has to see the others.
        found = extractor.predict(CROPS, verbose=0)
        for name, state in zip(names, by_hand(stage, found["one/entry"]), strict=True):
            close(found[name], state)
        seen.append(found["one/0"])
    assert np.abs(seen[0] - seen[1]).max() > 0.01 * np.abs(seen[0]).max()
    assert [block.particle for block in stage.blocks()] == [2, 1, 0]


@pytest.mark.once_on_torch
@pytest.mark.parametrize("kind", SMALL)
def test_every_kind_of_network_has_the_same_names(kind):
    model = randomized(small(kind))
    info = mf_zoo.feature_info(model)
    found = run(mf_zoo.features(model, ALL))
    assert sorted(found) == sorted(info)
    expected = ["stem"]
    for stage in stages(model):
        blocks = [f"{stage.name}/{position}" for position in range(stage.num_particles)]
        expected += [f"{stage.name}/entry", *blocks, stage.name]
        states = stage.states(found[f"{stage.name}/entry"])
        for name, state in zip(blocks, states[1:], strict=True):
            close(found[name], ops.convert_to_numpy(state))
    assert list(info) == [*expected, "features"]
    for number, channels in enumerate(SMALL[kind].channels):
        name, reduction = f"stage{number + 1}", 2**number
        side = 32 // reduction
        assert info[name] == ((side, side, channels), channels, reduction)
        assert found[name].shape == (2, *info[name].shape)
    assert info["stem"] == ((32, 32, 16), 16, 1)
    # The features are what the classifier reads.
    kernel, bias = model.get_layer("predictions").get_weights()
    scores = ops.convert_to_numpy(model(IMAGES, training=False))
    close(found["features"].mean((1, 2)) @ kernel + bias, scores)


@pytest.mark.once_on_torch
def test_states_of_wide_plain_and_imagenet_networks():
    wide = assemble(wide_resnet(16, 2), name="wide", input_shape=(32, 32, 3))
    assert list(mf_zoo.feature_info(wide))[-2:] == ["stage3", "features"]
    # A stem that is pooled, for images of any size: sides are what matters of reductions.
    stem = dataclasses.replace(SMALL["bottleneck"], stem=Stem(8, 7, 2, pooling=True))
    pooled = assemble(stem, name="pooled", input_shape=(None, None, 3))
    info = mf_zoo.feature_info(pooled)
    assert [info[name].reduction for name in ("stem", "stage2", "features")] == [4, 8, 16]
    assert info["stage3"].shape == (None, None, 256)
    plain = applications.ResNet20(weights="cifar10")
    twin = mf_zoo.convert.to_mean_field(plain)
    ours, theirs = (run(mf_zoo.features(model, "stage2/*")) for model in (plain, twin))
    assert set(ours) == {"stage2/entry", "stage2/0", "stage2/1"}
    for name in ours:
        close(ours[name], theirs[name])


@pytest.mark.once_on_torch
def test_gradients_flow_to_the_images_and_nothing_else_is_computed():
    model = randomized(small("pre-activation"))
    extractor = mf_zoo.features(model, "stage2/0")
    names = {layer.name for layer in extractor.layers}
    assert "stage1" in names and not names & {"stage3", "avg_pool", "predictions"}
    weights = np.random.default_rng(0).normal(size=extractor.output["stage2/0"].shape[1:])
    weights = ops.convert_to_tensor(weights.astype("float32"))
    parts = cut(model)

    def ours(images):
        return ops.sum(extractor(images)["stage2/0"] * weights)

    def pieces(images):
        x = parts.pieces[1](parts.stages[0](parts.pieces[0](images)))
        return ops.sum(parts.stages[1].states(x)[1] * weights)

    (_, (slope,)), (_, (steepness,)) = (vjp(f, [IMAGES]) for f in (ours, pieces))
    close(ops.convert_to_numpy(slope), ops.convert_to_numpy(steepness))
    assert np.abs(ops.convert_to_numpy(slope)).max() > 0


def test_training_on_a_state_trains_what_comes_before_it():
    model = tiny()
    (stage,) = stages(model)
    before = {block.particle: block.weights for block in stage.blocks()}
    order = [block.particle for block in stage.blocks()]
    extractor = mf_zoo.features(model, ["one/1"])
    extractor.compile(keras.optimizers.SGD(0.01), loss={"one/1": "mse"})
    images = CROPS / 255
    targets = np.zeros((len(images), *extractor.output["one/1"].shape[1:]))
    extractor.fit(images, {"one/1": targets}, epochs=1, verbose=0)
    after = {block.particle: block.weights for block in stage.blocks()}
    kernel = next(k for k, v in enumerate(_template(stage)) if v.path.endswith("conv1/kernel"))
    moved = [not np.array_equal(before[p][kernel], after[p][kernel]) for p in order]
    assert moved == [True, True, False]


def test_saved_and_loaded(tmp_path):
    model = tiny()
    images = CROPS
    names = ["one/entry", "one/0", "one/2", "one", "features", "scores"]
    extractor = mf_zoo.features(model, names)
    expected = run(extractor, images)
    extractor.save(tmp_path / "extractor.keras")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "extractor.keras")
    again = mf_zoo.features(keras.saving.load_model(tmp_path / "model.keras"), names)
    for found in (run(loaded, images), run(again, images)):
        assert set(found) == set(names)
        for name in names:
            np.testing.assert_array_equal(found[name], expected[name])
    # A loaded one sorts its blocks, too.
    for one in (model, loaded):
        stages(one)[0].times.assign([2.5, 1.0, 2.0])
    moved = run(extractor, images)
    assert not np.array_equal(moved["one/0"], expected["one/0"])
    np.testing.assert_array_equal(run(loaded, images)["one/0"], moved["one/0"])


@pytest.mark.once_on_torch
def test_a_body_under_a_head_of_its_own():
    body = randomized(small("basic", include_top=False, pooling="avg", name="body"))
    inputs = keras.Input((32, 32, 3))
    outputs = layers.Dense(7, name="animals")(body(inputs))
    model = keras.Model(inputs, outputs, name="tuned")
    names = ["stem", "stage1/0", "stage3", "features"]
    expected = run(mf_zoo.features(body, names))
    extractor = mf_zoo.features(model, [*names, "body", "animals"])
    body.trainable = False  # what is frozen runs in inference, in training too
    for training in (False, True):
        found = run(extractor, training=training)
        for name in names:
            np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["body"], found["features"].mean((1, 2)), rtol=1e-4)
    close(found["animals"], ops.convert_to_numpy(model(IMAGES)))
    assert list(mf_zoo.feature_info(model)) == list(mf_zoo.feature_info(body))
    assert set(extractor.output) == {*names, "body", "animals"}


@pytest.mark.once_on_torch
def test_the_model_is_as_before():
    model = randomized(small("basic"))
    config, weights = model.get_config(), model.get_weights()
    mf_zoo.features(model, ALL)
    extractor = mf_zoo.features(model)
    assert model.get_config() == config
    for ours, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [stage.name for stage in cut(model).stages] == ["stage1", "stage2", "stage3"]
    assert list(extractor.output) == ["stage1", "stage2", "stage3"]


@pytest.mark.once_on_torch
@pytest.mark.parametrize("kind", ["basic", "pre-activation"])
@pytest.mark.parametrize("names", [ALL, ["stage1/0", "stage2/entry"]], ids=["all", "two"])
def test_states_of_the_folded_network(kind, names):
    extractor = mf_zoo.features(randomized(small(kind)), names)
    plain = deploy.fold(extractor)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
    found, folded = run(extractor), run(plain)
    assert set(found) == set(folded)
    for name, state in found.items():
        close(folded[name], state)


@pytest.mark.parametrize(
    "arguments",
    [
        {"integrator": "heun"},
        {"remat": 2},
        {"remat": "sqrt", "integrator": "midpoint"},
        {"reorder": False},
        pytest.param(
            {"unroll": False},
            marks=pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no scan"),
        ),
    ],
    ids=str,
)
def test_stages_of_every_kind(arguments):
    model = tiny(**arguments)
    (stage,) = stages(model)
    images = CROPS
    extractor = mf_zoo.features(model, ["*/*", "scores"])
    found = run(extractor, images)
    for position, state in enumerate(stage.states(model.get_layer("first")(images))):
        name = f"one/{position - 1}" if position else "one/entry"
        close(found[name], ops.convert_to_numpy(state))
    close(found["scores"], ops.convert_to_numpy(model(images)))
    _, (slope,) = vjp(lambda x: ops.sum(extractor(x)["one/1"]), [images])
    _, (expected,) = vjp(lambda x: ops.sum(stage.states(model.get_layer("first")(x))[2]), [images])
    close(ops.convert_to_numpy(slope), ops.convert_to_numpy(expected))


def test_states_in_mixed_precision():
    model = tiny()
    exact = run(mf_zoo.features(model, ALL), CROPS)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = tiny()
    finally:
        keras.config.set_dtype_policy(before)
    extractor = mf_zoo.features(half, ALL)
    states = extractor(CROPS, training=False)
    assert {keras.backend.standardize_dtype(state.dtype) for state in states.values()} == {
        "bfloat16"
    }
    for name, state in run(extractor, CROPS).items():
        close(state, exact[name], 0.1)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="its CPU convolves channels last alone")
def test_states_with_channels_first():
    model = tiny()
    expected, info = run(mf_zoo.features(model, ALL), CROPS), mf_zoo.feature_info(model)
    keras.config.set_image_data_format("channels_first")
    try:
        first = tiny()
        found = run(mf_zoo.features(first, ALL), CROPS.transpose(0, 3, 1, 2))
        for name, (shape, *rest) in mf_zoo.feature_info(first).items():
            assert [*rest] == [*info[name][1:]]
            assert shape == found[name].shape[1:] == expected[name].transpose(0, 3, 1, 2).shape[1:]
    finally:
        keras.config.set_image_data_format("channels_last")
    for name, state in expected.items():
        close(found[name].transpose(0, 2, 3, 1), state)


@pytest.mark.once_on_torch
def test_the_shipped_network_on_real_images():
    model = applications.MFResNet20(weights="cifar10", classifier_activation=None)
    images, labels = data.sample("cifar10")
    images, labels = images[::10].astype("float32"), labels[::10]
    found = run(mf_zoo.features(model, ["stem", "stage1/0", "features"]), images)
    kernel, bias = model.get_layer("predictions").get_weights()
    scores = found["features"].mean((1, 2)) @ kernel + bias
    close(scores, ops.convert_to_numpy(model(images, training=False)))
    assert np.mean(scores.argmax(1) == labels) >= 0.8
    state = by_hand(stages(model)[0], found["stem"])[1]
    close(found["stage1/0"], state)


@pytest.mark.once_on_torch
def test_names_and_patterns():
    model = small("basic")

    def names(layers):
        return list(mf_zoo.features(model, layers).output)

    assert names("stage*") == names(None) == ["stage1", "stage2", "stage3"]
    assert names("stage[12]/entry") == ["stage1/entry", "stage2/entry"]
    assert names(["stage2/*"]) == ["stage2/entry", "stage2/0"]
    # In depth order, each once, whatever the order in which they are asked for.
    assert names(["stage3", "stage?", "stem", "scores"]) == [
        *("stem", "stage1", "stage2", "stage3", "scores")
    ]
    assert mf_zoo.features(model).name == "small_features"
    assert {"features", "feature_info"} <= set(dir(mf_zoo))


@pytest.mark.once_on_torch
def test_what_cannot_be_had():
    model = small("basic")

    def refuses(message, model, *arguments):
        with pytest.raises(ValueError, match=message):
            mf_zoo.features(model, *arguments)

    refuses(
        "Near names are stage1, stage1/1, stage1/0. Received: 'stag1'", model, ["stem", "stag1"]
    )
    refuses("States here are stem, stage1, stage2, stage3, features", model, "stage4*")
    refuses(r"Received: 'predict\*'", model, "predict*")  # no state
    refuses(r"Received: model='small' with 3 stages, layers=\[\]", model, [])
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="scores")])
    refuses("must have a MeanFieldStage.* 0 stages, layers=None", plain)
    assert list(mf_zoo.features(plain, "scores").output) == ["scores"]
    refuses("States here are none", plain, "stage1")
    refuses("must be a functional or Sequential", keras.Sequential([layers.Dense(2)]))

    class Own(keras.Model):
        def call(self, x):
            return x

    refuses("must be a functional or Sequential", Own())

    class Changed(type(keras.Model(model.input, model.output))):
        def call(self, inputs, training=None, mask=None):
            return -super().call(inputs, training=training, mask=mask)

    refuses("must be a functional or Sequential", Changed(model.input, model.output))
    inputs = keras.Input((4,))
    stage = MeanFieldStage(layers.Dense(4), 2, name="one")
    twice = keras.Model(inputs, stage(stage(inputs)))
    refuses("must be called once. Received: 'one'", twice, "one/0")
    bodies = [
        keras.Sequential(
            [keras.Input((4,)), MeanFieldStage(layers.Dense(4), 2, name="one")], name=name
        )
        for name in ("left", "right")
    ]
    pair = keras.Model(inputs, [body(inputs) for body in bodies])
    refuses("Received: 'one' in more than one", pair)
    assert list(mf_zoo.features(pair.layers[1]).output) == ["one"]


def test_the_layer_of_states():
    stage = MeanFieldStage(layers.Dense(4), 3, name="one")
    layer = StageStates(stage, [0, 2])
    x = np.ones((2, 4), "float32")
    for found, state in zip(layer(x), [stage.states(x)[k] for k in (0, 2)], strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (found, state)))
    copy = StageStates.from_config(layer.get_config())
    assert copy.positions == [0, 2] and copy.stage.num_particles == 3
    with pytest.raises(ValueError, match=r"from 0 to 3. Received: positions=\[4\]"):
        StageStates(stage, [4])
    with pytest.raises(ValueError, match="must be a MeanFieldStage"):
        StageStates(layers.Dense(4), [0])
