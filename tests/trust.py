"""`python -m tests.trust` (`make test-faults`): the long test of faults and of hostile files.

It runs `tests.faults` and `tests.fuzzing`, side by side with two jobs, and writes what they found
to `docs/trust/`, of which `make readme` makes the tables of `docs/trust.md`. The samples in the
suite are `tests/test_faults.py` and `tests/test_fuzzing.py`.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "trust"
# A fifth of the kills come after the end of what was to be killed, and do not count.
CASES = {"faults": 1_400, "fuzzing": 1_000_000}


def worker(part: str, cases: int, seed: int, output: Path) -> int:
    """Runs one part in this process and writes its rows."""
    from mf_zoo import files

    module = importlib.import_module(f"tests.{part}")
    rows = module.main(cases, seed)
    output.mkdir(parents=True, exist_ok=True)
    files.write_rows(output / f"{part}.csv", rows, module.COLUMNS)
    right = {"faults": lambda row: row["held"] == row["cases"]}.get(
        part, lambda row: not row["failures"]
    )
    return 0 if all(map(right, rows)) else 1


def table(part: str) -> str:
    """What a part found, from the committed file: the totals and a Markdown table."""
    from mf_zoo import files

    rows = files.read_rows(FOLDER / f"{part}.csv")
    shown = [name for name in rows[0] if name not in ("seed", "minutes")]
    sums = {
        name: sum(int(row[name]) for row in rows)
        for name in shown
        if all(row[name].isdigit() for row in rows)
    }
    minutes = sum(float(row["minutes"]) for row in rows)
    totals = ", ".join(f"{value:,} {name}" for name, value in sums.items())
    lines = [
        f"{totals}; seed {rows[0]['seed']}, {minutes:.0f} minutes.",
        "",
        f"| {' | '.join(shown)} |",
        "|" + "".join("---:|" if name in sums else "---|" for name in shown),
    ]
    for row in rows:
        cells = (f"{int(row[name]):,}" if name in sums else row[name] for name in shown)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--cases", type=int, help="in place of the usual number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    parts = options.parts or list(CASES)
    if unknown := sorted(set(parts) - CASES.keys()):
        parser.error(f"parts must be of {', '.join(CASES)}. Received: {unknown}")
    if options.worker:
        (part,) = parts
        cases = options.cases or CASES[part]
        return worker(part, cases, options.seed, options.output)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    begun, running, codes = time.monotonic(), [], {}
    for part in parts:
        command = [sys.executable, "-m", "tests.trust", part, "--worker", "--seed"]
        command += [str(options.seed), "--output", str(options.output)]
        command += [] if options.cases is None else ["--cases", str(options.cases)]
        running.append((part, subprocess.Popen(command, cwd=ROOT, env=environment)))
        if len(running) == options.jobs:
            part, process = running.pop(0)
            codes[part] = process.wait()
    codes |= {part: process.wait() for part, process in running}
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes; what was found: {options.output}")
    for part, code in codes.items():
        print(f"{part}: {'everything held' if code == 0 else f'FAILED, exit code {code}'}")
    return max(map(abs, codes.values()))


if __name__ == "__main__":
    sys.exit(main())
