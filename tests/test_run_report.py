"""Pages about runs: their numbers are those of the run's files, by hand; they run nothing else."""

import base64
import html
import io
import json
import math
import re
import shutil
import sys

import browser
import numpy as np
import pytest
import tiny_zoo
from PIL import Image

from mf_zoo import applications, chains, cli, data, files
from mf_zoo.applications import registry
from mf_zoo.errors import UserError
from mf_zoo.reporting import plots, run_report
from mf_zoo.reporting.run import Run
from mf_zoo.reporting.statistics import mcnemar
from mf_zoo.training import RECIPES
from mf_zoo.training.evaluation import calibration_bins, calibration_error
from mf_zoo.visualize import StageHistory

pytestmark = pytest.mark.once_on_torch

EPOCHS = 2


def plain_mite(**values):
    """A plain network that is another function than `MFMite`."""
    return tiny_zoo.tiny(**values, horizon=1.0, reorder=False)


@pytest.fixture(scope="module", autouse=True)
def twins():
    """`MFMite`, a mean-field network, and its plain twin `Mite`, are registered here only."""
    before = dict(registry._NETWORKS)
    applications.list_models()
    architecture = applications.Architecture(
        name="Mite",
        title="a tiny network",
        source="the tests",
        block=chains.BASIC,
        filters=(4,),
        blocks=(3,),
        stem=applications.Stem(4, strides=8),
    )
    for name, builder in (("MFMite", tiny_zoo.tiny), ("Mite", plain_mite)):
        network = applications.Network(name, architecture, name == "MFMite", builder)
        applications.register_network(network)
    yield
    for name in ("MFMite", "Mite"):
        del registry._NETWORKS[name]
    assert before.items() <= registry._NETWORKS.items()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The real images of the package: 80 to train on, 120 to test on."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = data.sample("cifar10")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:80], order[80:]
    np.savez(
        folder / "cifar10.npz",
        train_image=images[train],
        train_label=labels[train],
        test_image=images[test],
        test_label=labels[test],
    )
    return folder


@pytest.fixture(scope="module")
def folders(data_dir, tmp_path_factory):
    """The folders of two finished runs, of `MFMite` and of `Mite`."""
    root = tmp_path_factory.mktemp("runs")
    recipe = RECIPES["quick"].replace(epochs=EPOCHS, warmup_epochs=0.0, batch_size=16)
    recipe = recipe.replace(time_learning_rate_multiplier=30.0)
    for name in ("MFMite", "Mite"):
        tiny_zoo.train(
            name, output=root / name, recipe=recipe, seed=1, data_dir=data_dir, verbose=0
        )
    return root / "MFMite", root / "Mite"


@pytest.fixture(scope="module")
def page(folders, data_dir, tmp_path_factory):
    """The text of a page about the run of `MFMite`, with the images."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    return run_report([folders[0]], path, data_dir).read_text(encoding="utf-8")


def without_plotly(text):
    """The page without the library, which is the one script of megabytes."""
    scripts = re.findall(r"<script>.*?</script>", text, re.DOTALL)
    (library,) = [script for script in scripts if len(script) > 1_000_000]
    return text.replace(library, "")


def figures(text):
    """Traces, layout and frames of each figure of a page, by its caption."""
    text, found, decoder = without_plotly(text), {}, json.JSONDecoder()
    for part in text.split("<figcaption>")[1:]:
        caption = html.unescape(part.partition("</figcaption>")[0])
        start = re.search(r'Plotly\.newPlot\(\s*"plot-\d+",\s*', part)
        traces, end = decoder.raw_decode(part, start.end())
        layout, _ = decoder.raw_decode(part, re.compile(r",\s*").match(part, end).end())
        frames = re.search(r"Plotly\.addFrames\('plot-\d+', ", part)
        frames = decoder.raw_decode(part, frames.end())[0] if frames else []
        found.setdefault(caption, (traces, layout, frames))
    return found


def predicted(folder, data_dir):
    """Probabilities and labels, by the model of the run's weights alone."""
    from mf_zoo.cli.common import load_trained

    model, _ = load_trained(folder.name, str(folder), None, "softmax")
    images, labels = data.load("cifar10", "test", data_dir=data_dir)
    return model.predict(images, verbose=0).astype("float64"), images, labels


# --- What a page says ------------------------------------------------------------------------


def test_curves_are_the_rows_of_the_history(page, folders):
    rows = files.read_rows(folders[0] / "history.csv")
    drawn = figures(page)
    epochs = [int(row["epoch"]) for row in rows]
    assert epochs == [1, 2]
    wanted = {
        "Error": ([float(r["test_error"]) for r in rows], [1 - float(r["accuracy"]) for r in rows]),
        "Loss": ([float(r["test_loss"]) for r in rows], [float(r["loss"]) for r in rows]),
        "Learning rate": ([float(r["learning_rate"]) for r in rows],),
    }
    wanted["Error"] = (wanted["Error"][0], [100 * error for error in wanted["Error"][1]])
    for caption, lines in wanted.items():
        traces = drawn[caption][0]
        assert [trace["x"] for trace in traces] == [epochs] * len(lines)
        for trace, line in zip(traces, lines, strict=True):
            assert trace["y"] == pytest.approx(line, rel=1e-12)


def test_frames_are_the_epochs_with_the_times_of_each(page, folders):
    traces, _, frames = figures(page)["Times of the particles over the epochs"]
    rows = files.read_rows(folders[0] / "times.csv")
    assert [frame["name"] for frame in frames] == ["0", "1", "2"]
    for frame in frames:
        here = [row for row in rows if row["epoch"] == frame["name"]]
        (head,) = frame["data"]
        assert head["y"] == [float(row["time"]) for row in here]
        assert head["customdata"] == [int(row["rank"]) for row in here]
        assert head["x"] == [int(frame["name"])] * 3
        assert traces[frame["traces"][0]]["mode"] == "markers+text"
    lines = [trace for trace in traces if trace["mode"] == "lines"]
    for i, line in enumerate(lines):
        assert line["y"] == [float(row["time"]) for row in rows if row["particle"] == str(i)]


def test_steps_are_differences_of_ordered_times(page, folders):
    """The backward rule: a particle's step is its time minus that of the one before it."""
    traces, _, _ = figures(page)["Step sizes over the epochs"]
    rows = files.read_rows(folders[0] / "times.csv")
    for epoch in range(EPOCHS + 1):
        times = [float(row["time"]) for row in rows if row["epoch"] == str(epoch)]
        order, before = np.argsort(times, kind="stable"), 0.0
        for i in order:
            assert traces[i]["y"][epoch] == pytest.approx(times[i] - before, abs=1e-6)
            before = times[i]


def test_the_header_and_settings_are_those_of_the_files(page, folders):
    text = html.unescape(page)
    result = json.loads((folders[0] / "result.json").read_text())
    assert f"<dd>{result['test_error']:.2f} % on the test images</dd>" in text
    assert f"<dt>parameters</dt><dd>{result['parameters']:,}</dd>" in text
    assert "<dd>quick, seed 1</dd>" in text and "<dd>2 of 2</dd>" in text
    assert '">' + str(folders[0]) + "</a>" in text
    (table,) = re.findall(r"(<table>.*?</table>)\s*</div>\s*<details>", text, re.DOTALL)
    changed = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', table)
    assert ("batch_size", "16 (changed)", str(RECIPES["quick"].batch_size)) in changed
    assert ("seed", "1 (changed)", "0") in changed
    assert {row[0] for row in changed} == {
        *("epochs", "batch_size", "warmup_epochs", "time_learning_rate_multiplier", "seed")
    }


def test_predictions_are_counted_by_hand(page, folders, data_dir):
    probabilities, images, labels = predicted(folders[0], data_dir)
    guesses = probabilities.argmax(1)
    matrix = [[0] * 10 for _ in range(10)]
    for label, guess in zip(labels, guesses, strict=True):
        matrix[label][guess] += 1
    traces, _, _ = figures(page)["Number of images by true and predicted class"]
    assert traces[0]["text"] == matrix
    assert traces[0]["x"] == traces[0]["y"] == data.class_names("cifar10")
    right = sum(matrix[k][k] for k in range(10))
    assert f"Measured on 120 images: the test images. {right} are right" in page
    ece = json.loads((folders[0] / "result.json").read_text())["test_ece"]
    assert f"The expected calibration error (ECE) is {ece:.2f} %" in page
    # The worst: nobody is surer of a wrong class than the first one.
    sure = np.where(guesses == labels, -1, probabilities.max(1))
    worst = np.argsort(-sure, kind="stable")[:24]
    names = data.class_names("cifar10")
    shown = re.findall(r'<img src="data:image/png;base64,(.*?)" alt="(.*?)">', page)
    assert [alternative for _, alternative in shown] == [
        f"{names[labels[i]]}, taken for {names[guesses[i]]}, {100 * sure[i]:.1f} %" for i in worst
    ]
    for (content, _), i in zip(shown, worst, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        np.testing.assert_array_equal(pixels, images[i])


def test_bars_of_calibration_make_up_its_error():
    # Two images in (0.4, 0.6], of which one is right; one in (0.8, 1], wrong.
    confidence, correct = np.array([0.5, 0.6, 0.9]), np.array([True, False, False])
    counts, means, right = calibration_bins(confidence, correct, bins=5)
    assert counts.tolist() == [0, 0, 2, 0, 1]
    assert means[[2, 4]].tolist() == pytest.approx([0.55, 0.9])
    assert right[[2, 4]].tolist() == [0.5, 0.0] and np.isnan(means[[0, 1, 3]]).all()
    # (2 * 0.05 + 1 * 0.9) / 3
    assert calibration_error(confidence, correct, bins=5) == pytest.approx(100 / 3)


def test_swaps_are_said_and_marked():
    """Particles 0 and 1 change places in epoch 1, and nothing happens in epoch 2."""
    times = np.array([[1.0, 2.0, 3.0], [2.25, 1.5, 3.0], [2.5, 1.5, 3.0]])
    ranks = np.array([[0.0, 1, 2], [1, 0, 2], [1, 0, 2]])
    stage = StageHistory("stage1", np.arange(3), times, ranks, None, 3.0)
    figure, said = plots.depth_order([stage])
    assert said == [
        "Epoch 0, 0 swaps. Applied in the order stage1: 0 1 2",
        "Epoch 1, 1 swap. Applied in the order stage1: 1 0 2",
        "Epoch 2, 0 swaps. Applied in the order stage1: 1 0 2",
    ]
    widths = [frame.data[0].marker.line.width for frame in figure.frames]
    assert widths == [(1, 1, 1), (3, 3, 1), (1, 1, 1)]
    assert plots.step_sizes([stage]) is None


def test_particles_that_are_added_have_no_past():
    nan = math.nan
    times = np.array([[1.0, nan], [0.5, 1.5]])
    ranks = np.array([[0.0, nan], [0, 1]])
    figure, said = plots.depth_order([StageHistory("s", np.arange(2), times, ranks, None, 2.0)])
    assert said[0].endswith("s: 0") and said[1] == "Epoch 1, 0 swaps. Applied in the order s: 0 1"
    assert figure.frames[0].data[0].customdata[1] is None
    assert json.loads(figure.to_json())["frames"][0]["data"][0]["y"] == [1.0, None]


def test_of_very_many_epochs_some_have_frames():
    times = np.ones((1201, 1))
    stage = StageHistory("s", np.arange(1201), times, np.zeros((1201, 1)), None, 1.0)
    figure, said = plots.depth_order([stage])
    names = [int(frame.name) for frame in figure.frames]
    assert names == list(range(0, 1201, 3)) and len(said) == len(names)


# --- Several runs ----------------------------------------------------------------------------


def test_mcnemar_by_hand():
    assert mcnemar(1, 3) == mcnemar(3, 1) == pytest.approx(2 * (1 + 4) / 2**4)
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10)
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0


def test_several_runs_are_compared(folders, data_dir, tmp_path):
    output = tmp_path / "both.html"
    text = run_report(folders, output, data_dir).read_text()
    drawn = figures(text)
    traces = drawn["Error"][0]
    assert [trace["name"].partition(",")[0] for trace in traces] == ["MFMite"] * 2 + ["Mite"] * 2
    colors = {trace["name"].partition(",")[0]: trace["line"]["color"] for trace in traces}
    assert len(set(colors.values())) == 2
    for trace in (*drawn["Loss"][0], *drawn["Learning rate"][0]):
        assert trace["line"]["color"] == colors[trace["name"].partition(",")[0]]
    right = []
    for folder in folders:
        probabilities, _, labels = predicted(folder, data_dir)
        right.append(probabilities.argmax(1) == labels)
    first = sum(a and not b for a, b in zip(*right, strict=True))
    second = sum(b and not a for a, b in zip(*right, strict=True))
    assert first and second
    errors = [json.loads((f / "result.json").read_text())["test_error"] for f in folders]
    assert errors[0] - errors[1] == pytest.approx(100 * (second - first) / 120, abs=1e-5)
    cells = [f"{errors[0] - errors[1]:+.2f}", str(first), str(second)]
    cells.append(f"{mcnemar(first, second):.3g}")
    row = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    assert f'<th scope="row">MFMite and Mite</th>{row}' in text
    assert "Mite is a plain network" in text
    assert 'href="' in text and "../" in re.search(r'<a href="([^#"]*)">', text)[1]


def test_only_runs_that_are_trained_alike_are_twins(folders, tmp_path):
    other = shutil.copytree(folders[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "seed": 2}))
    text = run_report([folders[0], other], tmp_path / "page.html").read_text()
    assert "MFMite and other" not in text
    text = run_report(folders, tmp_path / "page.html").read_text()
    assert "MFMite and Mite" in text
    assert "Which images only one of the two gets right needs the images" in text


# --- Unfinished, without data, hostile -------------------------------------------------------


def unfinished(folder, to):
    """A copy of a run as it is after epoch 1, while the row of epoch 2 is being written."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("result.json", "final*", "*.keras"))
    for name, last in (("history.csv", "1"), ("times.csv", "1")):
        lines = (to / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines[1:] if int(line.split(",")[0]) <= int(last)]
        (to / name).write_text("".join([lines[0], *kept, "2,0."]))
    return to


def test_a_run_that_is_not_finished_has_a_page(folders, data_dir, tmp_path):
    folder = unfinished(folders[0], tmp_path / "run")
    text = run_report([folder], data_dir=data_dir).read_text()
    assert (folder / "report.html").is_file()
    assert "<dd>1 of 2; the run is not finished</dd>" in text
    error = float(files.read_rows(folders[0] / "history.csv")[0]["test_error"])
    assert f"<dt>error so far</dt><dd>{error:.2f} % on the test images</dd>" in text
    assert "it has no final weights to measure" in text
    drawn = figures(text)
    assert "Number of images by true and predicted class" not in drawn
    names = [frame["name"] for frame in drawn["Times of the particles over the epochs"][2]]
    assert names == ["0", "1"]


def test_a_run_that_has_just_begun_has_a_page(folders, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(folders[0] / "config.json", folder)
    text = run_report([folder]).read_text()
    assert "No epoch is finished yet." in text and "No times are recorded yet." in text
    assert "<dd>0 of 2; the run is not finished</dd>" in text


def test_without_data_one_sentence_says_how_to_get_the_rest(folders, tmp_path, capsys):
    folder = shutil.copytree(folders[0], tmp_path / "run")
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    text = (folder / "report.html").read_text()
    assert text.count("mf-zoo report RUN --data-dir D") == 1
    assert "Number of images by true and predicted class" not in figures(text)
    assert "<img" not in without_plotly(text)


EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&"


@pytest.fixture(scope="module")
def hostile(folders, tmp_path_factory):
    """The page of a run folder with markup wherever a text can be."""
    name = "<img src=x onerror=window.hacked=1>"
    folder = tmp_path_factory.mktemp("hostile") / name
    shutil.copytree(folders[0], folder)
    for file in ("config.json", "result.json"):
        values = json.loads((folder / file).read_text())
        for key in ("command", "device", "evaluated_on", "backend"):
            values[key] = EVIL
        values["date"] = "2026-01-01" + EVIL
        if file == "config.json":
            values["recipe"] = {**values["recipe"], "name": EVIL, "description": EVIL}
            values["freeze"] = [EVIL]
        else:
            values["recipe"] = EVIL
        (folder / file).write_text(json.dumps(values))
    times = (folder / "times.csv").read_text()
    stage = '"' + EVIL.replace('"', '""') + '"'
    (folder / "times.csv").write_text(times.replace("stage1", stage))
    twin = shutil.copytree(folder, folder.parent / "javascript:window.hacked=1")
    return run_report([folder, twin], folder.parent / "page.html")


def test_markup_of_others_is_text(hostile):
    text = without_plotly(hostile.read_text())
    assert "<script>window.hacked" not in text and "<img" not in text
    assert text.count("<script>") == text.count("</script>")
    assert text.count(html.escape(EVIL)) > 10
    for link in re.findall(r'href="(.*?)"', text):
        assert link.startswith(("#", "%3Cimg", "javascript%3A", "data:,")), link


def test_a_page_refers_to_no_host(page):
    text = without_plotly(page)
    for part in ("http:", "https:", 'src="//', 'href="//', "@import", "url("):
        assert part not in text
    assert set(re.findall(r'src="(.{5})', text)) == {"data:"}
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    # Plotly's own button that sends a figure to its makers.
    assert text.count('"showSendToCloud": false') == text.count("Plotly.newPlot(") > 5


# --- In a browser ----------------------------------------------------------------------------


def until(shown, expression):
    """Waits until a JavaScript expression is true; the page's policy forbids playwright's way."""
    for _ in range(200):
        if shown.evaluate(expression):
            return
        shown.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


DRAWN = "document.querySelectorAll('.plotly-graph-div:not(:has(.main-svg))').length === 0"


def test_the_page_works_at_both_widths(page, browser_pages, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shown = browser_pages(tmp_path / "page.html", browser.PHONE)
    until(shown, DRAWN)
    assert shown.locator("h1").inner_text() == "MFMite on CIFAR-10"
    play(shown)
    for width in (browser.PHONE, browser.DESKTOP):
        shown.set_viewport_size({"width": width, "height": 800})
        plots = "[...document.querySelectorAll('.plotly-graph-div')].map(e => e.clientWidth)"
        widths = shown.evaluate(plots)
        assert len(widths) == 7 and min(widths) > 250 and max(widths) <= width
        # Figures follow the window.
        until(shown, f"document.querySelector('.main-svg').clientWidth === {widths[0]}")
        assert shown.evaluate("document.documentElement.scrollWidth") == width


def play(shown):
    """Moves the depth order by slider and button, both by keyboard."""
    output, button = shown.locator(".player output"), shown.locator(".player button")
    head = "document.querySelector('.player ~ div .plotly-graph-div').data.at(-1).x[0]"
    assert output.inner_text().startswith("Epoch 2,") and shown.evaluate(head) == 2
    shown.locator(".player input").focus()
    shown.keyboard.press("Home")
    until(shown, f"{head} === 0")
    assert output.inner_text().startswith("Epoch 0,")
    shown.keyboard.press("Shift+Tab")
    shown.keyboard.press("Enter")
    assert button.inner_text() == "Pause"
    until(shown, f"{head} > 0")
    assert output.inner_text().startswith(("Epoch 1,", "Epoch 2,"))
    until(shown, "document.querySelector('.player button').textContent === 'Play'")
    assert output.inner_text().startswith("Epoch 2,") and shown.evaluate(head) == 2


def test_markup_of_others_does_not_run(hostile, browser_pages):
    shown = browser_pages(hostile)
    until(shown, DRAWN)
    assert shown.evaluate("window.hacked") is None
    assert shown.locator("body img").count() == 0


# --- Errors ----------------------------------------------------------------------------------


def test_what_cannot_be_reported_is_one_error(folders, tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    (results / "runs.csv").write_text("run\n")
    run = str(folders[0])
    for arguments, expected in (
        ([tmp_path / "none"], r"needs a run, with a config.json, or the results of a campaign"),
        ([run, results], rf"runs or results of campaigns, not both.*Received: {results}, which"),
        ([run, folders[1]], r"`--output` must be given for a report on several runs.*2 runs"),
        ([run, "--check"], r"`--check` goes with results of campaigns. Received: True"),
        ([results, "--output", "x.html"], r"`--output` goes with runs. Received: x.html"),
        ([run, "--output", tmp_path / "no" / "x.html"], r"Cannot write .*x.html: No such file"),
        ([run, "--data-dir", tmp_path], r"cifar10"),
    ):
        assert cli.main(["report", *map(str, arguments)]) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert re.search(expected, captured.err), captured.err
    assert not (folders[0] / "report.html").exists()


def test_other_weights_than_the_result_names_are_refused(folders, data_dir, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "run")
    shutil.copy(folders[1] / "final.weights.h5", folder)
    with pytest.raises(UserError, match=r"those that its result\.json names.*Received: \w{64}"):
        run_report([folder], data_dir=data_dir)
    (folder / "final.weights.h5").unlink()
    with pytest.raises(UserError, match=r"final\.weights\.h5.*Received: no file"):
        run_report([folder], data_dir=data_dir)


def test_without_plotly_one_error_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "plotly.graph_objects", raising=False)
    with pytest.raises(UserError, match=r"pip install 'mf_zoo\[plot\]'. Received: no plotly"):
        run_report([folders[0]])


# --- Records of weights ----------------------------------------------------------------------


def test_the_run_of_registered_weights_names_their_record(folders, tmp_path):
    from mf_zoo import weights

    record = weights.get("MFResNet20", "cifar10")
    run = Run.of_record(record)
    assert (run.epochs, run.error, len(run.stages)) == (record.epochs, record.test_error, 3)
    folder = shutil.copytree(folders[0], tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "sha256": record.sha256}))
    text = run_report([folder]).read_text()
    assert f'/{record.stem}.json">{record.stem}.json</a>' in text
    assert "MFResNet20(weights=&quot;cifar10&quot;)" in text
