"""SVHN: its record, and made images in the folders that tensorflow-datasets prepares."""

import pytest
from tfds_folders import check_record

from mf_zoo import data

pytestmark = pytest.mark.once


def test_svhn_is_a_record_that_loads_and_streams(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("grain")
    record = data.get("svhn_cropped")
    assert data.class_names("svhn_cropped") == [str(digit) for digit in range(10)]
    assert record.images == {"train": 73257, "test": 26032}
    assert data.superclasses("svhn_cropped") is None
    info = tfds.builder("svhn_cropped", data_dir=tmp_path).info
    assert info.features["image"].shape == record.image_shape == (32, 32, 3)
    assert info.features["label"].names == list(record.class_names)
    check_record("svhn_cropped", tmp_path, (32, 32, 3), with_ids=True)
