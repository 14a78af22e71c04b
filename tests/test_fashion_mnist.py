"""Fashion-MNIST: its record, and made images in the folders that tensorflow-datasets prepares."""

import pytest
from tfds_folders import check_record

from mf_zoo import data

pytestmark = pytest.mark.once


def test_fashion_mnist_is_a_record_that_loads_and_streams(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("grain")
    record = data.get("fashion_mnist")
    assert data.class_names("fashion_mnist")[::9] == ["T-shirt/top", "Ankle boot"]
    assert record.images == {"train": 60000, "test": 10000}
    info = tfds.builder("fashion_mnist", data_dir=tmp_path).info
    assert info.features["image"].shape == record.image_shape == (28, 28, 1)
    assert info.features["label"].names == list(record.class_names)
    check_record("fashion_mnist", tmp_path, (28, 28, 1), with_ids=False)
