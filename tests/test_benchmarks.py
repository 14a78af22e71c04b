"""The benchmarks compare equal things and reckon rightly. Nothing here is timed."""

import sys
import time

import keras
import numpy as np
import pytest
import tiny_zoo  # noqa: F401  # registers networks
import torch
from conftest import ROOT

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import (
    accelerator,
    batch_normalization,
    command,
    deployment,
    depth_transfer,
    determinism,
    grouped_convolution,
    growth,
    harness,
    integrators,
    lesions,
    memory,
    peers,
    torch_step,
    train_step,
    tuning,
)
from benchmarks.plain_resnet import plain_resnet
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import all_reduce, estimates, tables, training_step
from mf_zoo import applications, data, files, weights
from mf_zoo.layers import stages


def shuffled_and_randomized(model):
    """Random weights, and particles stored in another order than that of depth."""
    rng = np.random.default_rng(0)
    times = {id(stage.times) for stage in stages(model)}
    for weight in model.weights:
        kind = weight.path.rsplit("/")[-1]
        if id(weight) not in times and "normalization" not in weight.path:
            value = rng.normal(size=weight.shape) * 0.1
            if kind.endswith(("gamma", "variance")):
                value = 0.6 + np.abs(value)
            weight.assign(value)
    for stage in stages(model):
        stage.times.assign(rng.permutation(stage.num_particles) + 1.0)
    stages(model)[0].times.assign([3.0, 1.0, 2.0])


@pytest.fixture(scope="module")
def sides():
    """All sides, with the weights of the mean-field network."""
    networks = {name: build(20) for name, build in train_step.builders().items()}
    ours = networks[train_step.MEAN_FIELD]
    shuffled_and_randomized(ours)
    for network in networks.values():
        if network is not ours:
            train_step.copy_weights(ours, network)
    return networks


def test_all_sides_are_the_same_network(sides):
    images, _ = harness.images_and_labels(8)
    assert len(sides) == 2 + (keras.config.backend() != "jax")
    outputs = {
        name: keras.ops.convert_to_numpy(side(images, training=False))
        for name, side in sides.items()
    }
    ours = outputs.pop(train_step.MEAN_FIELD)
    assert np.ptp(ours) > 0.1
    for name, theirs in outputs.items():
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4, err_msg=name)
        times = 3 + 2 + 2
        assert sides[name].count_params() == sides[train_step.MEAN_FIELD].count_params() - times


# Where nothing is compiled: test_mean_field_stage.py trains on each backend.
@pytest.mark.once_on_torch
def test_all_sides_train_alike(sides):
    images, labels = harness.images_and_labels(8)
    ours, plain = sides[train_step.MEAN_FIELD], sides[train_step.PLAIN]
    before = train_step.weights_by_plain_name(ours)
    loss = ours.train_on_batch(images, labels)
    after = train_step.weights_by_plain_name(ours)
    assert plain.train_on_batch(images, labels) == pytest.approx(loss, abs=1e-4)
    for weight in plain.weights:
        name, got = weight.path, weight.numpy()
        np.testing.assert_allclose(got, after[name], rtol=1e-4, atol=1e-4, err_msg=name)
        if weight.trainable:
            # The step itself. Rounding turns a ReLU on or off here and there, worth half a percent.
            difference = np.linalg.norm(got - after[name])
            assert difference < 0.05 * np.linalg.norm(after[name] - before[name]), name


@pytest.mark.once_on_torch
def test_the_hand_written_network_trains_as_ours_does():
    keras.utils.set_random_seed(0)
    images, labels = harness.images_and_labels(16)
    models = torch_step.networks(20, "float32")
    torch_step.check_equal(models, images, 1e-4)
    for _ in range(2):
        losses = [model.train_on_batch(images, labels)[0] for model in models.values()]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    # Weights that have moved alike, by learning rate, momentum and weight decay. Rounding turns a
    # ReLU on or off here and there.
    torch_step.check_equal(models, images, 3e-2)
    module = models[torch_step.WRITTEN].module
    with torch.no_grad():
        module.fc.bias += 0.1
    with pytest.raises(AssertionError, match="mean-field and hand-written"):
        torch_step.check_equal(models, images, 3e-2)


def test_a_network_that_has_moved_has_no_plain_equal(sides):
    ours = sides[train_step.MEAN_FIELD]
    times = stages(ours)[1].times
    before = times.numpy()
    times.assign([0.5, 2.0])
    with pytest.raises(ValueError, match="Every step size must be 1"):
        train_step.copy_weights(ours, sides[train_step.PLAIN])
    times.assign(before)


@pytest.mark.once
def test_the_plain_network_is_keras_alone():
    model = plain_resnet(20)
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert trainable == 272_474  # as published, with projection shortcuts
    with pytest.raises(ValueError, match="Received: depth=21"):
        plain_resnet(21)


@pytest.mark.once
def test_batch_normalization_networks_have_the_policies_they_say(monkeypatch):
    monkeypatch.setattr(batch_normalization, "DEPTH", 14)
    before = keras.config.dtype_policy().name
    networks = batch_normalization.networks()
    assert keras.config.dtype_policy().name == before
    assert len(networks) == 4
    for (policy, name), model in networks.items():
        layer = model.get_layer("stage2_block0_bn1")
        assert layer.dtype_policy.name == policy
        package = "mf_zoo" if name == batch_normalization.OURS else "keras"
        assert type(layer).__module__.split(".")[0] == package


@pytest.mark.once
def test_the_folded_network_is_compared_with_itself():
    images = harness.images_and_labels(4)[0].astype("float32")
    models = deployment.networks(20)
    outputs = {name: model.predict_on_batch(images) for name, model in models.items()}
    assert list(outputs) == ["folded", "plain Keras", "mean-field"]
    deployment.check_equal({**outputs, "torch eager": np.zeros((4, 10))})
    outputs["folded"] = outputs["folded"] + 2e-4 * np.abs(outputs["plain Keras"]).max()
    with pytest.raises(AssertionError, match="folded"):
        deployment.check_equal(outputs)


@pytest.mark.once
def test_the_table_of_deployment(tmp_path):
    seconds = {"folded": [1.5, 3.0], "plain Keras": [2.0, 3.0], "onnxruntime": [0.5, 0.5]}
    rows = [
        harness.compare(
            seconds,
            side,
            "plain Keras",
            depth=20,
            measure=measure,
            policy="float32",
            target=deployment.TARGET if measure.startswith("predict") else None,
        )
        for measure in ("predict, batch 1", "on batch, batch 1")
        for side in ("folded", "onnxruntime")
    ]
    shared = {"backend": "here", "machine": "a core", "date": "2026-01-01", "versions": "keras-3"}
    harness.write_csv(tmp_path / "deployment-here.csv", rows[:3], shared)
    with pytest.raises(KeyError, match="onnxruntime"):  # a side without a figure is no table
        deployment.readme_table(tmp_path)
    harness.write_csv(tmp_path / "deployment-here.csv", rows, shared)
    # Ratios of a round: 3 / 4 and 1, their median 7 / 8; and 1 / 4 and 1 / 6.
    assert deployment.readme_table(tmp_path).splitlines()[:4] == [
        "| backend | depth | measure | folded | onnxruntime |",
        "|---|---|---|---|---|",
        "| here | 20 | predict, batch 1 | **1.14** | 4.80 |",
        "| here | 20 | on batch, batch 1 | 1.14 | 4.80 |",
    ]


@pytest.mark.skipif(keras.config.backend() == "torch", reason="PyTorch needs no other way")
def test_both_grouped_convolutions_have_the_same_gradients():
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 8)).astype("float32")
    both = grouped_convolution.layers((4, 2, 6))
    found = [
        [np.asarray(gradient) for gradient in grouped_convolution.gradient_step(layer, images)()]
        for layer in both.values()
    ]
    for ours, native in zip(*found, strict=True):
        assert np.abs(native).max() > 0.1
        np.testing.assert_allclose(ours, native, rtol=1e-4, atol=1e-4)
    assert [gradient.shape for gradient in found[0]] == [(3, 3, 2, 8), images.shape]


@pytest.mark.once
def test_ratio_is_the_median_over_rounds():
    # Rounds 1.0, 3.0, 1.5: not the ratio of the medians (2 / 2) nor of the sums (9 / 7).
    found = harness.ratio([2.0, 3.0, 3.0], [2.0, 1.0, 2.0])
    assert (found.median, found.smallest, found.largest) == (1.5, 1.0, 3.0)
    assert harness.ratio([1.0, 3.0], [1.0, 1.0]).median == 2.0


@pytest.mark.once
@pytest.mark.parametrize(
    ("side", "baseline"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([-1.0], [1.0])]
)
def test_ratio_refuses_what_has_none(side, baseline):
    with pytest.raises(ValueError, match="Received"):
        harness.ratio(side, baseline)


@pytest.mark.once
def test_interleaving_takes_turns_and_medians():
    now, calls = [0.0], []
    # What each call takes; the outlier of a round must not show in its median.
    durations = {"a": iter([1, 9, 2, 4, 4, 4]), "b": iter([5, 5, 5, 7, 1, 8])}

    def side(name):
        def call():
            calls.append(name)
            now[0] += next(durations[name])

        return call

    seconds = harness.interleave(
        {"a": side("a"), "b": side("b")}, rounds=2, steps=3, clock=lambda: now[0]
    )
    assert seconds == {"a": [2, 4], "b": [5, 7]}
    assert "".join(calls) == "abbaab" + "baabba"


@pytest.mark.once
def test_compile_time_is_the_first_step_less_a_steady_one():
    got = train_step.compile_seconds({"a": [5.0, 7.0], "b": [1.0]}, {"a": [1, 9, 2], "b": [4.0]})
    assert got == {"a": [3.0, 5.0], "b": [1e-6]}


def comparison(ours, theirs, target, **kwargs):
    arguments = {"depth": 20, "measure": "train", "policy": "float32", **kwargs}
    seconds = {train_step.MEAN_FIELD: ours, train_step.PLAIN: theirs}
    return harness.compare(
        seconds, train_step.MEAN_FIELD, train_step.PLAIN, target=target, **arguments
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("ours", "target", "met", "word"),
    [(1.05, 1.05, True, "yes"), (1.0501, 1.05, False, "NO"), (0.5, None, None, "")],
)
def test_targets_are_judged(ours, target, met, word):
    row = comparison([ours, ours, 9.0], [1.0, 1.0, 1.0], target)
    assert row.met is met
    assert (row.side_seconds, row.baseline_seconds, row.ratio_max) == (ours, 1.0, 9.0)
    head, line = harness.table([row]).splitlines()
    assert line[head.index("met") :].strip() == word
    assert f"{ours:.3f}  [{ours:.3f}, 9.000]" in line


@pytest.mark.once
def test_the_command_writes_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(depth, batch, rounds, steps, compile_repeats, policy):
        asked.append((depth, batch, rounds, steps, compile_repeats, policy))
        same = {"depth": depth, "policy": policy}
        return [
            comparison([1.26, 1.26], [1.0, 1.0], 1.05, measure="train", **same),
            comparison([0.5, 0.75], [1.0, 1.0], 1.05, measure="predict", **same),
        ]

    monkeypatch.setattr(train_step, "measure", measure)
    monkeypatch.setattr(train_step, "warm_up", lambda batch: None)
    output = tmp_path / "results" / "train_step-here.csv"
    command = "--depths 20 110 --batch 4 --rounds 3 --steps 1 --compile-repeats 5 --output"
    assert train_step.main([*command.split(), str(output)]) == 0
    assert asked == [(20, 4, 3, 1, 5, "float32"), (110, 4, 3, 1, 5, "float32")]
    assert "2 of 4 targets met" in capsys.readouterr().out

    rows = files.read_rows(output)
    assert [(row["depth"], row["measure"], row["met"]) for row in rows] == [
        ("20", "train", "no"),
        ("20", "predict", "yes"),
        ("110", "train", "no"),
        ("110", "predict", "yes"),
    ]
    assert rows[0]["ratio"] == "1.26" and rows[0]["batch"] == "4"
    assert f"keras-{keras.__version__}" in rows[0]["versions"]
    assert [path.name for path in output.parent.iterdir()] == [output.name]

    table = train_step.readme_table(output.parent).splitlines()
    backend = keras.config.backend()
    assert table[2:4] == [
        f"| {backend} | plain Keras | 20 | **1.26** | 0.62 |  |",
        f"| {backend} | plain Keras | 110 | **1.26** | 0.62 |  |",
    ]
    assert rows[0]["machine"] in table[5] and rows[0]["date"] in table[5]


@pytest.mark.once
@pytest.mark.parametrize("option", ["--batch=0", "--rounds=-1", "--depths=21", "--dtype-policy=x"])
def test_wrong_options_are_refused(option, capsys):
    with pytest.raises(SystemExit) as exit_:
        train_step.main([option])
    assert exit_.value.code == 2
    assert option.split("=")[0] in capsys.readouterr().err


@pytest.mark.once
def test_the_best_rate_is_that_of_least_mean_loss():
    rows = [
        {
            "model": model,
            "mean_field_scaling": scaling,
            "learning_rate": rate,
            "loss": loss,
            "seed": 0,
        }
        for model, scaling, rate, loss in (
            ("A", False, 0.1, "1.5"),
            ("A", False, 0.3, "1.25"),
            ("A", False, 1.0, "nan"),
            ("A", True, 0.1, "0.5"),
            ("A", True, 0.3, "inf"),
            ("B", True, 0.1, "nan"),
        )
    ]
    assert depth_transfer.best_rates(rows) == {("A", False): 0.3, ("A", True): 0.1}
    # With another seed: 1.4 against 1.55 on average, and a rate that once diverged is none.
    again = [{**rows[0], "loss": "1.3", "seed": 1}, {**rows[1], "loss": "1.85", "seed": 1}]
    again += [{**rows[2], "loss": "0.1", "seed": 1}, {**rows[3], "model": "B", "loss": "1.0"}]
    again += [{**rows[3], "model": "B", "learning_rate": 0.3, "loss": "0.9"}]
    rows = [*rows[:5], *again]
    best = depth_transfer.best_rates(rows)
    assert best == {("A", False): 0.1, ("A", True): 0.1, ("B", True): 0.3}
    assert depth_transfer.factor(rows, True) == pytest.approx(3)
    assert depth_transfer.factor(rows, False) == 1
    lines = depth_transfer.summary(rows)
    assert "without scaling: best rate 0.1 (loss 1.400), at the edge of the grid" in lines[0]
    assert lines[0].startswith("A ") and lines[0].endswith("by seed 0.3, 1")
    assert "between depths; by seed 3, nan" in lines[-1]


@pytest.mark.once_on_torch
def test_rates_are_compared_from_the_same_start(tmp_path, monkeypatch, capsys):
    """Networks are used again for other rates and seeds: nothing of a run is left in them."""
    images, labels = data.sample("cifar10")
    steady = applications.network("Steady")
    monkeypatch.setattr(applications, "network", lambda name: steady)
    monkeypatch.setattr(applications, "get", lambda name: steady.builder)
    monkeypatch.setattr(data, "load", lambda *_, **__: (images[:24], labels[:24]))
    output = tmp_path / "depth.csv"
    arguments = ["--data-dir", str(tmp_path), "--batch", "8", "--epochs", "1", "--depths", "20"]
    options = ["--rates", "0.1", "0.01", "--seeds", "2", "--output", str(output)]
    assert depth_transfer.main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    rows = depth_transfer.read_rows(output)
    assert [row["seed"] for row in rows] == ["0"] * 4 + ["1"] * 4
    again = tmp_path / "again.csv"
    options = ["--rates", "0.01", "--seeds", "1", "--output", str(again)]
    assert depth_transfer.main([*arguments, *options]) == 0
    for scaled, row in zip((False, True), depth_transfer.read_rows(again), strict=True):
        assert row["mean_field_scaling"] is scaled
        assert row["loss"] == rows[3 if scaled else 1]["loss"] != rows[2]["loss"]
    assert len({row["loss"] for row in rows}) == 8
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert depth_transfer.main(["--summary", str(output)]) == 0
    assert capsys.readouterr().out.strip() in printed


@pytest.mark.once
def test_tuned_and_default_settings_are_compared_alike(monkeypatch, tmp_path, capsys):
    from mf_zoo import training
    from mf_zoo import tuning as searches
    from mf_zoo.training.recipes import RECIPES, recipe_toml

    runs, search = [], []

    def tune(settings, output, **options):
        search.append(settings)
        output.mkdir()
        found = settings.recipe.replace(name="tuned", learning_rate=0.125)
        (output / "best.toml").write_text(recipe_toml(found))
        return {"trials": 2}

    def train(settings, output, **options):
        runs.append((settings.model, settings.recipe, settings.seed, settings.limit))
        error = 10 * settings.seed + (0 if settings.recipe.learning_rate == 0.125 else 100)
        return {"test_error": error, "train_seconds": 1.0}

    monkeypatch.setattr(searches, "tune", tune, raising=False)
    monkeypatch.setattr(training, "train", train, raising=False)
    output = tmp_path / "tuning.csv"
    arguments = ["--data-dir", str(tmp_path), "--output", str(output), "--epochs", "8"]
    assert tuning.main([*arguments, "--seeds", "2", "--limit", "100", "--holdout", "30"]) == 0
    # The default recipe, of as many epochs, and seeds other than the search's, which is 0.
    (search,) = search
    assert (search.seed, search.limit, search.holdout) == (0, 100, 30)
    default = RECIPES["quick"].replace(epochs=8, warmup_epochs=1.6)
    assert search.recipe == default
    recipes = (default, default.replace(name="tuned", learning_rate=0.125))
    expected = [("MFResNet20", recipe, seed, 100) for seed in (1, 2) for recipe in recipes]
    assert runs == expected
    rows = files.read_rows(output)
    assert [row["test_error"] for row in rows] == ["110.00", "10.00", "120.00", "20.00"]
    assert [row["settings"] for row in rows] == ["default", "found"] * 2
    printed = capsys.readouterr().out
    assert "default  test error 115.00 % (standard deviation 7.07), 2 seeds" in printed
    assert "found    test error 15.00 %" in printed


@pytest.mark.skipif(keras.config.backend() != "jax", reason="measures JAX")
def test_the_accelerator_benchmark_counts_the_work_that_is_done(monkeypatch):
    job = {"model": "Tiny", "policy": "mixed_bfloat16", "batch": 8, "images": 20, "epochs": 2}
    waits = []
    before = keras.config.dtype_policy().name
    found = accelerator.measure(
        {**job, "modes": ["step", "epoch"]}, lambda: waits.append(time.perf_counter())
    )
    assert keras.config.dtype_policy().name == before
    # Two full batches an epoch, three epochs with the one that compiles, for each mode.
    assert [found["modes"][mode]["steps"] for mode in ("step", "epoch")] == [6, 12]
    assert len(waits) == 2
    # 3 x 3 kernels: 3 to 4 channels on 4 x 4 pixels, two of 4 to 4 in each particle; the head.
    assert found["multiply_adds"] == 16 * 9 * (12 + 3 * 2 * 16) + 40
    # More than reading each image once, less than a megabyte.
    assert 32 * 32 * 3 < found["bytes"] < 1e6


# A worker that has measured: the second of two processes is slower.
WORKER = """
import json, os, sys
job = json.loads(sys.argv[1])
if not job:
    ceilings = {"bfloat16": 1e12, "float32": 5e11, "copy": 1e9}
    print(json.dumps({"ceilings": ceilings, "circumstances": {"backend": "jax", "batch": "0"}}))
    sys.exit()
if job["model"] == "Broken":
    sys.exit("RESOURCE_EXHAUSTED: out of memory")
with open("started", "a") as file:
    file.write("x")
order = os.path.getsize("started")
result = {"multiply_adds": 4_000_000, "modes": {}}
if "step" in job["modes"]:
    result["bytes"] = 25_000
for mode in job["modes"]:
    print("ready", flush=True)
    assert sys.stdin.readline() == "go\\n"
    rate = {"step": 10000, "epoch": 20000, "fit": 1000}[mode]
    numbers = {"compile_seconds": order, "images_per_second": rate, "steps": 1}
    result["modes"][mode] = numbers
print(json.dumps(result))
"""


@pytest.mark.once
def test_the_accelerator_benchmark_puts_it_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(accelerator, "WORKER", [sys.executable, "worker.py"])
    command = (
        "--models Fast Broken --policies bfloat16 --batches 8 16 --processes 1 2 --output o.csv"
    )
    assert accelerator.main(command.split()) == 1
    captured = capsys.readouterr()
    assert "failed: RESOURCE_EXHAUSTED: out of memory. Received: {'model': 'Broken'" in captured.err
    rows = files.read_rows(tmp_path / "o.csv")
    assert [(row["batch"], row["mode"], row["processes"]) for row in rows] == [
        ("8", "step", "1"),
        ("8", "epoch", "1"),
        ("8", "fit", "1"),
        ("8", "epoch", "2"),
        ("16", "step", "1"),
        ("16", "epoch", "1"),
    ]
    # 20000 images of 4e6 multiply-adds, three passes, two operations: 4.8e11 of 1e12 a second;
    # 20000 images of 25 kB: half of 1e9 bytes a second. Two processes do twice as much.
    one, two = rows[1], rows[3]
    assert float(one["matmul_fraction"]) == pytest.approx(0.48)
    assert float(one["copy_fraction"]) == pytest.approx(0.5)
    assert float(two["images_per_second"]) == 40000 and float(two["copy_fraction"]) == 1.0
    assert (one["compile_seconds"], two["compile_seconds"]) == ("1", "3")
    assert one["ceiling_copy"] == "1e+09"
    assert "48 %" in captured.out and "written to o.csv" in captured.out


@pytest.mark.once
def test_the_accelerator_benchmark_leaves_out_what_is_late(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(accelerator, "WORKER", [sys.executable, str(tmp_path / "worker.py")])
    with pytest.raises(RuntimeError, match=r"out of time\. Received: {'modes': \['fit'\]}"):
        accelerator.run_job({"modes": ["fit"]}, 2, time.monotonic() + 0.3)


@pytest.mark.once
def test_estimates_by_hand():
    # Three rounds there and back of 10 us, and 7/4 of the bytes at 1 GB/s.
    assert all_reduce.all_reduce_seconds(4e6, 8, 1e9, 1e-5) == pytest.approx(6e-5 + 7e-3)
    assert all_reduce.all_reduce_seconds(4e6, 1, 1e9, 1e-5) == 0
    network = {"parameters": 10**6, "normalizations": 10, "channels": 250}
    links = {"bandwidth": 1e9, "latency": 1e-5}
    found = estimates.estimate(100, 8, batch=800, **network, **links)
    assert found.compute_seconds == 1
    assert found.gradient_seconds == pytest.approx(7.06e-3)
    # Two waits for each of 10 layers; 16 bytes a channel.
    assert found.statistics_seconds == pytest.approx(20 * 6e-5 + 7 / 4 * 4000 / 1e9)
    assert found.images_per_second == pytest.approx(800 / 1.008267)
    assert found.efficiency == pytest.approx(1 / 1.008267)
    assert found.epoch_seconds(1601) == pytest.approx(3 * 1.008267)

    # Two thirds of the second can hide gradients, to the part that overlaps.
    some = estimates.estimate(100, 8, batch=800, **network, **links, overlap=0.006)
    assert some.gradient_seconds == pytest.approx(3.06e-3)
    assert (
        estimates.estimate(100, 8, batch=800, overlap=1, **network, **links).gradient_seconds == 0
    )
    alone = estimates.estimate(100, 1, batch=800, **network, **links)
    assert (alone.seconds, alone.efficiency) == (8, 1)


@pytest.mark.once
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 801}, "divisible by the number of devices. Received: batch=801, devices=8"),
        ({"images_per_second": 0}, "Received: images_per_second=0"),
        ({"overlap": 1.5}, "`overlap` from 0 to 1"),
        ({"latency": -1e-6}, "latency at least 0"),
    ],
)
def test_estimates_refuse_what_makes_no_sense(values, message):
    arguments = {"images_per_second": 100, "devices": 8, "batch": 800, "parameters": 10}
    with pytest.raises(ValueError, match=message):
        estimates.estimate(**{**arguments, "bandwidth": 1e9, "latency": 0, **values})


@pytest.mark.once
def test_the_command_estimates(capsys):
    command = "--estimate MFResNet20 --images-per-second 1000 --devices 1 8 --batch 125"
    command += " --bandwidth 1e8 --latency 0 1e-3 --images 10000"
    assert scaling.main(command.split()) == 0
    # 336,831 parameters with 1000 classes: 7/4 * 1,347,324 bytes at 1e8 a second and 6 ms. 21
    # layers of 784 channels together: 42 waits of 6 ms, and 7/4 * 12,544 bytes.
    step = 125 + (6 + 23.57817) + (252 + 0.21952)
    head, _, alone, eight = capsys.readouterr().out.splitlines()
    assert head.startswith("| devices | batch | step, ms | gradients, ms | statistics, ms |")
    # 80 steps of an eighth of a second; 10 of all devices.
    assert alone == "| 1 | 125 | 125 | 0 | 0 | 1,000 | 100.0 | 360 | 0.25 |"
    rate, hours = 1e6 / step, step / 1000 * 10 * 90 / 3600
    assert eight == (
        f"| 8 | 1,000 | {step:.0f} | 29.6 | 252 | {rate:,.0f} | {12500 / step:.1f} | "
        f"{360e3 / step:.0f} | {hours:.3g} |"
    )
    with pytest.raises(SystemExit, match="Received: batch=100, devices=8"):
        scaling.main([*command.split(), "--global-batch", "100"])
    with pytest.raises(SystemExit, match="Received: 1 and 3 for 2"):
        scaling.main([*command.split(), "--latency", "0", "0", "0"])
    with pytest.raises(SystemExit) as exit_:
        scaling.main(["--estimate", "MFResNet20"])
    assert exit_.value.code == 2
    assert "needs --images-per-second and --bandwidth" in capsys.readouterr().err


@pytest.mark.once
def test_links_and_batches_of_the_plan():
    # 60 of 80 GB: 64 images of 0.9 GB, 128 of less than half of that.
    assert [estimates.H100.batch_of(size) for size in (0.9e9, 0.4e9, 1e12)] == [64, 128, 1]
    rows = [
        all_reduce.AllReduce("gloo", 4, size, all_reduce.all_reduce_seconds(size, 4, 2e9, 3e-5))
        for size in (2**20, 256, 2**24)
    ]
    bandwidth, latency = all_reduce.link(rows)
    assert bandwidth == pytest.approx(2e9) and latency == pytest.approx(3e-5)


@pytest.mark.once
def test_two_processes_add_up(monkeypatch):
    monkeypatch.chdir(ROOT)
    # Each of them checks the sum itself.
    rows = all_reduce.measure_all_reduce(2, sizes=(256, 4096), repeats=2)
    assert [(row.library, row.processes, row.bytes) for row in rows] == [
        ("gloo", 2, 256),
        ("gloo", 2, 4096),
    ]
    assert min(row.seconds for row in rows) > 0


@pytest.mark.once
def test_the_step_at_the_size_of_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(
        training_step, "ceilings", lambda policy: {"matmul": (len, 10), "convolution": (len, 20)}
    )
    monkeypatch.setattr(
        harness,
        "interleave",
        lambda sides, rounds, steps: (
            sides["step"](),
            {"step": [2.0, 4.0, 4.0], "matmul": [1e-9] * 3, "convolution": [1e-9] * 3},
        )[1],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    monkeypatch.setattr(
        harness, "compile_model", lambda model, sgd: model.compile(sgd, loss, run_eagerly=True)
    )
    output = tmp_path / "scaling-here.csv"
    command = "--models MFResNet20 --input-size 16 --batch 2 --processes 0 --output"
    assert scaling.main([*command.split(), str(output)]) == 0
    (row,) = files.read_rows(output)
    work = (40_813_184 - 640) // 4 + 64 * 1000
    assert (int(row["multiply_adds"]), row["seconds"]) == (work, "4")
    assert (row["parameters"], row["normalizations"], row["channels"]) == ("336831", "21", "784")
    assert float(row["images_per_second"]) == 0.5
    # Three passes of two operations for each of two images, in a round of 2 s and two of 4 s.
    assert float(row["operations_per_second"]) == pytest.approx(6 * work / 2, rel=1e-3)
    assert float(row["matmul_fraction"]) == pytest.approx(3 * work / 1e10, rel=1e-3)
    assert float(row["convolution_fraction"]) == pytest.approx(3 * work / 2e10, rel=1e-3)
    assert f"| `MFResNet20` | 336,831 | {work:,} |" in tables.step_table(tmp_path)


@pytest.mark.once
def test_the_command_is_timed_in_processes_of_their_own(tmp_path, monkeypatch):
    """The seconds on the processor count, and too many of them fail."""
    assert command.run([sys.executable, "-c", "sum(range(10**6))"]) > 0
    with pytest.raises(RuntimeError, match=r"must answer[^$]*ZeroDivisionError"):
        command.run([sys.executable, "-c", "1 / 0"])

    seconds = {name: [9, 0.25, 0.5, 0.25] for name in command.LINES}  # the first reads files
    seconds["mf-zoo list"] = [9, 0.25, 0.75, 0.75]

    def run(program):
        line = program[program.index("mf_zoo.cli") + 1 :] if "mf_zoo.cli" in program else None
        names = [name for name, value in command.LINES.items() if value == line]
        return seconds[names[0]].pop(0) if names else 0.1

    monkeypatch.setattr(command, "run", run)
    output = tmp_path / "command.csv"
    assert command.main(["--rounds", "3", "--output", str(output)]) == 1
    rows = {row["command"]: row for row in files.read_rows(output)}
    assert rows[command.EMPTY]["processor_seconds"] == "0.1"
    assert rows[command.EMPTY]["met"] == rows[command.EMPTY]["target"] == ""
    assert rows["mf-zoo recipes"]["processor_seconds"] == "0.25"
    assert (rows["mf-zoo recipes"]["met"], rows["mf-zoo list"]["met"]) == ("yes", "no")


@pytest.mark.once
def test_memory_is_measured_where_a_backend_tells():
    with pytest.raises(SystemExit, match="Received: KERAS_BACKEND=tensorflow"):
        memory.measure("MFResNet20", "float32", 32, 1)


@pytest.mark.once_on_torch
def test_integrators_of_a_trained_network_are_compared_with_eulers_method(
    tmp_path, monkeypatch, capsys
):
    images, labels = data.sample("cifar10")
    images, labels = images[:40], labels[:40]
    monkeypatch.setattr(data, "load", lambda *_, **__: (images, labels))
    output = tmp_path / "integrators.csv"
    arguments = ["--data-dir", str(tmp_path), "--models", "MFResNet20", "--weights", "cifar10"]
    options = ["--calibrate", "40", "--batch", "20", "--parts", "1", "2", "--output", str(output)]
    assert integrators.main([*arguments, *options]) == 0
    assert capsys.readouterr().out.startswith(integrators.table(files.read_rows(output)))
    rows = {
        (row["parts"], row["statistics"], row["integrator"]): row for row in files.read_rows(output)
    }
    assert len(rows) == 2 * 2 * 3
    states, scores = {}, {}
    for name in ("euler", "heun"):
        network = applications.MFResNet20(weights="cifar10", integrator=name)
        probe = keras.Model(network.input, [stages(network)[-1].output, network.output])
        states[name], scores[name] = probe.predict(images, verbose=0)
        row = rows["1", "trained", name]
        error = 100 * np.mean(scores[name].argmax(1) != labels)
        changed = 100 * np.mean(scores[name].argmax(1) != scores["euler"].argmax(1))
        assert (float(row["error"]), float(row["changed"])) == pytest.approx((error, changed))
        away = np.linalg.norm(states[name] - states["euler"]) / np.linalg.norm(states["euler"])
        assert float(row["distance"]) == pytest.approx(away, rel=1e-3, abs=1e-6)
    # Other statistics are another function, and smaller steps bring the methods together.
    assert rows["1", "estimated", "heun"]["distance"] != rows["1", "trained", "heun"]["distance"]
    for name in ("midpoint", "heun"):
        distances = [float(rows[parts, "estimated", name]["distance"]) for parts in "12"]
        assert distances[1] < distances[0]


MEASURED = ("depth", "lesions-torch", "integrators-tensorflow", "robustness", "calibration")
MEASURED += ("quantization", "transfer-tensorflow")


@pytest.mark.once
@pytest.mark.parametrize("name", MEASURED)
def test_results_are_of_the_weights_that_are_shipped(name):
    registered = {
        (record.model, record.name): files.sha256(ROOT / "weights" / record.file)[:12]
        for record in weights.records()
    }
    shipped = set()
    for row in files.read_rows(harness.RESULTS / f"{name}.csv"):
        key = (
            row.get("model") or row["network"],
            row["weights" if "weights" in row else "dataset"],
        )
        if key in registered:  # not random weights, nor those of a run
            assert row["digest"] == registered[key], "measure it again: CONTRIBUTING.md says how"
            shipped.add(key)
    assert shipped >= {("MFResNet20", "cifar10"), ("MFResNet20", "cifar100")}


@pytest.mark.once
def test_pictures_of_the_theory_are_of_the_weights_that_are_shipped():
    records = files.read_json(ROOT / "docs" / "theory" / "figures.json", "figures")
    for record in records.values():
        assert record["networks"].keys() == record["sha256"].keys()
        for label, source in record["networks"].items():
            assert record["sha256"][label] == weights.get(*source.split(":")).sha256


@pytest.mark.once
def test_the_tables_of_growth_lesions_and_peers():
    run = {"model": "MFResNet32", "epochs": "20", "state": "finished", "multiply_adds": "2e12"}
    rows = [
        {**run, "overrides": "epochs=20 ladder=ResNet20:10", "test_error": "31.9"},
        {**run, "overrides": "epochs=20 ladder=ResNet20:10", "test_error": "33.1"},
        {**run, "overrides": "epochs=16", "epochs": "16", "test_error": "30.0"}
        | {"multiply_adds": "1.96e12"},
        {**run, "overrides": "epochs=20 until=10", "test_error": "70.0"},
        {**run, "overrides": "epochs=20", "test_error": "", "state": "waiting"},
    ]
    assert growth.table(rows).splitlines()[2:] == [
        "| MFResNet32 | 16 |  | 2.0 | 30.0 | 30.0 | 1 |",
        "| MFResNet32 | 20 | 10 at the depth of ResNet20 | 2.0 | 31.9, 33.1 | 32.5 | 2 |",
    ]
    assert [cell.cost for cell in growth.cells(rows)] == [1.96, 2.0]
    where = {"train_images": "45000", "evaluated_on": "last 5000 training images"}
    assert growth.circumstances([{**where, "recipe": "quick"}]) == (
        "Trained on the first 45,000 training images of CIFAR-10, "
        "measured on the 5,000 after them; recipe quick"
    )
    # Of each campaign a table; those that have not begun are left out.
    tables = growth.readme_table().split("| network |")[1:]
    assert len(tables) == sum((growth.RESULTS / name).exists() for name in growth.CAMPAIGNS)
    network = {"model": "ResNet20", "weights": "cifar10", "statistics": "trained"}
    rows = [
        {**network, "change": "lesion", "where": where, "error": error}
        for where, error in (("", "8.5"), ("1.1", "20.5"), ("1.2", "10.5"))
    ]
    rows.append({**network, "change": "shuffle", "where": "0", "error": "8.5"})
    assert lesions.table(rows, "lesion").splitlines() == [
        "| network | weights | statistics | whole | 1.1 | 1.2 | mean rise |",
        "|---|---|---|---:|---:|---:|---:|",
        "| ResNet20 | cifar10 | trained | 8.5 | 20.5 | 10.5 | 7.0 |",
    ]
    row = {"file": "a.th", "network": "ResNet20", "published": "8.27", "plain": "8.270000"}
    assert peers.table([{**row, "mean_field": "8.2700001"}]).endswith(
        '| a.th | `ResNet20(shortcut="identity")` | 8.27 | 8.27 | 8.27 |'
    )


def test_the_difference_of_two_trainings():
    first = {"a": np.zeros((2, 2)), "b": np.zeros(1)}
    one = {"a": np.full((2, 2), 2.0), "b": np.full(1, 3.0)}  # the norm is 5
    other = {"a": np.full((2, 2), 2.0), "b": np.full(1, 2.0)}
    assert determinism.difference(one, one, first) == 0
    assert determinism.difference(one, other, first) == pytest.approx(1 / 5)
    rows = [
        {"policy": "p", "one": "x", "other": "y", "steps": "10", "difference": "0.0"},
        {"policy": "p", "one": "x", "other": "y", "steps": "1", "difference": "0.25"},
    ]
    assert determinism.table(rows).splitlines()[-1] == "| p | x | y | 2e-01 | equal |"
