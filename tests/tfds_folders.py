"""Folders of tensorflow-datasets with made images, prepared without a network."""

from unittest import mock

import numpy as np


def prepare(folder, features, examples, file_format="tfrecord", split="train", **splits):
    """Prepares a dataset named `pictures` in `folder`.

    Args:
        folder: The data_dir.
        features: From `tfds.features` to the dictionary of features.
        examples: Those of the split `split`.
        splits: Those of further splits.
    """
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Pictures(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                described = tfds.features.FeaturesDict(features(tfds.features))
                return tfds.core.DatasetInfo(builder=self, features=described)

            def _split_generators(self, dl_manager):
                return {
                    name: self._generate_examples(some)
                    for name, some in {split: examples, **splits}.items()
                }

            def _generate_examples(self, some):
                yield from enumerate(some)

    Pictures(data_dir=folder).download_and_prepare(file_format=file_format)


def prepare_known(name, folder, splits, file_format="tfrecord"):
    """Prepares a dataset that tensorflow-datasets knows, of other examples than its own.

    Args:
        name: Its name there.
        folder: The data_dir.
        splits: The examples of each split, dictionaries of its features.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder)
    generators = {split: enumerate(examples) for split, examples in splits.items()}
    with mock.patch.object(type(builder), "_split_generators", lambda self, manager: generators):
        builder.download_and_prepare(file_format=file_format)


def made_images(count, shape, seed=0):
    """Images of noise, no two alike, with labels 0, 1, ... 9, 0, ..."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), "uint8")
    return images, np.arange(count) % 10


def check_record(name, folder, shape, with_ids):
    """Prepares a small `name` of 10 classes in both formats, loads and streams it.

    Args:
        name: Name of a dataset, here and in tensorflow-datasets.
        folder: An empty folder.
        shape: Of its images.
        with_ids: Whether its examples have the feature `id`.
    """
    from mf_zoo import data

    made = {"train": made_images(24, shape), "test": made_images(12, shape, seed=1)}
    splits = {
        split: [
            {"image": image, "label": int(label)} | ({"id": f"{split}_{k:06}"} if with_ids else {})
            for k, (image, label) in enumerate(zip(*arrays, strict=True))
        ]
        for split, arrays in made.items()
    }
    prepare_known(name, folder / "tfrecord", splits)
    prepare_known(name, folder / "array_record", splits, "array_record")
    for split, (images, labels) in made.items():
        expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        for kind in ("tfrecord", "array_record"):
            loaded = data.load(name, split, data_dir=folder / kind, download=False)
            assert loaded[0].shape == images.shape and loaded[1].dtype == np.int64
            if with_ids:  # by which they are put in order
                np.testing.assert_array_equal(loaded[0], images)
                np.testing.assert_array_equal(loaded[1], labels)
            streamed = data.stream(name, split, 6, data_dir=folder / kind)
            assert _pairs([loaded]) == _pairs(streamed) == expected
    # The same as arrays in a file.
    arrays = {f"{split}_image": images for split, (images, _) in made.items()}
    arrays |= {f"{split}_label": labels for split, (_, labels) in made.items()}
    np.savez(folder / f"{name}.npz", **arrays)
    np.testing.assert_array_equal(data.load(name, "test", folder)[0], made["test"][0])


def _pairs(batches):
    """The label of each image of some batches, by its pixels."""
    return {
        np.asarray(image).tobytes(): int(label)
        for images, labels in batches
        for image, label in zip(np.asarray(images), np.asarray(labels), strict=True)
    }
