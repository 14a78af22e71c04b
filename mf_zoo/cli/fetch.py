"""`mf-zoo fetch`: brings registered weights to this machine, before it goes offline."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mf_zoo.errors import UserError, one_line, user_errors


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "fetch",
        help="download registered weights into the cache",
        description="Download the registered weights that are not in the package into the cache, "
        "and print where each file is. One that cannot be had is named on standard error, and the "
        "exit code is then 2.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="such as MFResNet110")
    parser.add_argument("--all", action="store_true", help="the weights of every network")
    parser.add_argument("--weights", metavar="NAME", help="such as cifar10 (default: all)")
    parser.add_argument(
        "--url", help="https:// or file:// folder of weight files (default: $MF_ZOO_WEIGHTS_URL)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="default: $MF_ZOO_CACHE, else mf_zoo in the home of Keras",
    )
    parser.add_argument(
        "--offline", action="store_true", default=None, help="only say what is there"
    )
    parser.set_defaults(run=_fetch)


def _fetch(options: argparse.Namespace) -> int:
    from mf_zoo import weights

    if bool(options.models) == options.all:
        raise UserError(f"Either models or --all must be given. Received: {options.models}")
    with user_errors():
        found = weights.records()
        records = [record for record in found if options.weights in (None, record.name)]
        if not options.all:
            records = [record for record in records if record.model in options.models]
        known = {record.model for record in records}
        unknown = sorted(set(options.models) - known) or ([] if records else ["--all"])
        if unknown:
            raise UserError(
                "A model must have registered weights"
                + (f" named {options.weights!r}" if options.weights else "")
                + f": {sorted({record.model for record in found})} have some. "
                f"Received: {', '.join(unknown)}"
            )
    missing = 0
    for record in records:
        try:
            file = weights.path(
                record, base_url=options.url, cache_dir=options.cache, offline=options.offline
            )
        except weights.WeightFileError as error:
            missing += 1
            print(f"mf-zoo: error: {one_line(error)}", file=sys.stderr)
            continue
        print(f"{record.model} {record.name}: {file}", flush=True)
    return 2 if missing else 0
