"""Campaigns: their files, their queue, and what is left when they are stopped."""

import csv
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import types

import keras
import pytest
import tiny_zoo
from hypothesis import given
from hypothesis import strategies as st

from mf_zoo import cli, files
from mf_zoo.errors import UserError
from mf_zoo.training import RECIPES, campaign, get_recipe
from mf_zoo.training.campaign import driver
from mf_zoo.training.campaign import file as campaign_file
from mf_zoo.training.recipes import fields

HERE = pathlib.Path(__file__).parent


def _file(folder, text, name="work.toml"):
    path = folder / name
    path.write_text(text)
    return path


# --- Campaign files --------------------------------------------------------------------------


@pytest.mark.once
def test_lists_are_multiplied_out_with_twins_side_by_side_and_seeds_last(tmp_path):
    loaded = campaign.load_campaign(
        _file(
            tmp_path,
            """
            jobs = 3
            data_dir = "data"
            [defaults]
            recipe = "quick"
            holdout = 5000
            [mean_field]
            noise_temperature = 1e-8
            horizon = 3
            [[runs]]
            seed = [0, 1]
            model = ["Tiny", "TinyPlain"]
            learning_rate = [0.1, 0.2]
            epochs = [40, 20]
            [[runs]]
            model = "Tiny"
            seed = 7
            recipe = "cosine"
            horizon = ["none", 1]
            noise_temperature = 0
            """,
        )
    )
    assert (loaded.name, loaded.jobs, str(loaded.data_dir)) == ("work", 3, "data")
    assert (str(loaded.output), str(loaded.results)) == ("runs/work", "results/work")
    found = [
        (
            r.settings.model,
            r.settings.seed,
            r.settings.recipe.learning_rate,
            r.settings.recipe.epochs,
        )
        for r in loaded.runs
    ]
    rounds = [
        [
            (model, seed, rate, epochs)
            for rate in (0.1, 0.2)
            for epochs in (40, 20)
            for model in ("Tiny", "TinyPlain")
        ]
        for seed in (0, 1)
    ]
    # The first seed of every table before the second one of any.
    assert found == [*rounds[0], *[("Tiny", 7, 0.1, 200)] * 2, *rounds[1]]
    # Fewer epochs keep the shape of the schedule, and that is no override of its own.
    learned, plain = loaded.runs[2:4]
    assert plain.settings.recipe == get_recipe("quick", learning_rate=0.1, epochs=20)
    assert plain.overrides == {"epochs": 20, "learning_rate": 0.1}
    assert learned.settings.recipe == plain.settings.recipe.replace(
        horizon=3.0, noise_temperature=1e-8
    )
    assert all(run.settings.holdout == 5000 for run in loaded.runs)
    first, last = loaded.runs[8:10]
    assert first.settings.recipe == RECIPES["cosine"] and not first.overrides
    assert last.settings.recipe == RECIPES["cosine"].replace(horizon=1.0)
    assert last.name == "Tiny-cifar10-cosine-horizon=1.0-holdout=5000-seed7"


@pytest.mark.once
def test_a_run_differs_by_its_settings_not_by_what_its_recipe_is_said_to_be_for(tmp_path):
    (run,) = campaign.load_campaign(_file(tmp_path, '[[runs]]\nmodel = "Tiny"')).runs
    config = run.settings.to_dict()
    assert run.differences(config) == []
    described = {**config, "recipe": {**config["recipe"], "description": "In other words."}}
    assert run.differences(described) == []
    assert run.differences({**config, "seed": 3}) == ["seed"]
    slower = {**config, "recipe": {**config["recipe"], "learning_rate": 0.05}}
    assert run.differences(slower) == ["recipe"]


@pytest.mark.once
def test_the_command_of_a_run_gives_its_recipe(tmp_path):
    """What `mf-zoo train` makes of the command line is the recipe that the campaign meant."""
    (tmp_path / "mine.toml").write_text('base = "quick"\nlearning_rate = 0.3\n')
    text = """
        [[runs]]
        model = "Tiny"
        recipe = "mine.toml"
        epochs = 10
        horizon = 2
        nesterov = false
        weight_decay = 1e-5
        quadrature = "midpoint"
        threads = 1
        """
    (run,) = campaign.load_campaign(_file(tmp_path, text)).runs
    options = _options(run.command(tmp_path / "out", tmp_path))
    assert cli.train._recipe(options, options.recipe) == run.settings.recipe
    assert run.settings.recipe.warmup_epochs == 2.0 and run.settings.recipe.learning_rate == 0.3
    assert (options.model, options.seed, options.threads) == ("Tiny", 0, 1)
    assert options.output == tmp_path / "out" and options.data_dir == tmp_path
    assert options.on_device is None and options.limit is None


def _options(command):
    """What `mf-zoo` makes of a command line."""
    program, *arguments = shlex.split(command)
    assert program == "mf-zoo"
    return cli._parser().parse_args(arguments)


@pytest.mark.once
@pytest.mark.parametrize(
    "text, message",
    [
        ("runs = 3", r"tables \[\[runs\]\]. Received: .*work.toml"),
        ("[[runs]]\nmodel 3", r"must be TOML.*Received: .*work.toml"),
        ("jbos = 2", "did you mean 'jobs'.*Received: 'jbos'"),
        ("[[runs]]\nmodel = 'Tiny'\nepoch = 3", "did you mean 'epochs'.*Received: 'epoch'"),
        ("mean_field = 1\n[[runs]]\nmodel = 'Tiny'", "`mean_field` must.*Received: 1"),
        ("[mean_field]\nhorizn = 1\n[[runs]]\nmodel = 'TinyPlain'", "Received: 'horizn'"),
        ("[mean_field]\nhorizon = [1, 2]\n[[runs]]\nmodel = 'Tiny'", "type float. Received"),
        ("[[runs]]\nmodel = 'ResNet21'", "MFResNet20.*Received: 'ResNet21'"),
        ("[[runs]]\nmodel = ['Tiny', 3]", "`model` must be a string. Received: model=3"),
        ("[[runs]]\nseed = 1", r"must name a `model`. Received: {'seed': 1}"),
        ("[[runs]]\nmodel = 'Tiny'\nseed = [0, 'a']", "`seed` must.*Received: seed='a'"),
        ("[[runs]]\nmodel = 'Tiny'\nseed = true", "`seed` must.*Received: seed=True"),
        ("[[runs]]\nmodel = 'Tiny'\ndataset = 'mnist'", "cifar100.*Received: name='mnist'"),
        ("[[runs]]\nmodel = 'Tiny'\nrecipe = 'slow'", "paper, cosine.*Received: 'slow'"),
        ("[[runs]]\nmodel = 'Tiny'\nquadrature = 'x'", "`quadrature` must.*Received: .*'x'"),
        ("[[runs]]\nmodel = 'Tiny'\nepochs = [2, 0]", "`epochs` must.*Received: epochs=0"),
        ("[[runs]]\nmodel = 'Tiny'\nseed = [4, 4]", "run once. Received: 'Tiny.*seed4' twice"),
        # The same settings in other words: those of the recipe.
        (
            "[[runs]]\nmodel = 'Tiny'\n[[runs]]\nmodel = 'Tiny'\nepochs = 200",
            "run once. Received: 'Tiny-cifar10-paper-seed0' twice",
        ),
        ("[[runs]]\nmodel = 'Tiny'\nseed = -1", "from 0 to 4294967295. Received: seed=-1"),
        ("[[runs]]\nmodel = 'Tiny'\nseed = 4294967296", "Received: seed=4294967296"),
        # Counted before they are multiplied out.
        (
            "[[runs]]\nmodel = 'Tiny'\n"
            + "".join(
                f"{key} = {list(range(1, 400))}\n" for key in ("seed", "epochs", "batch_size")
            ),
            "10,000 runs. Received: 63,521,199 in .*work.toml",
        ),
        ("x = " + "[" * 100_000, r"must be TOML.*Received: .*work.toml"),
        ("jobs = 0\n[[runs]]\nmodel = 'Tiny'", "`jobs` must.*Received: jobs=0"),
        (
            "[[runs]]\nmodel = 'TinyPlain'\nhorizon = 1",
            "no learned times and takes no `horizon`. Received: horizon=1.0",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(text, message, tmp_path, capsys):
    assert cli.main(["campaign", str(_file(tmp_path, text))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mf-zoo: error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["work.toml"]


@pytest.mark.once
@pytest.mark.parametrize(
    "text, expected", [("25m", 1500), ("1h30m", 5400), ("90s", 90), ("90", 90), ("1.5h", 5400)]
)
def test_lengths_of_time(text, expected):
    assert cli.campaign.seconds(text) == expected


@pytest.mark.once
@pytest.mark.parametrize("text", ["", "m", "5 m", "30m1h", "-5", "1d"])
def test_what_is_no_length_of_time(text, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["campaign", "work.toml", f"--time-limit={text}"])
    assert exit_.value.code == 2
    assert f"Received: {text!r}" in capsys.readouterr().err


_VALUES = {
    "learning_rate": st.floats(1e-6, 10),
    "epochs": st.integers(1, 300),
    "nesterov": st.booleans(),
    "schedule": st.sampled_from(["step", "cosine"]),
    "horizon": st.one_of(st.just("none"), st.floats(0.1, 100)),
    "holdout": st.integers(0, 9),
    "seed": st.integers(0, 9),
}


@pytest.mark.once
@given(*[st.fixed_dictionaries({}, optional=_VALUES)] * 2)
def test_names_are_equal_where_settings_are(first, second):
    one, two = (
        campaign_file._run({"model": "MFResNet20", **values}, {}, pathlib.Path())
        for values in (first, second)
    )
    same = (one.settings.recipe, one.settings.seed, one.settings.holdout) == (
        two.settings.recipe,
        two.settings.seed,
        two.settings.holdout,
    )
    assert (one.name == two.name) == same
    assert "/" not in one.name
    # And the name's parts are what `mf-zoo train` is told.
    options = _options(one.command(pathlib.Path("o"), None))
    assert cli.train._recipe(options, options.recipe) == one.settings.recipe


@pytest.mark.once
def test_the_campaigns_at_hand():
    """Final runs come in pairs of twins; choices are made on held-out training images."""
    folder = HERE.parent / "benchmarks" / "campaigns"
    final, sweep, ablations, wide = (
        campaign.load_campaign(folder / f"{name}.toml").runs
        for name in ("cifar10-resnets", "cifar10-sweep", "cifar10-ablations", "resnexts")
    )
    for learned, plain in zip((final + wide)[::2], (final + wide)[1::2], strict=True):
        assert (
            learned.settings.model == f"MF{plain.settings.model}"
            and learned.settings.seed == plain.settings.seed
        )
        assert learned.settings.dataset == plain.settings.dataset
        assert (plain.settings.recipe, plain.settings.holdout, plain.settings.limit) == (
            RECIPES["cosine"],
            0,
            None,
        )
    seeds = {
        run.settings.model: [
            r.settings.seed for r in final if r.settings.model == run.settings.model
        ]
        for run in final[1::2]
    }
    assert seeds == {
        "ResNet20": [0, 1, 2],
        "ResNet56": [0, 1, 2],
        "ResNet32": [0],
        "ResNet44": [0],
    }
    assert [
        (run.settings.model.split("_")[1], run.settings.dataset, run.settings.seed)
        for run in wide[::2]
    ] == [
        (width, dataset, 0)
        for dataset, width in (
            *(("cifar10", "32x4d"), ("cifar100", "32x4d"), ("cifar100", "8x64d")),
            *(("cifar100", "16x64d"), ("cifar10", "8x64d"), ("cifar10", "16x64d")),
        )
    ]
    assert all(
        run.settings.holdout == 5000 and run.settings.limit is None for run in (*sweep, *ablations)
    )
    for runs_ in (sweep, ablations):
        assert (
            runs_[0].settings.recipe.name == "cosine"
            and len({run.settings.recipe.epochs for run in runs_}) == 1
        )


@pytest.mark.once
def test_the_campaign_of_settings_changes_one_value_at_a_time_on_held_out_images():
    path = HERE.parent / "benchmarks" / "campaigns" / "cifar10-settings.toml"
    found = campaign.load_campaign(path).runs
    assert {(run.settings.model, run.settings.holdout) for run in found} == {("ResNet20", 5000)}
    base = {"epochs", "dtype_policy"}
    changed = [base ^ set(run.overrides) for run in found]
    together = {"alternating_flip", "weight_decay"}  # the two that were better alone
    assert all(len(names) <= 1 or names == together for names in changed)
    seeds = [run.settings.seed for run in found if set(run.overrides) == base]
    assert sorted(seeds) == [0, 1]
    assert set().union(*changed) == {
        "weight_decay",
        "batch_size",
        "learning_rate",
        "label_smoothing",
        "ema_momentum",
        "alternating_flip",
        "dtype_policy",  # runs in float32
    }


@pytest.mark.once
def test_the_campaign_of_the_mean_field_changes_one_thing_at_a_time_on_held_out_images():
    path = HERE.parent / "benchmarks" / "campaigns" / "cifar10-mean-field.toml"
    found = [run.settings for run in campaign.load_campaign(path).runs]
    assert {(one.model, one.holdout) for one in found} == {("MFResNet32", 5000)}
    plain = get_recipe("quick", epochs=10)
    changed = [
        {name for name in fields("stage", "times") if getattr(recipe, name) != getattr(plain, name)}
        for recipe in (one.recipe for one in found)
    ]
    # With a horizon of its own the gradients of particles are scaled, as the limit asks for.
    assert all(len(names) <= 1 or names == {"horizon", "mean_field_scaling"} for names in changed)
    # Three seeds of the recipe itself say how far seeds differ.
    seeds = [one.seed for one, names in zip(found, changed, strict=True) if not names]
    assert sorted(seeds) == [0, 1, 2]


@pytest.mark.once
def test_the_campaign_of_how_to_grow_changes_one_thing_at_a_time_on_held_out_images():
    path = HERE.parent / "benchmarks" / "campaigns" / "growth-how.toml"
    found = [run.settings for run in campaign.load_campaign(path).runs]
    found = [one for one in found if one.until is None]  # without the trunks
    assert {(one.limit, one.holdout) for one in found} == {(10000, 5000)}
    assert sorted({one.seed for one in found}) == [0, 1, 2]
    # The two ends of "when", never and from the first epoch on, are no ladders.
    ends = [one for one in found if not one.recipe.ladder]
    assert {one.model for one in ends} == {"MFResNet20", "MFResNet56"} and len(ends) == 6
    found = [one for one in found if one.recipe.ladder]
    assert {one.model for one in found} == {"MFResNet56"}
    changed = [
        {name for name in fields("growth") if getattr(one.recipe, name) != getattr(first, name)}
        for first in [found[0].recipe]
        for one in found
    ]
    assert len(found) == 22 and all(len(names) <= 1 for names in changed)
    assert set().union(*changed) == set(fields("growth"))


@pytest.mark.once
def test_the_campaigns_of_deep_networks_and_of_the_strong_recipe():
    sweep, deep, strong = (
        campaign.load_campaign(HERE.parent / "benchmarks" / "campaigns" / f"{name}.toml").runs
        for name in ("cifar10-strong-sweep", "deep-resnets", "strong")
    )
    for found, recipe, depths in (
        (deep, "cosine", (110, 164)),
        (strong, "strong", (20, 56, 110, 164)),
    ):
        assert {run.settings.recipe for run in found} == {RECIPES[recipe]}
        assert {(run.settings.seed, run.settings.holdout, run.settings.limit) for run in found} == {
            (0, 0, None)
        }
        for learned, plain in zip(found[::2], found[1::2], strict=True):
            assert (learned.settings.model, learned.settings.dataset) == (
                f"MF{plain.settings.model}",
                plain.settings.dataset,
            )
        assert {(run.settings.model, run.settings.dataset) for run in found[1::2]} == {
            (f"ResNet{depth}", dataset) for depth in depths for dataset in ("cifar10", "cifar100")
        }
    assert {(run.settings.holdout, run.settings.limit, run.settings.dataset) for run in sweep} == {
        (5000, None, "cifar10")
    }
    values = ("label_smoothing", "mixup", "cutmix", "cutout")
    tried = {
        model: {tuple(getattr(run.settings.recipe, key) for key in values) for run in sweep}
        for model in {run.settings.model for run in sweep}
    }
    # The same for every network; none, each of them, and what the recipe has now.
    assert set(tried) == {"MFResNet20", "ResNet20", "MFResNet56"}
    chosen = tuple(getattr(RECIPES["strong"], key) for key in values)
    for combinations in tried.values():
        assert {(0, 0, 0, 0), (0.1, 0, 0, 0), (0, 0.2, 0, 0), (0, 0, 1, 0), (0, 0, 0, 8)} <= (
            combinations
        )
        assert chosen in combinations and combinations == tried["ResNet20"]
    changed = {key for run in sweep for key in run.overrides}
    assert changed == {*values, "epochs"}


# --- The queue -------------------------------------------------------------------------------

# A fake `mf-zoo train`: it says in a journal what it does, and writes what a run writes.
FAKE = """
import json, os, pathlib, signal, sys, time
from mf_zoo import files
from mf_zoo.training import runs
from mf_zoo.training import RunSettings

def value(flag, default=None):
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default

def say(text):
    with open(os.environ["JOURNAL"], "a") as file:
        file.write(text + "\\n")

def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            say("waited in vain")
            sys.exit(3)
        time.sleep(0.01)

def lines(word):
    return [line for line in pathlib.Path(os.environ["JOURNAL"]).read_text().split("\\n")
            if line.startswith(word)]

given = RunSettings.from_dict(json.load(open(value("--settings")))["settings"])
model, seed, recipe = given.model, given.seed, given.recipe
folder = pathlib.Path(value("--output"))
name = f"{model} {seed}"
with files.locked(folder):
    say(f"start {name}" + " resumed" * ("--resume" in sys.argv))
    if given.trunk and not (pathlib.Path(given.trunk) / runs.RESULT).exists():
        say(f"no trunk for {name}")
    mode = os.environ["MODE"]
    if mode == "pairs":  # hangs unless two run at a time
        wait_for(lambda: len(lines("start")) > len(lines("end")) // 2 * 2 + 1)
    if mode == "fail" and model == "TinyPlain":
        print("mf-zoo: error: no such luck. Received: 13")
        sys.exit(2)
    if mode == "fail trunks" and given.until:
        print("mf-zoo: error: no such luck. Received: 14")
        sys.exit(2)
    if mode == "kill" and model == "TinyPlain":
        os.kill(os.getpid(), signal.SIGKILL)
    config = dict(**given.to_dict(), train_images=50, backend="none", device="chip",
        versions={"keras": "3"}, date="2026-01-01", evaluated_on="test")
    files.write_json(folder / runs.CONFIG, config)
    begun = files.read_rows(folder / runs.HISTORY)
    for epoch in range(len(begun) + 1, given.last_epoch + 1):
        row = dict(epoch=epoch, learning_rate=0.123456789, loss=1 / epoch, accuracy=0.5,
            test_loss=2, test_error=10 * seed + 1 / epoch, seconds=2.0, images_per_second=25,
            order_swaps=epoch)
        files.append_rows(folder / runs.HISTORY, [row], row)
        time_ = 0.5 if model == "TinyPlain" else epoch / 10
        rows = [dict(epoch=epoch, stage="s", particle=i, time=time_ + i, rank=i) for i in (0, 1)]
        files.append_rows(folder / runs.TIMES, rows, rows[0])
        if mode == "sleep" and epoch == 1:
            signal.signal(signal.SIGTERM, lambda *_: (say(f"asked {name}"), sys.exit(143)))
            wait_for(lambda: False)
    result = dict(model=model, dataset=given.dataset, evaluated_on="test", seed=seed,
        recipe=recipe.name, epochs=given.last_epoch, train_seconds=2.0 * given.last_epoch,
        test_error=10 * seed + 1 / recipe.epochs, test_loss=2, train_error=50,
        train_loss=1 / recipe.epochs, parameters=7, sha256=64 * "a", date="2026-01-02",
        test_top5_error=3.5, test_coarse_error=None, image_passes=50 * given.last_epoch,
        file="final.weights.h5", size=1)
    files.write_json(folder / runs.RESULT, result)
    say(f"end {name}")
"""

TWINS = """
jobs = 2
[defaults]
recipe = "quick"
epochs = 3
[[runs]]
model = ["Tiny", "TinyPlain"]
seed = [1, 2]
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Runs a campaign of fakes; `.journal()` is what they said."""
    monkeypatch.chdir(tmp_path)
    journal = tmp_path / "journal"
    journal.touch()
    monkeypatch.setenv("JOURNAL", str(journal))
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    script = _file(tmp_path, FAKE, "fake.py")
    monkeypatch.setattr(cli.campaign, "COMMAND", [sys.executable, str(script)])

    def run(mode="plain", text=TWINS, arguments=(), code=0):
        monkeypatch.setenv("MODE", mode)
        assert cli.main(["campaign", str(_file(tmp_path, text)), *arguments]) == code
        path = tmp_path / "results" / "work" / "runs.csv"
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    run.journal = lambda: journal.read_text().splitlines()
    run.forget = lambda: journal.write_text("")
    return run


@pytest.mark.once
def test_a_campaign_runs_in_order_and_gathers_its_results(fake, tmp_path, capsys):
    rows = fake("pairs")
    started = [line for line in fake.journal() if line.startswith("start")]
    assert sorted(started[:2]) == ["start Tiny 1", "start TinyPlain 1"]
    assert sorted(started[2:]) == ["start Tiny 2", "start TinyPlain 2"]
    running = itertools.accumulate(1 if x.startswith("start") else -1 for x in fake.journal())
    assert max(running) == 2
    assert [(row["model"], row["seed"], row["state"]) for row in rows] == [
        ("Tiny", "1", "finished"),
        ("TinyPlain", "1", "finished"),
        ("Tiny", "2", "finished"),
        ("TinyPlain", "2", "finished"),
    ]
    row = rows[2]
    assert float(row["test_error"]) == pytest.approx(20 + 1 / 3)  # the last epoch's
    assert (row["test_top5_error"], row["test_coarse_error"]) == ("3.5", "")
    assert (row["epochs"], row["epochs_done"], row["order_swaps"]) == ("3", "3", "6")
    # 3 epochs of 50 images in 2 seconds each.
    assert (row["seconds"], row["images_per_second"]) == ("6.0", "25.0")
    assert (row["overrides"], row["recipe"]) == ("epochs=3", "quick")
    assert (row["device"], row["versions"], row["parameters"]) == ("chip", "keras-3", "7")
    results = tmp_path / "results" / "work"
    history = (results / f"{row['run']}.history.csv").read_text().splitlines()
    assert len(history) == 4 and history[1].startswith("1,0.123457,1,0.5,2,21,")
    times = (results / f"{row['run']}.times.csv").read_text()
    assert times == "epoch,s/0,s/1\n1,0.1000,1.1000\n2,0.2000,1.2000\n3,0.3000,1.3000\n"
    # Times that stay where they are take one line.
    times = (results / f"{rows[1]['run']}.times.csv").read_text()
    assert times == "epoch,s/0,s/1\n1,0.5000,1.5000\n"
    out = capsys.readouterr().out
    assert "4 of 4 runs finished, 0 failed; results in results/work" in out
    assert re.search(r"Tiny-cifar10-quick-epochs=3-seed2 +3/3 +20\.33 +2\.0  finished\n", out)


@pytest.mark.once
def test_finished_runs_are_left_alone_even_when_their_folders_are_gone(fake, tmp_path):
    before = fake()
    fake.forget()
    assert fake() == before
    assert fake.journal() == []
    for path in sorted((tmp_path / "runs").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    longer = TWINS.replace("[1, 2]", "[2, 3]")
    rows = fake(text=longer)
    assert {line.split()[-1] for line in fake.journal()} == {"3"}
    # Runs that the file does not name any more stay on record.
    assert [row["seed"] for row in rows] == ["2", "2", "3", "3", "1", "1"]
    assert [row for row in rows if row["seed"] != "3"] == before[2:] + before[:2]
    # Of what it named once, and that never ran, nothing is left.
    table = tmp_path / "results" / "work" / "runs.csv"
    idle = {**before[0], "run": "idle", "state": "waiting"}
    files.write_rows(table, [*rows, idle], list(idle))
    assert fake(text=longer) == rows


@pytest.mark.once
@pytest.mark.parametrize(
    "mode, reason",
    [
        ("fail", r"exit code 2: mf-zoo: error: no such luck\. Received: 13"),
        ("kill", r"signal 9: it said nothing"),
    ],
)
def test_a_failing_run_stops_no_other(fake, capsys, mode, reason):
    rows = fake(mode, code=2)
    assert [(row["model"], row["state"], row["test_error"] != "") for row in rows] == [
        ("Tiny", "finished", True),
        ("TinyPlain", "failed", False),
        ("Tiny", "finished", True),
        ("TinyPlain", "failed", False),
    ]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    for seed, error in enumerate(errors, 1):
        name = f"TinyPlain-cifar10-quick-epochs=3-seed{seed}"
        assert re.fullmatch(rf"mf-zoo: failed: {name}: {reason} \(see .*{name}\.log\)", error)
    # They are tried again, and only they.
    fake.forget()
    assert {row["state"] for row in fake("plain")} == {"finished"}
    assert {line.split()[1] for line in fake.journal()} == {"TinyPlain"}


@pytest.mark.once
@pytest.mark.parametrize("interrupted, code", [(False, 0), (True, 130)])
def test_stopped_by_a_time_limit_or_an_interrupt(fake, monkeypatch, capsys, interrupted, code):
    """Runs under way are asked to stop, no other is started, and all are resumed later."""
    show = cli.campaign.ProgressTable.show
    late = [0.0]

    def show_and_pass_the_time(self, progress):
        show(self, progress)
        if sum(line.epoch >= 1 for line in progress) == 2 and not late[0]:
            late[0] = 1500
            if interrupted:
                raise KeyboardInterrupt

    monkeypatch.setattr(cli.campaign.ProgressTable, "show", show_and_pass_the_time)
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + late[0], sleep=time.sleep)
    monkeypatch.setattr(driver, "time", clock)
    limit = [] if interrupted else ["--time-limit", "20m"]
    rows = fake("sleep", arguments=limit, code=code)
    assert sorted(fake.journal()) == [
        "asked Tiny 1",
        "asked TinyPlain 1",
        "start Tiny 1",
        "start TinyPlain 1",
    ]
    assert [row["state"] for row in rows] == ["begun", "begun", "waiting", "waiting"]
    assert [row["epochs_done"] for row in rows] == ["1", "1", "0", "0"]
    assert all(row["test_error"] == "" for row in rows)
    out = capsys.readouterr().out
    assert ("0 of 4 runs finished" in out) == (not interrupted) and out.count("stopped\n") == 2
    fake.forget()
    rows = fake()
    assert [row["state"] for row in rows] == ["finished"] * 4
    started = [line for line in fake.journal() if line.startswith("start")]
    assert sorted(started[:2]) == ["start Tiny 1 resumed", "start TinyPlain 1 resumed"]
    assert sorted(started[2:]) == ["start Tiny 2", "start TinyPlain 2"]


@pytest.mark.once
def test_a_folder_of_another_process_is_waited_for(fake, tmp_path, monkeypatch):
    first = tmp_path / "runs" / "work" / "Tiny-cifar10-quick-epochs=3-seed1"
    held = [files.locked(first)]
    held[0].__enter__()
    states = []

    def show(self, progress):
        states.append([line.state for line in progress])
        if held and all(state == "finished" for state in states[-1][1:]):
            held.pop().__exit__(None, None, None)

    monkeypatch.setattr(cli.campaign.ProgressTable, "show", show)
    rows = fake()
    assert states[0][0] == "busy"
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert fake.journal()[-1] == "end Tiny 1"


@pytest.mark.once
def test_two_drivers_do_not_share_a_campaign(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = _file(tmp_path, TWINS)
    with files.locked(tmp_path / "runs" / "work"):
        assert cli.main(["campaign", str(file)]) == 2
    assert "Received: runs/work, where another one is at work" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.once
def test_a_finished_run_with_other_settings_is_not_taken_for_ours(fake, tmp_path, capsys):
    fake(text='[[runs]]\nmodel = "Tiny"\nepochs = 1\n')
    (folder,) = (path for path in (tmp_path / "runs" / "work").glob("Tiny*") if path.is_dir())
    config = json.loads((folder / "config.json").read_text())
    config["recipe"]["momentum"] = 0.5  # of a recipe that has changed since
    (folder / "config.json").write_text(json.dumps(config))
    rows = fake(text='[[runs]]\nmodel = "Tiny"\nepochs = 1\n', code=2)
    assert rows[0]["state"] == "failed"
    assert "a run with another recipe: move it away" in capsys.readouterr().err


@pytest.mark.once
def test_a_dry_run_lists_the_runs(tmp_path, capsys):
    assert cli.main(["campaign", str(_file(tmp_path, TWINS)), "--dry-run"]) == 0
    names = capsys.readouterr().out.split()
    assert names[0] == "Tiny-cifar10-quick-epochs=3-seed1" and len(names) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["work.toml"]


LADDERS = """
jobs = 3
[defaults]
recipe = "quick"
epochs = 4
ladder = ["Tiny:1", "Tiny:1,Tiny4:2"]
[[runs]]
model = "Tiny7"
seed = [1, 2]
[[runs]]
model = "Tiny7"
ladder = "Tiny:1"
growth_state = "reset"
seed = 1
"""


@pytest.mark.once
def test_a_campaign_adds_the_runs_that_others_grow_from_once(fake, tmp_path):
    loaded = campaign.load_campaign(_file(tmp_path, LADDERS))
    quick = "cifar10-quick-epochs=4"
    expected = {
        f"Tiny-{quick}-until=1-seed1": None,
        f"Tiny7-{quick}-ladder=Tiny_1-seed1": f"Tiny-{quick}-until=1-seed1",
        f"Tiny4-{quick}-ladder=Tiny_1-until=2-seed1": f"Tiny-{quick}-until=1-seed1",
        f"Tiny7-{quick}-ladder=Tiny_1,Tiny4_2-seed1": (
            f"Tiny4-{quick}-ladder=Tiny_1-until=2-seed1"
        ),
        f"Tiny7-{quick}-ladder=Tiny_1-growth_state=reset-seed1": f"Tiny-{quick}-until=1-seed1",
        f"Tiny-{quick}-until=1-seed2": None,
        f"Tiny7-{quick}-ladder=Tiny_1-seed2": f"Tiny-{quick}-until=1-seed2",
        f"Tiny4-{quick}-ladder=Tiny_1-until=2-seed2": f"Tiny-{quick}-until=1-seed2",
        f"Tiny7-{quick}-ladder=Tiny_1,Tiny4_2-seed2": (
            f"Tiny4-{quick}-ladder=Tiny_1-until=2-seed2"
        ),
    }
    assert {run.name: run.trunk for run in loaded.runs} == expected
    assert [run.name for run in loaded.runs] == list(expected)
    # Whoever repeats the command trains what it grows from as well.
    options = _options(loaded.runs[3].command(tmp_path / "out", None))
    assert cli.train._recipe(options, options.recipe) == loaded.runs[3].settings.recipe
    assert (options.trunk, options.until) == (None, None)
    assert _options(loaded.runs[2].command(tmp_path / "out", None)).until == 2

    rows = fake(text=LADDERS)
    assert [row["run"] for row in rows] == list(expected)
    assert not [line for line in fake.journal() if line.startswith("no trunk")]
    assert {row["state"] for row in rows} == {"finished"}
    assert [(row["epochs"], row["epochs_done"], row["image_passes"]) for row in rows[:3]] == [
        ("1", "1", "50"),
        ("4", "4", "200"),
        ("2", "2", "100"),
    ]
    assert [row["overrides"] for row in rows[:3]] == [
        "epochs=4 until=1",
        "epochs=4 ladder=Tiny:1",
        "epochs=4 ladder=Tiny:1 until=2",
    ]


@pytest.mark.once
def test_what_grows_from_a_failed_run_fails_and_is_tried_again(fake, capsys):
    text = LADDERS.replace("seed = [1, 2]", "seed = 1")
    rows = fake("fail trunks", text=text, code=2)
    assert {row["state"] for row in rows} == {"failed"} and len(rows) == 5
    assert fake.journal() == ["start Tiny 1"]
    errors = capsys.readouterr().err.splitlines()
    name = "Tiny-cifar10-quick-epochs=4-until=1-seed1"
    assert errors[0].startswith(f"mf-zoo: failed: {name}: exit code 2: ")
    assert sum(error.endswith(f": what it grows from failed: {name}") for error in errors) == 3
    assert {row["state"] for row in fake(text=text)} == {"finished"}


@pytest.mark.once
def test_a_run_that_others_are_still_to_grow_from_is_done_again_if_its_folder_is_gone(
    fake, tmp_path
):
    text = LADDERS.replace("seed = [1, 2]", "seed = 1")
    rows = fake(text=text)
    fake.forget()
    for row in rows:
        shutil.rmtree(tmp_path / "runs" / "work" / row["run"])
    assert [row["state"] for row in fake(text=text)] == ["finished"] * 5
    assert fake.journal() == []  # nothing is left to grow
    fake(text=text.replace('growth_state = "reset"', "growth_noise = 0.5"))
    assert [line for line in fake.journal() if line.startswith("start")] == [
        "start Tiny 1",
        "start Tiny7 1",
    ]


@pytest.mark.once
def test_the_table_is_rewritten_on_a_terminal(monkeypatch):
    for name, value in (("COLUMNS", "60"), ("LINES", "8"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    file = io.StringIO()
    file.isatty = lambda: True
    lines = [campaign.Progress(f"run{i}", 10) for i in range(3)]

    def shown():
        """What was written since the last time: how many lines up, then the new lines."""
        written = re.sub(r"\x1b\[\?25[lh]", "", file.getvalue())
        file.truncate(0)
        file.seek(0)
        up = written.count("\x1b[1A")
        text = re.sub(r"\x1b\[[\d;]*[A-Za-z]|\r", "", written)
        return up, [line.split() for line in text.splitlines() if line.strip()]

    with cli.campaign.ProgressTable(file) as table:
        table.show(lines)
        shown()
        lines[1].epoch, lines[1].error, lines[1].seconds, lines[1].state = 2, 9.876, 1.26, "running"
        table.show(lines)
        up, text = shown()
        assert up == 4  # from the last of five lines to the first
        assert text[0] == ["run", "epoch", "error", "%", "s/epoch", "state"]
        assert text[2] == ["run1", "2/10", "9.88", "1.3", "running"]
        assert text[-1] == ["2", "waiting,", "1", "running"]
        table.show(lines)
        assert shown() == (0, [])  # nothing new, nothing written
        # More runs than lines: those that wait and those that are done are counted only.
        table.show([*lines, *(campaign.Progress(f"more{i}", 10) for i in range(9))])
        _, text = shown()
        assert [line[0] for line in text] == ["run", "run1", "11"]
        assert text[-1] == ["11", "waiting,", "1", "running"]


# --- Killed ----------------------------------------------------------------------------------


def test_one_process_at_a_time_writes_to_a_run_folder(tmp_path):
    with (
        files.locked(tmp_path / "run"),
        pytest.raises(UserError, match=r"one process at a time. Received: .*run, where another"),
    ):
        tiny_zoo.train("Tiny", output=tmp_path / "run", data_dir=tmp_path)


REAL = """
jobs = 2
[defaults]
recipe = "quick"
epochs = 2
warmup_epochs = 1
batch_size = 16
limit = 32
eval_every = 2
learning_rate = 0.05
[[runs]]
model = "Tiny"
seed = [3, 4]
initial_times = "random"
"""


@pytest.mark.once_on_torch
def test_a_campaign_killed_and_resumed_ends_with_the_same_weights(cifar10_dir, tmp_path):
    file = _file(tmp_path, REAL)
    loaded = campaign.load_campaign(file)
    expected = {}
    for run in loaded.runs:
        result = tiny_zoo.train(
            "Tiny",
            output=tmp_path / "alone" / run.name,
            data_dir=cifar10_dir,
            recipe=run.settings.recipe,
            seed=run.settings.seed,
            limit=32,
            eval_every=2,
            verbose=0,
        )
        expected[run.name] = (result["sha256"], result["test_error"], result["order_swaps"])
    assert len(set(expected.values())) == 2

    def process(signal_name, when):
        command = [sys.executable, HERE / "tiny_zoo.py", signal_name, when, "campaign", file]
        return subprocess.run(
            [*map(str, command), "--data-dir", str(cifar10_dir)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            env={
                **os.environ,
                "KERAS_BACKEND": keras.config.backend(),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
        )

    # A run in its second epoch kills the driver with -9, and then sleeps for minutes.
    assert process("PARENT", "1.1").returncode == -9
    output, results = tmp_path / "runs" / "work", tmp_path / "results" / "work"
    folders = [output / name for name in expected]
    until = time.monotonic() + 60
    while any(map(files.is_locked, folders)):
        assert time.monotonic() < until, "the runs of a killed driver must end with it"
        time.sleep(0.05)
    epochs = [files.read_json(folder / "state.json", "state") for folder in folders]
    assert 1 in [state["epoch"] for state in epochs if state]
    assert not any((folder / "result.json").exists() for folder in folders)
    rows = files.read_rows(results / "runs.csv")  # whole, if old
    assert [row["run"] for row in rows] == list(expected)
    assert not list(results.glob("partial-*"))

    resumed = process("-", "-")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    found = {}
    for row in files.read_rows(results / "runs.csv"):
        assert row["state"] == "finished" and row["backend"] == keras.config.backend()
        weights = (output / row["run"] / "final.weights.h5").read_bytes()
        assert row["sha256"] == hashlib.sha256(weights).hexdigest()
        found[row["run"]] = (row["sha256"], float(row["test_error"]), int(row["order_swaps"]))
    assert found == expected
    assert not list(output.rglob("partial-*"))
