"""`mf-zoo report`: tables and pictures of the results of campaigns."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "report",
        help="tables and pictures of campaigns",
        description="Write report.md and pictures into the results of campaigns.",
    )
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="results of a campaign, or a folder of several (default: results)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; the exit code is 1 if a report is not what the results give",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write the tables only")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from mf_zoo import files
    from mf_zoo.errors import UserError
    from mf_zoo.reporting.cell import cells, read_results
    from mf_zoo.reporting.pictures import draw, drawable
    from mf_zoo.reporting.report import REPORT, markdown
    from mf_zoo.training.campaign import RUNS

    root = options.results
    folders = (
        [root] if (root / RUNS).is_file() else sorted(p.parent for p in root.glob(f"*/{RUNS}"))
    )
    if not folders:
        raise UserError(
            f"`mf-zoo report` needs the results of a campaign, with a {RUNS}. Received: {root}"
        )
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
