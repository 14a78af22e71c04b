"""Fixtures shared by the tests."""

import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import hypothesis
import pytest
from browser import browser_pages, chromium  # noqa: F401  # fixtures

# Continuous integration judges a change, not the luck of a draw; elsewhere examples are new.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

ROOT = pathlib.Path(__file__).resolve().parent.parent
_LIMIT = 500

# Run in a process of its own: tensorflow-datasets needs TensorFlow, whatever Keras's backend.
_PREPARE = """
import functools, importlib.util, pathlib, sys
import numpy as np

raw, out, limit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
name = sys.argv[4]
spec = importlib.util.spec_from_file_location("prepare_cifar", raw / "prepare_cifar.py")
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)
# The first images of a split are in its first file: decode no other, and each once.
prepare.SHARDS = {"train": ["train-0"], "test": ["test"]}
prepare.read_shard = functools.cache(prepare.read_shard)
arrays = {}
for split in prepare.SHARDS:
    images, columns = prepare.read_split(name, split)
    arrays |= {f"{split}_image": images[:limit], f"{split}_label": columns["label"][:limit]}
np.savez(out / f"{name}.npz", **arrays)
if name == "cifar10" and importlib.util.find_spec("tensorflow_datasets"):
    prepare.write_tfds(name, out, limit)
    # And in several files a split, in both formats, each in a folder of its own.
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(num_shards=3)
    write = tfds.core.DatasetBuilder.download_and_prepare
    for file_format in ("tfrecord", "array_record"):
        tfds.core.DatasetBuilder.download_and_prepare = functools.partialmethod(
            write, file_format=file_format, download_config=config
        )
        prepare.write_tfds(name, out / file_format, limit)
"""


@pytest.fixture(scope="session")
def right() -> int:
    """How many of the 200 images of the sample the shipped MFResNet20 names rightly."""
    found = re.search(r"assert right == (\d+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    return int(found[1])


@pytest.fixture(scope="session")
def cifar10_raw() -> pathlib.Path:
    """The folder of the lossless copies of CIFAR and their `prepare_cifar.py`."""
    named = os.environ.get("MF_ZOO_TEST_DATA")
    raw = pathlib.Path(named) if named else ROOT.parent / "shared" / "data"
    if not (raw / "prepare_cifar.py").is_file() or not (raw / "cifar10" / "test.webp").is_file():
        pytest.skip(
            f"needs real CIFAR-10: no prepare_cifar.py and cifar10/test.webp in {raw} "
            "(set MF_ZOO_TEST_DATA to the folder that holds them, or put it at ../shared/data)"
        )
    return raw


@pytest.fixture(scope="session")
def cifar10_dir(cifar10_raw, request, tmp_path_factory) -> pathlib.Path:
    """A data_dir with the first 500 images of each split of the real CIFAR-10.

    It holds `cifar10.npz` and, where tensorflow-datasets is installed, the same images prepared
    by it: in one file a split (`cifar10/3.0.2`), and in three in the folders `tfrecord` and
    `array_record`, which are data_dirs themselves.
    """
    return _prepared("cifar10", cifar10_raw, request, tmp_path_factory)


@pytest.fixture(scope="session")
def cifar100_dir(cifar10_raw, request, tmp_path_factory) -> pathlib.Path:
    """A data_dir with the first 500 images of each split of CIFAR-100, as `cifar100.npz`."""
    if not (cifar10_raw / "cifar100" / "test.webp").is_file():
        pytest.skip(f"needs real CIFAR-100: no cifar100/test.webp in {cifar10_raw}")
    return _prepared("cifar100", cifar10_raw, request, tmp_path_factory)


@pytest.fixture(scope="session")
def cifar10_test(cifar10_raw):
    """All test images of CIFAR-10 in the official order, and their labels."""
    spec = importlib.util.spec_from_file_location("prepare_cifar", cifar10_raw / "prepare_cifar.py")
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    images, columns = prepare.read_split("cifar10", "test")
    return images, columns["label"].astype("int64")


@pytest.fixture(scope="session")
def akamaster() -> pathlib.Path:
    """The folder of two public state dicts of akamaster/pytorch_resnet_cifar10."""
    named = os.environ.get("MF_ZOO_TEST_PEERS")
    folder = (pathlib.Path(named) if named else ROOT.parent / "shared" / "peers") / "akamaster"
    if not (folder / "resnet20-12fca82f.th").is_file():
        pytest.skip(
            f"needs the public weights resnet20-12fca82f.th in {folder} "
            "(set MF_ZOO_TEST_PEERS to the folder above it)"
        )
    return folder


def _prepared(dataset: str, raw: pathlib.Path, request, tmp_path_factory) -> pathlib.Path:
    """A folder with a dataset's images, prepared once and kept in pytest's cache."""
    key = hashlib.sha256(_PREPARE.encode())
    for source in ("prepare_cifar.py", f"{dataset}/pixels.sha256"):
        key.update((raw / source).read_bytes())
    name = f"{dataset}-{_LIMIT}-{key.hexdigest()[:12]}"
    cache = getattr(request.config, "cache", None)
    parent = cache.mkdir("mf-zoo") if cache else tmp_path_factory.mktemp("mf-zoo")
    folder = parent / name
    if not folder.is_dir():
        beside = pathlib.Path(tempfile.mkdtemp(prefix=name, dir=parent))
        try:
            subprocess.run(
                [sys.executable, "-c", _PREPARE, raw, beside, str(_LIMIT), dataset],
                check=True,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run has made it in the meantime
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


@pytest.fixture
def registries():
    """What a test registers is forgotten after it."""
    from mf_zoo.applications import registry
    from mf_zoo.data import datasets
    from mf_zoo.layers import integrators, quadrature

    registry.networks()  # those of the package are found on first use
    known = [
        *(registry._NETWORKS, datasets._registry()),
        *(quadrature._RULES.classes, integrators._INTEGRATORS.classes),
    ]
    before = [dict(entries) for entries in known]
    yield
    for entries, saved in zip(known, before, strict=True):
        entries.clear()
        entries.update(saved)
