"""Data larger than memory: any image classification dataset of tensorflow-datasets, by and by."""

import io
import math
import operator
import os
from typing import Any

import numpy as np

from mf_zoo.data.augmentation import Augmentation
from mf_zoo.data.cifar import DatasetCorruptError, DatasetUnavailableError, _import_tfds
from mf_zoo.data.epochs import EpochDataset, batch_spec, look_ahead

_CROP, _ORDER = 2, 3  # streams of random numbers of an epoch, and of all epochs
_FORMATS = {"tf": "tfrecord", "grain": "array_record"}  # the files that an engine reads
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names for numbers of channels
_BUFFER = 4096  # encoded images from which `tf` draws the next


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
    """Stream a dataset of tensorflow-datasets from its files, for `model.fit` on every backend.

    Only the batches in work are in memory (and with `"tf"` and `shuffle` 4,096 encoded images).
    The dataset must have been prepared, with features `image` (uint8) and `label`; nothing is
    downloaded, and no code of the dataset is needed. There are two engines:

    - `"tf"` reads TFRecord files by `tf.data`. `shuffle` permutes the files, reads 16 of them in
      turns and draws from a buffer. A process of several reads its own part of the split.
    - `"grain"` reads ArrayRecord files by grain, without TensorFlow. `shuffle` permutes the whole
      split; a process of several gets another part of it each epoch.

    Both promise: batch `i` of epoch `k` is a function of `seed`, `k`, `i` and the prepared files.
    So a training that goes on at epoch `k` with `initial_epoch=k` sees the batches that it would
    have seen. Without `shuffle` images come in the order of the files. The engines shuffle
    differently, and their JPEG decoders and filters differ by a few of 255; lossless images of
    the wanted size are equal to the bit.

    Args:
        name: Name of the dataset: `"imagenet2012"`, `"cifar10:3.0.2"`, `"name/config"`.
        split: A split or a slice of one, as tensorflow-datasets writes it: `"train"`,
            `"validation[:10%]"`.
        batch_size: Images a batch, of this process.
        data_dir: The folder of tensorflow-datasets; `None` is `~/tensorflow_datasets`.
        image_size: `(height, width)`, or a number for both, to which images are scaled (bicubic,
            antialiased). `None` leaves them as they are, which needs images of one size.
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
        initial_epoch: Number of the first epoch: where a resumed training goes on.

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
        DatasetCorruptError: If files are missing or, while `"grain"` reads, damaged. (`tf.data`
            raises `tf.errors.DataLossError` for damaged files.)
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
    if backend not in ("auto", *_FORMATS):
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
    builder, backend = _prepared(name, data_dir, backend)
    image, label = _image_and_label(builder)
    if size is None and None in image.shape:
        raise ValueError(
            f"`image_size` must be given for {name}, whose images differ in size. "
            "Received: image_size=None"
        )
    part, total = _part(builder, split, index, shards)
    source = (_GrainStream if backend == "grain" else _Stream)(
        total // shards,
        batch_size,
        shuffle=shuffle,
        augment=augment,
        seed=seed,
        drop_remainder=drop_remainder,
        num_classes=label.num_classes,
        initial_epoch=initial_epoch,
        image_shape=(*(size or image.shape[:2]), image.shape[2]),
        crop=crop if size else None,
        shard=(index, shards),
    )
    if source.mixes and not label.num_classes:
        raise ValueError(
            "With mixup or CutMix the dataset must know its number of classes. Received: "
            f"{builder.data_path}, label.num_classes={label.num_classes!r}"
        )
    if backend == "tf":
        return _tf_dataset(source, builder, part)
    return source.open(builder, split)


class _Stream(EpochDataset):
    """What is random in a stream, whichever engine reads it, and the number of its epoch."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        image_shape: tuple[int, int, int],
        crop: str | None,
        shard: tuple[int, int],
        **settings: Any,
    ):
        super().__init__(count, batch_size, **settings)
        self.image_shape = image_shape
        self.crop = crop
        self.shard = shard

    def order_seed(self) -> int:
        """A seed for an engine whose seeds lie side by side: grain adds the epoch to it."""
        return int(self.generator(0, _ORDER).integers(1, 2**31 - 1))

    def box(self, epoch: int, position: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`(top, left, height, width)` of the part of an image to be scaled."""
        rows, columns = self.image_shape[:2]
        if self.crop == "center":
            scale = min(height / rows, width / columns)
            part = max(round(rows * scale), 1), max(round(columns * scale), 1)
            return (height - part[0]) // 2, (width - part[1]) // 2, *part
        rng = self.generator(epoch, _CROP, position + self.count * self.shard[0])
        side = math.sqrt(height * width * rng.uniform(0.08, 1))
        root = math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)  # of the proportions
        part = min(max(round(side / root), 1), height), min(max(round(side * root), 1), width)
        top, left = rng.integers(0, (height - part[0], width - part[1]), endpoint=True)
        return int(top), int(left), *part

    def finish(
        self, epoch: int, index: int, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The batch augmented; processes draw differently."""
        number = index * self.shard[1] + self.shard[0]
        draw = self.draw_augmentation(epoch, number, len(images), images.shape[1:])
        return self.augmented(images, labels, draw)


class _GrainStream(_Stream):
    """Batches read ahead by grain; one that is not the next starts the reading anew there."""

    def open(self, builder: Any, split: str) -> "_GrainStream":
        import grain

        records = _Records(builder, split)
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


class _Records:
    """The images, decoded by Pillow, and labels of a split, by number."""

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        self._source = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        self._folder = builder.data_path
        self._mode = _MODES[builder.info.features["image"].shape[2]]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from PIL import Image

        try:
            record = self._source[int(number)]
            with Image.open(io.BytesIO(record["image"])) as file:
                return file.convert(self._mode), record["label"]
        except Exception as error:  # of damaged files readers and decoders raise many kinds
            raise DatasetCorruptError(
                f"The files in {self._folder} must be readable; prepare the dataset again. "
                f"Received: image {number}: {type(error).__name__}: {error}"
            ) from error


def _tf_dataset(source: _Stream, builder: Any, part: Any) -> Any:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    feature = builder.info.features["image"]
    decoders = {"image": tfds.decode.SkipDecoding()}

    def epochs():
        yield source.epoch

    @tf.autograph.experimental.do_not_convert
    def read(epoch):
        # The graph's seed, which would else be that of `tf.random.set_seed`.
        tf.compat.v1.set_random_seed(source.order_seed())
        config = tfds.ReadConfig(
            try_autocache=False,
            skip_prefetch=True,
            shuffle_seed=epoch,
            shuffle_reshuffle_each_iteration=False,
            interleave_cycle_length=16 if source.shuffle else 1,
            enable_ordering_guard=False,
        )
        records = builder.as_dataset(
            split=part, decoders=decoders, shuffle_files=source.shuffle, read_config=config
        ).map(lambda record: (record["image"], record["label"]))
        if source.shuffle:
            records = records.shuffle(_BUFFER, seed=epoch, reshuffle_each_iteration=False)
        return records.enumerate().map(lambda position, record: (epoch, position, *record))

    def box(epoch, position, shape):
        return np.array(source.box(int(epoch), int(position), *shape[:2].tolist()), "int32")

    def decode(epoch, position, encoded, label):
        image = feature.decode_example(encoded)
        if source.crop:
            corners = tf.numpy_function(box, [epoch, position, tf.shape(image)], tf.int32)
            image = tf.image.crop_to_bounding_box(image, *tf.unstack(corners, 4))
            image = tf.image.resize(image, source.image_shape[:2], "bicubic", antialias=True)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return epoch, tf.ensure_shape(image, source.image_shape), tf.cast(label, tf.int64)

    def finish(index, batch):
        epoch, images, labels = batch
        if source.augment is not None:
            images, labels = tf.numpy_function(
                source.finish,
                [epoch[0], index, images, labels],
                [spec.dtype for spec in specs],
            )
        return index, epoch[0], *map(tf.ensure_shape, (images, labels), [s.shape for s in specs])

    def move_on(epoch):
        source.epoch = int(epoch) + 1

    def hand_out(index, epoch, images, labels):
        with tf.control_dependencies(
            [
                tf.cond(
                    index == len(source) - 1,
                    lambda: tf.numpy_function(move_on, [epoch], []),
                    tf.no_op,
                )
            ]
        ):
            return tf.identity(images), tf.identity(labels)

    specs = batch_spec(source, source.image_shape, "uint8")
    records = tf.data.Dataset.from_generator(
        epochs, output_signature=tf.TensorSpec((), "int64")
    ).flat_map(read)
    images = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    batches = images.batch(source.batch_size, drop_remainder=source.drop_remainder)
    finished = batches.enumerate().map(finish, num_parallel_calls=2)
    return look_ahead(finished.map(hand_out), len(source))


def _prepared(name: str, data_dir: str | os.PathLike | None, backend: str) -> tuple[Any, str]:
    """The prepared dataset, read from its files alone, and the engine that reads them."""
    try:
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise ImportError(
            f"Streams need tensorflow-datasets: pip install tensorflow-datasets. Received: {error}"
        ) from error
    folder = None if data_dir is None else os.path.expanduser(data_dir)
    how = (
        f"tfds.builder({name!r}, data_dir=...).download_and_prepare(file_format=...), "
        "'tfrecord' for backend='tf' or 'array_record' for 'grain', in a folder of its own"
    )
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=folder)
        found = {kind.value for kind in builder.info.available_file_formats()}
    except Exception as error:  # of a name or a folder tfds raises many kinds
        raise DatasetUnavailableError(
            f"{name} must have been prepared by {how}. "
            f"Received: name={name!r}, data_dir={data_dir!r}: {error}"
        ) from error
    engines = [engine for engine, kind in _FORMATS.items() if kind in found]
    if backend == "auto":
        backend = engines[-1] if engines else "tf"
    if backend not in engines:
        raise DatasetUnavailableError(
            f"backend={backend!r} reads files of the format {_FORMATS[backend]}; prepare them by "
            f"{how}. Received: {', '.join(sorted(found))} in {builder.data_path}"
        )
    if builder.info.file_format.value != _FORMATS[backend]:
        builder.info.set_file_format(_FORMATS[backend], override=True, override_if_initialized=True)
    try:
        if backend == "tf":
            _import_tfds()  # TensorFlow, off the accelerator where it only reads
        else:
            import grain  # noqa: F401
    except ImportError as error:
        package = {"tf": "tensorflow", "grain": "'mf_zoo[stream]'"}[backend]
        raise ImportError(
            f"backend={backend!r} needs more: pip install {package}. Received: {error}"
        ) from error
    return builder, backend


def _image_and_label(builder: Any) -> tuple[Any, Any]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = (features.get(key) for key in ("image", "label"))
    if (
        not isinstance(image, tfds.features.Image)
        or not isinstance(label, tfds.features.ClassLabel)
        or image.np_dtype != np.uint8
        or len(image.shape) != 3
        or image.shape[2] not in _MODES
    ):
        raise ValueError(
            "The dataset must be one of image classification, with the features `image`, uint8 "
            f"(height, width, {' or '.join(map(str, _MODES))}), and `label`, a ClassLabel. "
            f"Received: {builder.data_path} with {features}"
        )
    return image, label


def _part(builder: Any, split: str, index: int, shards: int) -> tuple[Any, int]:
    """This process's part of a split for tensorflow-datasets, and the images of the whole."""
    import tensorflow_datasets as tfds

    try:
        total = builder.info.splits[split].num_examples
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(
            f"`split` must be one of {', '.join(builder.info.splits)}, or a slice of one such as "
            f"'train[:90%]'. Received: split={split!r}"
        ) from error
    if total < shards:
        raise ValueError(
            f"There must be an image for each process. Received: {total} images, "
            f"shard={(index, shards)}"
        )
    files = {file.basename() for file in builder.info.splits[split].file_instructions}
    missing = sorted(files - {path.name for path in builder.data_path.iterdir()})
    if missing:
        raise DatasetCorruptError(
            f"{builder.data_path} must hold all {len(files)} files of {split}; prepare the "
            f"dataset again. Received: {len(missing)} missing, the first {missing[0]}"
        )
    return tfds.even_splits(split, shards, drop_remainder=True)[index], total


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
