"""Datasets as records: the registry, a user's own datasets, images of other shapes and sizes."""

import dataclasses
import io
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from passes import pass_of
from PIL import Image, ImageOps
from tfds_folders import prepare

from mf_zoo import data
from mf_zoo.data import datasets, statistics

pytestmark = pytest.mark.once

FLOWERS = {
    "name": "flowers",
    "title": "Flowers",
    "class_names": ("daisy", "poppy", "rose"),
    "image_shape": (12, 10, 3),
    "images": {"train": 9, "test": 3},
    "mean": (1.0, 2.0, 3.0),
    "std": (4.0, 5.0, 6.0),
    "source": "nowhere",
}


@pytest.fixture(autouse=True)
def registry():
    """The registry, which is as before after each test."""
    known = datasets._registry()
    before = dict(known)
    yield known
    known.clear()
    known.update(before)


def flowers(**changes):
    return data.register(data.Dataset(**{**FLOWERS, **changes}))


# --- records and their registry --------------------------------------------------------------


def test_records_need_neither_numpy_nor_keras():
    code = """
        import sys
        from mf_zoo import data

        print(data.names()[:2], data.get("cifar100").classes, data.class_names("cifar10")[3])
        print({"numpy", "keras", "PIL"} & set(sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["['cifar10', 'cifar100'] 100 cat", "set()"]


@pytest.mark.parametrize("name", data.names())
def test_a_record_of_the_package_agrees_with_itself(name):
    record = data.get(name)
    assert record.name == name and record.title and record.source
    assert data.class_names(name) == list(record.class_names)
    # Of values in 0..255 no mean is further from their middle, and no deviation larger.
    assert all(0 < mean < 255 for mean in record.mean)
    assert all(0 < std < 128 for std in record.std)
    assert (record.sample_sha256 is None) or data.sample(name)[0].shape[1:] == record.image_shape
    assert hash(record) == hash(dataclasses.replace(record))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.title = "another"


def test_a_name_is_given_once():
    record = flowers()
    assert data.get("flowers") is record and data.names()[-1] == "flowers"
    assert data.register(dataclasses.replace(record)) == record  # the same again, as on a reload
    with pytest.raises(ValueError, match=r"no other has.*Received: name='flowers'"):
        flowers(title="Other flowers")
    with pytest.raises(ValueError, match="Received: name='cifar10'"):
        flowers(name="cifar10")
    changed = data.Dataset(**{**FLOWERS, "title": "Other flowers"})
    assert data.register(changed, overwrite=True) is data.get("flowers") is changed
    assert data.names().count("flowers") == 1
    with pytest.raises(ValueError, match=r"must be an mf_zoo\.data\.Dataset.*Received: {'name'"):
        data.register(FLOWERS)
    with pytest.raises(ValueError, match=r"cifar10, cifar100, .*flowers\. Received: name='mnist'"):
        data.get("mnist")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Flowers 102"},
        {"class_names": ()},
        {"class_names": ("daisy", "daisy", "rose")},
        {"class_names": "daisy"},
        {"image_shape": (12, 10)},
        {"image_shape": (12, 0, 3)},
        {"images": {"train": 9}},
        {"images": {"train": 9, "test": 0}},
        {"mean": (1.0,)},
        {"std": (1.0, 2.0, 0.0)},
        {"superclasses": ("a", "b")},
        {"class_folders": ("a", "b")},
        {"kind": "csv"},
        {"splits": {"validation": "val"}},
    ],
    ids=str,
)
def test_a_record_that_cannot_be(changes):
    (field,) = changes
    with pytest.raises(ValueError, match=rf"`{field}` of a dataset must be.*Received: "):
        data.Dataset(**{**FLOWERS, **changes})


# --- a user's own package --------------------------------------------------------------------

PACKAGE = """
from mf_zoo import data

pets = data.register(
    data.Dataset(
        name="our_pets",
        title="Our pets",
        class_names=("cat", "dog"),
        superclasses=("feline", "canine"),
        image_shape=(20, 24, 3),
        images={"train": 12, "test": 2},
        mean=(120.0, 110.0, 100.0),
        std=(60.0, 60.0, 60.0),
        source="ours",
        kind="folder",
        splits={"test": "val"},
    )
)
digits = data.register(
    data.Dataset(
        name="our_digits",
        title="Our digits",
        class_names=tuple("0123456789"),
        image_shape=(8, 8, 1),
        images={"train": 30, "test": 10},
        mean=(0,),
        std=(1,),
        source="ours",
    )
)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module outside the package that registers two datasets, and the folder of their data."""
    (tmp_path / "our_datasets.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "our_datasets", raising=False)
    import our_datasets

    root = tmp_path / "data"
    images, _ = data.sample("cifar10")
    for split, count in (("train", 6), ("val", 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / "our_pets" / split / name
            (folder / "deep").mkdir(parents=True)
            for k in range(count):
                pixels = Image.fromarray(images[10 * label + k + (split == "val") * 20])
                size = (24, 20) if k == 0 else (40 + 10 * k, 60)
                place = folder if k % 2 else folder / "deep"
                pixels.resize(size).save(place / f"{k}.{'png' if k < 3 else 'jpg'}")
    (root / "our_pets" / "train" / ".cache").mkdir()
    made = np.random.default_rng(0)
    np.savez(
        root / "our_digits.npz",
        train_image=made.integers(0, 256, (30, 8, 8, 1), "uint8"),
        train_label=np.arange(30) % 10,
        test_image=made.integers(0, 256, (10, 8, 8, 1), "uint8"),
        test_label=np.arange(10),
    )
    return our_datasets, root


def test_a_folder_of_images(package):
    _, root = package
    assert data.class_names("our_pets") == ["cat", "dog"]
    assert data.superclasses("our_pets") == ["feline", "canine"]
    images, labels = data.load("our_pets", "train", data_dir=root)
    assert images.shape == (12, 20, 24, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [6, 6]
    # Each is the file as `read_image` reads it, under the label of its folder.
    expected = {
        data.read_image(file, (20, 24)).tobytes(): label
        for label, name in enumerate(("cat", "dog"))
        for file in data.image_files([root / "our_pets" / "train" / name])
    }
    found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert len(expected) == 12 and found == expected
    # The order mixes the classes, so that the last images are not of the last class alone.
    assert set(labels[:6]) == set(labels[-6:]) == {0, 1}
    # It follows from the names: another copy of the folder has the same, and slices keep it.
    (root / "copy").mkdir()
    (root / "our_pets").rename(root / "copy" / "our_pets")
    part, _ = data.load("our_pets", "train[25%:]", data_dir=root / "copy")
    np.testing.assert_array_equal(part, images[3:])
    assert data.load("our_pets", "test", data_dir=str(root / "copy"))[1].shape == (2,)


def test_a_stream_of_a_folder_of_images(package):
    pytest.importorskip("grain")
    _, root = package
    images, labels = data.load("our_pets", "train", data_dir=root)
    source = data.stream("our_pets", "train", 5, data_dir=root)
    batches = pass_of(source)
    assert [len(x) for x, _ in batches] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), labels)
    streamed = np.concatenate([x for x, _ in batches])
    assert streamed.shape == images.shape and streamed.dtype == np.uint8
    assert np.abs(streamed.astype(int) - images).mean() < 3
    (other, _), *_ = pass_of(data.stream("our_pets", "test", 2, data_dir=root, image_size=16))
    assert other.shape == (2, 16, 16, 3)
    shards = [data.stream("our_pets", "train[:8]", 4, data_dir=root, shard=(i, 2)) for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([pass_of(s)[0][1] for s in shards]), labels[:8])
    with pytest.raises(ValueError, match=r"image files\. Received: backend='tf'"):
        data.stream("our_pets", "train", data_dir=root, backend="tf")
    (root / "our_pets" / "val" / "cat" / "deep" / "0.png").write_text("no image")
    with pytest.raises(data.DatasetCorruptError, match=r"Pillow can read.*0\.png"):
        pass_of(data.stream("our_pets", "test", 2, data_dir=root))
    with pytest.raises(data.ImageFileError, match=r"Pillow can read.*0\.png"):
        data.load("our_pets", "test", data_dir=root)


def test_a_folder_that_is_not_as_the_record_says(package):
    _, root = package
    folder = root / "our_pets" / "train"
    (folder / "horse").mkdir()
    with pytest.raises(data.DatasetCorruptError, match=r"2 classes.*unknown \['horse'\]"):
        data.load("our_pets", "train", data_dir=root)
    (folder / "horse").rmdir()
    (folder / "dog").rename(folder / ".dog")
    with pytest.raises(data.DatasetCorruptError, match=r"missing \['dog'\]"):
        data.load("our_pets", "train", data_dir=root)
    for place in (root / "elsewhere", None):
        with pytest.raises(data.DatasetUnavailableError, match=r"our_pets.*Received: "):
            data.load("our_pets", "train", data_dir=place)
    for name in ("cat", "dog"):
        (root / "bare" / "our_pets" / "train" / name).mkdir(parents=True)
    with pytest.raises(data.DatasetCorruptError, match=r"must hold image files\. Received: none"):
        data.load("our_pets", "train", data_dir=root / "bare")


def test_an_npz_of_another_shape(package):
    ours, root = package
    images, labels = data.load("our_digits", "train[-10:]", data_dir=root)
    assert images.shape == (10, 8, 8, 1) and labels.tolist() == list(range(10))
    ours.data.register(dataclasses.replace(ours.digits, image_shape=(9, 8, 1)), overwrite=True)
    with pytest.raises(
        data.DatasetCorruptError,
        match=r"\(N, 9, 8, 1\) and.*Received: images uint8 \(10, 8, 8, 1\)",
    ):
        data.load("our_digits", "test", data_dir=root)
    few = dataclasses.replace(ours.digits, class_names=tuple("012345678"))
    data.register(few, overwrite=True)
    with pytest.raises(data.DatasetCorruptError, match=r"from 0 to 8\. Received: .* 0 to 9"):
        data.load("our_digits", "test", data_dir=root)


def test_a_dataset_without_a_sample(package):
    with pytest.raises(ValueError, match=r"one of cifar10, cifar100\. Received: name='our_digits'"):
        data.sample("our_digits")


# --- mean and standard deviation -------------------------------------------------------------


def test_mean_and_deviation_by_hand(package, capsys, monkeypatch, tmp_path):
    _, root = package
    with np.load(root / "our_digits.npz") as arrays:
        pixels = arrays["train_image"].ravel().tolist()
    mean = sum(pixels) / len(pixels)
    std = math.sqrt(sum((pixel - mean) ** 2 for pixel in pixels) / len(pixels))
    found = statistics.mean_and_std("our_digits", root)
    assert found == (pytest.approx([mean], rel=1e-12), pytest.approx([std], rel=1e-12))
    # Each channel by itself, of the training images alone.
    flowers(image_shape=(1, 2, 3))
    image = np.array([[[[0, 10, 7], [4, 30, 7]]], [[[0, 10, 7], [4, 30, 8]]]], "uint8")
    other = np.full_like(image, 200)
    np.savez(
        root / "flowers.npz",
        train_image=image,
        train_label=[0, 1],
        test_image=other,
        test_label=[0, 1],
    )
    mean, std = statistics.mean_and_std("flowers", root)
    assert mean == (2, 20, 7.25) and std == pytest.approx((2, 10, math.sqrt(3) / 4), rel=1e-12)
    # In chunks as at once.
    monkeypatch.setattr(sys.modules["mf_zoo.data.loading"], "_IMAGES", 5)
    by_fives = statistics.mean_and_std("our_pets", root)
    images, _ = data.load("our_pets", "train", data_dir=root)
    np.testing.assert_allclose(by_fives, (images.mean((0, 1, 2)), images.std((0, 1, 2))))
    # The command, which imports the module that registers the dataset, prints what a record holds.
    command = [sys.executable, "-m", "mf_zoo.data.statistics", "our_digits", "--data-dir", root]
    done = subprocess.run(
        [*command, "--import", "our_datasets"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"mean=({found[0][0]:.3f},)\nstd=({found[1][0]:.3f},)\n"
    assert statistics.main(["our_flowers"]) == 2
    assert capsys.readouterr().err.endswith("Received: name='our_flowers'\n")


def test_statistics_of_cifar_are_those_of_its_images(cifar10_dir, cifar100_dir):
    """Of the first 500 training images, so only roughly."""
    for name, folder in (("cifar10", cifar10_dir), ("cifar100", cifar100_dir)):
        record = data.get(name)
        mean, std = statistics.mean_and_std(name, folder)
        np.testing.assert_allclose(mean, record.mean, atol=5)
        np.testing.assert_allclose(std, record.std, atol=3)


# --- tensorflow-datasets of other shapes and names -------------------------------------------


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_pictures_of_any_size_under_other_names(tmp_path, file_format):
    """As Imagenette: JPEG files of all sizes, no `id`, a split named otherwise."""
    pytest.importorskip("tensorflow_datasets")
    images, _ = data.sample("cifar10")
    splits = {}
    for split, first in (("train", 0), ("validation", 40)):
        splits[split] = []
        for k in range(9):
            file = io.BytesIO()
            picture = Image.fromarray(images[first + k]).resize((40 + 3 * k, 64 - 2 * k))
            picture.save(file, "PNG")
            file.seek(0)
            splits[split].append({"picture": file, "kind": k % 3, "extra": "x" * k})
    expected = {
        split: {
            ImageOps.fit(
                Image.open(example["picture"]), (10, 12), Image.Resampling.BICUBIC
            ).tobytes(): example["kind"]
            for example in examples
        }
        for split, examples in splits.items()
    }
    for examples in splits.values():
        for example in examples:
            example["picture"].seek(0)

    def kinds(features):
        label = features.ClassLabel(num_classes=3)
        return {"picture": features.Image(), "kind": label, "extra": features.Text()}

    prepare(tmp_path, kinds, splits["train"], file_format, validation=splits["validation"])
    record = flowers(
        tfds_name="pictures",
        splits={"test": "validation"},
        image_feature="picture",
        label_feature="kind",
    )
    for split, stored in (("train", "train"), ("test", "validation")):
        images, labels = data.load("flowers", split, data_dir=tmp_path, download=False)
        assert images.shape == (9, 12, 10, 3)
        found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        assert found == expected[stored]
        # A stream has the size of the record and the order of the files, as `load` has.
        source = data.stream("flowers", split, 9, data_dir=tmp_path)
        batches = source if file_format == "tfrecord" else pass_of(source)
        ((streamed, others),) = [(np.asarray(x), np.asarray(y)) for x, y in batches]
        np.testing.assert_array_equal(others, labels)
        assert np.abs(streamed.astype(int) - images).mean() < 4
    assert len(data.stream("flowers", "test[:50%]", 2, data_dir=tmp_path)) == 2
    assert len(data.load("flowers", "test[:50%]", data_dir=tmp_path, download=False)[0]) == 4
    # What the record says must be there.
    wrong = {"class_names": ("a", "b"), "image_shape": (12, 10, 1)}
    for field, value in wrong.items():
        figures = {"mean": (1.0,), "std": (1.0,)} if field == "image_shape" else {}
        changed = dataclasses.replace(record, **{field: value}, **figures)
        data.register(changed, overwrite=True)
        with pytest.raises(data.DatasetCorruptError, match=r"must hold images of.*Received: 3 ch"):
            data.stream("flowers", "train", data_dir=tmp_path)
    data.register(dataclasses.replace(record, order_feature="id"), overwrite=True)
    with pytest.raises(data.DatasetCorruptError, match=r"(?s)Received: .*id"):
        data.load("flowers", "train", data_dir=tmp_path, download=False)
    data.register(dataclasses.replace(record, label_feature="label"), overwrite=True)
    with pytest.raises(ValueError, match=r"image classification, with.*`label`.*Received: "):
        data.load("flowers", "train", data_dir=tmp_path, download=False)


# --- images that were scaled by mistake ------------------------------------------------------


def test_images_in_0_to_1_get_a_warning(recwarn):
    images, labels = data.sample("cifar10")
    scaled = images.astype("float32") / 255
    for wrong in (scaled, 2 * scaled - 1):
        with pytest.warns(UserWarning, match=r"in 0\.\.255.*Received: float32 .* to 1$"):
            data.batches(wrong, labels, 50)
        with pytest.warns(UserWarning, match="Received: float32"):
            data.Batches(wrong, labels, 50)
    recwarn.clear()
    dark = images.astype("float32")
    dark[:100] /= 255  # the first images alone
    black = np.zeros((4, 8, 8, 3), "float32")
    for right in (images, images.astype("float32"), dark, black, images // 255):
        data.check_range(right)
    assert not recwarn.list
