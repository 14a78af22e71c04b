"""`python -m docs.dependencies`: what mf_zoo depends on, with licences: `trust/dependencies.csv`.

Names, extras and licences are what the installed packages themselves declare.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from mf_zoo import files

TABLE = Path(__file__).resolve().parent / "trust" / "dependencies.csv"
COLUMNS = ("package", "needed for", "licence")


def requirements() -> Iterator[tuple[str, str]]:
    """The name of each direct dependency, and the extra that needs it: none for all users."""
    for text in importlib.metadata.requires("mf_zoo") or ():
        requirement = Requirement(text)
        if requirement.name.replace("-", "_") != "mf_zoo":
            extra = re.search(r'extra == "(\w+)"', str(requirement.marker or ""))
            yield requirement.name, extra[1] if extra else ""


def licence(package: str) -> str:
    """The licence that an installed package declares."""
    metadata = importlib.metadata.metadata(package)
    classifiers = metadata.get_all("Classifier") or []
    named = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: ")]
    text = (metadata.get("License") or "").strip()
    # Some put the whole text of the licence there.
    short = text if text and len(text) < 60 and "\n" not in text else ""
    named = [name for name in named if name != "OSI Approved"]
    return metadata.get("License-Expression") or short or ", ".join(named) or _title(package)


def _title(package: str) -> str:
    """The first line of the licence file that an installed package brings."""
    for file in importlib.metadata.files(package) or ():
        if file.name.upper().startswith(("LICENSE", "LICENCE")):
            return f"{file.read_text().strip().splitlines()[0].strip()} (its file)"
    return "not declared"


def rows() -> list[dict[str, str]]:
    """A row for each direct dependency."""
    wanted: dict[str, list[str]] = {}
    for name, extra in requirements():
        wanted.setdefault(name, []).append(extra)
    found = []
    for name, extras in sorted(wanted.items(), key=lambda item: ("" not in item[1], item[0])):
        needed = "everything" if "" in extras else ", ".join(sorted(set(extras)))
        try:
            declared = licence(name)
        except importlib.metadata.PackageNotFoundError:
            declared = "not installed here"
        found.append(dict(zip(COLUMNS, (name, needed, declared), strict=True)))
    return found


def table() -> str:
    """The committed rows as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(row[name] for name in COLUMNS)} |" for row in files.read_rows(TABLE)]
    return "\n".join(lines)


if __name__ == "__main__":
    files.write_rows(TABLE, rows(), COLUMNS)
    print(table())
