"""WideResNet-28-10, and a small sibling compared with pytorchcv's."""

import pytest
from networks import close, outputs

from mf_zoo import applications, convert, data
from mf_zoo.applications.assembly import assemble
from mf_zoo.applications.families.wide_resnet import wide_resnet

torch = pytest.importorskip("torch")
peers = pytest.importorskip("pytorchcv.models.wrn_cifar")


def compare(architecture, peer):
    """The scores of a network and of its mean-field twin with those of a peer's random weights."""
    images = data.sample("cifar10")[0][:4]
    pixels = torch.tensor(images.transpose(0, 3, 1, 2).astype("float32") / 255)
    with torch.no_grad():
        for part in peer.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.uniform_(0.2, 1)
                part.bias.normal_(0, 0.3)
                part.momentum = None  # a mean over all batches, of which there is one
        peer.train()(pixels)
        expected = peer.eval()(pixels).numpy()
    model = assemble(architecture, name="wide", input_shape=(32, 32, 3))
    convert.from_torch(peer.state_dict(), model, mean=(0, 0, 0), std=(1, 1, 1))
    close(outputs(model, images), expected)
    close(outputs(convert.to_mean_field(model), images), expected)


@pytest.mark.once
def test_counts_of_28_10():
    architecture = applications.architecture("WideResNet28_10")
    peer = peers.wrn28_10_cifar10()
    trained = sum(parameter.numel() for parameter in peer.parameters())
    assert architecture.weights(mean_field=False).trained == trained == 36_479_194
    # pytorchcv's table counts other layers too.
    assert architecture.multiply_adds() == pytest.approx(5_246.98e6, rel=0.01)
    assert architecture.particles == (3, 3, 3) and architecture.channels == (160, 320, 640)


@pytest.mark.once_on_torch
def test_scores_are_those_of_the_peer():
    torch.manual_seed(0)
    compare(wide_resnet(16, 2), peers.get_wrn_cifar(num_classes=10, blocks=16, width_factor=2))


@pytest.mark.once
def test_both_networks_are_in_the_zoo():
    for name in ("MFWideResNet28_10", "WideResNet28_10"):
        assert name in applications.list_models("*wide*28*") and name in applications.__all__
        assert getattr(applications, name).architecture is applications.architecture(name)
    assert applications.network("MFWideResNet28_10").mean_field
