"""The `mf-zoo` command: what it prints, how it ends."""

import csv
import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny_zoo

from mf_zoo import applications, cli, data
from mf_zoo.training import RECIPES, evaluate

# The real one where there is nothing to compile.
MODEL = "MFResNet20" if keras.config.backend() == "torch" else "Tiny"


@pytest.fixture(scope="module")
def trained(cifar10_dir, tmp_path_factory):
    """A run of one epoch of two batches of real images."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    arguments = ["train", MODEL, "--recipe", "quick", "--epochs", "1", "--limit", "16"]
    arguments += ["--batch-size", "8", "--set", "learning_rate=0.01", "--quadrature", "midpoint"]
    arguments += ["--data-dir", str(cifar10_dir), "--output", str(folder), "--verbose", "0"]
    assert cli.main(arguments) == 0
    return folder


def _fails(capsys, *arguments):
    """Asserts exit code 2 and one line on standard error; returns it."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mf-zoo: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def _process(*arguments, **options):
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([sys.executable, *arguments], **options)


_HEAVY = "{'keras', 'tensorflow', 'jax', 'torch', 'numpy', 'h5py', 'keras_tuner', 'scipy'}"


def _loads(*arguments, code=0):
    """Runs the command in a process of its own; its output and which large packages it loaded."""
    program = "import sys; from mf_zoo import cli\ntry: code = cli.main(sys.argv[1:])\n"
    program += "except SystemExit as error: code = error.code\n"
    program += f"print(); print(sorted({_HEAVY} & sys.modules.keys())); sys.exit(code)"
    process = _process("-c", program, *arguments)
    assert process.returncode == code, process.stderr
    output, _, loaded = process.stdout.rstrip().rpartition("\n")
    return output, loaded, process.stderr


@pytest.mark.once
def test_help_lists_the_commands_and_loads_nothing_large():
    output, loaded, _ = _loads("--help")
    for name in ("train", "tune", "evaluate", "recipes", "publish", "demo"):
        assert f"\n    {name} " in output
    assert loaded == "[]"


@pytest.mark.once
@pytest.mark.once
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [(">/dev/full", 2, "mf-zoo: error: Cannot write the output: No space left"), (">&-", 0, "")],
)
def test_output_that_goes_nowhere(redirection, code, said):
    command = f"exec {sys.executable} -m mf_zoo.cli list {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == bool(said)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list"], 0),
        (["list", "--pretrained", "--json"], 0),
        (["info", "MFResNet20"], 0),
        (["recipes"], 0),
        (["fetch", "MFResNet20", "--offline"], 0),
        (["train", "--help"], 0),
        (["train", "MFResNet20", "--seed", "x", "--output", "o"], 2),
        (["train", "MFResNet20", "--set", "momentun=0", "--output", "o"], 2),
        (["tune", "--output", "o"], 2),
        (["predict", "MFResNet20", "a.png", "--batch-size", "0"], 2),
        (["evaluate", "MFResNet20", "--weights", "cifar10", "--label-smoothing", "1"], 2),
        (["report", "no-such-folder"], 2),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_needs_no_backend_loads_nothing_large(arguments, code):
    _, loaded, error = _loads(*arguments, code=code)
    assert loaded == "[]"
    assert bool(error) == bool(code)


@pytest.mark.once_on_torch
def test_errors_name_the_flags_of_the_subcommand(capsys, tmp_path):
    error = "`limit` must be positive and `name` known, or `overwrite=True` and `seed=3` given."
    flags = {"--limit", "--dataset", "--overwrite", "--seed"}
    assert cli.in_flags(f"{error} Received: limit=0, name='x'", flags) == (
        "`--limit` must be positive and `--dataset` known, or `--overwrite` and `--seed 3` given. "
        "Received: --limit=0, --dataset='x'"
    )
    assert cli.in_flags("`name` of `eval_every`. Received: 1", {"--name", "--eval-every"}) == (
        "`--name` of `--eval-every`. Received: 1"
    )
    # Neither positional arguments, nor what is no argument at all, nor parts of paths.
    same = "`model` in `model.fit`, `--seed`. Received: model=3, runs/seed=3-limit=2 --seed=1"
    assert cli.in_flags(same, flags) == same
    assert "`--eval-every` must" in _fails(
        capsys, "train", "Tiny", "--output", tmp_path / "run", "--eval-every", "0"
    )


@pytest.mark.once_on_torch
def test_recipes_are_listed(capsys):
    assert cli.main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == [recipe.to_dict() for recipe in RECIPES.values()]
    assert cli.main(["recipes"]) == 0
    rows = capsys.readouterr().out.split("\n")[len(RECIPES) + 1 : -1]
    lines = {row.split()[0]: row.split()[1:] for row in rows}
    assert lines["weight_decay"] == ["0.0001", "0.0005", "0.0005", "0.0005", "0.0005"]
    assert lines["schedule"] == ["step", "cosine", "one_cycle", "one_cycle", "cosine"]


@pytest.mark.once_on_torch
def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "mf_zoo.cli", "recipes"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.once_on_torch
@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train", "Tiny"], ["train", "--seed", "x", "--output", "o"]]
)
def test_bad_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: mf-zoo" in capsys.readouterr().err


@pytest.mark.once_on_torch
def test_bad_input_exits_with_2_and_one_line(capsys, tmp_path, cifar10_dir):
    folder = tmp_path / "run"
    train = ("train", "--output", folder, "--data-dir", cifar10_dir)
    assert "A model must be named" in _fails(capsys, *train)
    assert "holds no run to resume" in _fails(capsys, *train, "--resume")
    error = _fails(capsys, *train, "ResNet21")
    assert "MFResNet20" in error and error.endswith("Received: 'ResNet21'\n")
    error = _fails(capsys, *train, "Tiny", "--recipe", "slow")
    assert "paper, cosine, quick" in error
    assert "did you mean 'momentum'" in _fails(capsys, *train, "Tiny", "--set", "momentun=0")
    assert "key=value" in _fails(capsys, *train, "Tiny", "--set", "momentum")
    assert "type int" in _fails(capsys, *train, "Tiny", "--epochs", "many")
    assert "Received: --eval-every=0" in _fails(capsys, *train, "Tiny", "--eval-every", "0")
    assert not folder.exists()
    (tmp_path / "cifar10.npz").write_bytes(b"PK no archive")
    error = _fails(capsys, "train", "Tiny", "--output", folder, "--data-dir", tmp_path)
    assert "cifar10.npz must be an uncorrupted .npz file" in error
    assert not (folder / "config.json").exists()


@pytest.mark.once_on_torch
def test_bad_input_to_evaluate(capsys, tmp_path, cifar10_dir):
    base = ("evaluate", "--data-dir", cifar10_dir)
    run = (*base, "Tiny", "--weights")
    weights, other = tmp_path / "tiny.weights.h5", tmp_path / "other.weights.h5"
    tiny_zoo.tiny().save_weights(weights)
    keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(2)]).save_weights(other)
    assert "other.weights.h5" in _fails(capsys, *run, other)
    absent = tmp_path / "absent.weights.h5"
    assert "absent.weights.h5" in _fails(capsys, *run, absent)
    assert "must be a finished run" in _fails(capsys, *run, tmp_path)
    assert "name too long" in _fails(capsys, *run, "x" * 5000)
    assert "Received: 'mnist'" in _fails(capsys, *base, "MFResNet20", "--weights", "mnist")
    horizon = ("--weights", weights, "--horizon", "1")
    assert "takes no `--horizon`" in _fails(capsys, *base, "TinyPlain", *horizon)
    assert "--batch-size" in _fails(capsys, *run, weights, "--batch-size", "0")
    assert "--label-smoothing" in _fails(capsys, *run, weights, "--label-smoothing", "1")
    assert "`--split` must" in _fails(capsys, *run, weights, "--split", "x")


@pytest.mark.once_on_torch
def test_publishing_what_is_no_run(capsys, tmp_path):
    assert "finished run" in _fails(capsys, "publish", tmp_path)


def test_evaluate_agrees_with_the_run(trained, cifar10_dir, capsys, tmp_path):
    result = json.loads((trained / "result.json").read_text())
    assert result["command"].startswith(f"mf-zoo train {MODEL} --recipe quick --epochs 1")
    predictions = tmp_path / "predictions.csv"
    arguments = ["evaluate", MODEL, "--weights", str(trained), "--data-dir"]
    arguments += [str(cifar10_dir), "--limit", "16", "--predictions", str(predictions)]
    # The folder's config says that the quadrature rule is the midpoint rule.
    assert cli.main([*arguments, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["images"] == 16 and scores["dataset"] == "cifar10"
    assert scores["error"] == pytest.approx(result["test_error"])
    assert scores["nll"] == pytest.approx(result["test_loss"], rel=1e-5)

    assert cli.main([*arguments[:-2], "--integrator", "heun", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nll"] != pytest.approx(scores["nll"], rel=1e-4)

    images, labels = data.load("cifar10", "test[:16]", data_dir=cifar10_dir)
    model = applications.get(MODEL)(weights=trained / "final.weights.h5", quadrature="midpoint")
    again = evaluate(model, images, labels)
    assert scores["ece"] == pytest.approx(again.ece, rel=1e-4)
    rows = list(csv.DictReader(predictions.open()))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    wrong = sum(row["label"] != row["prediction"] for row in rows)
    assert 100 * wrong / 16 == pytest.approx(scores["error"])
    probabilities = np.array(
        [[float(row[f"p_{name}"]) for name in data.class_names("cifar10")] for row in rows]
    )
    np.testing.assert_allclose(probabilities, np.exp(again.log_probabilities), atol=1e-5)

    assert cli.main([*arguments, "--label-smoothing", "0.1"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.split("\n")[1:-1])
    assert printed["images"] == "16"
    assert printed["top-1"] == f"{again.top1:.2f} % (error {again.error:.2f} %)"
    assert float(printed["NLL"]) == pytest.approx(again.nll, abs=1e-3)
    smoothed = 0.9 * again.nll - 0.1 * again.log_probabilities.mean()
    assert float(printed["loss"]) == pytest.approx(smoothed, abs=1e-3)


@pytest.mark.once_on_torch
def test_predictions_that_cannot_be_written(trained, cifar10_dir, capsys, tmp_path):
    arguments = ["evaluate", "Tiny", "--data-dir", cifar10_dir, "--limit", "2", "--weights"]
    weights = tmp_path / "tiny.weights.h5"
    tiny_zoo.tiny().save_weights(weights)
    error = _fails(capsys, *arguments, weights, "--predictions", tmp_path / "no" / "p.csv")
    assert "No such file or directory" in error


# Each subcommand that needs a backend, one after the other; then errors.
_SUBCOMMANDS = """
import sys
from mf_zoo import cli

def run(code, *arguments):
    print("#", *arguments[:1], file=sys.stderr, flush=True)
    found = cli.main(arguments)
    assert found == code, (arguments, found)

data, zoo = sys.argv[1:]
small = ("--epochs", "1", "--limit", "16", "--data-dir", data, "--recipe", "quick")
run(0, "train", "Tiny", *small, "--batch-size", "8", "--output", "run", "--verbose", "0")
run(0, "evaluate", "Tiny", "--weights", "run", "--data-dir", data, "--limit", "8")
run(2, "evaluate", "Tiny", "--weights", "run", "--data-dir", data, "--split", "x")
run(2, "train", "Tiny", *small, "--output", "run", "--resume")
run(2, "train", "Tiny", *small, "--output", "other", "--weights", "absent.weights.h5")
run(2, "publish", "run", "--directory", "registry")
run(0, "tune", "Tiny", *small[2:], "--tuner", "random", "--max-trials", "1", "--epochs", "1",
    "--holdout", "8", "--search", "momentum", "--set", "batch_size=8", "--output", "search")
run(0, "predict", "MFResNet20", zoo, "--top", "1")
run(2, "predict", "MFResNet20", "absent.png")
run(0, "export", "MFResNet20", "--format", "keras", "--output", "a.keras")
run(2, "export", "MFResNet20", "--format", "keras", "--output", "a.txt")
"""


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="which logs most")
def test_no_subcommand_prints_log_lines_of_libraries(cifar10_dir, tmp_path):
    from PIL import Image

    picture = tmp_path / "a.png"
    Image.fromarray(data.sample("cifar10")[0][0]).save(picture)
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"PYTHONPATH": os.path.dirname(__file__), "MF_ZOO_IMPORT": "tiny_zoo"}
    script = ("-c", _SUBCOMMANDS, str(cifar10_dir), str(picture))
    process = _process(*script, cwd=tmp_path, env=environment, timeout=600)
    assert process.returncode == 0, process.stderr
    ours = ("# ", "mf-zoo: error: ", "note: ")
    foreign = [line for line in process.stderr.splitlines() if not line.startswith(ours)]
    assert foreign == []
    assert process.stderr.count("mf-zoo: error: ") == _SUBCOMMANDS.count("run(2")


@pytest.mark.once_on_torch
def test_interrupted_from_the_keyboard(monkeypatch, capsys, cifar10_dir, tmp_path):
    batch = data.Batches.batch

    def interrupt(self, epoch, index):
        if (epoch, index) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, epoch, index)

    monkeypatch.setattr(data.Batches, "batch", interrupt)
    folder = tmp_path / "a run"
    arguments = ["train", "Tiny", "--epochs", "2", "--batch-size", "8", "--limit", "24"]
    arguments += ["--data-dir", str(cifar10_dir), "--output", str(folder), "--verbose", "0"]
    code = cli.main(arguments)
    assert code == 130
    assert f"mf-zoo train --resume --output '{folder}'" in capsys.readouterr().err
