"""Streams that grain reads, without TensorFlow."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from mf_zoo.data.errors import DatasetCorruptError
from mf_zoo.data.files import ImageFileError, open_image
from mf_zoo.data.prepared import MODES
from mf_zoo.data.streaming.source import Stream


class GrainStream(Stream):
    """Batches read ahead by grain; one that is not the next starts the reading anew there."""

    def open(self, records: Any) -> "GrainStream":
        """Starts reading `records`: by number an image of Pillow and its label."""
        import grain

        first = self.shard[0] * self.count
        order = grain.MapDataset.range(len(records))
        if self.shuffle:
            order = order.shuffle(seed=self.order_seed())

        # grain numbers images, and batches, through all epochs.
        def read(number, _):
            epoch, position = divmod(number, self.count)
            image, label = records[order[epoch * len(records) + first + position]]
            if self.crop:
                top, left, height, width = self.box(epoch, position, image.height, image.width)
                image = image.resize(
                    self.image_shape[1::-1],
                    resample=3,  # bicubic
                    box=(left, top, left + width, top + height),
                )
            return np.asarray(image).reshape(self.image_shape), np.int64(label)

        def finish(number, batch):
            return self.finish(*divmod(number, len(self)), *batch)

        images = grain.MapDataset.range(self.count).map_with_index(read)
        batches = images.batch(self.batch_size, drop_remainder=self.drop_remainder)
        self._batches = batches.map_with_index(finish).repeat()
        threads = min(os.cpu_count() or 1, 16)
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        self._ahead: Any = None
        self._next: int | None = None  # the number of the batch that `_ahead` is at
        return self

    def batch(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` of epoch `epoch`: `(images, labels)`, whatever was asked for before."""
        number = epoch * len(self) + index
        if self._next != number:
            self._ahead = iter(self._batches[number:].to_iter_dataset(self._options))
        self._next = None  # in case it fails
        batch = next(self._ahead)
        self._next = number + 1
        return batch


class Records:
    """The images, decoded by Pillow, and labels of a prepared split, by number.

    Args:
        builder: The builder of tensorflow-datasets.
        split: The split, as tensorflow-datasets writes it.
        image, label: Names of the features.
    """

    def __init__(self, builder: Any, split: str, image: str, label: str):
        import tensorflow_datasets as tfds

        self._source = builder.as_data_source(
            split=split, decoders={image: tfds.decode.SkipDecoding()}
        )
        self._folder = builder.data_path
        self._image, self._label = image, label
        self._mode = MODES[builder.info.features[image].shape[2]]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from PIL import Image

        try:
            record = self._source[int(number)]
            with Image.open(io.BytesIO(record[self._image])) as file:
                return file.convert(self._mode), record[self._label]
        except Exception as error:  # of damaged files readers and decoders raise many kinds
            raise DatasetCorruptError(
                f"The files in {self._folder} must be readable; prepare the dataset again. "
                f"Received: image {number}: {type(error).__name__}: {error}"
            ) from error


class ImageFiles:
    """Images and labels of files, by number.

    Args:
        files: Their paths and labels.
        channels: 3 for RGB, 1 for greys.
    """

    def __init__(self, files: list[tuple[Path, int]], channels: int):
        self._files = files
        self._channels = channels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        path, label = self._files[int(number)]
        try:
            return open_image(path, self._channels), label
        except ImageFileError as error:
            raise DatasetCorruptError(str(error)) from error
