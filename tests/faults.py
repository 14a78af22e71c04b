"""Kills, and disks that fail: `python -m tests.faults --cases 1000 --seed 0`.

Every activity that writes is killed (SIGKILL) at its file-system calls that write and at random
moments, is read, resumed, killed again, and at last compared with one that was let alone. The same
calls fail for want of room, on a read-only disk, and with I/O errors, and disks are too small. A
process imports everything once, on PyTorch, and is forked for each case. Calls are found and failed
by strace, and small disks are mounted; the command says what it skips where it can do neither.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS = ("activity", "fault", "cases", "held", "seed", "minutes")
CALLS = (
    *("write", "pwrite64", "writev", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("ftruncate", "mkdir", "mkdirat", "rmdir", "fsync", "fdatasync", "openat"),
    *("sendfile", "copy_file_range"),
)
READS = ("read", "pread64")
ERRORS = {
    "no room": ("ENOSPC", ("write", "pwrite64", "ftruncate", "mkdir", "openat", "fsync")),
    "read-only": ("EROFS", ("openat", "mkdir", "rename", "unlink", "unlinkat", "ftruncate")),
    "I/O error": ("EIO", ("write", "pwrite64", "fsync", "rename", "unlink")),
    "unreadable": ("EIO", READS),
}
SERVED, URL = "served.bin", "url.txt"  # what a server sends, and where it is
DONE, REFUSED, CRASHED, UNFINISHED = 0, 3, 4, 5
PATIENCE = 120  # seconds, after which a case hangs


# --- Activities ------------------------------------------------------------------------------


def _settings(model="Tiny", **values):
    import tiny_zoo

    from mf_zoo.training import RECIPES

    recipe = RECIPES["quick"].replace(
        epochs=2, warmup_epochs=1.0, batch_size=16, initial_times="random", **values
    )
    return tiny_zoo, {"model": model, "recipe": recipe, "seed": 3, "limit": 32, "verbose": 0}


def _train(data, folder, model="Tiny", **values):
    from mf_zoo.training import runs

    tiny_zoo, options = _settings(model, **values)
    if not (folder / runs.RESULT).exists():
        tiny_zoo.train(
            data_dir=data, output=folder, resume=(folder / runs.CONFIG).exists(), **options
        )


def _whole(folder, pattern):
    """The files of a pattern, without those that are still being written."""
    return [file for file in folder.rglob(pattern) if not file.name.startswith("partial-")]


def _read_json_files(folder):
    """All JSON files of ours are whole, and what they should be.

    keras-tuner's `tuner0.json` need not be: nothing reads it when a search is resumed.
    """
    from mf_zoo import files, schemas

    for file in _whole(folder, "*.json"):
        # The result of a search is another thing than that of a run.
        if file.stem in schemas.JSON and not (file.parent / "search.json").exists():
            files.read_json(file, file.stem)
        elif file.name != "tuner0.json":
            json.loads(file.read_text())


def _read_run(folder):
    """All readers of a run folder work, whatever is in it."""
    from mf_zoo import files
    from mf_zoo.training import ladder, runs

    _read_json_files(folder)
    for file in _whole(folder, runs.STATE):
        state = files.read_json(file, "state")
        ladder.checkpoint(file.parent, state)
        if state["before"] is not None:
            ladder.checkpoint(file.parent, state["before"])
    for file in _whole(folder, runs.RESULT):
        result = files.read_json(file, "result")
        found = files.sha256(file.parent / result["file"]) if "file" in result else None
        assert found == result.get("sha256"), file


def _digest_of_run(folder):
    """Weights to the bit, history apart from the time it took, and the particles' times."""
    from run_folders import arrays

    from mf_zoo import files

    found = {}
    for file in sorted(folder.rglob("final.weights.h5")):
        name, digest = file.relative_to(folder), hashlib.sha256()
        for key, value in sorted(arrays(file).items()):
            digest.update(key.encode() + value.tobytes())
        found[str(name)] = digest.hexdigest()
        rows = files.read_rows(file.parent / "history.csv", "history")
        found[f"{name} history"] = [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in rows
        ]
        found[f"{name} times"] = (file.parent / "times.csv").read_text()
    assert found, folder
    return found


class Activity:
    """Something that writes into a folder and can be begun again there."""

    calls = 1  # share of the cases

    def __init__(self, root):
        self.root, self.data = root, root / "data"

    def act(self, folder):
        raise NotImplementedError

    def read(self, folder):
        _read_run(folder)

    def digest(self, folder):
        return _digest_of_run(folder)


class Training(Activity):
    def act(self, folder):
        _train(self.data, folder)


class Growth(Activity):
    def act(self, folder):
        _train(self.data, folder, "Tiny4", ladder="Tiny:1", growth_noise=0.1)


class Publishing(Activity):
    def act(self, folder):
        from mf_zoo import weights

        weights.publish(
            self.root / "run", directory=folder / "registry", overwrite=True, partial=True
        )

    def read(self, folder):
        from mf_zoo.weights.files import verify
        from mf_zoo.weights.record import WeightRecord

        for file in _whole(folder / "registry", "*.json"):
            if not file.name.endswith(".weights.json"):
                record = WeightRecord.from_json(file.read_text())
                verify(file.parent / record.file, record.sha256, record.size)

    def digest(self, folder):
        from mf_zoo import files

        return {
            str(file.relative_to(folder)): files.sha256(file)
            for file in sorted((folder / "registry").rglob("*"))
            if file.is_file() and not file.name.startswith(".")
        }


class Download(Activity):
    """Over HTTP, from a server that answers what is asked for from a place on."""

    def __init__(self, root):
        super().__init__(root)
        import dataclasses

        from mf_zoo import files
        from mf_zoo.weights.record import WeightRecord

        (file,) = (root / "registry").glob("*-cifar10.json")
        self.record = dataclasses.replace(
            WeightRecord.from_json(file.read_text()),
            sha256=files.sha256(root / SERVED),
            size=(root / SERVED).stat().st_size,
        )
        self.url = (root / URL).read_text()

    def act(self, folder):
        from mf_zoo.weights.remote import fetch

        fetch(self.record, base_url=self.url, cache_dir=folder)

    def read(self, folder):
        from mf_zoo.weights.files import verify

        if (folder / self.record.file).exists():
            verify(folder / self.record.file, self.record.sha256, self.record.size)

    def digest(self, folder):
        from mf_zoo import files

        return files.sha256(folder / self.record.file)


class Export(Activity):
    def act(self, folder):
        import tiny_zoo

        from mf_zoo import deploy

        network = tiny_zoo.tiny(self.root / "run" / "final.weights.h5")
        deploy.export(network, folder / "a.keras", "keras", overwrite=True, check=False)

    def read(self, folder):
        if (folder / "a.keras").exists():
            self.digest(folder)

    def digest(self, folder):
        import zipfile

        with zipfile.ZipFile(folder / "a.keras") as archive:
            assert archive.testzip() is None
            archive.extract("model.weights.h5", folder / "unpacked")
        from run_folders import arrays

        found = {k: v.tobytes() for k, v in arrays(folder / "unpacked/model.weights.h5").items()}
        shutil.rmtree(folder / "unpacked")
        return found


class Tuning(Activity):
    def act(self, folder):
        import tiny_zoo  # noqa: F401  # registers Tiny
        from run_folders import small_search

        from mf_zoo.tuning import tune

        if not (folder / "result.json").exists():
            resume = (folder / "search.json").exists()
            tune(small_search(), folder, data_dir=self.data, resume=resume)

    def read(self, folder):
        from mf_zoo import files

        _read_json_files(folder)
        files.read_rows(folder / "trials.csv")

    def digest(self, folder):
        from mf_zoo import files

        rows = files.read_rows(folder / "trials.csv")
        rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
        return rows, (folder / "best.toml").read_text().replace(str(folder), "")


_CAMPAIGN = """
[defaults]
dataset = "cifar10"
recipe = "quick"
epochs = 2
warmup_epochs = 1.0
batch_size = 16
limit = 32

[[runs]]
model = "Tiny"
seed = [0, 1]
"""


class Campaign(Activity):
    def act(self, folder):
        from mf_zoo.training.campaign import driver, load_campaign, run_campaign

        file = self.root / "campaign.toml"
        import dataclasses

        campaign = dataclasses.replace(
            load_campaign(file),
            output=folder / "runs",
            results=folder / "results",
            data_dir=self.data,
        )
        driver._POLL_SECONDS = 0.02
        driver.subprocess = _Forking
        states = {run.state for run in run_campaign(campaign, ["mf-zoo"])}
        if states != {"finished"}:
            os._exit(UNFINISHED)

    def read(self, folder):
        from mf_zoo import files

        files.read_rows(folder / "results" / "runs.csv", "runs")
        _read_run(folder / "runs")


class _Forking:
    """What the driver uses of `subprocess`: its children are forked, for they start at once."""

    PIPE, STDOUT, TimeoutExpired = subprocess.PIPE, subprocess.STDOUT, subprocess.TimeoutExpired

    class Popen:
        def __init__(self, command, stdout, env, **_):
            ours, other = os.pipe()
            self.pid = os.fork()
            self.returncode = None
            if self.pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    os.close(other)
                    os.setpgid(0, 0)
                    os.dup2(ours, 0)
                    os.dup2(stdout.fileno(), 1)
                    os.dup2(stdout.fileno(), 2)
                    os.environ.update(env)
                    from mf_zoo import cli
                    from mf_zoo.cli.child import end_with_standard_input

                    end_with_standard_input()
                    code = cli.main(command[1:])
                os._exit(code)
            os.close(ours)
            self.stdin = os.fdopen(other, "wb")

        def poll(self):
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

        def wait(self, timeout=60.0):
            until = time.monotonic() + timeout
            while self.poll() is None:
                if time.monotonic() > until:
                    raise subprocess.TimeoutExpired("mf-zoo", timeout)
                time.sleep(0.01)

        def send_signal(self, number):
            os.kill(self.pid, number)

        def kill(self):
            self.send_signal(signal.SIGKILL)


ACTIVITIES = {
    "training": Training,
    "growth": Growth,
    "publishing": Publishing,
    "download": Download,
    "export": Export,
    "tuning": Tuning,
    "campaign": Campaign,
}
# Of 100 cases; what takes longest is killed least.
SHARES = {
    "training": 40,
    "publishing": 24,
    "download": 12,
    "export": 10,
    "growth": 7,
    "tuning": 4,
    "campaign": 3,
}


# --- Processes -------------------------------------------------------------------------------


def prepare(root: pathlib.Path) -> None:
    """Imports everything, and makes the data, run and registry that activities read."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(HERE))
    os.environ |= {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    import importlib.machinery

    import tiny_zoo

    # TensorFlow would start threads, which a fork does not have.
    sys.meta_path = [
        tiny_zoo._FinderWithoutTensorFlow if finder is importlib.machinery.PathFinder else finder
        for finder in sys.meta_path
    ]
    import keras  # noqa: F401
    import numpy as np
    import torch

    import mf_zoo.deploy
    import mf_zoo.training.campaign
    import mf_zoo.tuning
    import mf_zoo.weights  # noqa: F401
    from mf_zoo import data

    torch.set_num_threads(1)
    (root / "data").mkdir(parents=True, exist_ok=True)
    images, labels = data.sample()
    np.savez(
        root / "data" / "cifar10.npz",
        train_image=images[:100],
        train_label=labels[:100],
        test_image=images[100:150],
        test_label=labels[100:150],
    )
    (root / "campaign.toml").write_text(_CAMPAIGN)
    # Here, not in a fork: it imports what is imported on first use.
    for name, folder in (
        ("training", "run"),
        ("publishing", "."),
        ("download", "d"),
        ("export", "e"),
        ("tuning", "t"),
    ):
        (root / folder).mkdir(exist_ok=True)
        ACTIVITIES[name](root).act(root / folder)


def _run(activity, folder, strace=(), kill_after=None, log=None):
    """Reads and acts in a forked process; returns its exit code, what it said and the time."""
    ours, other = socket.socketpair()
    begin, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = CRASHED
        try:
            os.close(begun)
            ours.close()
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            os.setpgid(0, 0)
            os.read(begin, 1)
            from mf_zoo.errors import UserError
            from mf_zoo.weights.files import WeightFileError

            try:
                activity.read(folder)
            except BaseException:
                other.send(b"READ " + traceback.format_exc()[-3000:].encode())
                os._exit(CRASHED)
            try:
                activity.act(folder)
                code = DONE
            except (UserError, WeightFileError) as error:
                code = REFUSED
                other.send(f"{type(error).__name__}: {error}".encode()[:3000])
        except BaseException:
            with contextlib.suppress(OSError):
                other.send(traceback.format_exc()[-3000:].encode())
        finally:
            os._exit(code)
    os.close(begin)
    other.close()
    tracer = None
    if strace:
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-y", "-s", "0", "-o", str(log), "-p", str(pid), *strace],
            stderr=subprocess.PIPE,
        )
        while _tracer(pid) == 0 and tracer.poll() is None:
            time.sleep(0.002)
    start = time.monotonic()
    os.write(begun, b".")
    os.close(begun)
    said, until = b"", start + PATIENCE
    if kill_after is not None:
        until = start + kill_after
    while True:
        ready = select.select([ours], [], [], max(until - time.monotonic(), 0))[0]
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            break
        part = ours.recv(65536)
        if not part:
            break
        said += part
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - start
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    ours.close()
    if tracer is not None:
        tracer.wait(30)
    if kill_after is None and seconds >= PATIENCE:
        code, said = CRASHED, b"it hangs"
    return code, said.decode(errors="replace"), seconds


def _tracer(pid):
    with contextlib.suppress(OSError):
        return int(
            re.search(r"TracerPid:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]
        )
    return 0


def calls_in(log: pathlib.Path, folder: pathlib.Path) -> list[tuple[str, int]]:
    """Calls of a trace that write or read in a folder: name, and number among those of its name."""
    counts, found = {}, []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+)\s+(\w+)\((.*)", line)
        if match is None:
            continue
        pid, name, rest = match.groups()
        counts[pid, name] = counts.get((pid, name), 0) + 1
        opens = name != "openat" or "O_CREAT" in rest or "O_WRONLY" in rest or "O_RDWR" in rest
        if opens and str(folder) in rest:
            found.append((name, counts[pid, name]))
    return list(dict.fromkeys(found))


def _mount(*arguments) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@contextlib.contextmanager
def _server(root: pathlib.Path):
    """Serves a file over HTTP for a while."""
    (root / SERVED).write_bytes(random.Random(0).randbytes(300_000))
    command = [sys.executable, str(HERE / "weight_server.py"), str(root / SERVED)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        (root / URL).write_text(server.stdout.readline().decode().strip())
        yield
        server.stdin.close()


class Harness:
    """The cases of one seed.

    Args:
        seed: Says which cases.
        root: A folder for what the cases write.
    """

    def __init__(self, seed: int, root: pathlib.Path):
        self.seed, self.root = seed, root
        self.strace = shutil.which("strace") is not None
        self.failures: list[str] = []
        prepare(root)
        with self._small_disk(root / "trial", 4096) as self.mounts:
            pass

    @contextlib.contextmanager
    def _small_disk(self, folder: pathlib.Path, size: int):
        """A disk of that many bytes at a folder; yields whether this process may make one."""
        folder.mkdir(exist_ok=True)
        made = _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        try:
            yield made
        finally:
            if made:
                subprocess.run(["umount", "-l", str(folder)], check=True)

    def measure(self, activity, name):
        """What the activity ends with, its calls and how long it takes, let alone."""
        folder, log = self.root / name / "whole", self.root / f"{name}.trace"
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir()
        code, said, seconds = _run(activity, folder)
        assert code == DONE, (name, said)
        expected, calls = activity.digest(folder), []
        if self.strace:
            again = self.root / name / "traced"
            again.mkdir()
            code, said, _ = _run(
                activity, again, ["-e", f"trace={','.join(CALLS + READS)}"], log=log
            )
            assert code == DONE and activity.digest(again) == expected, (name, said)
            calls = calls_in(log, again)
            shutil.rmtree(again)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return expected, calls, seconds, size

    def run(self, names, cases: int) -> list[dict]:
        """Runs that many kills, and a tenth as many of each other fault."""
        rows = []
        total = sum(SHARES[name] for name in names)
        for name in names:
            activity = ACTIVITIES[name](self.root)
            expected, calls, seconds, size = self.measure(activity, name)
            draw = random.Random(f"{self.seed} {name}")
            kills = max(1, round(cases * SHARES[name] / total))
            writes = [call for call in calls if call[0] not in READS]
            print(
                f"{name}: {len(writes)} calls that write, {len(calls) - len(writes)} that read, "
                f"{seconds:.2f} s let alone",
                flush=True,
            )
            at_calls = round(kills * 0.8) if writes else 0
            chosen = list(writes)
            draw.shuffle(chosen)
            while len(chosen) < at_calls and writes:
                chosen += draw.sample(writes, len(writes))
            plans = {
                "kill at a call that writes": [("signal", *call) for call in chosen[:at_calls]],
                "kill at a random moment": [
                    ("moment", draw.uniform(0, seconds)) for _ in range(kills - at_calls)
                ],
            }
            for fault, (error, kinds) in ERRORS.items():
                able = [call for call in calls if call[0] in kinds]
                count = min(len(able), max(1, kills // 20))
                plans[fault] = [("error", error, *call) for call in draw.sample(able, count)]
            if self.mounts:
                plans["small disk"] = [
                    ("disk", draw.randrange(4096, size)) for _ in range(max(1, kills // 20))
                ]
            for fault, plan in plans.items():
                if plan:
                    rows.append(self._cases(name, activity, fault, plan, expected))
        return rows

    def _cases(self, name, activity, fault, plan, expected):
        start, happened, failed = time.monotonic(), 0, 0
        length = 4 if "kill" in fault else 1
        for first in range(0, len(plan), length):
            steps = plan[first : first + length]
            with self._folder(name, steps) as folder:
                found, problem = self._steps(name, activity, folder, fault, steps, expected)
            happened += found
            if problem:
                failed += len(steps)
                number = f"seed {self.seed}, {name}, {fault}, cases {first} to {first + length - 1}"
                self.failures.append(number)
                print(f"FAILED: {number}, {steps}: {problem}", flush=True)
        row = {
            "activity": name,
            "fault": fault,
            "cases": happened,
            "held": max(happened - failed, 0),
            "seed": self.seed,
            "minutes": round((time.monotonic() - start) / 60, 2),
        }
        print(f"{name}: {fault}: {happened} happened of {len(plan)}, {failed} failed", flush=True)
        return row

    @contextlib.contextmanager
    def _folder(self, name, steps):
        """An empty folder, on a small disk where that is the fault."""
        folder = self.root / name / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        kind, size = steps[0][:2]
        with self._small_disk(folder, size) if kind == "disk" else contextlib.nullcontext():
            yield folder

    def _steps(self, name, activity, folder, fault, steps, expected):
        """How many faults happened, and what was wrong, then or after going on."""
        happened, problem = 0, None
        for step in steps:
            code, said = self._case(activity, folder, step)
            # Where a child of the activity is killed, the activity says so.
            child = code == UNFINISHED or (code == REFUSED and "exit code -9" in said)
            killed = code == -signal.SIGKILL or child
            happened += killed if "kill" in fault else code != DONE
            if code == CRASHED or (code == REFUSED and "kill" in fault and not killed):
                problem = f"{step}: {said}"
        for _ in range(3 if name == "campaign" else 1):
            code, said, _ = _run(activity, folder)
            if code != UNFINISHED:
                break
        if code != DONE:
            problem = problem or f"not resumed, exit code {code}: {said}"
        elif activity.digest(folder) != expected:
            problem = problem or "resumed to another result"
        return happened, problem

    def _case(self, activity, folder, step):
        kind, *values = step
        if kind == "disk":
            found = _run(activity, folder)[:2]
            assert _mount("-o", "remount,size=0", folder)  # no limit: there is room again
            return found
        if kind == "moment":
            return _run(activity, folder, kill_after=values[0])[:2]
        *error, call, number = values
        inject = f"error={error[0]}" if error else "signal=KILL"
        options = ["-e", f"trace={call}", "-e", f"inject={call}:{inject}:when={number}"]
        return _run(activity, folder, options, log="/dev/null")[:2]


def main(cases: int, seed: int, names=tuple(ACTIVITIES)) -> list[dict]:
    """Runs the cases of a seed; returns a row for each activity and fault.

    Args:
        cases: Number of kills.
        seed: Says which.
        names: Activities.
    """
    with tempfile.TemporaryDirectory(prefix="mf-zoo-faults-") as name:
        root = pathlib.Path(name).resolve()
        with _server(root):
            harness = Harness(seed, root)
            if not harness.strace:
                print("skipped: kills and errors at chosen calls, which need strace", flush=True)
            if not harness.mounts:
                print("skipped: small disks, which need the right to mount", flush=True)
            rows = harness.run(names, cases)
    kills = [row for row in rows if "kill" in row["fault"]]
    print(
        f"{sum(row['cases'] for row in kills)} kills, {sum(row['cases'] for row in rows)} faults, "
        f"{len(harness.failures)} failures, seed {seed}"
    )
    main.failures = harness.failures
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=ACTIVITIES, default=list(ACTIVITIES))
    parser.add_argument("--csv", type=pathlib.Path)
    options = parser.parse_args()
    table = main(options.cases, options.seed, options.only)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    sys.exit(1 if main.failures else 0)
