"""mf_zoo.data: loading, augmentation, batches, the sample. Real CIFAR-10 images throughout."""

import hashlib
import importlib
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from passes import arrays_of, assert_equal_batches, pass_of

from mf_zoo import data
from mf_zoo.data.loading import parse_split, resolve_slice
from mf_zoo.data.make_sample import choose

# What everyone's copy of CIFAR-10 begins with.
FIRST_LABELS = {"train": [6, 9, 9, 4, 1, 1, 2, 7, 8, 3], "test": [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]}
SAMPLE = importlib.import_module("mf_zoo.data.shipped")


@pytest.fixture(scope="module")
def images():
    return data.sample("cifar10")[0]


@pytest.fixture(scope="module")
def labels():
    return data.sample("cifar10")[1]


@pytest.fixture
def tfds_dir(cifar10_dir, tmp_path):
    """The prepared folder without the npz beside it, which would be read first."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "cifar10").symlink_to(cifar10_dir / "cifar10")
    return tmp_path


# --- load ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_load_npz_gives_the_official_images_in_the_official_order(cifar10_dir, split):
    images, labels = data.load("cifar10", split, data_dir=cifar10_dir)
    assert images.dtype == np.uint8
    assert images.shape == (500, 32, 32, 3)
    assert labels.dtype == np.int64
    assert labels[:10].tolist() == FIRST_LABELS[split]
    # The first pixel of the first image, as every copy of the data shows it.
    assert images[0, 0, 0].tolist() == {"train": [59, 62, 63], "test": [158, 112, 49]}[split]


@pytest.mark.parametrize("split", ["train", "test", "test[-10%:]", "train[100:350]"])
def test_load_tfds_equals_npz(cifar10_dir, tfds_dir, split):
    expected_images, expected_labels = data.load("cifar10", split, data_dir=cifar10_dir)
    images, labels = data.load("cifar10", split, data_dir=str(tfds_dir), download=False)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert labels.dtype == np.int64


def test_damaged_tfds_files_are_reported(tfds_dir, cifar10_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    for source in (cifar10_dir / "cifar10" / "3.0.2").iterdir():
        content = source.read_bytes()
        (folder / source.name).write_bytes(
            content[: len(content) // 2] if "test.tfrecord" in source.name else content
        )
    with pytest.raises(data.DatasetCorruptError, match=r"prepare it again.*Received: "):
        data.load("cifar10", "test", data_dir=folder.parent.parent, download=False)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:450]", range(450)),
        ("train[450:]", range(450, 500)),
        ("train[10:20]", range(10, 20)),
        ("train[:]", range(500)),
        ("train[-50:]", range(450, 500)),
        ("train[:-50]", range(450)),
        ("train[:90%]", range(450)),
        ("train[90%:]", range(450, 500)),
        ("train[-10%:]", range(450, 500)),
        ("train[25%:75%]", range(125, 375)),
        ("train[20%:110]", range(100, 110)),
    ],
)
def test_slices(cifar10_dir, split, expected):
    everything = data.load("cifar10", "train", data_dir=cifar10_dir)
    part = data.load("cifar10", split, data_dir=cifar10_dir)
    for array, whole in zip(part, everything, strict=True):
        np.testing.assert_array_equal(array, whole[list(expected)])


@given(
    count=st.integers(1, 60_000),
    start=st.none() | st.integers(-70_000, 70_000),
    stop=st.none() | st.integers(-70_000, 70_000),
)
@settings(max_examples=300, deadline=None)
def test_a_slice_is_pythons_or_refused(count, start, stop):
    text = f"test[{'' if start is None else start}:{'' if stop is None else stop}]"
    base, *bounds = parse_split(text)
    assert base == "test"
    selected = range(count)[start:stop]
    inside = all(bound is None or -count <= bound <= count for bound in (start, stop))
    if inside and selected:
        window = resolve_slice(text, *bounds, count)
        assert range(count)[window] == selected
    else:
        with pytest.raises(ValueError, match=r"Received: split="):
            resolve_slice(text, *bounds, count)


@given(count=st.integers(2, 60_000), percent=st.integers(1, 99))
@settings(max_examples=200, deadline=None)
def test_a_percentage_cuts_in_two(count, percent):
    cut = round(percent * count / 100)
    if not 0 < cut < count:
        return
    first = resolve_slice("", *parse_split(f"train[:{percent}%]")[1:], count)
    second = resolve_slice("", *parse_split(f"train[{percent}%:]")[1:], count)
    assert (first.start, first.stop, second.start, second.stop) == (0, cut, cut, count)
    assert abs(cut - percent * count / 100) <= 0.5


@pytest.mark.parametrize(
    "split",
    ["validation", "", "train[", "train[5]", "train[1:2:3]", "train[a:]", "train+test", None, 3],
)
def test_wrong_split_lists_the_right_ones(tmp_path, split):
    with pytest.raises(ValueError, match=r"one of train, test.*Received: split="):
        data.load("cifar10", split, data_dir=tmp_path, download=False)


@pytest.mark.parametrize("split", ["train[:501]", "train[500:]", "train[300:200]", "train[:200%]"])
def test_slices_beyond_the_split_are_refused(cifar10_dir, split):
    with pytest.raises(ValueError, match=r"of 500\. Received: split="):
        data.load("cifar10", split, data_dir=cifar10_dir)


def test_wrong_name_lists_the_right_ones(tmp_path):
    with pytest.raises(ValueError, match=r"cifar10, cifar100.*Received: name='cifar11'"):
        data.load("cifar11", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"cifar10, cifar100.*Received: name='mnist'"):
        data.class_names("mnist")


def assert_names_both_ways_out(error):
    message = str(error.value)
    assert "download=True" in message
    assert "data_dir" in message
    assert "cifar10.npz" in message
    assert "Received: name='cifar10', data_dir=" in message
    assert isinstance(error.value, FileNotFoundError)


def test_no_data_and_no_download_names_both_ways_out(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(data.DatasetUnavailableError, match="download=False") as error:
        data.load("cifar10", "train", data_dir=tmp_path, download=False)
    assert_names_both_ways_out(error)


def test_no_data_and_no_network_names_both_ways_out(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(data.DatasetUnavailableError, match="does not answer") as error:
        data.load("cifar10", "train", data_dir=tmp_path)
    assert_names_both_ways_out(error)


def test_a_failing_download_names_both_ways_out(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(self):
        raise ConnectionError("the server went away")

    monkeypatch.setattr(sys.modules["mf_zoo.data.loading"], "_answers", lambda server: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(data.DatasetUnavailableError, match="the server went away") as error:
        data.load("cifar10", "train", data_dir=tmp_path)
    assert_names_both_ways_out(error)


def write_npz(folder, **changes):
    images = np.zeros((4, 32, 32, 3), "uint8")
    labels = np.arange(4, dtype="uint8")
    arrays = {"test_image": images, "test_label": labels, **changes}
    np.savez(folder / "cifar10.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder / "cifar10.npz"


@pytest.mark.parametrize(
    "changes",
    [
        {"test_label": None},
        {"test_image": None},
        {"test_image": np.zeros((4, 3, 32, 32), "uint8")},
        {"test_image": np.zeros((4, 32, 32, 3), "float32")},
        {"test_image": np.zeros((5, 32, 32, 3), "uint8")},
        {"test_label": np.zeros((4, 1), "uint8")},
        {"test_label": np.zeros(4, "float32")},
        {"test_label": np.array([0, 1, 2, 10])},
        {"test_label": np.array([0, 1, 2, -1])},
        {"test_label": np.array([0, 1, 2, None], dtype=object)},  # would have to be unpickled
    ],
)
def test_wrong_npz_is_refused(tmp_path, changes):
    path = write_npz(tmp_path, **changes)
    with pytest.raises(data.DatasetCorruptError, match=r"Received: ") as error:
        data.load("cifar10", "test", data_dir=tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_truncated_npz_is_refused(tmp_path, fraction):
    path = write_npz(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(data.DatasetCorruptError, match=r"uncorrupted .npz file.*Received: "):
        data.load("cifar10", "test", data_dir=tmp_path)


def test_npz_with_a_flipped_bit_is_refused(tmp_path):
    path = write_npz(tmp_path)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1  # a pixel
    path.write_bytes(content)
    with pytest.raises(data.DatasetCorruptError, match=r"CRC"):
        data.load("cifar10", "test", data_dir=tmp_path)


def test_class_names(cifar10_raw):
    for name in ("cifar10", "cifar100"):
        with np.load(cifar10_raw / name / "labels.npz") as arrays:
            official = [label.decode() for label in arrays["label_names"]]
        assert data.class_names(name) == official


def test_superclasses_are_those_of_the_official_labels(cifar10_raw):
    with np.load(cifar10_raw / "cifar100" / "labels.npz") as arrays:
        official = [label.decode() for label in arrays["coarse_label_names"]]
        for split in ("train", "test"):
            fine, coarse = arrays[f"{split}_label"], arrays[f"{split}_coarse_label"]
            found = np.array(data.superclasses("cifar100"))[fine]
            np.testing.assert_array_equal(found, np.array(official)[coarse])
    assert data.superclasses("cifar10") is None
    with pytest.raises(ValueError, match=r"Received: name='mnist'"):
        data.superclasses("mnist")


WITHOUT_TENSORFLOW = """
import sys

for name in ["tensorflow_datasets", "matplotlib", "keras_tuner", *sys.argv[1].split()]:
    sys.modules[name] = None  # as if it were not installed

import numpy as np
from mf_zoo import data

images = np.zeros((6, 32, 32, 3), "uint8")
np.savez(sys.argv[2] + "/cifar10.npz", train_image=images, train_label=np.arange(6))
images, labels = data.load("cifar10", "train[:5]", data_dir=sys.argv[2])
assert labels.tolist() == [0, 1, 2, 3, 4]
batches = data.batches(
    *data.sample("cifar10"), 50, shuffle=True, augment=data.Augmentation(), backend="pydataset"
)
assert [len(y) for x, y in batches] == [50] * 4
try:
    data.load("cifar100", "train", data_dir=sys.argv[2])
except data.DatasetUnavailableError as error:
    assert "tensorflow-datasets is not installed" in str(error), error
    assert "cifar100.npz" in str(error), error
else:
    raise AssertionError("no error")
print("fine")
"""


def test_works_without_tensorflow_and_tensorflow_datasets(tmp_path):
    block = "" if keras.backend.backend() == "tensorflow" else "tensorflow"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, block, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
    )
    assert done.stdout == "fine\n", done.stderr


# --- augmentation ----------------------------------------------------------------------------


def augment_by_hand(image, draw, i, padding, cutout):
    """One image, pixel by pixel, straight from the definition."""
    height, width = image.shape[:2]
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row, source_column = row, column
            if "flip" in draw and draw["flip"][i]:  # of the cropped image
                source_column = width - 1 - column
            if "top" in draw:
                source_row += draw["top"][i] - padding
                source_column += draw["left"][i] - padding
            if 0 <= source_row < height and 0 <= source_column < width:
                out[row, column] = image[source_row, source_column]
    if cutout:
        top, left = draw["cut_row"][i] - cutout // 2, draw["cut_column"][i] - cutout // 2
        out[max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = 0
    return out


@pytest.mark.parametrize("on", ["host", "device"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("padding", "flip", "cutout"),
    [(4, True, 0), (4, False, 0), (0, True, 0), (4, True, 8), (0, False, 7), (1, True, 50)],
)
def test_augmentation_equals_the_definition(images, on, dtype, padding, flip, cutout):
    augment = data.Augmentation(padding=padding, flip=flip, cutout=cutout)
    batch = images[:24, :20].astype(dtype)  # not square, so that swapped axes show
    draw = augment.draw(np.random.default_rng(3), len(batch), batch.shape[1:])
    expected = [augment_by_hand(x, draw, i, padding, cutout) for i, x in enumerate(batch)]
    given_images = batch if on == "host" else ops.convert_to_tensor(batch)
    result = augment.transform_images(given_images, draw)
    assert isinstance(result, np.ndarray) == (on == "host")
    result = ops.convert_to_numpy(result)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.stack(expected))
    # The batch it was given is as it was.
    np.testing.assert_array_equal(batch, images[:24, :20].astype(dtype))


def test_augmentation_by_hand_on_three_pixels():
    image = np.arange(1, 10, dtype="uint8").reshape(1, 3, 3, 1)
    augment = data.Augmentation(padding=1, flip=True)

    def result(top, left, flip):
        draw = {"top": np.array([top]), "left": np.array([left]), "flip": np.array([flip])}
        return augment.transform_images(image, draw)[0, :, :, 0].tolist()

    assert result(1, 1, False) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert result(0, 0, False) == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert result(2, 1, True) == [[6, 5, 4], [9, 8, 7], [0, 0, 0]]


@given(
    padding=st.integers(0, 5),
    cutout=st.integers(0, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_draws_stay_in_bounds_and_invent_no_pixel(padding, cutout, height, width, seed):
    augment = data.Augmentation(padding=padding, cutout=cutout)
    draw = augment.draw(np.random.default_rng(seed), 11, (height, width, 1))
    for key, bound in (
        ("top", 2 * padding + 1),
        ("left", 2 * padding + 1),
        ("cut_row", height),
        ("cut_column", width),
    ):
        if key in draw:
            assert draw[key].shape == (11,)
            assert draw[key].min() >= 0
            assert draw[key].max() < bound
    numbered = np.arange(1, 11 * height * width + 1).reshape(11, height, width, 1)
    result = augment.transform_images(numbered, draw)
    assert result.shape == numbered.shape
    for before, after in zip(numbered, result, strict=True):
        kept = after[after > 0]
        assert set(kept) <= set(before.ravel())  # no pixel of another image
        assert len(set(kept)) == len(kept)  # and none twice


def _mirrored(batches, epoch):
    """Which images of a dataset are mirrored in an epoch, by their number."""
    draws = [batches.draw(epoch, index) for index in range(len(batches))]
    order = np.concatenate([draw["index"] for draw in draws])
    return np.concatenate([draw["flip"] for draw in draws])[np.argsort(order)]


@pytest.mark.once
@pytest.mark.parametrize("divisible_by", [1, 7])
def test_flips_alternate_from_epoch_to_epoch(divisible_by):
    images, labels = data.sample("cifar10")
    options = {"shuffle": True, "seed": 5, "divisible_by": divisible_by}
    alternating = data.Augmentation(padding=4, flip=True, alternating_flip=True)
    batches = data.Batches(images, labels, 56, augment=alternating, **options)
    if divisible_by == 1:
        first, second, third = (_mirrored(batches, epoch) for epoch in range(3))
        assert 70 < first.sum() < 130
        np.testing.assert_array_equal(second, ~first)
        np.testing.assert_array_equal(third, first)
        other = data.Batches(images, labels, 56, augment=alternating, **{**options, "seed": 6})
        assert 60 < (_mirrored(other, 0) != first).sum() < 140
    # The pixels are those of the draw, and all but the flips is as without.
    draw = batches.draw(1, 2)
    shown, _ = batches.batch(1, 2)
    np.testing.assert_array_equal(shown, alternating.transform_images(images[draw["index"]], draw))
    plain = data.Batches(images, labels, 56, augment=data.Augmentation(padding=4), **options)
    for key, values in plain.draw(1, 2).items():
        if key != "flip":
            np.testing.assert_array_equal(values, draw[key])


@pytest.mark.once
def test_without_flips_none_alternate():
    images, labels = data.sample("cifar10")
    still = data.Augmentation(padding=0, flip=False, alternating_flip=True)
    assert not still.get_config()["alternating_flip"]
    batches = data.Batches(images, labels, 50, augment=still)
    np.testing.assert_array_equal(batches.batch(0, 0)[0], images[:50])
    np.testing.assert_array_equal(batches.batch(1, 0)[0], images[:50])


@pytest.mark.once
def test_flips_cannot_alternate_where_images_have_no_number():
    augment = data.Augmentation(alternating_flip=True)
    assert data.Augmentation.from_config(augment.get_config()).alternating_flip
    images, _ = data.sample("cifar10")
    with pytest.raises(ValueError, match="Received: a call of the layer"):
        augment(images[:2], training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(augment(images[:2])), images[:2])

    class Unnumbered(data.EpochDataset):
        pass

    with pytest.raises(ValueError, match=r"from epoch to epoch.*Received: Unnumbered"):
        Unnumbered(10, 5, augment=augment)


def test_draws_cover_all_crops_and_both_flips_evenly():
    draw = data.Augmentation(padding=2).draw(np.random.default_rng(0), 20_000, (32, 32, 3))
    for key in ("top", "left"):
        share = np.bincount(draw[key], minlength=5) / 20_000
        np.testing.assert_allclose(share, 0.2, atol=0.015)
    assert abs(draw["flip"].mean() - 0.5) < 0.015
    # Per image, not per batch: crop and flip are independent of each other.
    assert abs(np.corrcoef(draw["top"], draw["left"])[0, 1]) < 0.03
    assert abs(np.corrcoef(draw["top"], draw["flip"])[0, 1]) < 0.03


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_layer_augments_each_image_by_itself_in_training_only(images, dtype):
    padding = 2
    batch = np.repeat(images[:2].astype(dtype), 40, axis=0)
    layer = data.Augmentation(padding=padding, flip=True, seed=1)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(batch)), batch)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(batch, training=False)), batch)
    result = ops.convert_to_numpy(layer(batch, training=True))
    assert result.dtype == dtype
    found = set()
    for before, after in zip(batch, result, strict=True):
        padded = np.pad(before, ((padding, padding), (padding, padding), (0, 0)))
        matches = [
            (top, left, flip)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flip in (False, True)
            if np.array_equal(
                padded[top : top + 32, left : left + 32][:, :: -1 if flip else 1], after
            )
        ]
        assert len(matches) == 1
        found.add(matches[0])
    # 80 draws of 50: about 40 different ones; with one for the batch it would be 1.
    assert len(found) > 30
    assert {flip for *_, flip in found} == {False, True}
    again = data.Augmentation(padding=padding, flip=True, seed=1)
    np.testing.assert_array_equal(ops.convert_to_numpy(again(batch, training=True)), result)
    assert not np.array_equal(ops.convert_to_numpy(layer(batch, training=True)), result)


def test_the_layer_cuts_inside_model_fit_but_not_in_evaluate(images):
    # A square larger than twice the image leaves nothing of it: the training loss is that of a
    # black image, in the compiled graph too.
    model = keras.Sequential(
        [
            keras.layers.Input((32, 32, 3), dtype="uint8"),
            data.Augmentation(padding=4, cutout=64, seed=0),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    targets = np.zeros((200, 1), "float32")
    history = model.fit(images, targets, batch_size=64, epochs=1, verbose=0)
    assert history.history["loss"] == [0.0]
    brightness = (images / 255).mean(axis=(1, 2)).sum(axis=1)
    loss = model.evaluate(images, targets, batch_size=64, verbose=0)
    assert loss == pytest.approx(np.mean(brightness**2), rel=1e-5)


def test_mixed_precision_does_not_round_pixels(images):
    layer = data.Augmentation(padding=0, flip=False, dtype="mixed_bfloat16")
    pixels = images[:2].astype("float32")
    result = layer(pixels, training=True)
    assert ops.dtype(result) == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(result), pixels)


def test_augmentation_survives_saving(tmp_path, images):
    layer = data.Augmentation(padding=3, flip=False, cutout=5, mixup=0.2, cutmix=0.5, seed=7)
    model = keras.Sequential([keras.layers.Input((32, 32, 3)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    config = loaded.get_config()
    assert {k: config[k] for k in ("padding", "flip", "cutout", "mixup", "cutmix", "seed")} == {
        "padding": 3,
        "flip": False,
        "cutout": 5,
        "mixup": 0.2,
        "cutmix": 0.5,
        "seed": 7,
    }
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded(images[:8], training=True)),
        ops.convert_to_numpy(data.Augmentation.from_config(config)(images[:8], training=True)),
    )


@pytest.mark.once
def test_a_saved_augmentation_loads_where_the_package_is_imported(tmp_path):
    file = tmp_path / "model.keras"
    keras.Sequential([keras.layers.Input((8, 8, 3)), data.Augmentation(padding=3)]).save(file)
    code = """
        import sys
        import keras
        import mf_zoo.data

        print(keras.saving.load_model(sys.argv[1]).layers[0].padding)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), file], capture_output=True, text=True
    )
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [{"padding": -1}, {"padding": 1.5}, {"cutout": -2}, {"mixup": -0.1}, {"cutmix": -0.1}],
)
def test_wrong_augmentation_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: "):
        data.Augmentation(**arguments)


@pytest.mark.parametrize("on", ["host", "device"])
def test_mixup_mixes_images_and_labels_alike(images, labels, on):
    augment = data.Augmentation(mixup=0.4)
    one_hot = np.eye(10, dtype="float32")[labels[:6]]
    draw = {"partner": np.array([3, 0, 5, 1, 2, 4]), "weight": np.float32(0.75)}
    arguments = (images[:6], one_hot)
    if on == "device":
        arguments = [ops.convert_to_tensor(array) for array in arguments]
    mixed, soft = (ops.convert_to_numpy(array) for array in augment.mix(*arguments, draw))
    for i, partner in enumerate([3, 0, 5, 1, 2, 4]):
        pixels = 0.75 * images[i].astype("float64") + 0.25 * images[partner]
        np.testing.assert_allclose(mixed[i], pixels, rtol=1e-6)
        expected = np.zeros(10)
        expected[labels[i]] += 0.75
        expected[labels[partner]] += 0.25
        np.testing.assert_allclose(soft[i], expected, rtol=1e-6)
    assert mixed.dtype == np.float32


def test_mixup_draws_partners_once_each_and_a_beta_weight():
    augment = data.Augmentation(mixup=0.4)
    draws = [augment.draw(np.random.default_rng(seed), 16, (32, 32)) for seed in range(2000)]
    assert all(sorted(draw["partner"]) == list(range(16)) for draw in draws)
    weights = np.array([draw["weight"] for draw in draws])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / (4 * 1.8), rel=0.06)


@pytest.mark.parametrize("on", ["host", "device"])
def test_cutmix_by_hand_on_twelve_pixels(on):
    images = np.arange(1, 25, dtype="uint8").reshape(2, 3, 4, 1)
    arguments = (images, np.eye(2, dtype="float32"))
    if on == "device":
        arguments = [ops.convert_to_tensor(array) for array in arguments]

    def result(box, weight):
        draw = {"partner": np.array([1, 0]), "weight": np.float32(weight)}
        draw["box"] = np.array(box, "int32")
        mixed = data.Augmentation(cutmix=1.0).mix(*arguments, draw)
        assert isinstance(mixed[0], np.ndarray) == (on == "host")
        mixed, soft = map(ops.convert_to_numpy, mixed)
        assert mixed.dtype == soft.dtype == np.float32
        return mixed[..., 0].tolist(), soft.tolist()

    # Rows 1 and 2 of columns 0 and 1 from the other image; 8 of 12 pixels are one's own.
    mixed, soft = result([1, 3, 0, 2], 2 / 3)
    assert mixed[0] == [[1, 2, 3, 4], [17, 18, 7, 8], [21, 22, 11, 12]]
    assert mixed[1] == [[13, 14, 15, 16], [5, 6, 19, 20], [9, 10, 23, 24]]
    np.testing.assert_allclose(soft, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6)
    # All of the other image; and an empty box, which is mixup.
    assert result([0, 3, 0, 4], 0.0) == (images[::-1, ..., 0].tolist(), [[0, 1], [1, 0]])
    mixed, soft = result([0, 0, 0, 0], 0.75)
    assert mixed[0][0] == [4, 5, 6, 7] and soft == [[0.75, 0.25], [0.25, 0.75]]


class Told:
    """A generator whose draws are given: weight, box centre and coin."""

    def __init__(self, weight, centre=None, coin=None):
        self.weight, self.centre, self.coin = weight, centre, coin
        self.alphas = []

    def permutation(self, count):
        return np.arange(count)

    def beta(self, *alphas):
        self.alphas += alphas
        return self.weight

    def integers(self, low, high):
        assert low == 0 and tuple(high) == (8, 6)
        return np.array(self.centre)

    def random(self):
        return self.coin


@pytest.mark.parametrize(
    ("weight", "centre", "box", "own"),
    [
        # A quarter of 8 x 6 pixels: sides of 4 and 3, of which 2 and 1 on each side of the centre.
        (0.75, (4, 3), [2, 6, 2, 4], 40),
        (0.75, (1, 5), [0, 3, 4, 6], 42),  # clipped
        (0.0, (0, 0), [0, 4, 0, 3], 36),
        (1.0, (7, 2), [7, 7, 2, 2], 48),  # nothing
    ],
)
def test_a_box_by_hand(weight, centre, box, own):
    augment = data.Augmentation(padding=0, flip=False, cutmix=0.5)
    told = Told(weight, centre)
    draw = augment.draw(told, 4, (8, 6, 3))
    assert told.alphas == [0.5, 0.5]
    assert draw["box"].tolist() == box and draw["weight"] == np.float32(own / 48)
    # With both, a coin decides.
    both = data.Augmentation(padding=0, flip=False, mixup=0.2, cutmix=0.5)
    told = Told(weight, centre, coin=0.49)
    assert both.draw(told, 4, (8, 6, 3))["box"].tolist() == box and told.alphas == [0.5, 0.5]
    told = Told(weight, coin=0.5)
    draw = both.draw(told, 4, (8, 6, 3))
    assert draw["box"].tolist() == [0, 0, 0, 0] and draw["weight"] == np.float32(weight)
    assert told.alphas == [0.2, 0.2]


def test_the_weight_of_cutmix_is_the_share_of_own_pixels():
    images = np.zeros((2, 16, 12, 3), "float32")
    images[1] = 1
    both = data.Augmentation(padding=0, flip=False, mixup=0.3, cutmix=1.0)
    empty = 0
    for seed in range(400):
        draw = both.draw(np.random.default_rng(seed), 2, images.shape[1:])
        assert {key: (value.shape, value.dtype) for key, value in draw.items()} == {
            "partner": ((2,), "int32"),
            "box": ((4,), "int32"),
            "weight": ((), "float32"),
        }
        mixed, soft = both.mix(images, np.eye(2, dtype="float32"), {**draw, "partner": [1, 0]})
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), soft[:, 1], atol=1e-6)
        empty += not np.isin(mixed, (0, 1)).all()
    assert 160 < empty < 240


# --- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "sizes"), [(False, [64, 64, 64, 8]), (True, [64, 64, 64])], ids=["keep", "drop"]
)
def test_plain_batches_are_the_arrays_in_order(images, labels, drop, sizes):
    batches = data.batches(images, labels, 64, drop_remainder=drop, backend="pydataset")
    result = arrays_of(batches)
    assert [len(x) for x, _ in result] == sizes
    assert len(batches) == len(sizes)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in result]), images[: sum(sizes)])
    np.testing.assert_array_equal(np.concatenate([y for _, y in result]), labels[: sum(sizes)])
    assert result[0][0].dtype == np.uint8
    assert result[0][1].dtype == np.int64


def test_each_epoch_is_another_permutation_of_all_images(labels):
    numbered = np.arange(200).reshape(200, 1, 1, 1)
    source = data.batches(numbered, labels, 64, shuffle=True, seed=5, backend="pydataset")
    orders = []
    for _ in range(3):
        batches = pass_of(source)
        order = np.concatenate([x.ravel() for x, _ in batches])
        assert sorted(order) == list(range(200))
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), labels[order])
        orders.append(tuple(order))
    other_seed = data.batches(numbered, labels, 64, shuffle=True, seed=6, backend="pydataset")
    orders.append(tuple(np.concatenate([x.ravel() for x, _ in other_seed])))
    assert len(set(orders)) == 4


def test_every_epoch_and_batch_is_augmented_anew(images, labels):
    same = np.repeat(images[:1], 200, axis=0)
    source = data.Batches(same, labels, 100, augment=data.Augmentation(), seed=0)
    results = [source.batch(epoch, index)[0] for epoch in range(2) for index in range(2)]
    distinct = {result.tobytes() for result in results}
    assert len(distinct) == 4
    # Even without a shuffle, and whatever was asked for before.
    np.testing.assert_array_equal(source.batch(0, 1)[0], results[1])


# The first digits of the sha256 of a batch's bytes: no release may change what a seed gives.
GOLDEN = {
    (0, 0): "4799baf7d1d3",
    (0, 1): "e8c912ecec3d",
    (3, 1): "0540c2ea488c",
}


@pytest.mark.parametrize("epoch, index", GOLDEN)
def test_a_seed_gives_the_same_batch_everywhere(images, labels, epoch, index):
    augment = data.Augmentation(padding=4, flip=True, cutout=8)
    source = data.Batches(images, labels, 64, shuffle=True, augment=augment, seed=0)
    batch_images, batch_labels = source.batch(epoch, index)
    digest = hashlib.sha256(batch_images.tobytes() + batch_labels.astype("<i8").tobytes())
    assert digest.hexdigest()[:12] == GOLDEN[epoch, index]

    # And what it gives is the definition: a permutation of the epoch, a draw of the batch.
    def generator(*stream):
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([0, epoch, *stream])))

    chosen = generator(0).permutation(200)[64 * index : 64 * (index + 1)]
    draw = augment.draw(generator(1, index), 64, (32, 32, 3))
    expected = [augment_by_hand(images[k], draw, i, 4, 8) for i, k in enumerate(chosen)]
    np.testing.assert_array_equal(batch_images, np.stack(expected))
    np.testing.assert_array_equal(batch_labels, labels[chosen])


# The same of the draws with mixup, in the order of their names.
@pytest.mark.once
@pytest.mark.parametrize(
    ("epoch", "index", "golden"), [(0, 0, "e11137702100"), (3, 1, "ee9647083675")]
)
def test_a_seed_gives_the_same_mixup_everywhere(images, labels, epoch, index, golden):
    augment = data.Augmentation(mixup=0.3, cutout=8)
    source = data.Batches(images, labels, 64, shuffle=True, augment=augment, seed=0, num_classes=10)
    draw = source.draw(epoch, index)
    digest = hashlib.sha256(b"".join(draw[key].tobytes() for key in sorted(draw)))
    assert digest.hexdigest()[:12] == golden


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.3, "cutmix": 1.0}])
@pytest.mark.parametrize(("batch_size", "drop"), [(32, False), (64, True), (200, False)])
def test_tf_data_gives_the_batches_of_the_pydataset(images, labels, mixing, batch_size, drop):
    pytest.importorskip("tensorflow")

    def make(backend):
        return data.batches(
            images,
            labels,
            batch_size,
            shuffle=True,
            augment=data.Augmentation(**mixing),
            seed=11,
            drop_remainder=drop,
            num_classes=10,
            initial_epoch=2,
            backend=backend,
        )

    dataset, source = make("tf"), make("pydataset")
    assert int(dataset.cardinality()) == len(source)
    for _ in range(3):
        expected = pass_of(source)
        assert_equal_batches(arrays_of(dataset), expected)
        assert expected[0][0].dtype == ("float32" if mixing else "uint8")
        assert expected[0][1].shape == ((batch_size, 10) if mixing else (batch_size,))
    assert source.epoch == 5


def test_a_look_at_the_first_batch_of_tf_data_ends_no_epoch(images, labels):
    pytest.importorskip("tensorflow")
    dataset = data.batches(images, labels, 25, shuffle=True, backend="tf")
    looked = next(iter(dataset))
    assert_equal_batches([[np.asarray(a) for a in looked]], arrays_of(dataset)[:1])


@pytest.mark.parametrize("batch_size", [10, 100])
def test_tf_data_is_not_tuned(images, labels, batch_size):
    """The end of a pass would wait for the thread that tunes (docs/performance.md)."""
    pytest.importorskip("tensorflow")
    dataset = data.batches(images, labels, batch_size, backend="tf")
    assert dataset.options().autotune.enabled is False


def test_auto_is_tf_data_on_tensorflow_only(images, labels):
    kind = type(data.batches(images, labels, 50)).__module__
    expected = "tensorflow" if keras.backend.backend() == "tensorflow" else "mf_zoo"
    assert kind.split(".")[0] == expected


class Losses(keras.callbacks.Callback):
    """The running mean of the loss after each batch, by epoch: it tells what `fit` was fed."""

    def __init__(self):
        super().__init__()
        self.epochs = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs[epoch] = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[epoch].append(logs["loss"])

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[self.params_epoch].append(float(logs["loss"]))

    @property
    def params_epoch(self):
        return max(self.epochs)


def untrained_model():
    """Predicts an image's brightness (sum over channels of their means) and never learns."""
    model = keras.Sequential(
        [
            keras.layers.Input((32, 32, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mae")
    return model


def expected_losses(source, epoch):
    """What `Losses` must hold for an epoch, worked out with NumPy."""
    total = count = 0
    running = []
    for index in range(len(source)):
        images, labels = source.batch(epoch, index)
        brightness = (images / 255).mean(axis=(1, 2)).sum(axis=1)
        total += np.abs(brightness - labels).sum()
        count += len(labels)
        running.append(total / count)
    return running


@pytest.mark.parametrize("kind", ["pydataset", "tf"])
@pytest.mark.parametrize("batch_size", [25, 100])
def test_fit_sees_every_epoch_once_and_a_resumed_fit_the_same(images, labels, kind, batch_size):
    if kind == "tf":
        pytest.importorskip("tensorflow")
    arguments = {"shuffle": True, "augment": data.Augmentation(), "seed": 4}

    def make(initial_epoch=0):
        return data.batches(
            images, labels, batch_size, **arguments, backend=kind, initial_epoch=initial_epoch
        )

    reference = data.Batches(images, labels, batch_size, **arguments)
    expected = {epoch: expected_losses(reference, epoch) for epoch in range(4)}
    assert len({values[0] for values in expected.values()}) == 4
    validation = data.batches(images, labels, 50, backend=kind)

    def check(losses, epochs):
        assert list(losses.epochs) == list(epochs)
        for epoch in epochs:
            *steps, whole = losses.epochs[epoch]
            np.testing.assert_allclose(steps, expected[epoch], rtol=1e-4)
            np.testing.assert_allclose(whole, expected[epoch][-1], rtol=1e-4)

    model, dataset, losses = untrained_model(), make(), Losses()
    fit = {"verbose": 0, "validation_data": validation}
    model.fit(dataset, epochs=3, callbacks=[losses], **fit)
    check(losses, range(3))
    # A second fit goes on where the first one ended.
    losses = Losses()
    model.fit(dataset, initial_epoch=3, epochs=4, callbacks=[losses], **fit)
    check(losses, [3])
    # A new process that resumes at epoch 2.
    losses = Losses()
    untrained_model().fit(make(2), initial_epoch=2, epochs=4, callbacks=[losses], **fit)
    check(losses, [2, 3])


def test_mixup_trains(images, labels):
    dataset = data.batches(
        images, labels, 50, shuffle=True, augment=data.Augmentation(mixup=0.2), num_classes=10
    )
    model = keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, kernel_initializer="zeros"),
        ]
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=loss)
    history = model.fit(dataset, epochs=1, verbose=0)
    # Labels sum to one, so a uniform prediction costs ln 10 whatever the mixture.
    assert history.history["loss"][0] == pytest.approx(np.log(10), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"seed": None}, "`seed` must be"),
        ({"initial_epoch": -1}, "`initial_epoch` must be"),
        ({"backend": "torch"}, "`backend` must be 'auto', 'tf' or 'pydataset'"),
        ({"augment": "flip"}, "`augment` must be"),
        ({"augment": data.Augmentation(mixup=0.2)}, "`num_classes` must be given"),
        ({"augment": data.Augmentation(mixup=0.2), "num_classes": 9}, "`num_classes` must be"),
        ({"augment": data.Augmentation(cutmix=1.0)}, "`num_classes` must be given"),
        ({"batch_size": 201, "drop_remainder": True}, "at least one batch"),
        ({"labels": np.zeros(199, int)}, "`labels` integers"),
        ({"labels": np.zeros((200, 10))}, "`labels` integers"),
        ({"images": np.zeros((200, 32, 32))}, "`images` must be"),
    ],
)
def test_wrong_batches_arguments(images, labels, change, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received: "):
        data.batches(**{"images": images, "labels": labels, **change})


def test_an_index_beyond_the_last_batch(images, labels):
    source = data.Batches(images, labels, 100)
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"2 batches.*Received: index={index}"):
            source[index]


# --- sample ----------------------------------------------------------------------------------


def test_the_sample_is_the_first_20_test_images_of_each_class(cifar10_dir, images, labels):
    test = data.load("cifar10", "test", data_dir=cifar10_dir)
    expected_images, expected_labels = choose(*test, 20)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert np.bincount(labels).tolist() == [20] * 10
    assert labels[:10].tolist() == FIRST_LABELS["test"]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_the_sample_of_cifar100_is_two_test_images_of_each_class(cifar100_dir):
    images, labels = data.sample("cifar100")
    assert np.bincount(labels).tolist() == [2] * 100
    assert (images.shape, images.dtype, labels.dtype) == ((200, 32, 32, 3), np.uint8, np.int64)
    # The first two of a class among the first 500 test images are so among all of them.
    test_images, test_labels = choose(*data.load("cifar100", "test", data_dir=cifar100_dir), 2)
    assert len(test_labels) > 150
    np.testing.assert_array_equal(images[: len(test_labels)], test_images)
    np.testing.assert_array_equal(labels[: len(test_labels)], test_labels)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_sample_is_small_and_checked(monkeypatch, tmp_path, name):
    original = SAMPLE.__file__.removesuffix("shipped.py") + f"samples/{name}.npz"
    with open(original, "rb") as file:
        content = bytearray(file.read())
    assert len(content) < 600_000
    content[1000] ^= 1
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / f"{name}.npz").write_bytes(content)
    monkeypatch.setattr(SAMPLE, "__file__", str(tmp_path / "shipped.py"))
    with pytest.raises(ValueError, match=r"must have the sha256 .*Received: "):
        data.sample(name)


def test_a_sample_that_is_not_there():
    with pytest.raises(ValueError, match=r"one of cifar10, cifar100\. Received: name='mnist'"):
        data.sample("mnist")
