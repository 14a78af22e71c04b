"""The README is true: its tables are those the records give, its examples run."""

import re
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import mf_zoo
from mf_zoo import applications, data, weights
from mf_zoo.layers import stages

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
DOCUMENTS = ["README.md", *(f"docs/{name}" for name, text in PAGES.items() if ": begin" in text)]


@pytest.mark.once
def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    documents = {ROOT / "README.md": README} | {
        ROOT / "docs" / name: text for name, text in PAGES.items()
    }
    for path, text in documents.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.once
@pytest.mark.parametrize("document", DOCUMENTS)
def test_generated_tables_are_up_to_date(document, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import update_readme

    assert set(update_readme.DOCUMENTS) == set(DOCUMENTS)
    text = (ROOT / document).read_text(encoding="utf-8")
    assert update_readme.updated(text, document) == text
    sys.modules.pop("update_readme")


@pytest.mark.once
def test_every_command_of_the_readme_is_a_command(capsys):
    from mf_zoo.cli import main

    text = "\n".join([README, *PAGES.values()])
    commands = set(re.findall(r"mf-zoo ([a-z]+)", text))
    assert {"train", "evaluate", "recipes"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        assert command in capsys.readouterr().out
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


@pytest.mark.once
def test_the_plan_for_imagenet_is_true(monkeypatch, capsys):
    from mf_zoo import cli

    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.scaling import __main__ as scaling

    text = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
    commands = [line.split() for line in re.findall(r"^    (.*)", text.replace("\\\n", ""), re.M)]
    (dry_run,) = [words for words in commands if "--dry-run" in words]
    assert cli.main(dry_run[1:]) == 0
    assert "1,281,160 images, 1,252 steps" in capsys.readouterr().out
    (estimate,) = [words for words in commands if "--estimate" in words]
    assert scaling.main(estimate[3:]) == 0
    assert "| 64 | 8,192 |" in capsys.readouterr().out

    # The linear rule of Goyal et al.: 0.1 for 256 images.
    pairs = re.findall(r"--batch (\d+) --learning-rate\s+([\d.]*\d)", text)
    assert {int(batch) for batch, _ in pairs} == {1024, 8192}
    for batch, rate in pairs:
        assert float(rate) == pytest.approx(0.1 * int(batch) / 256)
    guide = [
        words for words in commands if "examples/several_devices.py" in words and len(words) > 6
    ]
    parsed = dict(zip(guide[0][3::2], guide[0][4::2], strict=True))
    assert (parsed["--epochs"], parsed["--image-size"]) == ("90", "224")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "imagenet.md", "exec")


@pytest.mark.parametrize("page", sorted(PAGES))
@pytest.mark.once_on_torch
def test_the_examples_of_the_pages_run_as_written(page, tmp_path, monkeypatch, registries):
    """All but those that need data or several machines, which say ```python no-run."""
    monkeypatch.chdir(tmp_path)
    names = {"mf_zoo": mf_zoo, "keras": keras}
    for kind, block in re.findall(r"```(python[^\n]*)\n(.*?)```", PAGES[page], re.DOTALL):
        code = compile(block, page, "exec")
        if kind == "python":
            exec(code, names)


@pytest.mark.once_on_torch
def test_the_examples_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    loaded = keras.saving.load_model("animals.keras")
    got = loaded.predict(names["images"], verbose=0).argmax(1)
    assert (got == names["animal"]).mean() > 0.9


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("name", ["MFResNet20", "ResNet20"])
def test_shipped_weights_know_the_embedded_images(name, dataset):
    images, labels = data.sample(dataset)
    model = applications.get(name)(weights=dataset)
    probabilities = model.predict(images, verbose=0)
    error = 100 * (probabilities.argmax(1) != labels).mean()
    # 200 images: the record's error with four standard deviations of a sample's.
    expected = weights.get(name, dataset).test_error / 100
    assert error / 100 < expected + 4 * np.sqrt(expected * (1 - expected) / 200)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-4)


def test_other_classes_keep_the_body_and_start_a_fresh_head():
    full = applications.MFResNet20(weights="cifar10")
    with pytest.warns(UserWarning, match=r"have 10 classes: the body is loaded.*for 7 classes"):
        other = applications.MFResNet20(weights="cifar10", classes=7)
    body = applications.MFResNet20(weights="cifar10", include_top=False, pooling="avg")
    images = data.sample("cifar10")[0][:4]
    assert other.output_shape == (None, 7)
    inner = keras.Model(other.inputs, other.get_layer("avg_pool").output)
    outer = keras.Model(full.inputs, full.get_layer("avg_pool").output)
    expected = outer.predict(images, verbose=0)
    np.testing.assert_allclose(inner.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(body.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)
    for stage, same in zip(stages(full), stages(other), strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(stage.times), keras.ops.convert_to_numpy(same.times)
        )


@pytest.mark.once_on_torch
def test_the_demo_tells_the_truth(tmp_path, capsys):
    from mf_zoo.cli import main

    picture, page = tmp_path / "demo.png", tmp_path / "demo.html"
    assert main(["demo", "--picture", str(picture), "--page", str(page)]) == 0
    out = capsys.readouterr().out
    images, labels = data.sample("cifar10")
    model = applications.MFResNet20(weights="cifar10")
    right = int((model.predict(images, verbose=0).argmax(1) == labels).sum())
    assert f"right: {right} of 200, accuracy {right / 2:.1f} %" in out
    for stage in stages(model):
        row = next(line for line in out.splitlines() if line.strip().startswith(stage.name))
        order = [int(i) for i in re.findall(r"(\d+) @", row)]
        times = keras.ops.convert_to_numpy(stage.times)
        assert order == np.argsort(times).tolist()
    assert picture.read_bytes().startswith(b"\x89PNG")
    before, after = (float(e) for e in re.findall(r"error ([\d.]+) %", out))
    assert after < before
    assert out.splitlines()[-1].endswith(str(page))
    text = page.read_text(encoding="utf-8")
    assert f"Measured on 200 images: test images that come with the package. {right} are" in text
    assert text.count('alt="') == min(200 - right, 24)
    assert len(stages(model)) == 3 and '<input type="range" min="0" max="40"' in text


@pytest.mark.once_on_torch
def test_the_demo_without_plotly_says_so_and_ends(tmp_path, capsys, monkeypatch):
    import argparse

    from mf_zoo.cli import demo

    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "plotly.graph_objects", raising=False)
    options = argparse.Namespace(model="MFResNet20", page=tmp_path / "demo.html")
    demo._write_page(options, np.full((200, 10), 0.1), *data.sample(), data.class_names("cifar10"))
    assert "no page: Reports of runs need plotly: pip install" in capsys.readouterr().out
    assert not options.page.exists()


def test_the_demo_names_a_model_without_weights(capsys):
    from mf_zoo.cli import main

    assert main(["demo", "--model", "MFResNet110"]) == 2
    assert "none are registered" in capsys.readouterr().err
