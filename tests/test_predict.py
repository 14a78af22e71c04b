"""From image files to the names of classes."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from mf_zoo import applications, data
from mf_zoo.cli import main


def _save(tmp_path, name, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(tmp_path / name, **options)
    return tmp_path / name


# --- decode_predictions ----------------------------------------------------------------------


def test_decoding_by_hand():
    scores = np.zeros((2, 10), "float32")
    scores[0, [3, 5, 1]] = 0.5, 0.25, 0.25
    scores[1, 9] = 1
    decoded = applications.decode_predictions(keras.ops.convert_to_tensor(scores), top=3)
    assert decoded[0] == [(3, "cat", 0.5), (1, "automobile", 0.25), (5, "dog", 0.25)]
    assert decoded[1] == [(9, "truck", 1.0), (0, "airplane", 0.0), (1, "automobile", 0.0)]


@pytest.mark.once
def test_decoding_100_classes():
    scores = np.eye(100, dtype="float32")
    names = [row[0][1] for row in applications.decode_predictions(scores, top=1)]
    # The first, some in the middle and the last of the official list.
    assert [names[i] for i in (0, 1, 42, 53, 99)] == [
        *("apple", "aquarium_fish", "leopard", "orange", "worm")
    ]
    assert len(set(names)) == 100 and names == sorted(names)


@pytest.mark.once
@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (np.zeros((2, 7)), {}, r"\(batch, 10 or 100\)\. Received: \(2, 7\)"),
        (np.zeros(10), {}, r"Received: \(10,\)"),
        (np.zeros((2, 10)), {"dataset": "cifar100"}, r"\(batch, 100\)\. Received: \(2, 10\)"),
        (np.zeros((2, 10)), {"top": 11}, "from 1 to 10. Received: top=11"),
        (np.zeros((2, 10)), {"dataset": "mnist"}, "Received: name='mnist'"),
    ],
)
def test_what_cannot_be_decoded(scores, arguments, message):
    with pytest.raises(ValueError, match=message):
        applications.decode_predictions(scores, **arguments)


# --- Image files -----------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_an_image_of_the_right_size_stays_as_it_is(tmp_path, resize):
    pixels = data.sample("cifar10")[0][7]
    file = _save(tmp_path, "a.png", pixels)
    np.testing.assert_array_equal(data.read_image(file, resize=resize), pixels)


@pytest.mark.once
def test_proportions(tmp_path):
    # Red, green and blue thirds, side by side: 96 x 32.
    pixels = np.zeros((32, 96, 3), "uint8")
    for third in range(3):
        pixels[:, 32 * third : 32 * third + 32, third] = 200
    file = _save(tmp_path, "a.png", pixels)
    crop, pad, stretch = (
        data.read_image(file, resize=resize) for resize in ("crop", "pad", "stretch")
    )
    np.testing.assert_array_equal(crop, pixels[:, 32:64])
    assert (pad[:10] == 0).all() and (pad[-10:] == 0).all()
    np.testing.assert_array_equal(pad[16, [2, 16, 29]], 200 * np.eye(3))
    np.testing.assert_array_equal(stretch[[0, 31]][:, [2, 16, 29]], [200 * np.eye(3)] * 2)


@pytest.mark.once
def test_a_large_image_is_averaged_not_sampled(tmp_path):
    pixels = np.zeros((256, 256, 3), "uint8")
    pixels[::2] = 255  # lines that a filter without antialiasing would keep or lose
    got = data.read_image(_save(tmp_path, "a.png", pixels))
    assert np.abs(got.astype(int) - 127).max() <= 8


@pytest.mark.once
def test_kinds_of_images(tmp_path):
    pixels = data.sample("cifar10")[0][0]
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    greys = np.repeat(grey[..., None], 3, -1)

    def read(name, image, **options):
        return data.read_image(_save(tmp_path, name, image, **options)).astype(int)

    np.testing.assert_array_equal(read("grey.png", grey), greys)
    np.testing.assert_array_equal(read("16.png", grey.astype("uint16") * 257), greys)
    np.testing.assert_array_equal(read("a.webp", pixels, lossless=True), pixels)
    np.testing.assert_array_equal(read("a.bmp", pixels), pixels)
    palette = Image.fromarray(pixels).quantize(16)
    np.testing.assert_array_equal(read("a.gif", palette), np.asarray(palette.convert("RGB")))
    cmyk = read("cmyk.tiff", Image.fromarray(pixels).convert("CMYK"))
    assert np.abs(cmyk - pixels).max() <= 2
    # Transparent parts are white, half transparent ones half so.
    alpha = np.full((32, 32), 255, "uint8")
    alpha[:8], alpha[8:16] = 0, 128
    got = read("alpha.png", np.dstack([pixels, alpha]))
    assert (got[:8] == 255).all()
    np.testing.assert_allclose(got[8:16], (pixels[8:16].astype(int) + 255) / 2, atol=2)
    np.testing.assert_array_equal(got[16:], pixels[16:])
    # A camera held on its side: orientation 6 is undone by a quarter turn clockwise.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read("turned.png", pixels, exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.once
def test_files_that_are_no_images(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    whole = _save(tmp_path, "whole.png", data.sample("cifar10")[0][0])
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:200])
    for name in ("text.png", "cut.png", "absent.png"):
        with pytest.raises(data.ImageFileError, match=rf"{name} must be an image.*Received: "):
            data.read_image(tmp_path / name)
    with pytest.raises(ValueError, match="Received: resize='fit'"):
        data.read_image(whole, resize="fit")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(data.ImageFileError, match="decompression bomb"):
        data.read_image(whole)


@pytest.mark.once
def test_folders_are_searched(tmp_path):
    pixels = data.sample("cifar10")[0][0]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "empty").mkdir()
    b = _save(tmp_path, "b.PNG", pixels)
    a = _save(tmp_path / "deep" / "er", "a.jpg", pixels)
    assert data.image_files([tmp_path]) == [b, a]
    assert data.image_files([a, tmp_path]) == [a, b, a]
    with pytest.raises(data.ImageFileError, match=r"must hold image files\. Received: .*empty"):
        data.image_files([tmp_path / "empty"])
    with pytest.raises(data.ImageFileError, match=r"must exist\. Received: .*absent"):
        data.image_files([tmp_path / "absent"])


# --- mf-zoo predict --------------------------------------------------------------------------


def test_predict_says_what_the_model_says(tmp_path, capsys):
    images, _ = data.sample("cifar10")
    for number in range(5):
        _save(tmp_path, f"{number}.png", images[number])
    (tmp_path / "3.png").write_text("no image")
    code = main(
        ["predict", "MFResNet20", str(tmp_path), "--top", "3", "--json", "--batch-size", "2"]
    )
    output = capsys.readouterr()
    assert code == 2 and output.err.count("mf-zoo: error:") == 1 and "3.png" in output.err
    found = json.loads(output.out)
    assert [row["image"] for row in found] == [str(tmp_path / f"{i}.png") for i in (0, 1, 2, 4)]
    model = applications.MFResNet20(weights="cifar10")
    probabilities = model.predict(images[[0, 1, 2, 4]], verbose=0)
    names = data.class_names("cifar10")
    for row, expected in zip(found, probabilities, strict=True):
        order = np.argsort(-expected)[:3]
        assert [p["label"] for p in row["predictions"]] == order.tolist()
        assert [p["class"] for p in row["predictions"]] == [names[i] for i in order]
        np.testing.assert_allclose(
            [p["probability"] for p in row["predictions"]], expected[order], rtol=1e-3, atol=1e-6
        )


@pytest.mark.once
def test_predict_as_a_table_with_weights_of_a_file(tmp_path, capsys):
    keras.utils.set_random_seed(1)
    model = applications.ResNet20(classes=100)
    model.save_weights(tmp_path / "mine.weights.h5")
    pixels = data.sample("cifar10")[0][0]
    file = _save(tmp_path, "a.png", pixels)
    weights = ["--weights", str(tmp_path / "mine.weights.h5"), "--dataset", "cifar100"]
    assert main(["predict", "ResNet20", str(file), *weights]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(file) and len(lines) == 6
    decoded = applications.decode_predictions(model.predict(pixels[None], verbose=0))[0]
    for line, (_, name, score) in zip(lines[1:], decoded, strict=True):
        assert line.split()[0] == name
        assert float(line.split()[1]) == pytest.approx(100 * score, abs=0.02)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ResNet20", "absent.png"], "must exist. Received: absent.png"),
        (["ResNet21", "{file}"], "Received: 'ResNet21'"),
        (["ResNet20", "{file}", "--weights", "imagenet"], "Received: 'imagenet'"),
        (["ResNet20", "{file}", "--top", "11"], "from 1 to 10. Received: 11"),
        (["ResNet20", "{file}", "--batch-size", "0"], "Received: 0"),
    ],
)
def test_predict_refuses(tmp_path, capsys, arguments, message):
    file = _save(tmp_path, "a.png", data.sample("cifar10")[0][0])
    assert main(["predict", *(a.format(file=file) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
