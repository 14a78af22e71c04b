"""The page that runs networks in the browser: its files, and what a real browser makes of them."""

import json
import shutil
import types

import browser
import numpy as np
import pytest

import mf_zoo
from mf_zoo.errors import UserError

pytestmark = pytest.mark.once_on_torch

DEPTHS = (14, 20)
PARTICLES = {14: (2, 1, 1), 20: (3, 2, 2)}
IMAGES = (0, 31, 102)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The page with two depths, in a folder below the one that is served."""
    from web import build

    if shutil.which("npm") is None:
        pytest.skip("no npm, which brings onnxruntime-web: install Debian's npm")
    try:
        build.runtime()
    except UserError as error:
        pytest.skip(f"no onnxruntime-web: {error}")
    site = tmp_path_factory.mktemp("site")
    page = site / "some where" / "browser"
    builder = build.Builder("MFResNet20", "cifar10")
    build.build(page, [builder], DEPTHS)
    (manifest,) = json.loads((page / "networks.json").read_text())["networks"]
    images, labels = mf_zoo.data.sample("cifar10")
    return types.SimpleNamespace(
        builder=builder,
        site=site,
        page=page,
        networks={depth: builder.at(depth) for depth in DEPTHS},
        described={one["depth"]: one for one in manifest["depths"]},
        classes=manifest["classes"],
        run=lambda depth, given: build.run(page / f"mfresnet20-cifar10/{depth}.onnx", given),
        images=images,
        labels=labels,
    )


@pytest.fixture(scope="module")
def expected(built):
    """For each depth what Keras computes of `IMAGES`: scores, maps and sizes of changes."""
    found = {}
    for depth, network in built.networks.items():
        given = built.images[list(IMAGES)].astype("float32")
        states = mf_zoo.features(network, ["*/*"]).predict(given, verbose=0)
        found[depth] = {"scores": network.predict(given, verbose=0)}
        for number, particles in enumerate(PARTICLES[depth], 1):
            names = ["entry", *range(particles)]
            stage = np.stack([states[f"stage{number}/{name}"] for name in names]).astype("float64")
            change = stage[1:] - stage[:-1]
            flat = [part.reshape(*part.shape[:2], -1) for part in (stage, change)]
            before, changed = (np.sqrt((part**2).sum(-1)) for part in flat)
            found[depth] |= {
                f"stage{number}_states": np.abs(stage).mean(-1).swapaxes(0, 1),
                f"stage{number}_changes": np.abs(change).mean(-1).swapaxes(0, 1),
                f"stage{number}_sizes": (changed / before[:-1]).swapaxes(0, 1),
            }
    return found


def _answer(page):
    """The five classes and their scores, when the page has computed them."""
    page.wait_for_selector("main[aria-busy=false]")
    items = page.locator("#top li")
    names = items.locator(".name").all_inner_texts()
    return names, [float(item.get_attribute("data-score")) for item in items.all()]


def _check_answer(page, scores, classes):
    names, shown = _answer(page)
    best = np.argsort(-scores)[:5]
    assert names == [classes[index] for index in best]
    np.testing.assert_allclose(shown, scores[best], atol=1e-3)


def _check_blocks(page, described, outputs, number, shown):
    """Every block has its picture, in the colours of its values, its particle, time and change."""
    import matplotlib

    for place, stage in enumerate(described["stages"]):
        blocks = page.locator("#stages > section").nth(place).locator("li")
        maps = outputs[f"{stage['name']}_{shown}"][number]
        pictures = blocks.locator("canvas").evaluate_all(
            "all => all.map(one => [...one.getContext('2d')"
            ".getImageData(0, 0, one.width, one.height).data])"
        )
        assert len(pictures) == len(maps) == len(stage["blocks"]) + (shown == "states")
        colours = matplotlib.colormaps["viridis"](maps / maps.max(), bytes=True).astype(int)
        pixels = np.array(pictures).reshape(colours.shape)
        # The page has five colours of the map, and draws lines between them.
        assert np.abs(pixels - colours).max() < 28
        texts = blocks.all_inner_texts()[len(maps) - len(stage["blocks"]) :]
        sizes = outputs[f"{stage['name']}_sizes"][number]
        for text, block, size in zip(texts, stage["blocks"], sizes, strict=True):
            assert f"particle {block['particle']}\n" in text
            assert f"t\xa0{block['time']:.2f}, dt\xa0{block['step']:.2f}" in text
            assert abs(float(text.split("\n")[-1].removesuffix(" %")) - 100 * size) < 0.2


@pytest.mark.parametrize("depth", DEPTHS)
def test_files_compute_what_keras_does(built, expected, depth):
    outputs = built.run(depth, built.images[list(IMAGES)])
    assert outputs.keys() == expected[depth].keys()
    for name, values in expected[depth].items():
        np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_errors_are_those_of_keras(built, right):
    scores = built.networks[14].predict(built.images, verbose=0)
    assert built.described[14]["right"] == (scores.argmax(1) == built.labels).sum()
    assert built.described[20]["right"] == right


@pytest.mark.parametrize("depth", DEPTHS)
def test_networks_are_described_as_they_are(built, depth):
    described, network = built.described[depth], built.networks[depth]
    assert described["bytes"] == (built.page / described["file"]).stat().st_size
    assert described["trained"] == (depth == 20)
    stages = mf_zoo.layers.stages(network)
    assert tuple(len(stage["blocks"]) for stage in described["stages"]) == PARTICLES[depth]
    for stage, layer in zip(described["stages"], stages, strict=True):
        order = layer.blocks()
        assert [block["particle"] for block in stage["blocks"]] == [one.particle for one in order]
        assert [block["step"] for block in stage["blocks"]] == [one.step for one in order]
        times = [block["time"] for block in stage["blocks"]]
        assert times == sorted(times) == sorted(np.array(layer.times).tolist())


def _check_layout(page):
    """Nothing is wider than the window, and all that is chosen or shown has a name."""
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(
            one => one.getBoundingClientRect().right > innerWidth).map(one => one.outerHTML)"""
    )
    assert beyond == []
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, [role=img]")].filter(
            one => !one.labels?.length && !one.ariaLabel).map(one => one.outerHTML)"""
    )
    assert unnamed == []


def test_the_page_answers_as_keras_does(built, expected, browser_pages):
    page = browser_pages(built.site, browser.DESKTOP, at="some where/browser/")
    _check_answer(page, expected[20]["scores"][0], built.classes)
    _check_layout(page)
    for number, index in enumerate(IMAGES):
        page.get_by_label(f"image {index + 1}, {built.classes[built.labels[index]]}").check()
        _check_answer(page, expected[20]["scores"][number], built.classes)
    _check_blocks(page, built.described[20], expected[20], number, "states")
    slider = page.get_by_label("Depth:")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "depth 14"
    _check_answer(page, expected[14]["scores"][number], built.classes)
    wrong = len(built.images) - built.described[14]["right"]
    assert f"{wrong} of the 200 test images wrong" in page.locator("#depth-error").inner_text()
    best = built.classes[expected[14]["scores"][number].argmax()]
    assert page.get_by_role("status").inner_text().startswith(f"At depth 14: {best}, ")
    page.get_by_label("size of the change").check()
    _check_blocks(page, built.described[14], expected[14], number, "changes")
    # Changes while another depth is computed: what the page shows in the end is the last one's.
    page.evaluate(
        """for (const value of [1, 0, 1]) {
            document.getElementById("depth").value = value;
            document.getElementById("depth").dispatchEvent(new Event("input"));
        }
        document.querySelector("[name=shown]").click();"""
    )
    _check_answer(page, expected[20]["scores"][number], built.classes)
    assert page.get_by_role("status").inner_text().startswith("At depth 20: ")
    _check_blocks(page, built.described[20], expected[20], number, "states")


def test_files_and_keys_on_a_phone(built, expected, browser_pages, tmp_path):
    from PIL import Image

    page = browser_pages(built.site, browser.PHONE, at="some where/browser/", color_scheme="dark")
    _answer(page)
    _check_layout(page)
    page.get_by_label("image 1, ").focus()
    page.keyboard.press("ArrowRight")
    best = built.classes[built.run(20, built.images[1:2])["scores"].argmax()]
    assert _answer(page)[0][0] == best

    # Neither square nor small, and half transparent: laid on white, cut and scaled by Pillow.
    photo = Image.fromarray(built.images[31]).resize((150, 90)).convert("RGBA")
    photo.paste((0, 0, 0, 0), (0, 0, 60, 90))
    photo.save(tmp_path / "photo.png")
    pixels = mf_zoo.data.read_image(tmp_path / "photo.png")
    page.get_by_label("Choose a file").set_input_files(tmp_path / "photo.png")
    page.get_by_text("photo.png").wait_for()
    (scores,) = built.networks[20].predict(pixels[None].astype("float32"), verbose=0)
    _check_answer(page, scores, built.classes)
    drawn = page.locator("#image").evaluate(
        "one => [...one.getContext('2d').getImageData(0, 0, 32, 32).data]"
    )
    drawn = np.array(drawn).reshape(32, 32, 4)[..., :3]
    assert np.abs(drawn - pixels.astype(int)).max() <= 1

    page.evaluate(
        """() => {
            const files = new DataTransfer();
            files.items.add(new File(["no image"], "notes.txt"));
            const bubbles = true;
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles}));
        }"""
    )
    page.get_by_text("Received: notes.txt").wait_for()


def test_a_depth_that_there_is_not_is_refused(built, tmp_path):
    from web import build

    with pytest.raises(UserError, match="Received: 21"):
        build.build(tmp_path, [built.builder], [21])
