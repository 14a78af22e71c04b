"""Running a campaign: processes, their end, and what is gathered."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mf_zoo import devices, files
from mf_zoo.errors import UserError
from mf_zoo.training import runs
from mf_zoo.training.campaign.file import Campaign, Run
from mf_zoo.training.campaign.results import COLUMNS, RUNS, copy_histories, summary, whole_rows

_POLL_SECONDS = 0.2
# A child may be killed at any moment; this is how long it may take to say how to resume.
_GRACE_SECONDS = 20.0


@dataclasses.dataclass
class Progress:
    """How far a run is: a line of the progress table.

    Attributes:
        run: Name of the run.
        epochs: Epochs it is to have.
        epoch: Epochs it has.
        error: The last epoch's test error that was measured, in percent.
        seconds: The last epoch's seconds of training.
        state: `"waiting"`, `"running"`, `"finished"`, `"failed"`, `"stopped"`, or `"busy"`: another
            process is at work in its folder.
        reason: Why it failed.
    """

    run: str
    epochs: int
    epoch: int = 0
    error: float | None = None
    seconds: float | None = None
    state: str = "waiting"
    reason: str = ""


def run_campaign(
    campaign: Campaign,
    command: Sequence[str],
    *,
    time_limit: float | None = None,
    show: Callable[[Sequence[Progress]], None] = lambda progress: None,
) -> list[Progress]:
    """Runs what is left of a campaign.

    Each run is a process of its own, with its output in a log file beside its folder: one that
    fails takes no other along. A finished run is left alone. One that was begun is resumed from its
    last checkpoint, also when the driver itself was killed: its children end with it (they must end
    when their standard input does, see `mf_zoo.cli.child`), and one process at a time can write to
    a run folder.

    After every run that ends, and at the end, `results` gets `runs.csv` (a line for each run) and
    for each finished run its history and times. A run that `runs.csv` says is finished is not run
    again even if its folder is gone.

    Args:
        campaign: What to run.
        command: What starts `mf-zoo`; `train` with a file of settings is added.
        time_limit: Seconds after which runs under way are asked to stop. They lose the epoch
            they are in.
        show: Called with the state of all runs, whenever it may have changed.

    Returns:
        The state of each run.

    Raises:
        UserError: If another driver is at work in `campaign.output`, or that or the results cannot
            be written.
    """
    with files.locked(campaign.output):
        return _Driver(campaign, command, time_limit, show).drive()


class _Driver:
    def __init__(self, campaign, command, time_limit, show):
        self.campaign = campaign
        self.command = command
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.show = show
        self.stored = {row["run"]: row for row in files.read_rows(campaign.results / RUNS, "runs")}
        self.progress = {
            run.name: Progress(run.name, run.settings.last_epoch) for run in campaign.runs
        }
        self.children: dict[str, subprocess.Popen] = {}

    def folder(self, run: Run) -> Path:
        return self.campaign.output / run.name

    def drive(self) -> list[Progress]:
        for run in reversed(self.campaign.runs):  # what grows before what it grows from
            self._look(run)
        self._gather()
        try:
            while not self._past_deadline():
                self._start()
                self.show([*self.progress.values()])
                states = {progress.state for progress in self.progress.values()}
                if not self.children and not states & {"waiting", "busy"}:
                    break
                time.sleep(_POLL_SECONDS)
                self._poll()
        finally:
            self._stop()
            self._gather()
            self.show([*self.progress.values()])
        return [*self.progress.values()]

    def _past_deadline(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _look(self, run: Run) -> None:
        """Reads from the run's folder, or else from the stored results, how far it is."""
        progress, folder = self.progress[run.name], self.folder(run)
        stored = self.stored.get(run.name, {})
        try:
            result, config = (
                files.read_json(folder / runs.RESULT, "result"),
                files.read_json(folder / runs.CONFIG, "config"),
            )
        except UserError as error:
            progress.state, progress.reason = "failed", str(error)
            return
        if (
            result is None
            and config is None
            and stored.get("state") == "finished"
            and not self._is_needed(run)
        ):
            progress.state, progress.epoch = "finished", int(stored["epochs_done"])
            progress.error = float(stored["test_error"])
            return
        try:
            rows = whole_rows(folder / runs.HISTORY)
        except UserError as error:
            progress.state, progress.reason = "failed", str(error)
            return
        if rows:
            progress.epoch = int(rows[-1]["epoch"])
            progress.seconds = float(rows[-1]["seconds"])
            errors = [row["test_error"] for row in rows if row["test_error"]]
            progress.error = float(errors[-1]) if errors else None
        if result is not None:
            differing = run.differences(config or {})
            progress.state = "failed" if differing else "finished"
            progress.error = result["test_error"]
            if differing:
                progress.reason = (
                    f"{folder} holds a run with another {', '.join(differing)}: move it away"
                )

    def _is_needed(self, run: Run) -> bool:
        """Whether another run is still to grow from it, for which its checkpoint must be there."""
        return any(
            self.progress[other.name].state != "finished" and not self._has_grown(other)
            for other in self.campaign.runs
            if other.trunk == run.name
        )

    def _has_grown(self, run: Run) -> bool:
        return (self.folder(run) / runs.STATE).exists()

    def _may_start(self, run: Run) -> bool:
        """Whether what the run grows from, if anything, is finished; if it failed, so has it."""
        if run.trunk is None or self._has_grown(run):
            return True
        trunk, progress = self.progress[run.trunk], self.progress[run.name]
        if trunk.state == "failed":
            progress.state, progress.reason = "failed", f"what it grows from failed: {trunk.run}"
        return trunk.state == "finished"

    def _start(self) -> None:
        """Starts waiting runs, in order, until there are enough."""
        for run in self.campaign.runs:
            if len(self.children) >= self.campaign.jobs:
                return
            progress, folder = self.progress[run.name], self.folder(run)
            if progress.state not in ("waiting", "busy") or not self._may_start(run):
                continue
            if files.is_locked(folder):
                progress.state = "busy"
                continue
            resume = (folder / runs.CONFIG).exists()
            arguments = self._arguments(run, resume)
            with files.writing(self._log(run)):
                log = open(self._log(run), "ab")  # noqa: SIM115
            with log:
                self.children[run.name] = subprocess.Popen(
                    [*self.command, *arguments],
                    # Its end tells the child, by whatever death, that we are gone.
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    # Ctrl-C is for us, who then ask the children to stop.
                    process_group=0,
                )
            progress.state = "running"

    def _arguments(self, run: Run, resume: bool) -> list[str]:
        """What a child is told, with its settings in a file beside its folder."""
        folder, data_dir = self.folder(run), self.campaign.data_dir
        file = self.campaign.output / f"{run.name}.settings.json"
        settings = run.settings
        if run.trunk is not None:
            settings = settings.replace(trunk=self.campaign.output / run.trunk)
        content = {
            "settings": settings.to_dict(),
            "machine": run.machine.to_dict(),
            "command": run.command(folder, data_dir),
        }
        files.write_json(file, content)
        found = ["train", "--settings", str(file), "--output", str(folder), "--verbose", "0"]
        if data_dir is not None:
            found += ["--data-dir", str(data_dir)]
        return [*found, *["--resume"] * resume]

    def _log(self, run: Run) -> Path:
        return self.campaign.output / f"{run.name}.log"

    def _environment(self) -> dict[str, str]:
        # The same network is compiled once for all seeds.
        ours = {"JAX_COMPILATION_CACHE_DIR": str((self.campaign.output / "jax-cache").resolve())}
        ours |= devices.KEEP_MEMORY
        if self.campaign.jobs > 1:
            # Else the first process takes most of an accelerator's memory.
            ours["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
            ours["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        return {**ours, **os.environ}

    def _poll(self) -> None:
        """Looks at the runs under way and closes those that have ended."""
        ended = False
        for run in self.campaign.runs:
            child = self.children.get(run.name)
            if child is None:
                continue
            code = child.poll()
            self._look(run)
            if code is None:
                continue
            ended = True
            self._close(run.name)
            progress = self.progress[run.name]
            if progress.state != "finished":
                progress.state = "failed"
                progress.reason = progress.reason or self._reason(run, code)
        if ended:
            self._gather()

    def _reason(self, run: Run, code: int) -> str:
        try:
            lines = self._log(run).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            lines = [f"what it said cannot be read: {error.strerror}"]
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how}: {last.strip()} (see {self._log(run)})"

    def _close(self, name: str) -> None:
        child = self.children.pop(name)
        with contextlib.suppress(OSError):
            child.stdin.close()

    def _stop(self) -> None:
        """Asks the children to stop, and makes those that do not."""
        for child in self.children.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        until = time.monotonic() + _GRACE_SECONDS
        for run in self.campaign.runs:
            child = self.children.get(run.name)
            if child is None:
                continue
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            self._close(run.name)
            self._look(run)
            if self.progress[run.name].state == "running":
                self.progress[run.name].state = "stopped"

    def _gather(self) -> None:
        """Writes the results of all runs."""
        results = self.campaign.results
        with files.writing(results):
            results.mkdir(parents=True, exist_ok=True)
        rows = []
        for run in self.campaign.runs:
            progress, stored = self.progress[run.name], self.stored.get(run.name)
            folder = self.folder(run)
            if progress.state == "finished" and not (folder / runs.RESULT).exists():
                rows.append(stored)  # its folder is gone
                continue
            try:
                line = summary(run, folder, progress.state)
                if progress.state == "finished" and line != stored:
                    copy_histories(folder, results, run.name)
            except UserError as error:  # of one folder; it takes no other run along
                progress.state, progress.reason = "failed", str(error)
                line = summary(run, None, progress.state)
            rows.append(line)
            self.stored[run.name] = line
        # What a former version of the campaign has finished stays; what it did not get to goes.
        rows += [
            line
            for name, line in self.stored.items()
            if name not in self.progress and line["state"] == "finished"
        ]
        files.write_rows(results / RUNS, rows, COLUMNS)
