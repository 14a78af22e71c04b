"""Data larger than memory: images streamed from their files."""

import operator
import os
from typing import Any

import numpy as np

from mf_zoo.data import datasets
from mf_zoo.data.augmentation import Augmentation
from mf_zoo.data.streaming.files import FORMATS, open_folder, open_prepared
from mf_zoo.data.streaming.grain_reader import GrainStream
from mf_zoo.data.streaming.source import Stream
from mf_zoo.data.streaming.tf_reader import tf_dataset


def stream(
    name: str,
    split: str,
    batch_size: int = 128,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop: str = "center",
    shuffle: bool = False,
    augment: Augmentation | None = None,
    seed: int = 0,
    drop_remainder: bool = False,
    shard: tuple[int, int] | None = None,
    backend: str = "auto",
    initial_epoch: int = 0,
) -> Any:
    """Stream a dataset from its files, for `model.fit` on every backend.

    Only the batches in work are in memory (and with `"tf"` and `shuffle` 4,096 encoded images).
    The dataset is one of tensorflow-datasets, which must have been prepared, with features `image`
    (uint8) and `label`; nothing is downloaded, and no code of the dataset is needed. Or it is a
    registered one (`mf_zoo.data.names()`), whose record names its features and splits, and which
    may also be of image files in folders; these are read by grain. There are two engines:

    - `"tf"` reads TFRecord files by `tf.data`. `shuffle` permutes the files, reads 16 of them in
      turns and draws from a buffer. A process of several reads its own part of the split.
    - `"grain"` reads ArrayRecord files by grain, without TensorFlow. `shuffle` permutes the whole
      split; a process of several gets another part of it each epoch.

    Both promise: batch `i` of epoch `k` is a function of `seed`, `k`, `i` and the prepared files.
    So a training that resumes at epoch `k` with `initial_epoch=k` sees the batches that it would
    have seen. Without `shuffle` images come in the order of the files. The engines shuffle
    differently, and their JPEG decoders and filters differ by a few of 255; lossless images of
    the wanted size are equal to the bit.

    Args:
        name: Name of the dataset: `"imagenet2012"`, `"cifar10:3.0.2"`, `"name/config"`.
        split: A split or a slice of one, as tensorflow-datasets writes it: `"train"`,
            `"validation[:10%]"`. `"test"` is what the record of a registered dataset says.
        batch_size: Images a batch, of this process.
        data_dir: The folder of tensorflow-datasets (`None` is `~/tensorflow_datasets`), or the one
            in which the folder of a dataset of image files lies.
        image_size: `(height, width)`, or a number for both, to which images are scaled (bicubic,
            antialiased). `None` is the size that the dataset's record says, or else leaves them as
            they are, which needs images of one size.
        crop: The part of an image that is scaled: `"center"`, the largest in the middle with the
            proportions wanted, or `"random"`, drawn for each image with 8 to 100 % of its area
            and 3/4 to 4/3 of its proportions, and cut off at its borders (Szegedy et al. 2015).
        shuffle: Whether to shuffle the images, anew each epoch.
        augment: An `Augmentation`, or `None`, drawn for each image of `image_size`.
        seed: Non-negative integer from which everything random follows.
        drop_remainder: Whether to leave out a last batch that is not full.
        shard: `(index, count)`: this process's number and how many there are. Processes get
            disjoint parts with equally many images, so that none waits for another; at most
            `count - 1` images of an epoch are left out. `None` is `(0, 1)`.
        backend: `"tf"`, `"grain"` (extra `stream`), or `"auto"`, what reads the files there are.
        initial_epoch: Number of the first epoch: where a training resumes.

    Returns:
        `"tf"`: a `tf.data.Dataset`, of which one pass is one epoch; it reads its epoch when a pass
        starts and moves it on with the last batch. `"grain"`: an `EpochDataset`, a
        `keras.utils.PyDataset`. Both know their number of batches and yield uint8 images
        `(batch, height, width, channels)` and int64 labels `(batch,)`, or with mixup or CutMix
        both as float32, labels `(batch, classes)`.

    Raises:
        ValueError: If an argument is not as described, or the dataset is none of image
            classification.
        DatasetUnavailableError: If the dataset is not prepared, or not in the engine's format.
        DatasetCorruptError: If files are missing or not what the record says or, while `"grain"`
            reads, damaged. (`tf.data` raises `tf.errors.DataLossError` for damaged files.)
        ImportError: If a package that the engine needs is missing.

    Example:

    ```python
    train = mf_zoo.data.stream(
        "imagenet2012",
        "train",
        256,
        data_dir="data",
        image_size=224,
        crop="random",
        shuffle=True,
        augment=mf_zoo.data.Augmentation(padding=0, flip=True),
        drop_remainder=True,
    )
    model.fit(train, epochs=90)
    ```

    References:
        - Szegedy et al., *Going Deeper with Convolutions*, 2015 (arXiv 1409.4842), for `crop`
    """
    if backend not in ("auto", *FORMATS):
        raise ValueError(
            f"`backend` must be 'auto', 'tf' or 'grain'. Received: backend={backend!r}"
        )
    if crop not in ("center", "random") or (crop == "random" and image_size is None):
        raise ValueError(
            "`crop` must be 'center', or 'random' together with `image_size`. "
            f"Received: crop={crop!r}, image_size={image_size!r}"
        )
    index, shards = _parse_shard(shard)
    size = _parse_size(image_size)
    record = datasets.get(name) if name in datasets.names() else None
    if record is not None and record.kind == "folder":
        source = open_folder(record, split, data_dir, backend)
    else:
        source = open_prepared(name, record, split, data_dir, backend)
    if source.total < shards:
        raise ValueError(
            f"There must be an image for each process. Received: {source.total} images, "
            f"shard={(index, shards)}"
        )
    *stored, channels = source.image_shape
    if size is None and record is not None and tuple(stored) != record.image_shape[:2]:
        size = record.image_shape[:2]
    if size is None and None in stored:
        raise ValueError(
            f"`image_size` must be given for {name}, whose images differ in size. "
            "Received: image_size=None"
        )
    result = (GrainStream if source.backend == "grain" else Stream)(
        source.total // shards,
        batch_size,
        shuffle=shuffle,
        augment=augment,
        seed=seed,
        drop_remainder=drop_remainder,
        num_classes=source.classes,
        initial_epoch=initial_epoch,
        image_shape=(*(size or stored), channels),
        crop=crop if size else None,
        shard=(index, shards),
    )
    if result.mixes and not source.classes:
        raise ValueError(
            "With mixup or CutMix the dataset must know its number of classes. Received: "
            f"{source.folder}, label.num_classes={source.classes!r}"
        )
    return tf_dataset(result, source) if source.backend == "tf" else result.open(source.pictures())


def _parse_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    try:
        index, count = map(operator.index, (0, 1) if shard is None else shard)
    except (TypeError, ValueError):
        index, count = 0, 0
    if not 0 <= index < count:
        raise ValueError(
            "`shard` must be (index, count), this process's number from 0 and how many there are. "
            f"Received: shard={shard!r}"
        )
    return index, count


def _parse_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        rows, columns = map(operator.index, (size, size) if np.isscalar(size) else size)
    except (TypeError, ValueError):
        rows, columns = 0, 0
    if rows < 1 or columns < 1:
        raise ValueError(
            "`image_size` must be (height, width) in pixels, a number for both, or None. "
            f"Received: image_size={size!r}"
        )
    return rows, columns
