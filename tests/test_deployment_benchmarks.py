"""The tables of int8 files and of one image, and what they measure."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import harness, quantization, single_image
from mf_zoo import deploy

pytestmark = pytest.mark.once

SHARED = {"backend": "here", "machine": "a core", "date": "2026-01-01", "versions": "keras-3"}


def test_int8_against_float32(tmp_path, monkeypatch):
    # Files that hold one number: the class that they give to every image.
    def export(network, path, format, quantize=None):
        path.write_text("3" if quantize else "5")

    def runner(path, threads):
        return lambda batch: np.eye(10)[[int(path.read_text())] * len(batch)]

    monkeypatch.setattr(deploy, "export", export)
    monkeypatch.setattr(quantization, "runner", runner)
    labels = np.array([3] * 50 + [5] * 75 + [0] * 125)
    images = np.zeros((250, 32, 32, 3), "uint8")
    options = SimpleNamespace(rounds=1, steps=1, threads=1, clock="wall")
    row = quantization.measure("MFResNet20", "cifar10", images, labels, options, tmp_path)
    assert (row.float32_error, row.int8_error, row.agreement) == (70, 80, 0)
    assert (row.float32_bytes, row.int8_bytes) == (1, 1)
    assert row.single_ratio == pytest.approx(row.int8_single / row.float32_single)


def test_the_table_of_int8(tmp_path):
    row = quantization.Quantized(
        "MFResNet20",
        "cifar10",
        "0123456789ab",
        1_104_300,
        313_120,
        8.92,
        8.88,
        99.18,
        0.004,
        0.001,
        0.25,
        2,
        1,
        0.5,
    )
    harness.write_csv(tmp_path / "quantization.csv", [row], SHARED)
    assert quantization.readme_table(tmp_path / "quantization.csv").splitlines()[2:] == [
        "| `MFResNet20` | `'cifar10'` | 1104 | 313 | 8.92 | 8.88 | 99.18 | 4.0 | 2.0 |",
        "",
        "- a core; 2026-01-01; keras-3.",
    ]


def test_the_table_of_one_image(tmp_path):
    seconds = {single_image.BASELINE: [0.003], "folded, predict": [0.002], "inference": [0.001]}
    rows = [
        harness.compare(
            seconds, side, single_image.BASELINE, depth=20, measure="", policy="float32"
        )
        for side in seconds
    ]
    harness.write_csv(tmp_path / "single_image-here.csv", rows, SHARED)
    assert single_image.readme_table(tmp_path).splitlines()[:3] == [
        "| backend | plain Keras, predict | folded, predict | inference | times as fast |",
        "|---|---|---|---|---|",
        "| here | 3.0 | 2.0 | 1.0 | 3.0 |",
    ]
