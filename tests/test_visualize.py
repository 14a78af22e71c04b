"""Pictures of stages and histories show the data; the callback records what happened."""

import csv
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import record_run
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_zoo import devices, files, visualize
from mf_zoo.errors import UserError
from mf_zoo.layers import BasicBlock, MeanFieldStage
from mf_zoo.training.callbacks import DepthOrder

figures = pytest.importorskip("matplotlib.figure")
pytest.importorskip("tensorboard")
once = pytest.mark.once_on_torch
ROOT = pathlib.Path(__file__).resolve().parent.parent

# By hand: times of stage "a" and "b" by epoch, and what follows from them.
TIMES = record_run.TIMES
RANKS = {
    "a": [[0, 1, 2], [0, 2, 1], [2, 1, 0], [0, 2, 1], [1, 0, 2]],
    "b": [[0, 1], [0, 1], [1, 0], [0, 1], [0, 1]],
}
STEPS = {  # backward: the difference to the time before, from 0
    "a": [[1, 1, 1], [1, 0.25, 1.25], [0.25, 1, 1.5], [0.5, 1, 1], [0.25, 0.25, 1]],
    "b": [[1, 1], [1, 0.5], [0.25, 1.5], [0.25, 1.25], [0.25, 0.25]],
}
# Pairs that changed places: in a after epoch 1 (1, 2); after 2 (0, 1), (0, 2); after 3 those back;
# after 4 (0, 1), (1, 2). In b (0, 1) after epoch 2, and back after 3.
SWAPS = {"a": [0, 1, 2, 2, 2], "b": [0, 0, 1, 1, 0]}
EPOCHS = [0, 1, 2, 3, 4]


def _long(ranks=True):
    return [
        {"epoch": epoch, "stage": name, "particle": i, "time": time}
        | ({"rank": RANKS[name][epoch][i]} if ranks else {})
        for epoch in EPOCHS
        for name in TIMES
        for i, time in enumerate(TIMES[name][epoch])
    ]


def _wide():
    return [
        {"epoch": epoch}
        | {f"{name}/{i}": t for name in TIMES for i, t in enumerate(TIMES[name][epoch])}
        for epoch in EPOCHS
    ]


def _recorded():
    return [
        {
            **row,
            "step": float(STEPS[row["stage"]][row["epoch"]][row["particle"]]),
            "swaps": SWAPS[row["stage"]][row["epoch"]],
        }
        for row in _long()
    ]


class _Frame:
    """What of a pandas.DataFrame is used."""

    def __init__(self, rows):
        self.rows_of_frame = rows

    def to_dict(self, orient):
        assert orient == "records"
        return self.rows_of_frame


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_rows(path, rows, list(rows[0]))
    return path


def _formats(folder):
    callback = visualize.RecordStages()
    callback.rows = _recorded()
    callback.horizons = {"a": 3.0, "b": 2.0}
    _write(folder / "run" / "times.csv", _long())
    return {
        "rows": _long(),
        "rows without ranks": _long(ranks=False),
        "long file": _write(folder / "long.csv", _long()),
        "wide file": str(_write(folder / "wide.csv", _wide())),
        "run folder": folder / "run",
        "recorded file": _write(folder / "recorded.csv", _recorded()),
        "callback": callback,
        "frame": _Frame(_long()),
        "generator": (row for row in _wide()),
    }


def _lines(ax):
    return [line.get_xydata().tolist() for line in ax.get_lines()]


def _line(values):
    return [[epoch, value] for epoch, value in zip(EPOCHS, values, strict=True)]


def _column(table, i):
    return [row[i] for row in table]


# --- Histories -------------------------------------------------------------------------------


@once
def test_every_format_of_a_history_gives_the_same_picture(tmp_path):
    for kind, history in _formats(tmp_path).items():
        history = list(history) if kind == "generator" else history
        for draw, table in ((visualize.times, TIMES), (visualize.depth_order, RANKS)):
            assert _lines(draw(history, "a")) == [_line(_column(table["a"], i)) for i in range(3)]
        ax = visualize.step_sizes(history, quadrature="backward", legend=False)
        expected = [_line(_column(STEPS["a"], i)) for i in range(3)]
        assert _lines(ax) == [*expected, *(_line(_column(STEPS["b"], i)) for i in range(2))], kind
        (line,) = _lines(visualize.swaps(history, "b"))
        assert line == _line([0, 0, 1, 2, 2]), kind
        (line,) = _lines(visualize.swaps(history))
        assert line == _line([0, 1, 4, 7, 9]), kind


@once
def test_a_history_that_leaves_out_epochs_without_a_change_is_filled_up():
    rows = [{"epoch": 0, "s/0": "1.0", "s/1": "2.0"}, {"epoch": 3, "s/0": "1.5", "s/1": "1.25"}]
    ax = visualize.times(rows, last_epoch=5)
    assert _lines(ax)[0] == [[0, 1], [1, 1], [2, 1], [3, 1.5], [5, 1.5]]
    ax = visualize.depth_order(rows, last_epoch=5)
    assert _lines(ax)[1] == [[0, 1], [1, 1], [2, 1], [3, 0], [5, 0]]
    assert _lines(visualize.swaps(rows)) == [[[0, 0], [1, 0], [2, 0], [3, 1]]]


@once
def test_particles_that_come_later_begin_later_and_count_as_no_swaps():
    rows = [{"epoch": 0, "s/0": 1.0, "s/1": 2.0}, {"epoch": 1, "s/0": 2.0, "s/1": 1.0}]
    # Grown: the numbers are new, so that the order 0, 1, 2 is no swap against 1, 0.
    rows += [{"epoch": 2, "s/0": 1.0, "s/1": 2.0, "s/2": 3.0}]
    rows += [{"epoch": 3, "s/0": 1.0, "s/1": 3.0, "s/2": 2.0}]
    stage = visualize.read(rows, "backward")["s"]
    assert stage.swaps().tolist() == [0, 1, 0, 1]
    assert np.isnan(stage.steps[:2, 2]).all() and stage.steps[3].tolist() == [1.0, 1.0, 1.0]
    assert stage.horizon == 3.0
    assert _lines(visualize.times(rows))[2] == [[2, 3], [3, 2]]
    assert _lines(visualize.depth_order(rows))[2] == [[2, 2], [3, 1]]


@once
def test_what_is_recorded_beside_a_history_says_by_which_rule_steps_are_made(tmp_path):
    # Times 1, 2 of 2 particles; the midpoint rule with T = 4: cells [0, 1.5] and [1.5, 4].
    rows = [{"epoch": 0, "stage": "s", "particle": i, "time": 1.0 + i, "rank": i} for i in (0, 1)]
    rule = {"quadrature": "midpoint", "horizon": 4.0}
    run = _write(tmp_path / "run" / "times.csv", rows).parent
    files.write_json(run / "config.json", {"recipe": rule})
    shipped = _write(tmp_path / "net-data.times.csv", rows)
    files.write_json(tmp_path / "net-data.json", rule)
    for history in (run, run / "times.csv", shipped):
        stage = visualize.read(history)["s"]
        assert stage.steps.tolist() == [[1.5, 2.5]] and stage.horizon == 4.0
    # What the caller says comes first.
    stage = visualize.read(run, quadrature="uniform", horizon=3.0)["s"]
    assert stage.steps.tolist() == [[1.5, 1.5]] and stage.horizon == 3.0
    with pytest.raises(ValueError, match=r"`quadrature` must be given.*Received"):
        visualize.step_sizes(rows)


@once
def test_ranks_that_are_recorded_count_whatever_the_times_are():
    # Without reordering, the block at place l takes the l-th step: particle 1 stays second.
    rows = [
        {"epoch": 0, "stage": "s", "particle": i, "time": t, "rank": i}
        for i, t in enumerate((2.0, 0.5))
    ]
    stage = visualize.read(rows, "backward")["s"]
    assert stage.ranks.tolist() == [[0, 1]] and stage.steps.tolist() == [[0.5, 1.5]]


@once
@pytest.mark.parametrize(
    "history",
    [
        "missing.csv",
        [],
        [{"time": 1.0}],
        [{"epoch": 0, "loss": 1.0}],
        7,
        {"epoch": 1},
        [{"epoch": 0, "stage": "s", "particle": "x", "time": 1.0}],
        [{"epoch": 0, "s/0": "one"}],
    ],
)
def test_what_is_no_history_is_refused(history, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for draw in (visualize.times, visualize.depth_order, visualize.step_sizes, visualize.swaps):
        with pytest.raises(ValueError, match=r"`history` must be.*Received"):
            draw(history)


@once
def test_an_unknown_stage_is_refused():
    for draw in (visualize.times, visualize.depth_order, visualize.swaps):
        with pytest.raises(ValueError, match=r"one of \['a', 'b'\]. Received: stage='c'"):
            draw(_wide(), "c")


_HISTORIES = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=6)
)


@once
@given(_HISTORIES, st.data())
@settings(max_examples=25, deadline=None)
def test_swaps_and_steps_of_any_history(orders, data):
    n = len(orders[0])
    grid = data.draw(st.permutations([0.25 * k for k in range(1, 9)]))[:n]
    times = [[sorted(grid)[k] for k in ranks] for ranks in orders]
    wide = [{"epoch": e, **{f"s/{i}": t for i, t in enumerate(row)}} for e, row in enumerate(times)]
    pairs = list(itertools.combinations(range(n), 2))
    expected = [
        sum((before[i] < before[j]) != (after[i] < after[j]) for i, j in pairs)
        for before, after in itertools.pairwise(times)
    ]
    stage = visualize.read(wide, "backward")["s"]
    assert stage.swaps().tolist() == [0, *expected]
    np.testing.assert_array_equal(stage.ranks, orders)
    np.testing.assert_allclose(stage.steps.sum(1), max(grid))  # backward: up to the last time


# --- Lines over the training -----------------------------------------------------------------


@once
def test_times_of_one_stage_have_a_colour_a_particle_and_of_several_one_a_stage():
    ax = visualize.times(_wide(), "a")
    lines = ax.get_lines()
    assert [line.get_label() for line in lines] == [f"particle {i}" for i in range(3)]
    assert [line.get_color() for line in lines] == ["C0", "C1", "C2"]
    assert (ax.get_xlabel(), ax.get_title()) == ("epoch", "a") and "time" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"particle {i}" for i in range(3)
    ]
    ax = visualize.times(_wide())
    assert [line.get_color() for line in ax.get_lines()] == ["C0"] * 3 + ["C1"] * 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert visualize.times(_wide(), "a", legend=False).get_legend() is None


@once
def test_axes_are_those_given_and_arguments_reach_the_artists(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    axes = figures.Figure().subplots()
    stage = _dense_stage([1.0, 2.0])
    for draw, source in (
        *((f, _wide()) for f in (visualize.times, visualize.depth_order, visualize.swaps)),
        *((f, stage) for f in (visualize.measure, visualize.step_sizes)),
    ):
        assert draw(source, ax=axes) is axes
        assert draw(source).figure is not axes.figure
    assert "matplotlib.pyplot" not in sys.modules
    for draw in (visualize.times, visualize.depth_order, visualize.swaps):
        (line, *_) = draw(_wide(), "a", lw=5, color="red").get_lines()
        assert (line.get_linewidth(), line.get_color()) == (5, "red")
    bars = visualize.step_sizes(stage, height=2.0, color="red", edgecolor="black").patches
    assert bars[0].get_facecolor()[:3] == (1, 0, 0) and bars[0].get_edgecolor()[:3] == (0, 0, 0)
    points = visualize.measure(stage, marker="s", s=9).collections[0]
    assert points.get_sizes().tolist() == [9]


@once
def test_crossings_stand_out_in_the_bump_chart_and_lines_are_labelled_at_both_ends():
    rows = [
        {"epoch": 0, "s/0": 1.0, "s/1": 2.0, "s/2": 3.0},
        {"epoch": 1, "s/0": 1.0, "s/1": 2.5, "s/2": 2.0},
        {"epoch": 2, "s/0": 0.5, "s/1": 2.5, "s/2": 2.0},
    ]
    ax = visualize.depth_order(rows)
    still, *moved = ax.get_lines()
    assert _lines(ax) == [
        [[0, 0], [1, 0], [2, 0]],
        [[0, 1], [1, 2], [2, 2]],
        [[0, 2], [1, 1], [2, 1]],
    ]
    assert still.get_color() == "0.6" and [line.get_color() for line in moved] == ["C1", "C2"]
    assert all(line.get_linewidth() > still.get_linewidth() for line in moved)
    ends = [(text.get_text(), *text.xy) for text in ax.texts]
    assert ends == [
        *(("0", 0, 0), ("0", 2, 0)),
        *(("1", 0, 1), ("1", 2, 2)),
        *(("2", 0, 2), ("2", 2, 1)),
    ]
    assert not visualize.depth_order(rows, labels=False).texts


@once
def test_stages_lie_one_above_another_in_the_bump_chart():
    ax = visualize.depth_order(_wide())
    expected = [_line(_column(RANKS["a"], i)) for i in range(3)]
    expected += [_line([3 + rank for rank in _column(RANKS["b"], i)]) for i in range(2)]
    assert _lines(ax) == expected
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_yticks().tolist() == [1.0, 3.5]


@once
def test_swaps_of_a_run_are_those_that_it_counted(tmp_path):
    run = _write(tmp_path / "times.csv", _long()).parent
    assert _lines(visualize.swaps(run)) == [_line([0, 1, 4, 7, 9])]
    counted = [{"epoch": e, "loss": 1.0, "order_swaps": str(e)} for e in (1, 2, 3)]
    _write(run / "history.csv", counted)
    for history in (run, run / "history.csv", counted):
        assert _lines(visualize.swaps(history)) == [[[0, 0], [1, 1], [2, 3], [3, 6]]]
    # Of one stage only the times tell.
    assert _lines(visualize.swaps(run, "b")) == [_line([0, 0, 1, 2, 2])]


# --- Steps and the measure -------------------------------------------------------------------


def _dense_stage(times, **arguments):
    stage = MeanFieldStage(
        keras.layers.Dense(2), len(times), initial_times=times, name="s", **arguments
    )
    stage.build((None, 2))
    return stage


def _bars(ax):
    return [
        (bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in ax.patches
    ]


@once
@pytest.mark.parametrize(
    ("rule", "horizon", "expected"),
    [
        # Times 2, 0.5, 1.5: in depth order particles 1, 2, 0.
        ("backward", 4.0, [(0, 0.5), (0.5, 1.0), (1.5, 0.5)]),
        ("midpoint", 4.0, [(0, 1.0), (1.0, 0.75), (1.75, 2.25)]),
        ("uniform", 3.0, [(0, 1.0), (1.0, 1.0), (2.0, 1.0)]),
    ],
)
def test_bars_are_the_steps_in_depth_order(rule, horizon, expected):
    times = [2.0, 0.5, 1.5]
    stage = _dense_stage(times, quadrature=rule, horizon=horizon)
    rows = [{"epoch": e, "s/0": 1.0, "s/1": 2.0, "s/2": 3.0} for e in (0,)]
    rows += [{"epoch": 4, **{f"s/{i}": t for i, t in enumerate(times)}}]
    drawn = [visualize.step_sizes(stage)]
    drawn += [
        visualize.step_sizes(rows, epoch=epoch, quadrature=rule, horizon=horizon)
        for epoch in (4, -1)
    ]
    for ax in drawn:
        assert _bars(ax) == [(left, width, 0) for left, width in expected]
        assert [bar.get_facecolor()[:3] for bar in ax.patches] == [
            pytest.approx(figures_color(f"C{i}")) for i in (1, 2, 0)
        ]
        assert [line.get_xdata()[0] for line in ax.get_lines()] == [0.5, 1.5, 2.0]
        assert [text.get_text() for text in ax.texts] == [
            f"{i}\n{width:.2f}" for i, (_, width) in zip((1, 2, 0), expected, strict=True)
        ]
        assert [text.get_position()[0] for text in ax.texts] == [
            left + width / 2 for left, width in expected
        ]
        assert ax.get_xlim() == (0, 1.01 * horizon) and "time" in ax.get_xlabel()
        assert [text.get_text() for text in ax.get_yticklabels()] == ["s"]


def figures_color(name):
    from matplotlib.colors import to_rgb

    return to_rgb(name)


@once
def test_bars_of_several_stages_and_of_narrow_steps():
    stages = [_dense_stage([1.0, 1.02]), _dense_stage([1.0, 2.0, 3.0])]
    ax = visualize.step_sizes(stages, label="{particle} at {time:.1f}")
    assert [y for *_, y in _bars(ax)] == [0, 0, 1, 1, 1]
    # The second step, 0.02 of 3, has no room for a text.
    assert [text.get_text() for text in ax.texts] == [
        "0 at 1.0",
        "0 at 1.0",
        "1 at 2.0",
        "2 at 3.0",
    ]
    assert not visualize.step_sizes(stages, label=None).texts
    ax = visualize.step_sizes(_recorded(), epoch=2)
    assert _bars(ax) == [
        *((0, 1.5, 0), (1.5, 1.0, 0), (2.5, 0.25, 0)),
        *((0, 1.5, 1), (1.5, 0.25, 1)),
    ]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match=r"`epoch` must be one of .* 0 to 4, or -1. R.*=7"):
        visualize.step_sizes(_recorded(), epoch=7)


@once
def test_stages_must_have_been_built():
    stage = MeanFieldStage(keras.layers.Dense(2), 2)
    for draw in (visualize.step_sizes, visualize.measure):
        with pytest.raises(ValueError, match=r"has been built. Received"):
            draw(stage)
    with pytest.raises(ValueError, match="must be a MeanFieldStage"):
        visualize.measure(keras.layers.Dense(2))


def test_the_measure_shows_times_steps_and_weights():
    stage = _dense_stage([2.0, 0.5, 1.5])
    # theta_i = (kernel, bias) = m + a_i v, in the order of particles 1, 2, 0 in depth order.
    v = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([0.0, 4.0])  # of length 5
    scale = {1: -1.0, 2: 0.5, 0: 2.0}
    stage.set_blocks([[1.0 + scale[i] * part for part in v] for i in (1, 2, 0)])
    ax = visualize.measure(stage)
    points = ax.collections[0]
    # Mean of the scales 0.5; particle 1 and 0 are equally far out, the first lies to the right.
    expected = [(7.5, 0.5), (0.0, 1.5), (-7.5, 2.0)]
    np.testing.assert_allclose(points.get_offsets(), expected, atol=1e-5)
    assert "100 % of the variance" in ax.get_xlabel()
    # Steps 0.5, 1, 0.5.
    np.testing.assert_allclose(points.get_sizes(), [150, 300, 150])
    assert [text.get_text() for text in ax.texts] == ["1", "2", "0"]

    # On a vector that the caller names, whatever its length: the first entry of the kernel.
    direction = [np.array([[7.0, 0.0], [0.0, 0.0]]), np.zeros(2)]
    for given_direction in (direction, np.concatenate([part.ravel() for part in direction])):
        ax = visualize.measure(stage, direction=given_direction, area=100)
        points = ax.collections[0]
        np.testing.assert_allclose(points.get_offsets()[:, 0], [-2.0, 2.5, 7.0], rtol=1e-6)
        np.testing.assert_allclose(points.get_sizes(), [50, 100, 50])
    for wrong in (np.ones(5), np.zeros(6)):
        with pytest.raises(ValueError, match=r"vector of 6 numbers.*Received"):
            visualize.measure(stage, direction=wrong)


def test_the_measure_is_of_weights_and_not_of_statistics():
    stage = MeanFieldStage(BasicBlock(2), 3, name="s")
    stage.build((None, 4, 4, 2))
    before = [block.weights for block in stage.blocks()]
    trained = [v.trainable for v in stage.template().variables]
    first = visualize.measure(stage).collections[0].get_offsets()
    # Only statistics differ now: all three lie on one point.
    same = [
        [
            w if not flag else before[0][k]
            for k, (w, flag) in enumerate(zip(weights, trained, strict=True))
        ]
        for weights in before
    ]
    stage.set_blocks(same)
    assert np.ptp(first[:, 0]) > 0.1
    points = visualize.measure(stage).collections[0].get_offsets()
    np.testing.assert_allclose(points, [[0, 1], [0, 2], [0, 3]], atol=1e-6)
    # All weights are shown where all are frozen.
    stage.set_blocks(before)
    stage.trainable = False
    assert np.ptp(visualize.measure(stage).collections[0].get_offsets()[:, 0]) > 0.1


# --- The callback ----------------------------------------------------------------------------


def _rows(path):
    with open(path, newline="") as file:
        return [
            {
                "epoch": int(row["epoch"]),
                "stage": row["stage"],
                "particle": int(row["particle"]),
                "time": float(row["time"]),
                "rank": int(row["rank"]),
                "step": float(row["step"]),
                "swaps": int(row["swaps"]),
            }
            for row in csv.DictReader(file)
        ]


def _check_logs(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    log.Reload()

    def scalars(tag):
        return [(event.step, event.value) for event in log.Scalars(tag)]

    for name in TIMES:
        for i in range(len(TIMES[name][0])):
            for kind, table in (("time", TIMES), ("rank", RANKS), ("step", STEPS)):
                assert scalars(f"{name}/{kind}/{i}") == _logged(_column(table[name], i))
        assert scalars(f"{name}/swaps") == _logged(SWAPS[name])
        histograms = log.Histograms(f"{name}/times")
        assert [event.step for event in histograms] == EPOCHS
        for event, times in zip(histograms, TIMES[name], strict=True):
            value = event.histogram_value
            assert (value.min, value.max, value.num) == (min(times), max(times), len(times))
            assert value.sum == sum(times) and value.bucket_limit[-1] == len(times)  # T
            # A particle is in the bucket that its time is in.
            for limit, count in zip(value.bucket_limit[:-1], np.cumsum(value.bucket), strict=False):
                assert count == sum(time < limit for time in times)
            assert sum(value.bucket) == len(times)


def _logged(values):
    return [(epoch, float(value)) for epoch, value in zip(EPOCHS, values, strict=True)]


def test_the_callback_records_what_the_particles_did(tmp_path):
    recorder, history = record_run.main(tmp_path)
    assert _rows(tmp_path / "new" / "stages.csv") == recorder.rows == _recorded()
    totals = [a + b for a, b in zip(SWAPS["a"], SWAPS["b"], strict=True)]
    assert history.history["order_swaps"] == totals[1:]
    assert recorder.horizons == {"a": 3.0, "b": 2.0}


@once
@pytest.mark.parametrize("when", ["step", "rows", "row"])
def test_a_killed_training_is_resumed_without_double_rows(when, tmp_path):
    child = os.fork()  # not a new Python: it would import Keras for seconds
    if child == 0:
        try:
            record_run.main(tmp_path, when)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    path = tmp_path / "new" / "stages.csv"
    text = path.read_text()
    # Two epochs are whole; of the third there is nothing, all, or a row and a half.
    assert len(text.splitlines()) == 1 + 3 * 5 + {"step": 0, "rows": 5, "row": 2}[when]
    assert text.endswith("\n") == (when != "row")
    time.sleep(1.1)  # TensorBoard orders its files by the second in which they were begun
    recorder, _ = record_run.main(tmp_path)
    assert _rows(path) == recorder.rows == _recorded()
    _check_logs(tmp_path / "logs")


def _tiny():
    return record_run.model(), np.ones((4, 4), "float32")


@once
def test_a_training_from_the_start_begins_a_new_file_and_a_resumed_one_appends(tmp_path):
    path = tmp_path / "stages.csv"
    model, x = _tiny()
    for recorder in (visualize.RecordStages(path), visualize.RecordStages(path)):
        model.fit(x, x, epochs=2, verbose=0, callbacks=[recorder])
        assert [row["epoch"] for row in _rows(path)] == [e for e in (0, 1, 2) for _ in range(5)]
    first = _rows(path)
    model.fit(x, x, epochs=3, initial_epoch=2, verbose=0, callbacks=[recorder])
    rows = _rows(path)
    assert rows[:15] == first == recorder.rows[:15]
    assert [row["epoch"] for row in rows[15:]] == [3] * 5
    # The same without a file.
    recorder = visualize.RecordStages()
    model.fit(x, x, epochs=2, verbose=0, callbacks=[recorder])
    model.fit(x, x, epochs=3, initial_epoch=2, verbose=0, callbacks=[recorder])
    assert [row["epoch"] for row in recorder.rows] == [e for e in range(4) for _ in range(5)]
    model.fit(x, x, epochs=1, verbose=0, callbacks=[recorder])
    assert [row["epoch"] for row in recorder.rows] == [0] * 5 + [1] * 5


@once
def test_another_file_is_refused_before_any_step(tmp_path):
    model, x = _tiny()
    path = tmp_path / "mine.csv"
    for content in ("a,b\n1,2\n", "no table at all", "epoch,stage,particle,time,rank\n"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"`path` must be a new file.*Received"):
            model.fit(x, x, verbose=0, callbacks=[visualize.RecordStages(path)])
        assert path.read_text() == content
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


@once
def test_a_model_without_stages_and_a_missing_tensorboard_are_said(monkeypatch, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    x = np.ones((4, 4), "float32")
    with pytest.raises(UserError, match=r"a model with a MeanFieldStage. Received"):
        model.fit(x, x, verbose=0, callbacks=[visualize.RecordStages()])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'mf_zoo\[tensorboard\]'. Received"):
        visualize.RecordStages(tensorboard=tmp_path / "logs")


@once
def test_of_several_processes_the_main_one_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "is_main", lambda: False)
    recorder, history = record_run.main(tmp_path)
    assert not (tmp_path / "new").exists() and not (tmp_path / "logs").exists()
    assert history.history["order_swaps"] == [1, 3, 3, 2]
    assert recorder.rows == _recorded()


@once
def test_stages_of_one_name_are_told_apart(tmp_path):
    inner = [
        keras.Sequential(
            [keras.Input((4,)), MeanFieldStage(keras.layers.Dense(4), 2, name="s")], name=name
        )
        for name in ("left", "right")
    ]
    model = keras.Sequential([keras.Input((4,)), *inner])
    model.compile("sgd", "mse")
    recorder = visualize.RecordStages(tmp_path / "stages.csv")
    x = np.ones((4, 4), "float32")
    model.fit(x, x, verbose=0, callbacks=[recorder])
    names = list(dict.fromkeys(row["stage"] for row in _rows(tmp_path / "stages.csv")))
    assert len(names) == 2 and len(visualize.read(recorder)) == 2


@once
def test_run_folders_are_recorded_by_the_same_callback(tmp_path):
    path = tmp_path / "times.csv"
    model, x = _tiny()
    callbacks = [record_run.SetTimes(), DepthOrder(path)]
    history = model.fit(x, x, epochs=2, verbose=0, callbacks=callbacks)
    model.fit(
        x, x, epochs=4, initial_epoch=2, verbose=0, callbacks=[*callbacks[:1], DepthOrder(path)]
    )
    with open(path, newline="") as file:
        rows = [
            {**row, "epoch": int(row["epoch"]), "particle": int(row["particle"])}
            | {"time": float(row["time"]), "rank": int(row["rank"])}
            for row in csv.DictReader(file)
        ]
    assert rows == _long()
    assert history.history["order_swaps"] == [1, 3]


# --- Imports and the command -----------------------------------------------------------------


@once
def test_pictures_need_matplotlib_and_logs_need_no_tensorflow(tmp_path):
    code = """
        import sys
        import mf_zoo.visualize
        assert "step_sizes" in dir(mf_zoo.visualize)
        assert not {"keras", "numpy", "matplotlib"} & set(sys.modules)
        # As if they were not installed:
        sys.modules["matplotlib"] = sys.modules["tensorflow"] = None
        import record_run
        recorder, _ = record_run.main(sys.argv[1])
        assert mf_zoo.visualize.read(recorder)["a"].swaps().tolist() == [0, 1, 2, 2, 2]
        try: mf_zoo.visualize.times(recorder)
        except mf_zoo.errors.UserError as error: print(error)
        """
    code = "\n".join(line.strip() for line in code.splitlines())
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT / "tests")},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        "Pictures need matplotlib: pip install 'mf_zoo[plot]'. Received: no matplotlib\n"
    )
    _check_logs(tmp_path / "logs")


@once
@pytest.mark.long
def test_the_picture_of_the_stages_shows_the_shipped_histories(tmp_path):
    command = [sys.executable, "-m", "mf_zoo.theory.figures", "--output", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--only", "stages"], capture_output=True, text=True, env={**os.environ}
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert ended.stdout.startswith("stages ") and ended.stdout.count("\n") == 1
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
    assert list(json.loads((tmp_path / "figures.json").read_text())) == ["stages"]
    with open(tmp_path / "stages.csv", newline="") as file:
        drawn = list(csv.DictReader(file))
    for dataset in ("cifar10", "cifar100"):
        path = ROOT / "weights" / f"mf_resnet20-{dataset}.times.csv"
        with open(path, newline="") as file:
            shipped = {tuple(row.values())[:3]: row for row in csv.DictReader(file)}
        own = [row for row in drawn if row["dataset"] == dataset]
        assert len(own) == len(shipped) == 41 * 7
        for row in own:
            recorded = shipped[row["epoch"], row["stage"], row["particle"]]
            assert float(row["time"]) == float(recorded["time"])
            assert row["rank"] == recorded["rank"]
        for stage in ("stage1", "stage2", "stage3"):
            last = [row for row in own if row["stage"] == stage and row["epoch"] == "40"]
            times = [0.0, *(float(row["time"]) for row in last)]  # in depth order: none crossed
            steps = [float(row["step"]) for row in last]
            np.testing.assert_allclose(steps, np.diff(times), atol=1e-6)
            assert all(bool(row["projection"]) == (stage == "stage1") for row in last)
