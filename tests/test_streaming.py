"""mf_zoo.data.stream: files of tensorflow-datasets, read by and by. Real CIFAR-10 images."""

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import ops
from passes import arrays_of, assert_equal_batches, pass_of
from PIL import Image, ImageOps
from tfds_folders import prepare

from mf_zoo import data
from mf_zoo.data.streaming.grain_reader import Records
from mf_zoo.data.streaming.source import Stream

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("grain")

FORMATS = {"tf": "tfrecord", "grain": "array_record"}
engines = pytest.mark.parametrize("engine", FORMATS)


@pytest.fixture(scope="module")
def real(cifar10_dir):
    return data.load("cifar10", "train", data_dir=cifar10_dir)


@pytest.fixture(scope="module")
def open_stream(cifar10_dir):
    """`stream` of 500 real images in three files, which are the same ones for both engines."""

    def make(engine, batch_size=64, split="train", **settings):
        settings.setdefault("data_dir", cifar10_dir / FORMATS[engine])
        return data.stream("cifar10", split, batch_size, backend=engine, **settings)

    return make


def epoch_of(source):
    """One pass, as `fit` makes it, as NumPy arrays."""
    return (pass_of if isinstance(source, data.EpochDataset) else arrays_of)(source)


def numbers_of(batches, real):
    """The official numbers of a pass's images, found by their pixels; their labels must fit."""
    number = {image.tobytes(): k for k, image in enumerate(real[0])}
    found = [number[image.tobytes()] for images, _ in batches for image in images]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), real[1][found])
    return found


@pytest.mark.once
@engines
def test_a_stream_is_the_images_and_labels_that_load_gives(open_stream, real, engine):
    source = open_stream(engine)
    batches = epoch_of(source)
    assert [len(x) for x, _ in batches] == [64] * 7 + [52]
    assert len(source) == 8
    assert {(x.dtype, y.dtype) for x, y in batches} == {(np.dtype("uint8"), np.dtype("int64"))}
    numbers = numbers_of(batches, real)
    assert sorted(numbers) == list(range(500))
    # Both engines keep the order of the files, which are written in the same order.
    other = "grain" if engine == "tf" else "tf"
    assert numbers_of(epoch_of(open_stream(other, 100)), real) == numbers
    sliced = open_stream(engine, 64, "train[10%:75%]", drop_remainder=True)
    assert numbers_of(epoch_of(sliced), real) == numbers[50 : 50 + 5 * 64]


@pytest.mark.once
@engines
@pytest.mark.parametrize("shards", [2, 3])
def test_processes_share_a_split(open_stream, real, engine, shards):
    epochs = [[], []]
    for index in range(shards):
        source = open_stream(engine, 32, shuffle=True, seed=1, shard=(index, shards))
        for epoch in epochs:
            batches = epoch_of(source)
            assert len(batches) == len(source)
            epoch.append(numbers_of(batches, real))
    for epoch in epochs:
        assert [len(part) for part in epoch] == [500 // shards] * shards
        together = set().union(*epoch)
        assert len(together) == 500 // shards * shards  # so no image comes twice
    # grain deals anew each epoch, tf.data keeps to the files of a process.
    assert (set(epochs[0][0]) == set(epochs[1][0])) == (engine == "tf")


@pytest.mark.once
@engines
def test_batches_follow_from_seed_and_epoch(open_stream, real, engine):
    settings = {"shuffle": True, "augment": data.Augmentation(padding=2), "image_size": 24}
    settings["crop"] = "random"
    # `tf.data` would otherwise mix the global seed in.
    keras.utils.set_random_seed(0)
    source = open_stream(engine, seed=3, **settings)
    epochs = [epoch_of(source) for _ in range(3)]
    keras.utils.set_random_seed(1)
    resumed = open_stream(engine, seed=3, initial_epoch=1, **settings)
    for expected in epochs[1:]:
        assert_equal_batches(epoch_of(resumed), expected)
    firsts = [epoch[0][0].tobytes() for epoch in epochs]
    firsts += [
        epoch_of(open_stream(engine, seed=4, initial_epoch=epoch, **settings))[0][0].tobytes()
        for epoch in range(2)
    ]
    assert len(set(firsts)) == 5
    # Every image once an epoch, in an order that has little to do with that of the files.
    plain = numbers_of(epoch_of(open_stream(engine)), real)
    order = numbers_of(epoch_of(open_stream(engine, shuffle=True)), real)
    assert sorted(order) == sorted(plain)
    assert abs(np.corrcoef([plain.index(k) for k in order], range(500))[0, 1]) < 0.3


@pytest.mark.once
@engines
def test_a_look_at_the_first_batch_ends_no_epoch(open_stream, engine):
    source = open_stream(engine, 100, shuffle=True)
    looked = next(iter(source))
    assert_equal_batches([[np.asarray(a) for a in looked]], epoch_of(source)[:1])


@pytest.mark.once
@engines
@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.3, "cutmix": 1.0}])
def test_images_are_augmented_as_those_in_memory(open_stream, engine, mixing):
    plain = epoch_of(open_stream(engine))
    images, labels = (np.concatenate(arrays) for arrays in zip(*plain, strict=True))
    augment = data.Augmentation(padding=4, flip=True, cutout=8, **mixing)
    settings = {"augment": augment, "seed": 5, "initial_epoch": 2}
    expected = data.Batches(images, labels, 64, num_classes=10, **settings)
    assert_equal_batches(epoch_of(open_stream(engine, **settings)), epoch_of(expected))


@pytest.mark.once
def test_processes_augment_differently(real):
    images, labels = real[0][:32], real[1][:32]
    results = set()
    for index in range(3):
        source = Stream(
            64,
            32,
            augment=data.Augmentation(),
            image_shape=(32, 32, 3),
            crop=None,
            shard=(index, 3),
        )
        results |= {source.finish(0, k, images, labels)[0].tobytes() for k in range(2)}
    assert len(results) == 6


@pytest.mark.once
@engines
def test_the_middle_of_an_image_is_scaled(open_stream, engine):
    images = np.concatenate([x for x, _ in epoch_of(open_stream(engine))])
    for size, expected in {
        32: images,
        (16, 32): images[:, 8:24],
        (32, 8): images[:, :, 12:20],
    }.items():
        got = np.concatenate([x for x, _ in epoch_of(open_stream(engine, image_size=size))])
        np.testing.assert_array_equal(got, expected)
    # Halved with antialiasing: close to means of 2 x 2 pixels.
    (halved, _), *_ = epoch_of(open_stream(engine, image_size=16))
    means = images[:64].reshape(64, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - means).mean() < 4


@pytest.mark.once
def test_the_engines_crop_alike(open_stream):
    def first(engine, seed):
        settings = {"image_size": 32, "crop": "random", "seed": seed, "initial_epoch": 1}
        return epoch_of(open_stream(engine, **settings))[0][0].astype(float)

    expected = first("tf", 0)
    assert np.abs(first("grain", 0) - expected).mean() < 2
    assert np.abs(first("grain", 1) - expected).mean() > 20


@pytest.mark.once
def test_random_crops_are_what_they_are_said_to_be():
    source = Stream(4000, 100, image_shape=(224, 224, 3), crop="random", shard=(0, 1), seed=0)
    boxes = np.array([source.box(0, position, 1200, 1000) for position in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height).max() <= 1200 and (left + width).max() <= 1000
    area, ratio = height * width / 1.2e6, width / height
    inside = (height < 1200) & (width < 1000)
    assert 0.079 < area.min() < 0.09 and area.max() <= 1
    assert ratio[inside].min() >= 0.74 and ratio[inside].max() <= 1.35
    # Uniform area up to where the borders cut, and a place that is uniform where it fits.
    assert np.mean(area < 0.31) == pytest.approx(0.25, abs=0.02)
    assert np.mean(top[inside] / (1200 - height[inside])) == pytest.approx(0.5, abs=0.02)
    assert len({tuple(box) for box in boxes.tolist()}) > 3900


class Miscounted(keras.metrics.Metric):
    """How many images an epoch had too often or too seldom; images are told by their sums."""

    def __init__(self, sums):
        super().__init__(name="miscounted")
        self.sums = ops.convert_to_tensor(sums, "float32")
        self.counts = self.add_weight(shape=(len(sums),), initializer="zeros", name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        same = ops.equal(ops.reshape(y_pred, (-1, 1)), self.sums[None])
        self.counts.assign_add(ops.sum(ops.cast(same, "float32"), axis=0))

    def result(self):
        return ops.sum(ops.abs(self.counts - 1))


@engines
def test_fit_sees_each_image_once_an_epoch(open_stream, real, engine):
    sums = real[0].reshape(500, -1).sum(axis=1)
    chosen = np.unique(sums, return_counts=True)
    assert (chosen[1] == 1).all()
    # The sum of an image's pixels, which float32 holds exactly in every order of summation.
    layers = [
        keras.layers.Input((32, 32, 3), dtype="uint8"),
        keras.layers.Rescaling(1.0),
        keras.layers.Flatten(),
        keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.0), loss="mae", metrics=[Miscounted(sums)])
    train = open_stream(engine, 100, shuffle=True, augment=data.Augmentation(0, True))
    history = model.fit(
        train, epochs=2, verbose=0, validation_data=open_stream(engine, 300), shuffle=False
    ).history
    assert history["miscounted"] == history["val_miscounted"] == [0, 0]
    # A second fit goes on where the first one ended.
    resumed = open_stream(
        engine, 100, shuffle=True, augment=data.Augmentation(0, True), initial_epoch=2
    )
    assert_equal_batches(epoch_of(train), epoch_of(resumed))


@pytest.mark.once
@engines
def test_files_are_read_as_they_are_needed(open_stream, cifar10_dir, real, tmp_path, engine):
    folder = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(cifar10_dir / FORMATS[engine] / "cifar10" / "3.0.2", folder)
    last = next(folder.glob("cifar10-train.*-00002-of-00003"))
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    sizes = json.loads((folder / "dataset_info.json").read_text())["splits"]
    first, second, third = map(int, next(s["shardLengths"] for s in sizes if s["name"] == "train"))
    source = open_stream(engine, 4, data_dir=tmp_path)
    batches = iter(source)
    read = [[np.asarray(a) for a in next(batches)] for _ in range((first + second) // 4 - 20)]
    assert len(numbers_of(read, real)) > 200  # the damaged file is not needed yet
    own = open_stream(engine, 50, data_dir=tmp_path, shard=(0, 3))
    assert len(numbers_of(epoch_of(own), real)) == 166 <= 500 - third
    if engine == "tf":
        from tensorflow.errors import DataLossError as Damaged
    else:
        Damaged = data.DatasetCorruptError
    with pytest.raises(Damaged):
        list(batches)
    last.unlink()
    with pytest.raises(data.DatasetCorruptError, match=r"all 3 files.*Received: 1 missing.*00002"):
        open_stream(engine, data_dir=tmp_path)


@pytest.mark.once
def test_only_batches_in_work_are_read(open_stream, monkeypatch):
    numbers = []
    read = Records.__getitem__
    monkeypatch.setattr(
        Records,
        "__getitem__",
        lambda self, number: numbers.append(number) or read(self, number),
    )
    source = open_stream("grain", 5, shuffle=True)
    assert numbers == []
    iterator = iter(source)
    for _ in range(10):
        next(iterator)
    assert 50 <= len(numbers) <= 50 + 5 * 17  # and those read ahead, 16 at most


@pytest.mark.once
def test_grain_reads_without_tensorflow(cifar10_dir, real):
    code = """
        import sys
        from importlib.machinery import PathFinder

        find = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *rest: (
            None if name.split(".")[0] == "tensorflow" else find(name, *rest)
        )
        from mf_zoo import data

        train = data.stream("cifar10", "train", 100, data_dir=sys.argv[1], shuffle=True)
        images, labels = train[4]
        print(int(images.sum()), labels.tolist(), "tensorflow" in sys.modules)
    """
    folder = cifar10_dir / "array_record"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), folder],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    images, labels = data.stream("cifar10", "train", 100, data_dir=folder, shuffle=True)[4]
    assert done.stdout.strip() == f"{int(images.sum())} {labels.tolist()} False"


@pytest.mark.once
def test_the_files_choose_the_engine(cifar10_dir):
    for engine, folder in FORMATS.items():
        source = data.stream("cifar10", "test", data_dir=cifar10_dir / folder)
        assert isinstance(source, data.EpochDataset) == (engine == "grain")
        other = "grain" if engine == "tf" else "tf"
        with pytest.raises(
            data.DatasetUnavailableError,
            match=rf"{FORMATS[other]}.*file_format=.*Received: {folder}",
        ):
            data.stream("cifar10", "test", data_dir=cifar10_dir / folder, backend=other)


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"name": "imagenet2012"}, data.DatasetUnavailableError, "download_and_prepare"),
        ({"name": "cifar10:1.0.0"}, data.DatasetUnavailableError, "download_and_prepare"),
        ({"data_dir": "nowhere"}, data.DatasetUnavailableError, "download_and_prepare"),
        ({"split": "validation"}, ValueError, "`split` must be one of .*train"),
        ({"split": "train[:0%]"}, ValueError, "an image for each process"),
        ({"split": "train[:2]", "shard": (0, 3)}, ValueError, "an image for each process"),
        ({"shard": (2, 2)}, ValueError, "`shard` must be"),
        ({"shard": (-1, 2)}, ValueError, "`shard` must be"),
        ({"shard": (0.5, 2)}, ValueError, "`shard` must be"),
        ({"shard": 1}, ValueError, "`shard` must be"),
        ({"image_size": 0}, ValueError, "`image_size` must be"),
        ({"image_size": (32, 32, 3)}, ValueError, "`image_size` must be"),
        ({"image_size": "224"}, ValueError, "`image_size` must be"),
        ({"crop": "random"}, ValueError, "`crop` must be"),
        ({"crop": "pad", "image_size": 32}, ValueError, "`crop` must be"),
        ({"backend": "torch"}, ValueError, "`backend` must be"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be"),
        ({"seed": -1}, ValueError, "`seed` must be"),
        ({"augment": "flip"}, ValueError, "`augment` must be"),
        ({"batch_size": 501, "drop_remainder": True}, ValueError, "at least one batch"),
    ],
)
def test_wrong_stream_arguments(cifar10_dir, change, kind, message):
    arguments = {"name": "cifar10", "split": "train", "data_dir": cifar10_dir / "array_record"}
    with pytest.raises(kind, match=rf"(?s){message}.*Received: "):
        data.stream(**{**arguments, **change})


def kinds(features):
    return {"image": features.Image(), "label": features.ClassLabel(num_classes=10)}


@pytest.mark.once
def test_pictures_of_any_size_and_kind(real, tmp_path):
    examples = []
    for number, (size, mode, suffix) in enumerate(
        [((40, 64), "RGB", "JPEG"), ((96, 50), "L", "JPEG"), ((80, 80), "P", "PNG")]
    ):
        file = io.BytesIO()
        picture = Image.fromarray(real[0][number]).resize(size).convert(mode)
        picture.save(file, suffix, **({"quality": 95} if suffix == "JPEG" else {}))
        examples.append({"image": file, "label": number})
    for engine, file_format in FORMATS.items():
        for example in examples:
            example["image"].seek(0)
        prepare(tmp_path / engine, kinds, examples, file_format)
        with pytest.raises(ValueError, match=r"`image_size` must be given for pictures.*Received"):
            data.stream("pictures", "train", data_dir=tmp_path / engine)
        source = data.stream("pictures", "train", 3, data_dir=tmp_path / engine, image_size=24)
        ((images, labels),) = epoch_of(source)
        assert sorted(labels) == [0, 1, 2]
        for image, label in zip(images, labels, strict=True):
            examples[label]["image"].seek(0)
            picture = Image.open(examples[label]["image"]).convert("RGB")
            expected = ImageOps.fit(picture, (24, 24), Image.Resampling.BICUBIC)
            assert np.abs(image.astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.once
@pytest.mark.parametrize(
    ("dtype", "label"),
    [(np.uint8, None), (np.uint8, "Scalar"), (np.uint16, "ClassLabel")],
    ids=["no label", "no classes", "16 bits"],
)
def test_datasets_of_other_kinds(real, tmp_path, dtype, label):
    def features(tfds):
        settings = {"Scalar": {"dtype": np.int64}, "ClassLabel": {"num_classes": 10}}
        labels = {"label": getattr(tfds, label)(**settings[label])} if label else {}
        return {"image": tfds.Image(dtype=dtype), **labels}

    example = {"image": real[0][0].astype(dtype), **({"label": 1} if label else {})}
    prepare(tmp_path, features, [example])
    with pytest.raises(ValueError, match=r"image classification, with.*Received: .*'image'"):
        data.stream("pictures", "train", data_dir=tmp_path, image_size=32)


@pytest.mark.once
@pytest.mark.parametrize(
    ("package", "engine", "install"),
    [
        ("grain", "grain", r"'mf_zoo\[stream\]'"),
        ("tensorflow", "tf", "tensorflow"),
        ("tensorflow_datasets", "tf", "tensorflow-datasets"),
    ],
)
def test_a_missing_package_is_named(cifar10_dir, monkeypatch, package, engine, install):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install {install}\. Received: "):
        data.stream("cifar10", "train", data_dir=cifar10_dir / FORMATS[engine])
