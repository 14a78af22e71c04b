"""`mf-zoo report`: tables and pictures of the results of campaigns, and pages about runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import add_data_arguments
from mf_zoo.errors import UserError
from mf_zoo.training.runs import CONFIG


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "report",
        help="a page about runs, or tables and pictures of campaigns",
        description="Write an HTML page about runs, or report.md and pictures into the results of "
        "campaigns.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("results")],
        metavar="DIR",
        help="run folders; or results of a campaign, or a folder of several (default: results)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page about runs (default: report.html in the folder of a single run)",
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; the exit code is 1 if a report is not what the results give",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write the tables only")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    folders = options.folders
    are_runs = [(folder / CONFIG).is_file() for folder in folders]
    if not any(are_runs):
        for flag in ("output", "data_dir"):
            _only_for(options, flag, None, "runs")
        return _campaigns(options, [one for root in folders for one in _results(root)])
    if not all(are_runs):
        raise UserError(
            "`mf-zoo report` takes runs or results of campaigns, not both. "
            f"Received: {folders[are_runs.index(False)]}, which holds no run"
        )
    for flag in ("check", "no_pictures"):
        _only_for(options, flag, False, "results of campaigns")

    from mf_zoo.reporting import run_report

    print(run_report(folders, options.output, options.data_dir))
    return 0


def _only_for(options: argparse.Namespace, flag: str, default: Any, what: str) -> None:
    value = getattr(options, flag)
    if value != default:
        raise UserError(f"`--{flag.replace('_', '-')}` goes with {what}. Received: {value}")


def _results(root: Path) -> Sequence[Path]:
    """The folders of results in a folder."""
    from mf_zoo.training.campaign import RUNS

    found = [root] if (root / RUNS).is_file() else sorted(p.parent for p in root.glob(f"*/{RUNS}"))
    if not found:
        raise UserError(
            f"`mf-zoo report` needs a run, with a {CONFIG}, or the results of a campaign, with a "
            f"{RUNS}. Received: {root}"
        )
    return found


def _campaigns(options: argparse.Namespace, folders: Sequence[Path]) -> int:
    """Writes or checks the reports of campaigns."""
    from mf_zoo import files
    from mf_zoo.reporting.cell import cells, read_results
    from mf_zoo.reporting.pictures import draw, drawable
    from mf_zoo.reporting.report import REPORT, markdown

    outdated = []
    for folder in folders:
        text, path = markdown(folder), folder / REPORT
        if options.check:
            old = path.read_text(encoding="utf-8") if path.is_file() else None
            if old != text:
                outdated.append(path)
            names = drawable(folder, cells(read_results(folder)))
            outdated += [folder / name for name in names if not (folder / name).is_file()]
            continue
        files.write_atomically(
            path, lambda part, text=text: part.write_text(text, encoding="utf-8")
        )
        print(path)
        if not options.no_pictures:
            for picture in draw(folder, cells(read_results(folder))):
                print(picture)
    for path in outdated:
        print(f"{path} is {'not what the results give' if path.exists() else 'missing'}")
    return 1 if outdated else 0
