"""What is in the zoo: names, sizes, `mf-zoo list` and `mf-zoo info`."""

import json
import subprocess
import sys
import textwrap

import keras
import pytest
from keras import layers
from networks import zoo

from mf_zoo import applications, weights
from mf_zoo.cli import main
from mf_zoo.layers import MeanFieldStage

pytestmark = pytest.mark.once


def test_names_by_wildcards():
    assert applications.list_models("mf*29*") == [
        *("MFResNeXt29_32x4d", "MFResNeXt29_8x64d", "MFResNeXt29_16x64d")
    ]
    assert applications.list_models("ResNet?0") == ["ResNet20"]
    assert applications.list_models("nothing") == []
    names = zoo()
    half = len(names) // 2
    assert half >= 11 and names[0] == "MFResNet20" and names[half] == "ResNet20"
    assert [f"MF{name}" for name in names[half:]] == names[:half]
    sizes = [applications.architecture(name).parameters() for name in names[half:]]
    assert sizes == sorted(sizes)
    shipped = {record.model for record in weights.records()}
    assert set(applications.list_models(pretrained=True)) == shipped
    assert applications.list_models("*", pretrained="imagenet") == []


@pytest.mark.parametrize(
    ("name", "particles", "channels"),
    [
        ("MFResNet20", (3, 2, 2), (16, 32, 64)),
        ("MFResNet32", (5, 4, 4), (16, 32, 64)),
        ("MFResNet44", (7, 6, 6), (16, 32, 64)),
        ("ResNet56", (9, 8, 8), (16, 32, 64)),
        ("MFResNet110", (18, 17, 17), (16, 32, 64)),
        ("MFPreActResNet110", (18, 17, 17), (16, 32, 64)),
        ("MFResNet164", (17, 17, 17), (64, 128, 256)),
        ("ResNeXt29_8x64d", (2, 2, 2), (256, 512, 1024)),
    ],
)
def test_architectures(name, particles, channels):
    architecture = applications.architecture(name)
    assert (architecture.particles, architecture.channels) == (particles, channels)


def _peer_multiply_adds(network):
    """Counted while another's network runs."""
    torch = pytest.importorskip("torch")
    total = 0

    def count(module, inputs, outputs):
        nonlocal total
        if isinstance(module, torch.nn.Conv2d):
            total += outputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            total += module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return total


@pytest.mark.parametrize(
    ("name", "module", "peer", "published"),
    [
        ("MFResNet20", "resnet_cifar", "resnet20_cifar10", 41.29e6),
        ("ResNet56", "resnet_cifar", "resnet56_cifar10", 127.06e6),
        ("ResNet164", "preresnet_cifar", "preresnet164bn_cifar10", 255.31e6),
        ("MFResNeXt29_32x4d", "resnext_cifar", "resnext29_32x4d_cifar10", 780.55e6),
    ],
)
def test_multiply_adds_are_those_of_the_peer(name, module, peer, published):
    module = pytest.importorskip(f"pytorchcv.models.{module}")
    found = applications.multiply_adds(applications.get(name)())
    assert found == _peer_multiply_adds(getattr(module, peer)())
    # Its table counts other layers too.
    assert found == pytest.approx(published, rel=0.04)


def test_multiply_adds_by_hand():
    model = keras.Sequential(
        [
            keras.Input((8, 6, 4)),
            layers.Conv2D(10, 3, strides=2),  # 3 x 2 places, 3 x 3 x 4 inputs, 10 filters
            layers.Conv2D(20, 1, groups=5),  # 2 inputs each
            layers.Dropout(0.1),
            layers.Dense(7),  # at every place
        ]
    )
    assert applications.multiply_adds(model) == 6 * (36 * 10 + 2 * 20 + 20 * 7)
    for integrator, evaluations in (("euler", 1), ("heun", 2)):
        stage = MeanFieldStage(layers.Dense(5), 3, integrator=integrator)
        model = keras.Sequential([keras.Input((4, 5)), stage])
        assert applications.multiply_adds(model) == evaluations * 3 * 4 * 5 * 5
    with pytest.raises(ValueError, match="Received: <Embedding"):
        applications.multiply_adds(keras.Sequential([keras.Input((3,)), layers.Embedding(5, 2)]))
    with pytest.raises(ValueError, match=r"fixed size.*Received: input_shape=\(None, None, None"):
        applications.multiply_adds(applications.ResNet20(input_shape=(None, None, 3)))


def test_list(capsys):
    assert main(["list", "*RESNET20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found] == ["MFResNet20", "ResNet20"]
    record, other = weights.records(model="MFResNet20")
    assert found[0]["weights"] == {
        "cifar10": record.test_error,
        "cifar100": other.test_error,
    }
    assert found[0]["particles"] == [3, 2, 2]
    assert main(["list", "--pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == applications.list_models(pretrained=True)
    assert f"cifar10 {record.test_error:.2f} %" in lines[0]
    assert main(["list", "vgg*"]) == 2
    assert "Received: 'vgg*'" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info", "MFResNet20", "--input-size", "16", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    # 272,474 of the plain network and the times of 7 particles.
    assert about["parameters"] == 272_474 + 7
    channels = [16] * 7 + [32] * 6 + [64] * 6 + [32, 64]  # with those of the shortcuts
    assert about["statistics"] == 2 * sum(channels)
    # A quarter of the convolutions' at 32 x 32, and the same dense layer.
    assert about["multiply_adds"] == (40_813_184 - 640) // 4 + 640
    assert [stage["shape"] for stage in about["stages"]] == [
        *([16, 16, 16], [8, 8, 32], [4, 4, 64])
    ]
    assert about["weights"][0]["sha256"] == weights.get("MFResNet20", "cifar10").sha256
    assert main(["info", "ResNet20"]) == 0
    text = capsys.readouterr().out
    assert "272,474 trained" in text and "3 x BasicBlock, 32 x 32 x 16" in text
    assert f"{weights.get('ResNet20', 'cifar10').test_error:.2f} % on cifar10" in text
    assert main(["info", "ResNet20", "--input-size", "4"]) == 2
    assert "Received: input_shape=(4, 4, 3)" in capsys.readouterr().err
    assert main(["info", "ResNet57"]) == 2
    assert "Received: 'ResNet57'" in capsys.readouterr().err


def test_info_says_what_is_trained_in_a_plain_network(capsys):
    assert main(["info", "ResNet20", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    model = applications.ResNet20()
    assert about["parameters"] == 272_474
    assert about["statistics"] == model.count_params() - 272_474  # and its 7 fixed times
    assert about["input_shape"] == [32, 32, 3]


def test_listing_and_counting_need_neither_keras_nor_numpy():
    code = """
        import sys
        import mf_zoo.applications
        from mf_zoo import weights

        names = mf_zoo.applications.list_models(pretrained=True)
        counts = mf_zoo.applications.architecture(names[0]).weights()
        assert mf_zoo.applications.MFResNet20 is mf_zoo.applications.get("MFResNet20")
        print([name in sys.modules for name in ("keras", "numpy", "h5py")], len(weights.records()))
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split("]")[0] == "[False, False, False"
