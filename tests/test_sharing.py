"""Sharing: model cards of registered weights, and folded networks on a hub."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hub import Hub

import mf_zoo
from mf_zoo import applications, data, weights
from mf_zoo.cli import main
from mf_zoo.reporting import model_card

huggingface_hub = pytest.importorskip("huggingface_hub")


ENVIRONMENT = {
    "HF_TOKEN": "hf_of_nobody",
    # The stand-in has no storage of its own for large files.
    **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"},
}
# Another process, which knows nothing of mf_zoo.
LOAD = """
    import sys

    import keras
    import numpy as np

    model = keras.saving.load_model("hf://lab/mfresnet20")
    np.save("found.npy", model.predict(np.load("images.npy"), verbose=0))
    assert not [name for name in sys.modules if name.split(".")[0] == "mf_zoo"]
"""


@pytest.mark.once_on_torch
def test_a_folded_network_is_shared_and_loaded_by_keras_alone(tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with Hub() as hub:
        # huggingface_hub, which Keras imports, has read HF_ENDPOINT already.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        model = applications.MFResNet20(weights="cifar10")
        mf_zoo.deploy.fold(model).save("hf://lab/mfresnet20")
        card = model_card("MFResNet20", "cifar10", "lab/mfresnet20")
        huggingface_hub.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="lab/mfresnet20"
        )
        first, second = hub.commits
        assert first[0] == "lab/mfresnet20" and second == ("lab/mfresnet20", ["README.md"])
        assert {"README.md", "config.json", "metadata.json", "model.weights.h5"} <= set(first[1])
        # The card took the place of the one that Keras writes.
        assert hub.repositories["lab/mfresnet20"]["README.md"].decode() == card
        images, labels = data.sample("cifar10")
        images, labels = images[::10].astype("float32"), labels[::10]
        np.save(tmp_path / "images.npy", images)
        hub.requests.clear()
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(LOAD)],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert {method for method, _ in hub.requests} == {"GET", "HEAD"}
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, model.predict(images, verbose=0), atol=1e-5)
    assert np.mean(found.argmax(1) == labels) >= 0.8


@pytest.mark.once
@pytest.mark.parametrize("record", weights.records(), ids=lambda record: record.stem)
def test_the_hub_reads_the_card(record):
    card = huggingface_hub.ModelCard(model_card(record.model, record.name))
    (result, *more) = card.data.eval_results
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "keras")
    assert card.data.datasets == [record.dataset] and card.data.model_name == record.model
    assert ("mean-field" in card.data.tags) is applications.network(record.model).mean_field
    assert (result.dataset_type, result.dataset_split) == (record.dataset, "test")
    assert result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(record.test_accuracy / 100)
    assert [one.metric_value for one in more] == [
        pytest.approx(1 - error / 100) for error in (record.test_top5_error,) if error is not None
    ]


def _multiply_adds(record):
    """As Keras's layers have them: those of ResNet-20 for CIFAR-10, and more for more classes."""
    return 40_813_184 + (record.classes - 10) * 64


@pytest.mark.once
def test_the_card_says_what_the_registry_says():
    for record in weights.records():
        card = model_card(record.model, record.name)
        title = data.get(record.dataset).title
        for fact in (
            f"# {record.model}, trained on {title}",
            f"| top-1 | {record.test_error:.2f} |",
            f"| parameters | {record.parameters:,} |",
            f"| multiply-adds for an image | {_multiply_adds(record):,} |",
            record.command,
            record.sha256,
            f"`{record.recipe}`, {record.epochs} epochs, seed {record.seed}",
            f'mf_zoo.applications.{record.model}(weights="{record.name}")',
            ", ".join(data.class_names(record.dataset)),
        ):
            assert fact in card
        assert "hf://" not in card
        errors = [record.test_top5_error, record.test_coarse_error]
        shown = ["| top-5 |" in card, "| of the superclass |" in card]
        assert shown == [error is not None for error in errors]
        mean_field = applications.network(record.model).mean_field
        assert ("times, which are trained" in card) is mean_field
    assert 'load_model("hf://lab/net")' in model_card("ResNet20", "cifar100", "lab/net")


@pytest.mark.once
def test_the_command(tmp_path, capsys):
    assert main(["card", "ResNet20", "--weights", "cifar100"]) == 0
    assert capsys.readouterr().out == model_card("ResNet20", "cifar100")
    path = tmp_path / "README.md"
    assert main(["card", "MFResNet20", "--repository", "lab/net", "--output", str(path)]) == 0
    assert path.read_text() == model_card("MFResNet20", "cifar10", "lab/net")
    assert main(["card", "MFResNet56"]) == 2
    error = capsys.readouterr().err
    assert "Weights of that name are registered for MFResNet20 and ResNet20" in error


@pytest.mark.once
def test_a_card_needs_no_backend():
    code = """
        import sys
        from mf_zoo.cli import main

        main(["card", "MFResNet20"])
        print([name for name in ("keras", "numpy", "huggingface_hub") if name in sys.modules])
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out.splitlines()[-1].replace("'", '"')) == []
