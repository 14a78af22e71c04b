"""What has been wrong with Keras's loaders of files, tried against those of mf_zoo."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import tarfile
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT

from mf_zoo import weights
from mf_zoo.weights.files import WeightFileError, load_model

pytestmark = pytest.mark.once

_EXPECTED = r"A saved model must be .*Received: "


@pytest.fixture
def saved(tmp_path):
    """A `.keras` file, as a checkpoint is one."""
    layers = [keras.layers.Input((4,)), keras.layers.Dense(3, name="scores")]
    model = keras.Sequential(layers, name="small")
    model.compile("sgd", "mse")
    model.save(tmp_path / "checkpoint.keras")
    return tmp_path / "checkpoint.keras"


@pytest.fixture
def marker(tmp_path):
    """A file that only an attacker's code would make."""
    path = tmp_path / "code-was-run"
    yield path
    assert not path.exists()


def forge(saved, layer=None, first=None, weights_file=None):
    """Puts a layer in the place of the last one, another before it, or an edited weight file."""
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    layers = config["config"]["layers"]
    if layer is not None:
        layers[-1] = layer
    if first is not None:
        layers.insert(1, first)
    members["config.json"] = json.dumps(config).encode()
    if weights_file is not None:
        content = io.BytesIO(members["model.weights.h5"])
        with h5py.File(content, "r+") as file:
            weights_file(file["layers/dense/vars"])
        members["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(saved, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def entry(module, name, config, registered=None):
    return {
        "module": module,
        "class_name": name,
        "config": config,
        "registered_name": registered,
        "build_config": {"input_shape": [None, 4]},
    }


def marking(marker):
    """A Lambda layer, whose code makes a file."""
    path = str(marker)
    layer = keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1])
    return keras.saving.serialize_keras_object(layer)


def test_a_saved_model_is_loaded(saved):
    expected = keras.saving.load_model(saved).get_weights()
    model = load_model(saved)
    for found, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert model.optimizer is not None
    cut = saved.read_bytes()[:-100]
    saved.write_bytes(cut)
    with pytest.raises(WeightFileError, match=_EXPECTED[:22]):
        load_model(saved)


def test_cve_2024_3660_code_of_a_lambda_layer(saved, marker):
    forge(saved, marking(marker))
    with pytest.raises(WeightFileError, match=_EXPECTED + r".*Lambda"):
        load_model(saved)
    # Even where a program has turned Keras's safe mode off for what is its own.
    from keras.src.saving import serialization_lib

    before = serialization_lib.in_safe_mode()
    keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(WeightFileError, match=_EXPECTED + r".*Lambda"):
            load_model(saved)
    finally:
        serialization_lib.global_state.set_global_attribute("safe_mode_saving", before)


@pytest.mark.parametrize(
    ("module", "name", "config"),
    [
        ("subprocess", "Popen", {"args": ["touch", "MARKER"]}),
        ("os", "system", {"command": "touch MARKER"}),
        ("builtins", "function", "exec"),
        ("keras.src.utils.python_utils", "func_load", {"code": "MARKER"}),
        ("code_of_an_attacker", "Layer", {}),
    ],
)
def test_cve_2025_1550_any_module_and_function(
    saved, marker, tmp_path, monkeypatch, module, name, config
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "code_of_an_attacker.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads(json.dumps(config).replace("MARKER", str(marker)))
    forge(saved, entry(module, name, config, name))
    with pytest.raises(WeightFileError, match=_EXPECTED):
        load_model(saved)


def test_cve_2025_8747_functions_of_keras_itself(saved, marker, tmp_path):
    (tmp_path / "source").write_text("x")
    arguments = {"fname": str(marker), "origin": (tmp_path / "source").as_uri()}
    for name, config in (("get_file", arguments), ("function", "get_file")):
        forge(saved, entry("keras.utils", name, config, name))
        with pytest.raises(WeightFileError, match=_EXPECTED):
            load_model(saved)
        assert not marker.exists()


def test_cve_2025_9905_an_h5_file_ignores_safe_mode(marker, tmp_path):
    path = str(marker)
    model = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1]),
        ]
    )
    marker.unlink(missing_ok=True)  # which calling the layer here made
    model.save(tmp_path / "whole.h5")
    for name in ("checkpoint.h5", "checkpoint.hdf5", "checkpoint.keras"):
        (tmp_path / name).write_bytes((tmp_path / "whole.h5").read_bytes())
        with pytest.raises(WeightFileError, match=_EXPECTED):
            load_model(tmp_path / name)
    (tmp_path / "whole.h5").rename(tmp_path / "whole.weights.h5")
    with pytest.raises(WeightFileError):
        weights.load(model, tmp_path / "whole.weights.h5")


def test_cve_2025_9906_a_file_that_turns_safe_mode_off(saved, marker):
    from keras.src.saving import serialization_lib

    before = serialization_lib.in_safe_mode()
    name = "enable_unsafe_deserialization"
    for off in (
        entry("keras.config", name, {}, name),
        entry("builtins", "function", name, name),
        entry("keras.config", "function", name, name),
    ):
        forge(saved, marking(marker), first=off)
        with pytest.raises(WeightFileError, match=_EXPECTED):
            load_model(saved)
        forge(saved, off)
        with pytest.raises(WeightFileError, match=_EXPECTED):
            load_model(saved)
        assert serialization_lib.in_safe_mode() == before


@pytest.mark.parametrize("name", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_cve_2025_12058_a_vocabulary_that_is_a_file(saved, tmp_path, name):
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # reading it would hang
    for vocabulary in (str(secret), "http://127.0.0.1:9/secret"):
        forge(saved, entry("keras.layers", name, {"vocabulary": vocabulary}))
        with pytest.raises(WeightFileError, match=_EXPECTED + f".*{name}"):
            load_model(saved)


@pytest.mark.parametrize("number", ["2025_12060", "2025_12638"])
def test_cve_2025_12060_and_2025_12638_archives_with_paths_out_of_them(tmp_path, number):
    """Downloads are files under their own names and digests; nothing unpacks an archive."""
    archive = tmp_path / "served" / "archive"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        if number == "2025_12638":  # a link, and a file through it
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(link)
        for name in ("../evil", "link/evil"):
            tar.addfile(tarfile.TarInfo(name))
    data = archive.read_bytes()
    record = dataclasses.replace(
        weights.get("MFResNet20", "cifar10"),
        name="forged",
        file="mf_resnet20-forged.weights.h5",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
    )
    archive.rename(archive.with_name(record.file))
    registry, cache = tmp_path / "registry", tmp_path / "cache"
    registry.mkdir()
    path = weights.path(
        record, directory=registry, base_url=archive.parent.as_uri(), cache_dir=cache
    )
    with pytest.raises(WeightFileError, match="whole HDF5 file"):
        weights.check_file(path)
    assert not list(tmp_path.rglob("evil")) and not list(tmp_path.rglob("link"))
    # And no other part of mf_zoo does.
    for folder in ("mf_zoo", "weights", "applications"):
        for source in (ROOT / folder).rglob("*.py"):
            words = r"\b(get_file|extractall|unpack_archive|extract_archive|tarfile)\b"
            assert not re.search(words, source.read_text()), source


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_cve_2025_49655_a_pickled_torch_module(saved, marker):
    import torch

    content = io.BytesIO()
    torch.save(_Payload(marker), content, pickle_module=pickle)
    module = {"class_name": "__bytes__", "value": base64.b64encode(content.getvalue()).decode()}
    config = {"module": module, "name": "wrapper"}
    forge(saved, entry("keras.layers", "TorchModuleWrapper", config))
    with pytest.raises(WeightFileError, match=_EXPECTED + r".*TorchModuleWrapper"):
        load_model(saved)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_cve_2026_0897_petabytes_in_a_small_file(saved, compression):
    def bomb(group):
        shape, kernel = (1 << 25, 1 << 25), group["0"][()]
        del group["0"]
        made = group.create_dataset(
            "0", shape, "float32", chunks=(1, 1 << 10), compression=compression
        )
        made[0, :4] = kernel[0, 0]

    forge(saved, weights_file=bomb)
    assert saved.stat().st_size < 100_000
    with pytest.raises(WeightFileError, match="holds too little"):
        load_model(saved)


@pytest.mark.parametrize("kind", ["external storage", "virtual dataset", "external link"])
def test_cve_2026_1669_weights_that_are_another_file(saved, tmp_path, kind):
    secret = tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(3, dtype="float32")

    def steal(group):
        del group["1"]
        if kind == "external storage":
            group.create_dataset("1", (3,), "float32", external=[(str(secret), 0, 12)])
        elif kind == "virtual dataset":
            layout = h5py.VirtualLayout((3,), "float32")
            layout[:] = h5py.VirtualSource(str(secret), "x", (3,))
            group.create_virtual_dataset("1", layout)
        else:
            group["1"] = h5py.ExternalLink(str(secret), "x")

    forge(saved, weights_file=steal)
    with pytest.raises(WeightFileError, match=r"stored in other files|a link to elsewhere"):
        load_model(saved)


def test_members_of_an_archive_that_keras_does_not_write(saved):
    whole = saved.read_bytes()
    for name, compression in (("../evil", zipfile.ZIP_STORED), ("assets/x", zipfile.ZIP_DEFLATED)):
        saved.write_bytes(whole)
        with zipfile.ZipFile(saved, "a", compression) as archive:
            archive.writestr(name, "x")
        with pytest.raises(WeightFileError, match=re.escape(name)):
            load_model(saved)
