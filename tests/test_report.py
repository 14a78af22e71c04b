"""Reports: statistics against figures worked out by hand, tables, pictures, `--check`."""

import csv
import io
import math
import re

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_zoo import cli
from mf_zoo.errors import UserError
from mf_zoo.files import write_rows
from mf_zoo.markdown import table
from mf_zoo.reporting import evidence, pictures, published
from mf_zoo.reporting.cell import cells, read_results
from mf_zoo.reporting.report import markdown
from mf_zoo.reporting.statistics import (
    deviation,
    difference_interval,
    pooled_deviation,
    t_975,
    t_interval,
)
from mf_zoo.training.campaign import COLUMNS

pytestmark = pytest.mark.once


# --- Statistics ------------------------------------------------------------------------------


def test_quantiles_in_closed_form():
    # One degree is Cauchy's law; two have the distribution 1/2 + t / (2 sqrt(2 + t^2)).
    assert t_975(1) == pytest.approx(math.tan(0.475 * math.pi), abs=5e-4)
    assert t_975(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=5e-4)


@pytest.mark.parametrize("degrees", [*range(1, 31), 40, 60, 100])
def test_quantiles_by_integration_of_the_density(degrees):
    """Simpson's rule for the density between -t and t; rounding is worth less than 3e-5."""
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    constant /= math.sqrt(degrees * math.pi)
    t, n = t_975(degrees), 2000
    values = [
        constant * (1 + (-t + 2 * t * i / n) ** 2 / degrees) ** (-(degrees + 1) / 2)
        for i in range(n + 1)
    ]
    total = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    assert total * 2 * t / n / 3 == pytest.approx(0.95, abs=6e-5)


def test_quantiles_of_many_degrees_and_of_none():
    # Those of the table of NIST/SEMATECH, 1.3.6.7.2; beyond it the normal law's 1.960.
    found = [t_975(degrees) for degrees in (31, 40, 60, 100)]
    assert found == pytest.approx([2.040, 2.021, 2.000, 1.984], abs=5e-4)
    assert t_975(10**9) == pytest.approx(1.959964, abs=1e-6)
    with pytest.raises(ValueError, match=r"at least 1\. Received: degrees=0"):
        t_975(0)


def test_an_interval_by_hand():
    values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]
    # Mean 5; 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32; 32 / 7 = 4.5714; its root 2.1381;
    # 2.36462 * 2.13809 / sqrt(8) = 1.78749.
    assert deviation(values) == pytest.approx(2.13809, abs=1e-5)
    assert t_interval(values) == pytest.approx((3.21251, 6.78749), abs=1e-5)
    assert t_interval([1.0]) is None and deviation([1.0]) is None


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=40),
    st.floats(-50, 50),
    st.floats(0.01, 100),
)
def test_intervals_move_and_stretch_with_the_numbers(values, shift, scale):
    low, high = t_interval(values)
    assert low <= sum(values) / len(values) + 1e-9 and high >= sum(values) / len(values) - 1e-9
    moved = t_interval([scale * value + shift for value in values])
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6, rel=1e-6)


numbers = st.lists(st.integers(-800, 800).map(lambda n: n / 8), min_size=1, max_size=6)


@pytest.mark.filterwarnings("ignore:Precision loss")  # SciPy's, of a sample of equal numbers
@given(numbers, numbers)
@settings(deadline=None)  # the first example imports scipy.stats
def test_the_interval_of_two_samples_is_that_of_students_test(first, second):
    stats = pytest.importorskip("scipy.stats")
    pooled = pooled_deviation([first, second])
    assert (pooled is None) == (len(first) == len(second) == 1)
    if pooled is None or pooled[0] < 1e-6:
        return
    expected = stats.ttest_ind(first, second, equal_var=True).confidence_interval(0.95)
    found = difference_interval(first, second, *pooled)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


def test_a_deviation_pooled_over_samples_by_hand():
    # Squares about the means 2, 12, 5: 1 + 1, 4 + 0 + 4, 0; degrees 1 + 2 + 0.
    spread, degrees = pooled_deviation([[1.0, 3.0], [10.0, 12.0, 14.0], [5.0]])
    assert (spread, degrees) == (pytest.approx(math.sqrt(10 / 3)), 3)
    assert pooled_deviation([[1.0], [2.0]]) is None and pooled_deviation([]) is None


def test_published_figures_are_those_of_the_design_notes():
    def found(model, dataset="cifar10"):
        entries = [published.find(model, dataset, kind) for kind in published.KINDS]
        return [entry and entry.error for entry in entries]

    assert found("MFResNet20") == found("ResNet20") == [8.75, 7.40, 5.97]
    assert found("ResNet20", "cifar100") == [None, 31.17, 29.64]
    assert found("ResNet44") == [7.17, 5.99, None]
    assert found("MFResNeXt29_32x4d") == [None, 5.27, 3.15]
    assert found("ResNet164", "cifar100") == [24.33, None, 20.44]
    # Others' 6.11 and 28.86 are not of this network.
    assert found("ResNet110") == [6.43, 6.60, 3.69]
    assert found("ResNet110", "cifar100") == [None, None, 22.80]
    assert all(entry.source.title and entry.source.note for entry in published.PUBLISHED)


# --- Tables ----------------------------------------------------------------------------------


def _line(model, seed, error, **changes):
    values = {
        "run": f"{model}-{changes.get('overrides', '')}-{seed}",
        "state": "finished",
        "model": model,
        "dataset": "cifar10",
        "recipe": "cosine",
        "seed": seed,
        "evaluated_on": "test",
        "epochs": 3,
        "epochs_done": 3,
        "test_error": error,
        "test_top5_error": 0.25 * (1 + seed),
        "test_loss": 0.2 + 0.1 * seed,
        "order_swaps": 2 * seed if model.startswith("MF") else 0,
        "train_images": 50000,
        "device": "chip",
        "backend": "jax",
        "versions": "keras-3",
        **changes,
    }
    return {key: str(values.get(key, "")) for key in COLUMNS}


LINES = [
    _line("MFResNet20", 0, 7.0),
    _line("ResNet20", 0, 7.5),
    _line("MFResNet56", 0, 5.5),
    _line("ResNet56", 0, 5.25),
    _line("MFResNet20", 1, 7.4),
    _line("ResNet20", 1, 7.5),
    _line("MFResNet20", 2, 7.2),
    _line("ResNet20", 2, 7.8),
    _line("ResNet20", 3, 9.0),  # without a twin
    _line("ResNet20", 4, "", state="failed", epochs_done=1),
]


def _results(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "runs.csv", lines, COLUMNS)
    return folder


def _tables(text):
    """Rows of the tables by their first cells."""
    rows = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {tuple(row[:2]): row[2:] for row in rows}


def test_tables_by_hand(tmp_path):
    text = markdown(_results(tmp_path / "final", LINES))
    assert text.startswith("# final\n")
    assert "9 of 10 runs are finished (1 failed; they are in no table)." in text
    assert "## cifar10, 50,000 training images: error on the test images" in text
    rows = _tables(text)
    setting = "cosine, 3 epochs"
    # 7.0, 7.4, 7.2: mean 7.2, squares 0.04 + 0.04 + 0, half of it 0.04, root 0.2. Swaps 0, 2, 4.
    assert rows["`MFResNet20`", setting] == [
        *("3", "7.20", "0.20", "0.50", "0.3000"),
        *("2.0", "8.75", "7.40", "5.97"),
    ]
    # 7.5, 7.5, 7.8, 9.0: mean 7.95; 0.2025 + 0.2025 + 0.0225 + 1.1025 = 1.53; a third's root.
    assert rows["`ResNet20`", setting] == [
        *("4", "7.95", "0.71", "0.62", "0.3500"),
        *("", "8.75", "7.40", "5.97"),
    ]
    assert rows["`ResNet56`", setting] == [
        *("1", "5.25", "", "0.25", "0.2000"),
        *("", "6.97", "5.63", "4.52"),
    ]
    # -0.5, -0.1, -0.6: mean -0.4; squares 0.01 + 0.09 + 0.04 = 0.14, half's root 0.26458;
    # 4.303 * 0.26458 / sqrt(3) = 0.6573.
    assert rows["`MFResNet20` - `ResNet20`", setting] == [
        "3",
        "-0.40",
        "-1.06 to +0.26",
        "0: -0.50, 1: -0.10, 2: -0.60",
    ]
    assert rows["`MFResNet56` - `ResNet56`", setting] == [
        "1",
        "+0.25",
        "none for n = 1",
        "0: +0.25",
    ]
    assert (
        "- paper: He et al., Deep Residual Learning, CVPR 2016, arXiv 1512.03385, table 6." in text
    )
    assert "best public: osmr/imgclsmob" in text and "bearpaw" not in text
    assert text.endswith("- device: chip\n- backend: jax\n- versions: keras-3\n")


def test_what_each_published_figure_is_stands_beside_the_table(tmp_path):
    lines = [_line(model, 0, 6.0) for model in ("ResNet110", "ResNet20", "ResNeXt29_32x4d")]
    text = markdown(_results(tmp_path, lines))
    notes = text.split("Published figures are of the plain network:\n\n")[1].split("\n\n")[0]
    starts = [line.split(",")[0] for line in notes.splitlines()]
    assert starts == [
        "- paper: He et al.",
        "- public recipe: bearpaw/pytorch-classification",
        "- public recipe: chenyaofo/pytorch-cifar-models",
        "- public recipe: kuangliu/pytorch-cifar",
        "- best public: osmr/imgclsmob",
    ]
    he, bearpaw, *_, osmr = notes.splitlines()
    assert he.endswith("table 6. One run. Of ResNet110 the best of five runs, whose mean is 6.61.")
    assert "pull request 9" in bearpaw and "bottleneck ResNet-164" in bearpaw
    assert osmr.endswith("README. The best epoch on the test images.")
    assert "best of five" not in markdown(_results(tmp_path, lines[1:]))


def test_rows_of_a_table_have_a_cell_for_each_column():
    assert table(["a", "b"], [["1", ""]]) == "| a | b |\n|---|---|\n| 1 |  |"
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\]\. Received: \['1'\]"):
        table(["a", "b"], [["1"]])


def test_a_sweep_is_compared_with_the_plain_network_of_the_same_recipe(tmp_path):
    held_out = {"evaluated_on": "last 5000 training images", "train_images": 45000}
    lines = [
        _line("MFResNet20", 0, 9.0, overrides="epochs=3 quadrature=midpoint", **held_out),
        _line("MFResNet20", 0, 9.5, overrides="epochs=3 horizon=1.0 nesterov=false", **held_out),
        _line("ResNet20", 0, 10.0, overrides="epochs=3", **held_out),
        _line("ResNet20", 0, 20.0, overrides="epochs=3 nesterov=false", **held_out),
        _line("ResNet20", 0, 30.0),  # on all images
        _line("MFResNet56", 0, 8.0, **held_out),  # without a twin
    ]
    text = markdown(_results(tmp_path, lines))
    rows = _tables(text)
    pair = "`MFResNet20` - `ResNet20`"
    assert rows[pair, "cosine, 3 epochs, quadrature=midpoint"][1] == "-1.00"
    assert rows[pair, "cosine, 3 epochs, horizon=1.0, nesterov=false"][1] == "-10.50"
    assert not any("MFResNet56" in key[0] and "-" in key[0] for key in rows)
    assert "45,000 training images: error on the last 5000 training images" in text
    # Published test errors stand beside test errors only.
    assert len(rows["`MFResNet56`", "cosine, 3 epochs"]) == 6
    assert len(rows["`ResNet20`", "cosine, 3 epochs"]) == 9


def test_settings_are_compared_with_the_first_of_the_same_network_by_hand(tmp_path):
    held_out = {"evaluated_on": "last 5000 training images", "train_images": 45000}

    def line(model, seed, error, loss, overrides):
        return _line(model, seed, error, test_loss=loss, overrides=overrides, **held_out)

    lines = [
        line("ResNet20", 0, 10.0, 0.30, "epochs=3"),
        line("MFResNet20", 0, 11.0, 0.40, "epochs=3"),
        line("MFResNet20", 0, 10.5, 0.42, "epochs=3 quadrature=midpoint"),
        line("ResNet20", 0, 9.0, 0.35, "epochs=3 nesterov=false"),
        line("ResNet20", 1, 10.4, 0.32, "epochs=3"),
        line("ResNet20", 1, 9.8, 0.31, "epochs=3 nesterov=false"),
        line("ResNet20", 0, 8.0, "", "epochs=3 flip=false"),  # an earlier version's
        line("ResNet56", 0, 7.0, 0.2, "epochs=3"),  # one setting
        _line("ResNet20", 0, 1.0, overrides="epochs=3 nesterov=false"),  # on all images
    ]
    text = markdown(_results(tmp_path, lines))
    title = "### Settings minus the first"
    assert text.count(title) == 1
    text = text.split(title)[1].split("\n##")[0]
    # Squares about the means 10.2 and 9.4: 0.04 + 0.04 + 0.16 + 0.16 = 0.4, of 2 degrees of freedom
    # 0.2, its root 0.4472. Of the losses 0.31 and 0.33: 0.0002 + 0.0008, 0.0005, 0.02236.
    assert (
        "- `ResNet20`: cosine, 3 epochs; deviation over seeds 0.45 (error) and 0.0224 (loss) of 2 "
        "degrees of freedom\n" in text
    )
    assert "- `MFResNet20`: cosine, 3 epochs; deviation over seeds not known\n" in text
    rows = _tables(text)
    # -0.8 -+ 4.3027 * 0.4472 = 1.9242; 0.02 -+ 4.3027 * 0.02236 = 0.0962.
    assert rows["`ResNet20`", "cosine, 3 epochs, nesterov=false"] == [
        *("2, 2", "-0.80", "-2.72 to +1.12", "+0.0200", "-0.0762 to +0.1162")
    ]
    # -2.2 -+ 1.9242 sqrt(3 / 2) = 2.3567.
    assert rows["`ResNet20`", "cosine, 3 epochs, flip=false"] == [
        *("1, 2", "-2.20", "-4.56 to +0.16", "", "")
    ]
    assert rows["`MFResNet20`", "cosine, 3 epochs, quadrature=midpoint"] == [
        *("1, 1", "-0.50", "none", "+0.0200", "none")
    ]
    assert len(rows) == 2 + 3 and "ResNet56" not in text


def test_cifar100_has_the_error_of_superclasses(tmp_path):
    hundred = {"dataset": "cifar100", "test_coarse_error": 20}
    lines = [
        _line("ResNet20", 0, 30.0, **hundred),
        _line("ResNet20", 1, 31.0, **{**hundred, "test_coarse_error": 22}),
        _line("ResNet32", 0, 29.0, **{**hundred, "test_coarse_error": "", "test_top5_error": ""}),
    ]
    text = markdown(_results(tmp_path, lines))
    rows = _tables(text)
    header = rows["model", "setting"]
    assert header[3:7] == ["top-5", "coarse", "loss", "swaps"]
    assert rows["`ResNet20`", "cosine, 3 epochs"][3:5] == ["0.38", "21.00"]
    assert rows["`ResNet32`", "cosine, 3 epochs"][3:5] == ["", ""]  # an earlier version's
    assert "coarse" not in markdown(_results(tmp_path, LINES[:1])).split("## cifar10")[1]


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(-1, 1), st.floats(-5, 5)), min_size=1, max_size=6
    ),
    st.randoms(),
)
@settings(max_examples=50, deadline=None)
def test_what_a_seed_does_to_both_twins_cancels(tmp_path_factory, numbers, random):
    """Nor does the order of the lines matter to a cell."""
    folder = tmp_path_factory.mktemp("results")

    def differences(seeds_matter):
        lines = []
        for seed, (error, difference, effect) in enumerate(numbers):
            plain = error + effect * seeds_matter
            lines.append(_line("MFResNet32", seed, round(plain, 6) + round(difference, 6)))
            lines.append(_line("ResNet32", seed, round(plain, 6)))
        random.shuffle(lines)
        found = cells(read_results(_results(folder, lines)))
        learned = next(cell for cell in found if cell.mean_field)
        return learned.differences(learned.twin(found))

    expected = {seed: round(difference, 6) for seed, (_, difference, _) in enumerate(numbers)}
    assert differences(False) == pytest.approx(expected, abs=1e-9)
    assert differences(True) == pytest.approx(expected, abs=1e-9)


def test_results_that_cannot_be_read(tmp_path, capsys):
    with pytest.raises(UserError, match=r"must hold a runs.csv. Received: .*absent"):
        read_results(tmp_path / "absent")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(f"Received: {tmp_path}\n")
    folder = _results(tmp_path, LINES)
    whole = (folder / "runs.csv").read_text()
    (folder / "runs.csv").write_text(whole.replace("order_swaps,", "swaps,"))
    with pytest.raises(UserError, match=r"must have the columns .*order_swaps.*Received"):
        read_results(folder)
    (folder / "runs.csv").write_text(whole[:-10])
    with pytest.raises(UserError, match=r"must have 29 values.*ResNet20--4"):
        read_results(folder)
    _results(folder, [_line("ResNet20", 0, 9, epochs_done=2)])
    with pytest.raises(UserError, match=r"all its epochs. Received: ResNet20--0 .* with 2 of 3"):
        read_results(folder)


# --- Pictures and the command ----------------------------------------------------------------


def _with_histories(folder):
    _results(folder, LINES)
    for line in LINES[:4]:
        rows = [
            {"epoch": i, "test_error": "" if i == 2 else 40 / i, "order_swaps": i}
            for i in (1, 2, 3)
        ]
        write_rows(folder / f"{line['run']}.history.csv", rows, list(rows[0]))
        times = [{"epoch": 0, "s1/0": 0.5, "s1/1": 1, "s2/0": 1}]
        times += [{"epoch": 2, "s1/0": 1.5, "s1/1": 1, "s2/0": 1}]
        write_rows(folder / f"{line['run']}.times.csv", times, list(times[0]))
    return folder


def test_pictures_show_the_data(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    folder = _with_histories(tmp_path)
    found = cells(read_results(folder))

    def curves(draw):
        figure = figures.Figure()
        draw(figure, folder, found)
        return {
            axes.get_title(): [
                list(map(tuple, line.get_xydata().tolist())) for line in axes.get_lines()
            ]
            for axes in figure.axes
        }

    assert curves(pictures._draw_errors) == {
        name: [[(1, 40), (3, 40 / 3)]] * 2 for name in ("ResNet20, cifar10", "ResNet56, cifar10")
    }
    swaps = curves(pictures._draw_swaps)
    assert swaps["ResNet20, cifar10"] == [[(0, 0), (1, 1), (2, 3), (3, 6)]]
    times = curves(pictures._draw_times)
    assert times["MFResNet20, s1"] == [
        [(0, 0.5), (1, 0.5), (2, 1.5), (3, 1.5)],  # an epoch without a change is not in the file
        [(0, 1), (1, 1), (2, 1), (3, 1)],
    ]
    assert list(times) == [f"MFResNet{n}, s{i}" for n in (20, 56) for i in (1, 2)]
    order = curves(pictures._draw_order)
    assert order["MFResNet20, s1"] == [
        [(0, 0), (1, 0), (2, 1), (3, 1)],
        [(0, 1), (1, 1), (2, 0), (3, 0)],
    ]
    assert list(order) == list(times)
    points = [x for line in curves(pictures._draw_settings)["cosine, 3 epochs"] for x, _ in line]
    assert {7.0, 7.4, 7.2, 5.25} <= set(points)


def test_pictures_leave_no_empty_panel_and_labels_say_what_differs(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    lines = [
        _line(f"ResNet{depth}", 0, 9.0, overrides=f"epochs=3 nesterov=false{extra}")
        for depth in (20, 32, 44, 56)
        for extra in ("", " flip=false")
    ]
    folder = _results(tmp_path, lines)
    for line in lines:
        rows = [{"epoch": 1, "test_error": 9.0}, {"epoch": 3, "test_error": 8.0}]
        write_rows(folder / f"{line['run']}.history.csv", rows, list(rows[0]))
    figure = figures.Figure()
    found = cells(read_results(folder))
    pictures._draw_errors(figure, folder, found)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [len(axes.get_lines()) for axes in shown] == [2, 2, 2, 2] and len(figure.axes) == 6
    texts = [text.get_text() for axes in shown for text in axes.get_legend().get_texts()]
    assert texts[:2] == ["ResNet20", "ResNet20: flip=false"]
    figure = figures.Figure()
    pictures._draw_settings(figure, folder, found)
    (axes,) = figure.axes
    assert axes.get_title() == "cosine, 3 epochs, nesterov=false"
    assert [text.get_text() for text in axes.get_yticklabels()][::-1] == texts


def test_errors_of_two_datasets_do_not_share_an_axis(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    errors = {"cifar10": (8.0, 9.0), "cifar100": (32.0, 33.0)}
    lines = [
        _line(model, 0, error, dataset=dataset)
        for dataset, both in errors.items()
        for model, error in zip(("MFResNet20", "ResNet20"), both, strict=True)
    ]
    figure = figures.Figure()
    pictures._draw_settings(figure, tmp_path, cells(read_results(_results(tmp_path, lines))))
    assert [axes.get_title() for axes in figure.axes] == [
        f"{dataset}: cosine, 3 epochs" for dataset in errors
    ]
    for axes, both in zip(figure.axes, errors.values(), strict=True):
        assert {x for line in axes.get_lines() for x in line.get_xdata()} == set(both)
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels == ["ResNet20", "MFResNet20"]  # from the bottom


def test_the_depth_order_is_drawn_where_blocks_changed_places(tmp_path):
    folder = _with_histories(tmp_path)
    found = cells(read_results(folder))
    assert "order.png" in pictures.drawable(folder, found)
    (cell,) = (cell for cell in found if cell.model == "MFResNet56")
    assert pictures._reordered(folder, cell)
    path = folder / f"{cell.rows[0]['run']}.times.csv"
    path.write_text(path.read_text().replace("1.5", "0.75"))  # not past the other one
    assert not pictures._reordered(folder, cell)
    (folder / f"{LINES[0]['run']}.times.csv").unlink()
    names = pictures.drawable(folder, found)
    assert "order.png" not in names and "times.png" in names


def test_the_report_is_the_same_to_the_byte_and_checked(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = _with_histories(tmp_path / "results" / "final")
    root = str(tmp_path / "results")
    assert cli.main(["report", root, "--check"]) == 1
    assert f"{folder / 'report.md'} is missing" in capsys.readouterr().out
    assert cli.main(["report", root]) == 0
    names = [f"{name}.png" for name in ("settings", "errors", "times", "order", "swaps")]
    names.insert(0, "report.md")
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    first = {name: (folder / name).read_bytes() for name in names}
    assert all(first[name].startswith(b"\x89PNG") for name in names[1:])
    for name in names[1:]:
        assert f"]({name})".encode() in first["report.md"]
    assert cli.main(["report", str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in names} == first
    capsys.readouterr()
    assert cli.main(["report", root, "--check"]) == 0
    assert capsys.readouterr().out == ""

    content = (folder / "runs.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(content)))
    rows[0]["test_error"] = "7.3"
    write_rows(folder / "runs.csv", rows, COLUMNS)
    (folder / "swaps.png").unlink()
    assert cli.main(["report", root, "--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{folder / 'report.md'} is not what the results give",
        f"{folder / 'swaps.png'} is missing",
    ]
    assert (folder / "report.md").read_bytes() == first["report.md"]


def test_the_committed_reports_are_what_their_results_give(capsys):
    assert cli.main(["report", str(ROOT / "results"), "--check"]) == 0, capsys.readouterr().out


def test_a_campaign_without_a_finished_run_has_a_report(tmp_path, capsys):
    folder = _results(tmp_path / "begun", [_line("ResNet20", 0, "", state="waiting")])
    assert cli.main(["report", str(folder), "--no-pictures"]) == 0
    text = (folder / "report.md").read_text()
    assert "0 of 1 runs are finished (1 waiting; they are in no table)." in text
    assert "device: nothing yet" in text and "##" not in text.split("## Trained with")[0]


# --- All campaigns together ------------------------------------------------------------------


def test_the_evidence_of_several_campaigns_by_hand(tmp_path):
    hundred = {"dataset": "cifar100"}
    held_out = {"evaluated_on": "last 5000 training images", "train_images": 45000}
    first = _results(tmp_path / "first", LINES)
    second = _results(
        tmp_path / "second",
        [
            LINES[0],  # counts once
            _line("MFResNet20", 3, 8.0, overrides="epochs=3"),  # a seed more, by another spelling
            _line("MFResNet20", 0, 30.0, **hundred),
            _line("ResNet20", 0, 31.0, **hundred),
            _line("MFResNet20", 0, 6.0, overrides="reorder=false"),
            _line("MFResNet32", 0, 5.0),  # without a twin
            _line("MFResNet44", 0, 9.0, **held_out),
            _line("ResNet44", 0, 8.0, **held_out),
        ],
    )
    # Differences -0.5, -0.1, -0.6, -1.0: mean -0.55; squares 0.0025 + 0.2025 + 0.0025 + 0.2025, in
    # all 0.41, a third's root 0.36968; 3.1824 * 0.36968 / 2 = 0.58825. 7, 7.4, 7.2, 8: mean 7.4;
    # squares 0.16 + 0 + 0.04 + 0.36 = 0.56, a third's root 0.43. The others as above. Swaps 0, 2,
    # 4, 6.
    twins, alone = "cosine, 3 epochs, 50,000 images", "none for n = 1 | -0.55 to -0.25 | 0.0"
    assert evidence([str(second), first]).splitlines()[2:] == [
        f"| `ResNet20` | cifar10 | {twins} | 4 | 7.40 ± 0.43 | 7.95 ± 0.71 | -0.55 "
        "| -1.14 to +0.04 | -0.55 to -0.25 | 3.0 |",
        "| `ResNet20` | cifar10 | cosine, 3 epochs, reorder=false, 50,000 images | 1 | 6.00 | 7.50 "
        f"| -1.50 | {alone} |",
        f"| `ResNet20` | cifar100 | {twins} | 1 | 30.00 | 31.00 | -1.00 | {alone} |",
        f"| `ResNet56` | cifar10 | {twins} | 1 | 5.50 | 5.25 | +0.25 | {alone} |",
    ]
    assert evidence([]) == evidence([_results(tmp_path / "third", LINES[1:2])])
    assert "have a seed in common yet" in evidence([])
