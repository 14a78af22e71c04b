"""From image files to the names of classes."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
import tiny_zoo
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mf_zoo import applications, data, weights
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
def test_decoding_by_the_name_of_the_dataset():
    scores = np.eye(10, dtype="float32")[[7]]
    for arguments, name in (
        ({}, "horse"),  # of CIFAR-10, the first that has ten
        ({"dataset": "fashion_mnist"}, "Sneaker"),
        ({"dataset": "svhn_cropped"}, "7"),
    ):
        decoded = applications.decode_predictions(scores, top=1, **arguments)
        assert decoded == [[(7, name, 1.0)]]


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
        (np.full((2, 10), np.nan), {}, "Received: nan among them"),
        (np.full((2, 10), 1j), {}, "Received: dtype complex128"),
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
    # Nearly black in 16 bits stays so, whatever else is in the image.
    np.testing.assert_array_equal(
        read("dark.png", grey.astype("uint16")), (greys.astype(int) + 128) // 257
    )
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
        with pytest.raises(data.ImageFileError, match=rf"must be one that.*Received: .*{name}: "):
            data.read_image(tmp_path / name)
    with pytest.raises(ValueError, match="Received: resize='fit'"):
        data.read_image(whole, resize="fit")
    floats = _save(tmp_path, "floats.tiff", np.linspace(0, 1, 64, dtype="float32").reshape(8, 8))
    with pytest.raises(data.ImageFileError, match="floating-point"):
        data.read_image(floats)
    postscript = _save(tmp_path, "a.eps", np.zeros((32, 32, 3), "uint8"))
    with pytest.raises(data.ImageFileError, match="cannot identify image file"):
        data.read_image(postscript)
    # 1024 pixels: Pillow only warns up to twice its limit, and is silent below it.
    for limit in (100, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(data.ImageFileError, match="decompression bomb"):
            data.read_image(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024)
    np.testing.assert_array_equal(data.read_image(whole), data.sample("cifar10")[0][0])


@pytest.fixture(scope="module")
def encoded():
    """An image as the bytes of several formats, with an orientation where there is room."""
    exif = Image.Exif()
    exif[0x0112] = 8
    image = Image.fromarray(data.sample("cifar10")[0][1]).resize((48, 40))
    files = []
    for kind, options in (
        ("PNG", {"exif": exif}),
        ("JPEG", {"exif": exif}),
        ("WEBP", {"exif": exif}),
        ("TIFF", {}),
        ("GIF", {}),
        ("BMP", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


@pytest.mark.once
@settings(max_examples=150, deadline=None)
@given(draw=st.data())
def test_a_damaged_file_is_an_image_or_one_clear_error(encoded, tmp_path_factory, draw):
    content = bytearray(draw.draw(st.sampled_from(encoded)))
    for _ in range(draw.draw(st.integers(0, 4))):
        # Half of the damage goes to the header, where it does most.
        end = draw.draw(st.sampled_from([len(content), 100]))
        content[draw.draw(st.integers(0, end - 1))] = draw.draw(st.integers(0, 255))
    content = content[: draw.draw(st.integers(0, len(content)))]
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content)
    try:
        pixels = data.read_image(file)
    except data.ImageFileError as error:
        assert f"Received: {file}: " in str(error)
    else:
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::mf_zoo.data.SmallImageWarning")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.sampled_from(["crop", "pad", "stretch"]),
)
def test_one_colour_stays_that_colour(tmp_path_factory, width, height, colour, resize):
    assume(0.02 < width / height < 50)  # the shorter side fills half a pixel at least
    file = tmp_path_factory.getbasetemp() / "colour.png"
    Image.new("RGB", (width, height), colour).save(file)
    pixels = data.read_image(file, resize=resize)
    if resize == "pad":  # a rectangle of the image's proportions in the middle of black
        inside = 32 * min(1, height / width), 32 * min(1, width / height)
        rows, columns = (max(1, round(side)) for side in inside)
        top, left = round((32 - rows) * 0.5), round((32 - columns) * 0.5)
        assert (pixels[top : top + rows, left : left + columns] == colour).all()
        assert pixels.sum() == rows * columns * sum(colour)
    else:
        assert (pixels == colour).all()


@pytest.mark.once
def test_photographs_are_decoded_at_a_smaller_scale(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), "uint8"))
    photograph = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    got = data.read_image(_save(tmp_path, "a.jpg", photograph, quality=95))
    # The middle square, averaged in boxes of 37.5 pixels: close to any good filter here.
    square = photograph.crop((200, 0, 1400, 1200))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(got - expected).max() <= 4


@pytest.mark.once
def test_folders_are_searched(tmp_path):
    pixels = data.sample("cifar10")[0][0]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "mine.weights.h5").write_bytes(b"which Pillow takes for an image by its name")
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


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A network of 100 classes, and the arguments that make `mf-zoo predict` use it."""
    keras.utils.set_random_seed(1)
    model = tiny_zoo.tiny(classes=100)
    file = tmp_path / "tiny.weights.h5"
    model.save_weights(file)
    return model, ["Tiny", "--weights", str(file), "--dataset", "cifar100"]


def test_predict_says_what_the_model_says(tiny, tmp_path, capsys):
    model, arguments = tiny
    images, _ = data.sample("cifar10")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        _save(folder, f"{number}.png", images[number])
    (folder / "3.png").write_text("no image")
    # In batches of two, of which the second has one image that can be read.
    arguments = [*arguments, str(folder), "--top", "3", "--json", "--batch-size", "2"]
    code = main(["predict", *arguments])
    output = capsys.readouterr()
    assert code == 2 and output.err.count("mf-zoo: error:") == 1 and "3.png" in output.err
    found = json.loads(output.out)
    assert [row["image"] for row in found] == [str(folder / f"{i}.png") for i in (0, 1, 2, 4)]
    probabilities = model.predict(images[[0, 1, 2, 4]], verbose=0)
    names = data.class_names("cifar100")
    for row, expected in zip(found, probabilities, strict=True):
        order = np.argsort(-expected)[:3]
        assert [p["label"] for p in row["predictions"]] == order.tolist()
        assert [p["class"] for p in row["predictions"]] == [names[i] for i in order]
        np.testing.assert_allclose(
            [p["probability"] for p in row["predictions"]], expected[order], rtol=1e-3, atol=1e-6
        )


@pytest.mark.once
def test_predict_answers_for_the_files_that_are_there(tiny, tmp_path, capsys):
    _, arguments = tiny
    good = _save(tmp_path, "good.jpg", data.sample("cifar10")[0][0])
    (tmp_path / "empty").mkdir()
    absent, empty = str(tmp_path / "nosuch.jpg"), str(tmp_path / "empty")
    assert main(["predict", *arguments, absent, str(good), empty]) == 2
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == str(good) and len(output.out.splitlines()) == 6
    lines = output.err.splitlines()
    assert lines == [
        f"mf-zoo: error: An image file must exist. Received: {absent}",
        f"mf-zoo: error: A folder must hold image files. Received: {empty}",
    ]
    assert main(["predict", *arguments, absent, str(good), "--json"]) == 2
    assert [row["image"] for row in json.loads(capsys.readouterr().out)] == [str(good)]


@pytest.mark.once
def test_predict_looks_at_paths_before_it_imports_keras(tmp_path):
    code = """
        import sys
        import mf_zoo.cli

        sys.modules["keras"] = None  # to import it is an error
        print(mf_zoo.cli.main(["predict", "ResNet20", sys.argv[1]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True
    )
    assert done.stdout == "2\n" and "must hold image files" in done.stderr, done.stderr


@pytest.mark.once
def test_tiny_pictures_are_answered_with_a_warning(tiny, tmp_path, capsys):
    _, arguments = tiny
    pixels = data.sample("cifar10")[0][0]
    small = _save(tmp_path, "small.png", pixels[:1, :1])
    thin = _save(tmp_path, "thin.png", pixels[:7])
    enough = _save(tmp_path, "enough.png", pixels[:8, :8])
    assert main(["predict", *arguments, str(small), str(thin), str(enough), "--top", "1"]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 6
    lines = output.err.splitlines()
    assert [line.startswith("mf-zoo: warning: ") for line in lines] == [True, True]
    assert f"{small}: 1 x 1 pixels" in lines[0] and f"{thin}: 7 x 32 pixels" in lines[1]
    # In Python too, but not where the wanted size is as small.
    with pytest.warns(data.SmallImageWarning, match=r"8 pixels.*Received: .*thin"):
        data.read_image(thin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.read_image(thin, size=(7, 9))
        data.read_image(enough)


@pytest.mark.once
def test_pictures_in_greys(tmp_path):
    pixels = data.sample("cifar10")[0][0]
    file = _save(tmp_path, "a.png", pixels)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(data.read_image(file, channels=1), grey[..., None])
    assert data.read_image(file, size=(28, 20), channels=1).shape == (28, 20, 1)
    with pytest.raises(ValueError, match=r"must be 1 or 3\. Received: channels=4"):
        data.read_image(file, channels=4)


@pytest.mark.once
def test_predict_as_a_table(tiny, tmp_path, capsys):
    model, arguments = tiny
    pixels = data.sample("cifar10")[0][0]
    file = _save(tmp_path, "a.png", pixels)
    assert main(["predict", *arguments, str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(file) and len(lines) == 6
    decoded = applications.decode_predictions(model.predict(pixels[None], verbose=0))[0]
    for line, (_, name, score) in zip(lines[1:], decoded, strict=True):
        assert line.split()[0] == name
        assert float(line.split()[1]) == pytest.approx(100 * score, abs=0.02)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_predict_knows_real_images_at_any_size(tmp_path, capsys, kind):
    images, labels = data.sample("cifar10")
    images, labels = images[::5], labels[::5]
    for number, pixels in enumerate(images):
        # Ten times as large, and wider: what is at the sides is no part of the image.
        wide = Image.new("RGB", (480, 320), "magenta")
        large = Image.fromarray(pixels).resize((320, 320), Image.Resampling.LANCZOS)
        wide.paste(large, (80, 0))
        wide.save(tmp_path / f"{number:02}.{kind}")
    assert main(["predict", "MFResNet20", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    predicted = [row["predictions"][0]["label"] for row in found]
    assert (predicted == labels).mean() > 0.75
    assert all(len(row["predictions"]) == 5 for row in found)


@pytest.mark.once
def test_predict_with_the_weights_of_a_run(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    keras.utils.set_random_seed(1)
    arguments = {"quadrature": "midpoint", "initial_times": "random", "horizon": 5.0}
    model = tiny_zoo.tiny(classes=100, **arguments)
    model.save_weights(run / "final.weights.h5")
    recipe = {"quadrature": "midpoint", "horizon": 5.0}
    config = {"model": "Tiny", "dataset": "cifar100", "recipe": recipe}
    (run / "config.json").write_text(json.dumps(config))
    pixels = data.sample("cifar10")[0][3]
    file = _save(tmp_path, "a.png", pixels)
    assert main(["predict", "Tiny", str(file), "--weights", str(run), "--top", "1", "--json"]) == 0
    [[got]] = [row["predictions"] for row in json.loads(capsys.readouterr().out)]
    [[(label, name, score)]] = applications.decode_predictions(
        model.predict(pixels[None], verbose=0), 1
    )
    assert (got["label"], got["class"]) == (label, name)
    # With the default rule or horizon the step sizes, and so the scores, would be others.
    assert got["probability"] == pytest.approx(score, rel=1e-4)


@pytest.mark.once
def test_predict_takes_the_only_weights_there_are(tmp_path, monkeypatch, capsys):
    asked = []

    def build(weights, **arguments):
        asked.append(weights)
        return tiny_zoo.tiny(None, **arguments)

    record = weights.get("MFResNet20", "cifar10")
    file = "mf_resnet20-cifar100.weights.h5"
    other = {"name": "cifar100", "dataset": "cifar100", "file": file, "classes": 100}
    other = dataclasses.replace(record, **other)
    network = applications.Network("Any", applications.architecture("Tiny"), False, build)
    monkeypatch.setattr(applications, "network", lambda name: network)
    file = _save(tmp_path, "a.png", data.sample("cifar10")[0][0])
    strong = dataclasses.replace(
        other, name="cifar100-strong", file="mf_resnet20-cifar100-strong.weights.h5"
    )
    hundred = ["--dataset", "cifar100"]
    for registered, label, dataset in (
        ([other], 100, []),
        ([other, record], 10, []),
        ([record], 10, []),
        ([other, record], 100, hundred),
        ([other, strong, record], 100, hundred),
    ):

        def records(model=None, dataset=None, found=registered):
            return [record for record in found if dataset in (None, record.dataset)]

        monkeypatch.setattr(weights, "records", records)
        assert main(["predict", "Any", str(file), "--top", str(label), "--json", *dataset]) == 0
        assert len(json.loads(capsys.readouterr().out)[0]["predictions"]) == label
    assert asked == ["cifar100", "cifar10", "cifar10", "cifar100", "cifar100"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ResNet20", "absent.png"], "must exist. Received: absent.png"),
        (["ResNet21", "{file}"], "Received: 'ResNet21'"),
        (["ResNet20", "{file}", "--weights", "imagenet"], "Received: 'imagenet'"),
        (
            ["ResNet20", "{file}", "--weights", "cifar10", "--dataset", "cifar100"],
            "have 10 classes",
        ),
        (["ResNet20", "{file}", "--top", "11"], "from 1 to 10. Received: 11"),
        (["ResNet20", "{file}", "--batch-size", "0"], "Received: 0"),
    ],
)
def test_predict_refuses(tmp_path, capsys, arguments, message):
    file = _save(tmp_path, "a.png", data.sample("cifar10")[0][0])
    assert main(["predict", *(a.format(file=file) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.mark.once
@pytest.mark.parametrize("picture", ["a pipe", "a line"])
def test_what_would_hang_or_fill_the_memory_is_refused(picture, tmp_path, capsys):
    file = tmp_path / "a.png"
    if picture == "a pipe":
        os.mkfifo(file)
        message = "must be an ordinary file"
    else:
        Image.new("1", (80_000_000, 1)).save(file)
        message = "80000000 x 1 pixels, a side over 65535"
    with pytest.raises(data.ImageFileError, match=message):
        data.read_image(file)
    assert main(["predict", "MFResNet20", str(file)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.once_on_torch
def test_weights_that_are_no_numbers_are_an_error(tmp_path, capsys):
    model = applications.MFResNet20(classes=10)
    model.layers[-2].kernel.assign(np.full(model.layers[-2].kernel.shape, np.nan))
    model.save_weights(tmp_path / "nan.weights.h5")
    file = _save(tmp_path, "a.png", data.sample("cifar10")[0][0])
    arguments = ["predict", "MFResNet20", str(file), "--weights", str(tmp_path / "nan.weights.h5")]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "must be real numbers. Received: nan" in printed.err and "%" not in printed.out
