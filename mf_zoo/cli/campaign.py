"""`mf-zoo campaign`: a queue of runs from a file."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mf_zoo.errors import one_line, user_errors

if TYPE_CHECKING:
    from mf_zoo.training.campaign import Progress

# What starts a run; see `mf_zoo.cli.child`.
COMMAND = [sys.executable, "-m", "mf_zoo.cli.child"]


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "campaign",
        help="train many models, some at a time",
        description="Run what is left of a campaign: finished runs are left alone, others resume "
        "after their last checkpoint. The exit code is 2 if a run failed.",
    )
    parser.add_argument("file", type=Path, metavar="CAMPAIGN.toml", help="the queue of runs")
    parser.add_argument("--jobs", type=int, metavar="N", help="number of parallel runs")
    parser.add_argument(
        "--time-limit",
        type=seconds,
        metavar="T",
        help="stop after so long, such as 25m, 1h30m or 90s; the same command resumes",
    )
    parser.add_argument("--data-dir", type=Path, metavar="D", help="where the dataset is found")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run folders")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="folder of runs.csv and the histories"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and do nothing")
    # Errors name keys of the file, some of which are flags as well.
    parser.set_defaults(run=_campaign, flags=frozenset())


def seconds(text: str) -> float:
    """Reads a length of time.

    Example:

    >>> seconds("1h30m"), seconds("25m"), seconds("90")
    (5400.0, 1500.0, 90.0)
    """
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text)
    if not text or found is None:
        raise argparse.ArgumentTypeError(f"must be like 25m, 1h30m or 90s. Received: {text!r}")
    return sum(
        float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)
    )


def _campaign(options: argparse.Namespace) -> int:
    from mf_zoo.errors import UserError
    from mf_zoo.training.campaign import load_campaign, run_campaign

    with user_errors():
        campaign = load_campaign(options.file)
    given = {
        key: getattr(options, key)
        for key in ("jobs", "data_dir", "output", "results")
        if getattr(options, key) is not None
    }
    campaign = dataclasses.replace(campaign, **given)
    if campaign.jobs < 1:
        raise UserError(f"`--jobs` must be a whole number from 1. Received: {campaign.jobs}")
    if options.dry_run:
        for run in campaign.runs:
            print(run.name)
        return 0
    with ProgressTable(sys.stdout) as table:
        progress = run_campaign(campaign, COMMAND, time_limit=options.time_limit, show=table.show)
    counts = {state: sum(p.state == state for p in progress) for state in ("finished", "failed")}
    print(
        f"{counts['finished']} of {len(progress)} runs finished, {counts['failed']} failed; "
        f"results in {campaign.results}"
    )
    for line in progress:
        if line.state == "failed":
            print(f"mf-zoo: failed: {line.run}: {one_line(line.reason)}", file=sys.stderr)
    return 2 if counts["failed"] else 0


class ProgressTable:
    """Shows how far the runs of a campaign are.

    On a terminal the table is drawn over itself; elsewhere a line is added whenever a run changes
    its state or has done another tenth of its epochs.

    Args:
        file: Where to write.
    """

    def __init__(self, file: TextIO):
        self.file = file
        self._shown: dict[str, Any] = {}
        self._live: Any = None
        if file.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=file),
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="visible",
            )

    def __enter__(self) -> "ProgressTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: "Sequence[Progress]") -> None:
        """Brings the table up to date."""
        if self._live is not None:
            cells = [_cells(line) for line in progress]
            if self._shown.get("cells") != cells:
                self._shown["cells"] = cells
                self._live.update(_table(progress, self._live.console.height), refresh=True)
            return
        for line in progress:
            key = (line.state, 10 * line.epoch // line.epochs)
            if self._shown.get(line.run, ("waiting", 0)) != key:
                self._shown[line.run] = key
                epochs, error, seconds, state = _cells(line)[1:]
                print(
                    f"{line.run}  {epochs:>9}  {error:>7}  {seconds:>7}  {state}",
                    file=self.file,
                    flush=True,
                )


def _table(progress: "Sequence[Progress]", height: int) -> Any:
    """The table for a terminal of that many lines, with the numbers of runs by state below it."""
    from rich.table import Table

    shown = [line for line in progress if line.state not in ("waiting", "finished")]
    if len(progress) < height - 2:
        shown = list(progress)
    states = [line.state for line in progress]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=counts)
    table.caption_justify = "left"
    table.add_column("run", no_wrap=True)
    for name in ("epoch", "error %", "s/epoch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for line in shown[: height - 3]:
        table.add_row(*_cells(line))
    return table


def _cells(line: "Progress") -> tuple[str, ...]:
    error = "" if line.error is None else f"{line.error:.2f}"
    seconds = "" if line.seconds is None else f"{line.seconds:.1f}"
    return line.run, f"{line.epoch}/{line.epochs}", error, seconds, line.state
