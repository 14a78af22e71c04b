"""Weights from PyTorch, checked against networks that others wrote, and between twins."""

import re

import keras
import numpy as np
import pytest
import tiny_zoo
from keras import layers
from networks import close, outputs, randomized

from mf_zoo import applications, convert, data
from mf_zoo.layers import MeanFieldStage, stages

torch = pytest.importorskip("torch")

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# Name, arguments, and pytorchcv's module, function and arguments.
SMALL = ("ResNet20", {}, "resnet", "resnet20_cifar10", {})
PEERS = [
    pytest.param(*SMALL, id="ResNet20"),
    *(
        pytest.param(
            *(name, arguments, module, function, theirs),
            id=name + suffix,
            marks=[pytest.mark.once_on_torch] + [pytest.mark.long] * ("16x64d" in name),
        )
        for name, suffix, arguments, module, function, theirs in [
            ("ResNet32", "", {}, "resnet", "get_resnet_cifar", {"blocks": 32}),
            ("ResNet44", "", {}, "resnet", "get_resnet_cifar", {"blocks": 44}),
            ("ResNet56", "", {}, "resnet", "resnet56_cifar10", {}),
            ("ResNet110", "", {}, "resnet", "resnet110_cifar10", {}),
            ("ResNet164", "", {}, "preresnet", "preresnet164bn_cifar10", {}),
            ("PostActResNet164", "", {}, "resnet", "resnet164bn_cifar10", {}),
            ("PreActResNet110", "", {}, "preresnet", "preresnet110_cifar10", {}),
            ("ResNeXt29_32x4d", "", {"classes": 100}, "resnext", "resnext29_32x4d_cifar100", {}),
            ("ResNeXt29_8x64d", "", {}, "resnext", "get_resnext_cifar", {"bottleneck_width": 64}),
            ("ResNeXt29_16x64d", "", {}, "resnext", "resnext29_16x64d_cifar10", {}),
        ]
    ),
]
# What the functions above that make any network want to know.
GENERAL = {
    "get_resnet_cifar": {"num_classes": 10, "bottleneck": False},
    "get_resnext_cifar": {"num_classes": 10, "blocks": 29, "cardinality": 8},
}


def peer(module, function, arguments, seed=0):
    """Another's network with random weights, and the statistics of real images."""
    models = pytest.importorskip(f"pytorchcv.models.{module}_cifar")
    torch.manual_seed(seed)
    network = getattr(models, function)(**GENERAL.get(function, {}), **arguments)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, torch.nn.Conv2d):
                # Some filters are small, so that epsilon counts in the variances after them.
                part.weight *= 10 ** (-2 * torch.rand(len(part.weight), 1, 1, 1))
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.uniform_(0.2, 1)
                part.bias.normal_(0, 0.3)
                part.momentum = None  # a mean over all batches, of which there is one
        network.train()(pixels(data.sample("cifar10")[0][:4]))
    return network.eval()


def pixels(images):
    x = (images.astype("float64") / 255 - MEAN) / STD
    return torch.tensor(x.transpose(0, 3, 1, 2).astype("float32"))


def logits_of(network, images):
    with torch.no_grad():
        return network(pixels(images)).numpy()


@pytest.fixture(scope="module")
def images():
    return data.sample("cifar10")[0][:4]


@pytest.mark.parametrize(("name", "arguments", "module", "function", "theirs"), PEERS)
def test_same_scores_as_the_peer_and_as_mean_field(
    name, arguments, module, function, theirs, images
):
    network = peer(module, function, theirs)
    expected = logits_of(network, images)
    model = applications.get(name)(classifier_activation=None, **arguments)
    assert convert.from_torch(network.state_dict(), model, mean=MEAN, std=STD) is model
    assert not any(stage.train_times for stage in stages(model))
    close(outputs(model, images), expected)

    twin = convert.to_mean_field(model)
    assert all(stage.train_times for stage in stages(twin))
    assert [stage.step_sizes().shape for stage in stages(twin)] == [
        (stage.num_particles,) for stage in stages(model)
    ]
    close(outputs(twin, images), expected)


@pytest.fixture(scope="module")
def network():
    return peer(*SMALL[2:])


def test_blocks_come_in_depth_order_and_are_divided_by_their_steps(network, images):
    model = applications.MFResNet20(
        classifier_activation=None, initial_times="random", quadrature="midpoint", horizon=2.0
    )
    first = stages(model)[0]
    first.times.assign([1.5, 0.25, 0.5])
    convert.from_torch(network.state_dict(), model, MEAN, STD)
    # Unit 1 of theirs goes to particle 1, whose time is the smallest.
    theirs = network.state_dict()["features.stage1.unit1.body.conv1.conv.weight"].numpy()
    ours = keras.ops.convert_to_numpy(first._stacked[0])
    np.testing.assert_array_equal(ours[1], theirs.transpose(2, 3, 1, 0))
    close(outputs(model, images), logits_of(network, images))


def torchvision_names(state_dict):
    """The same arrays as torchvision's ResNet names them."""
    names = {}
    for name, array in state_dict.items():
        new = name.replace("features.init_block.conv.", "conv1.").replace("output.", "fc.")
        new = new.replace("features.init_block.bn.", "bn1.")
        if new.startswith("features.stage"):
            stage, unit, rest = new.removeprefix("features.stage").split(".", 2)
            rest = rest.replace("body.conv1.conv", "conv1").replace("body.conv2.conv", "conv2")
            rest = rest.replace("body.conv1.bn", "bn1").replace("body.conv2.bn", "bn2")
            rest = rest.replace("identity_conv.conv", "downsample.0")
            rest = rest.replace("identity_conv.bn", "downsample.1")
            new = f"layer{stage}.{int(unit.removeprefix('unit')) - 1}.{rest}"
        names[f"module.{new}"] = array
    return names


def test_names_of_torchvision(network, images):
    model = applications.ResNet20(classifier_activation=None)
    convert.from_torch(torchvision_names(network.state_dict()), model, MEAN, STD)
    close(outputs(model, images), logits_of(network, images))


def renamed(state_dict, rules):
    """The arrays of torchvision's names under others."""
    for old, new in rules.items():
        state_dict = {re.sub(old, new, name): array for name, array in state_dict.items()}
    return state_dict


KUANGLIU = {r"downsample\.": "shortcut.", "^module.fc": "module.linear"}
WEIAICUNZAI = {
    r"downsample\.": "shortcut.",
    r"layer1\.": "conv2_x.",
    r"layer2\.": "conv3_x.",
    r"layer3\.": "conv4_x.",
    r"(\d)\.conv1\.": r"\1.residual_function.0.",
    r"(\d)\.bn1\.": r"\1.residual_function.1.",
    r"(\d)\.conv2\.": r"\1.residual_function.3.",
    r"(\d)\.bn2\.": r"\1.residual_function.4.",
    r"^module\.conv1\.weight": "module.conv1.0.weight",
    r"^module\.bn1\.": "module.conv1.1.",
}


@pytest.mark.parametrize(
    "rules, name, repository, std",
    [
        ({}, "torchvision", "chenyaofo/pytorch-cifar-models", 0.2023),
        (KUANGLIU, "kuangliu", "kuangliu/pytorch-cifar", 0.2023),
        (WEIAICUNZAI, "weiaicunzai", "weiaicunzai/pytorch-cifar100", 0.2673),
    ],
)
def test_names_are_recognised(network, images, rules, name, repository, std):
    arrays = renamed(torchvision_names(network.state_dict()), rules)
    naming = convert.recognize(arrays)
    assert naming.name == name and naming is convert.namings()[name]
    assert naming.normalizations[0].repository == repository
    assert naming.normalizations[0].std[0] == std
    model = applications.ResNet20(classifier_activation=None)
    with pytest.warns(UserWarning, match=f"as in {name}.*{repository} on cifar.*std=\\({std}, "):
        convert.from_torch(arrays, model)
    convert.from_torch(arrays, model, MEAN, STD)
    close(outputs(model, images), logits_of(network, images))


@pytest.mark.once
def test_names_that_nobody_gives():
    assert convert.recognize({}) is None
    assert convert.recognize(["encoder.layers.0.weight"]) is None
    assert convert.recognize(["features.init_block.weight"]).name == "pytorchcv, pre-activation"


def strict_state_dict(path):
    return torch.load(path, weights_only=True, map_location="cpu")["state_dict"]


def plain_torch(arrays, images):
    """The network of akamaster's weights, written down with PyTorch's functions alone."""
    f = torch.nn.functional
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = torch.tensor(((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype("float32"))

    def convolve(x, conv, bn, stride=1):
        x = f.conv2d(x, arrays[f"module.{conv}.weight"], stride=stride, padding=1)
        moving = (arrays[f"module.{bn}.running_{kind}"] for kind in ("mean", "var"))
        scale = (arrays[f"module.{bn}.{kind}"] for kind in ("weight", "bias"))
        return f.batch_norm(x, *moving, *scale)

    x = f.relu(convolve(x, "conv1", "bn1"))
    for stage in (1, 2, 3):
        for unit in range(3):
            stride = 2 if stage > 1 and unit == 0 else 1
            block = f"layer{stage}.{unit}"
            y = f.relu(convolve(x, f"{block}.conv1", f"{block}.bn1", stride))
            y = convolve(y, f"{block}.conv2", f"{block}.bn2")
            missing = y.shape[1] - x.shape[1]
            x = f.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing // 2, missing // 2))
            x = f.relu(x + y)
    return f.linear(
        x.mean((2, 3)), arrays["module.linear.weight"], arrays["module.linear.bias"]
    ).numpy()


def test_public_weights_with_identity_shortcuts(akamaster, images):
    arrays = strict_state_dict(akamaster / "resnet20-12fca82f.th")
    normalization = convert.recognize(arrays).normalizations[-1]
    assert normalization.repository == "akamaster/pytorch_resnet_cifar10"
    model = applications.MFResNet20(shortcut="identity", classifier_activation=None)
    convert.from_torch(arrays, model, normalization.mean, normalization.std)
    assert sum(v.numpy().size for v in model.trainable_variables) == 269_722 + 7  # and the times
    expected = plain_torch(arrays, images)
    close(outputs(model, images), expected)
    close(outputs(convert.to_plain(model), images), expected)
    with pytest.raises(ValueError, match='identities: build the model with shortcut="identity"'):
        convert.from_torch(arrays, applications.ResNet20())


@pytest.mark.once_on_torch
def test_public_weights_have_their_published_error(akamaster, cifar10_test):
    """8.27 % of all 10,000 test images, as their README says."""
    images, labels = cifar10_test
    arrays = strict_state_dict(akamaster / "resnet20-12fca82f.th")
    normalization = convert.recognize(arrays).normalizations[-1]
    model = applications.ResNet20(shortcut="identity", classifier_activation=None)
    convert.from_torch(arrays, model, normalization.mean, normalization.std)
    scores = model.predict(images, batch_size=500, verbose=0)
    assert np.sum(scores.argmax(axis=1) != labels) == 827
    twin = convert.to_mean_field(model, quadrature="midpoint", horizon=1.5)
    close(twin.predict(images[:500], batch_size=500, verbose=0), scores[:500])


def test_normalization_is_part_of_the_saved_model(network, images, tmp_path):
    model = applications.MFResNet20(classifier_activation=None)
    model.predict(images, verbose=0)  # compiled with the constants of before
    convert.from_torch(network.state_dict(), model, MEAN, STD)
    close(model.predict(images, verbose=0), logits_of(network, images))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, images), outputs(model, images))


@pytest.mark.once
def test_wrong_state_dicts_change_nothing(network):
    model = applications.ResNet20(classifier_activation=None)
    before = model.get_weights()
    good = network.state_dict()
    kernel = "features.stage2.unit3.body.conv2.conv.weight"
    for changes, message in [
        ({kernel: None}, r"'features\.stage2\.unit3.*' \(32, 32, 3, 3\) is missing"),
        ({kernel: torch.zeros(32, 32, 1, 1)}, r"is \(32, 32, 1, 1\) instead of \(32, 32, 3, 3\)"),
        ({"extra.weight": torch.zeros(3)}, r"'extra\.weight' \(3,\) has no place in the model"),
        ({kernel: "a file"}, "floating-point arrays.*Received: .* of type str"),
    ]:
        bad = {k: v for k, v in {**good, **changes}.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            convert.from_torch(bad, model)
    deeper = peer("resnet", "resnet56_cifar10", {})
    with pytest.raises(ValueError, match=r"unchanged\..*has no place in the model; and 176 more"):
        convert.from_torch(deeper.state_dict(), model)
    with pytest.raises(ValueError, match="Received: state_dict of type list"):
        convert.from_torch([], model)
    with pytest.raises(ValueError, match=r"network of mf_zoo\.applications"):
        convert.from_torch(good, keras.Sequential([keras.Input((2,)), layers.Dense(1)]))
    meeting = applications.MFResNet20(classifier_activation=None)
    stages(meeting)[1].times.assign([1.0, 1.0])  # one of the two has no step
    with pytest.raises(ValueError, match=r"positive step.*Received: step sizes \[1\.0, 0\.0\]"):
        convert.from_torch(good, meeting)
    for mean, std in [(MEAN, None), (MEAN, (0.2, 0.2)), ((123, 117, 104), STD)]:
        with pytest.raises(ValueError, match=r"`mean` and `std` must.*Received: mean="):
            convert.from_torch(good, model, mean, std)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


# --- Twins ----------------------------------------------------------------------------------


@pytest.mark.parametrize("quadrature", ["backward", "midpoint", "uniform"])
@pytest.mark.parametrize("horizon", [None, 0.7])
def test_twins_compute_the_same(quadrature, horizon):
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype("float32")
    model = randomized(tiny_zoo.tiny(quadrature=quadrature, horizon=horizon))
    expected = outputs(model, x)
    plain = convert.to_plain(model)
    close(outputs(plain, x), expected, 1e-5)
    for stage in stages(plain):
        np.testing.assert_array_equal(stage.step_sizes(), 1)
        assert not stage.train_times
    again = convert.to_mean_field(plain, quadrature=quadrature, horizon=horizon)
    close(outputs(again, x), expected, 1e-5)
    for stage in stages(again):
        steps = keras.ops.convert_to_numpy(stage.step_sizes())
        np.testing.assert_allclose(steps, stage.horizon / stage.num_particles, rtol=1e-6)
    close(outputs(model, x), expected, 0)  # its own weights are as before


def test_plain_twin_of_the_shipped_weights(tmp_path, images):
    model = applications.MFResNet20(weights="cifar10")
    convert.to_plain(model).save_weights(tmp_path / "plain.weights.h5")
    plain = applications.ResNet20(weights=tmp_path / "plain.weights.h5")
    close(outputs(plain, images), outputs(model, images))


@pytest.mark.once
def test_twins_keep_what_is_frozen_and_a_head_of_ones_own():
    body = tiny_zoo.tiny()
    body.layers[3].trainable = False
    model = keras.Sequential([keras.Input((32, 32, 3)), body, layers.Dense(2, name="mine")])
    stages(model)[0]._stacked[0].trainable = False
    stages(model)[0].template().bn2.trainable = False
    twin = convert.to_plain(model)
    assert [layer.name for layer in twin.layers] == [layer.name for layer in model.layers]
    for ours, theirs in zip(twin._flatten_layers(), model._flatten_layers(), strict=True):
        assert ours.trainable == theirs.trainable
    assert not stages(twin)[0]._stacked[0].trainable
    assert stages(twin)[0]._stacked[1].trainable
    assert not stages(twin)[0].template().bn2.trainable
    frozen = [
        [weight.name for weight in stages(one)[0].weights if not weight.trainable]
        for one in (twin, model)
    ]
    assert set(frozen[0]) == {"times", *frozen[1]}


@pytest.mark.once
def test_models_without_twins():
    dense = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    for convertible in (convert.to_mean_field, convert.to_plain):
        with pytest.raises(ValueError, match=r"at least one mf_zoo\.layers\.MeanFieldStage"):
            convertible(dense)
    with pytest.raises(ValueError, match="Received: quadrature='simpson'"):
        convert.to_mean_field(tiny_zoo.tiny(), quadrature="simpson")
    # Nothing in this block can take up a step.
    stage = MeanFieldStage(layers.Dense(4, activation="tanh"), 2, horizon=1.0)
    model = keras.Sequential([keras.Input((4,)), stage])
    with pytest.raises(ValueError, match=r"output_scale_variables.*Received: Dense without it"):
        convert.to_plain(model)
