"""Training on several devices and by several processes: the same as on one."""

import os
import pathlib
import socket
import subprocess
import sys

import hypothesis
import keras
import networks
import numpy as np
import pytest
from hypothesis import strategies
from run_folders import arrays
from tiny_zoo import train

from mf_zoo import cli, data, files
from mf_zoo.errors import UserError
from mf_zoo.layers import BatchNormalization, synchronize_statistics
from mf_zoo.training import runs
from mf_zoo.training.distribution import Group, start

HERE = pathlib.Path(__file__).parent
BACKEND = keras.config.backend()
# Processes, and the devices of each.
GROUPS = {"jax": [(1, 4), (2, 1)], "tensorflow": [(1, 2)], "torch": [(2, 1)]}[BACKEND]
# 64 images in batches of 24, 24 and 16; and 5 to evaluate on, which no group divides evenly.
# Times that move fast change the order; mixup mixes images of different processes.
SETTINGS = [
    *("--recipe", "paper", "--epochs", "2", "--limit", "69", "--holdout", "5"),
    *("--batch-size", "24", "--learning-rate", "0.05", "--initial-times", "random"),
    *("--noise-temperature", "1e-6", "--time-learning-rate-multiplier", "60"),
    *("--set", "mixup=0.2", "--set", "cutout=8"),
]


@pytest.fixture(scope="module")
def alone(cifar10_dir, tmp_path_factory):
    """The run of one process on one device, with the whole batch."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    arguments = ["train", "Steady", *SETTINGS, "--verbose", "0"]
    assert cli.main([*arguments, "--data-dir", str(cifar10_dir), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where JAX keeps what it has compiled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=GROUPS, ids=lambda group: "{} x {}".format(*group))
def together(request, cifar10_dir, cache, tmp_path_factory):
    """The number of devices and the folder of the same run by a group."""
    folder = tmp_path_factory.mktemp("runs") / "together"
    arguments = [*SETTINGS, "--data-dir", str(cifar10_dir)]
    printed = _run(folder, cache, *request.param, *arguments)
    assert all("error" in line for line in printed[0][-1:]) and not any(printed[1:])
    return request.param, folder


def _run(folder, cache, processes, devices, *arguments, kill=None):
    """Trains by a group of processes; returns the lines that each printed.

    `kill` is `(process, when)`: when which of them is killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["train", "Steady", *arguments, "--distribute", "data", "--output", str(folder)]
    environment = {
        **os.environ,
        "KERAS_BACKEND": BACKEND,
        "LOGICAL_DEVICES": str(devices),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",  # It compiles for most of the time.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if processes > 1:
        environment |= {
            **{"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
        }
    started = []
    for process in range(processes):
        signal = ("SIGKILL", kill[1]) if kill and kill[0] == process else ("-", "-")
        if processes > 1:
            environment |= {"RANK": str(process), "KERAS_DISTRIBUTION_PROCESS_ID": str(process)}
        started.append(
            subprocess.Popen(
                [sys.executable, HERE / "tiny_zoo.py", *signal, *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    printed = []
    for number, process in enumerate(started):
        out, err = process.communicate(timeout=200)
        if kill is None:
            assert process.returncode == 0, err
        elif kill[0] == number:
            assert process.returncode == -9, err
        else:  # the others end by themselves
            assert process.returncode != 0
            assert "All processes that train together must stay alive" in err
            assert "Traceback" not in err
        printed.append([line for line in out.splitlines() if "Gloo" not in line])
    return printed


def test_a_group_trains_as_one_device_does(alone, together):
    (processes, devices), folder = together
    expected, found = (arrays(run / runs.WEIGHTS) for run in (alone, folder))
    assert expected.keys() == found.keys()
    for name in expected:  # weights, times, and the statistics of BatchNormalization
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-4 * scale + 1e-7)

    expected, found = (files.read_rows(run / runs.TIMES) for run in (alone, folder))
    for row, other in zip(expected, found, strict=True):
        assert [row[key] for key in ("epoch", "stage", "particle", "rank")] == [
            other[key] for key in ("epoch", "stage", "particle", "rank")
        ]
        assert float(other["time"]) == pytest.approx(float(row["time"]), abs=1e-4)
    expected, found = (files.read_rows(run / runs.HISTORY) for run in (alone, folder))
    assert sum(int(row["order_swaps"]) for row in expected) > 0
    for row, other in zip(expected, found, strict=True):
        for key in ("learning_rate", "loss", "accuracy", "test_loss", "test_error", "order_swaps"):
            assert float(other[key]) == pytest.approx(float(row[key]), rel=1e-4), key

    config, result = (
        files.read_json(folder / name, kind)
        for name, kind in ((runs.CONFIG, "config"), (runs.RESULT, "result"))
    )
    assert config["devices"] == processes * devices and config["processes"] == processes
    other = files.read_json(alone / runs.RESULT, "result")
    assert result["test_error"] == other["test_error"]
    assert result["test_loss"] == pytest.approx(other["test_loss"], rel=1e-4)


def test_a_group_that_was_killed_goes_on(together, cifar10_dir, cache, tmp_path):
    (processes, devices), folder = together
    if BACKEND == "jax" and processes > 1:
        pytest.skip("JAX waits long before it gives a process up")
    again = tmp_path / "again"
    arguments = [*SETTINGS, "--data-dir", str(cifar10_dir)]
    _run(again, cache, processes, devices, *arguments, kill=(processes - 1, "1.1"))
    assert files.read_json(again / runs.STATE, "state")["epoch"] == 1
    _run(again, cache, processes, devices, "--resume")
    assert files.sha256(again / runs.WEIGHTS) == files.sha256(folder / runs.WEIGHTS)


@hypothesis.given(
    strategies.sampled_from([(1, 1), (2, 2), (4, 2), (6, 3), (12, 4)]),
    strategies.integers(24, 60),
    strategies.sampled_from([(0, 0), (0.3, 0), (0, 1), (0.3, 1)]),
)
@pytest.mark.once
def test_parts_are_the_whole_batch(group, count, mixing):
    devices, parts = group
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 8, 8, 3)).astype("uint8")
    labels = np.arange(count)
    settings = {"shuffle": True, "num_classes": count, "seed": 3}
    mixup, cutmix = mixing
    settings["augment"] = data.Augmentation(padding=1, cutout=3, mixup=mixup, cutmix=cutmix)
    whole = data.Batches(images, labels, 12, **settings)
    shared = [
        data.Batches(images, labels, 12, **settings, divisible_by=devices, part=(part, parts))
        for part in range(parts)
    ]
    kept = count - count % devices
    assert {batches.count for batches in shared} == {kept}
    assert {len(batches) for batches in shared} == {-(-kept // 12)}
    for index in range(kept // 12):
        found = [batches.batch(2, index) for batches in shared]
        for side in (0, 1):
            assert {len(batch[side]) for batch in found} == {12 // parts}
            together = np.concatenate([batch[side] for batch in found])
            np.testing.assert_array_equal(together, whole.batch(2, index)[side])
    if kept % 12:
        assert {len(batches.batch(2, kept // 12)[0]) for batches in shared} == {kept % 12 // parts}


@pytest.mark.once
@pytest.mark.parametrize("part, divisible_by", [((2, 2), 2), ((0, 2), 1), ((0, 1), 5)])
def test_parts_that_do_not_fit_are_refused(part, divisible_by):
    images, labels = np.zeros((24, 8, 8, 3), "uint8"), np.zeros(24, int)
    with pytest.raises(ValueError, match=r"`part` must be .* Received: part="):
        data.Batches(images, labels, 12, part=part, divisible_by=divisible_by)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["basic", "pre-activation bottleneck"])
def test_statistics_are_synchronised_in_every_layer(kind):
    model = networks.small(kind)
    stages = [layer for layer in model.layers if hasattr(layer, "pattern")]
    found = [
        layer
        for part in (model, *(stage.template() for stage in stages))
        for layer in part._flatten_layers()
        if isinstance(layer, BatchNormalization)
    ]
    assert len(found) > 3 * len(stages) and not any(layer.synchronized for layer in found)
    for synchronized in (True, False):
        synchronize_statistics(model, synchronized)
        assert {layer.synchronized for layer in found} == {synchronized}


def test_one_device_alone_is_its_own_group():
    x = np.random.default_rng(0).normal(2, 3, (6, 4, 4, 5)).astype("float32")
    layers = [BatchNormalization(synchronized=value) for value in (False, True)]
    for layer in layers:
        y = keras.ops.convert_to_numpy(layer(x, training=True))
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-3), atol=1e-4)
        np.testing.assert_allclose(layer.moving_mean, 0.01 * mean, rtol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, 0.99 + 0.01 * variance, rtol=1e-4)


def test_settings_that_do_not_fit_are_refused(cifar10_dir, tmp_path, monkeypatch):
    def refused(match, **settings):
        with pytest.raises(UserError, match=match):
            train("ResNet20", output=tmp_path / "run", data_dir=cifar10_dir, **settings)
        assert not list(tmp_path.glob("run/config.json"))

    refused("must be 'data' or None. Received: 'model'", distribute="model")
    if BACKEND == "jax":
        refused("excludes `distribute`", distribute="data", on_device=True)
    if BACKEND == "tensorflow":
        monkeypatch.setenv("TF_CONFIG", "{}")
        refused("one machine.* Received: the environment variable TF_CONFIG", distribute="data")
    if BACKEND == "torch":
        refused("torchrun .* Received: an environment without", distribute="data")


def test_a_batch_must_be_divisible_among_the_devices(cifar10_dir, tmp_path, monkeypatch):
    three = Group()
    three.devices = 3
    monkeypatch.setattr("mf_zoo.training.distribution.Group", lambda: three)
    with pytest.raises(UserError, match=r"multiple of .* Received: batch_size=128, 3 devices"):
        train("ResNet20", output=tmp_path / "run", data_dir=cifar10_dir)


@pytest.mark.once
def test_an_error_of_the_main_process_is_everybodys():
    with start(None) as group:
        assert group.from_main(lambda: {"epoch": 3}) == {"epoch": 3}

        def fail():
            raise UserError("no room. Received: 0 bytes")

        with pytest.raises(UserError, match=r"no room\. Received: 0 bytes"):
            group.from_main(fail)
