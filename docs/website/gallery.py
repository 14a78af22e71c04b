"""The gallery: every picture of the repository with its caption and the command behind it."""

import posixpath
import re
import shlex
from pathlib import Path

from mf_zoo import files
from mf_zoo.theory.figures.__main__ import COMMAND, RECORDS

ROOT = Path(__file__).resolve().parents[2]
# For the pictures that no record tells of.
_COMMANDS = {
    "docs/method.png": "python docs/make_pictures.py",
    "docs/demo.png": "mf-zoo demo --picture docs/demo.png",
    "docs/grad_cam.png": "python examples/grad_cam.py --images 4 --output docs/grad_cam.png",
    "benchmarks/results/depth.png": "python -m benchmarks.depth --data-dir D",
    "benchmarks/results/growth.png": "python -m benchmarks.growth",
    "benchmarks/results/depth_transfer-tensorflow.png": "python -m benchmarks.depth_transfer "
    "--data-dir D",
}
_SHOWN = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")
_GROUPS = {
    "docs": "Networks",
    "docs/theory": "Theory",
    "docs/theory/grown": "Networks that grew in depth",
    "benchmarks/results": "Benchmarks",
}


def page() -> str:
    """The page in Markdown."""
    shown, text, group = _captions(), ["# Gallery"], None
    text.append("Every picture of this site, with the command that draws it anew.")
    for path in pictures():
        folder = posixpath.dirname(path)
        if folder != group:
            group = folder
            text.append(f"## {_GROUPS.get(folder) or f'Campaign {posixpath.basename(folder)}'}")
        caption, where = shown.get(path, (Path(path).stem, None))
        caption = _record(path).get("caption", caption)
        more = f" [More about it]({where})." if where else ""
        text += [
            f"### {Path(path).stem}",
            f"[![{shown.get(path, (caption,))[0]}]({path}){{ loading=lazy }}]({path})",
            f"{caption}.{more}",
            f"```\n{command(path)}\n```",
        ]
    return "\n\n".join(text) + "\n"


def pictures() -> list[str]:
    """The paths of all pictures in the repository, by folder."""
    found = (path for top in ("docs", "benchmarks", "results") for path in _below(ROOT / top))
    return [path.relative_to(ROOT).as_posix() for path in found]


def command(path: str) -> str:
    """The command that draws a picture.

    Args:
        path: That of the picture in the repository.

    Raises:
        ValueError: If nothing says what draws it.
    """
    if record := _record(path):
        name, folder = Path(path).stem, posixpath.dirname(path)
        networks = [
            f"--network {shlex.quote(f'{title}={weights}')}"
            for title, weights in record["networks"].items()
            if weights.endswith(".weights.h5")
        ]
        return " \\\n    ".join([f"{COMMAND} --output {folder} --only {name}", *networks])
    if path.startswith("results/"):
        return f"mf-zoo report {posixpath.dirname(path)}"
    if path not in _COMMANDS:
        raise ValueError(f"docs/website/gallery.py must know what draws it. Received: {path}")
    return _COMMANDS[path]


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=lambda path: (path.parent, path))


def _record(path: str) -> dict:
    """What `figures.json` beside a picture says of it: nothing where there is none."""
    records = files.read_json(ROOT / posixpath.dirname(path) / RECORDS, "figures") or {}
    return records.get(Path(path).stem, {})


def _captions() -> dict[str, tuple[str, str]]:
    """For each picture that a page shows its caption there, and the page."""
    found = {}
    for pattern in ("docs/*.md", "results/*/report.md"):
        for file in sorted(ROOT.glob(pattern)):
            page = file.relative_to(ROOT).as_posix()
            for caption, target in _SHOWN.findall(file.read_text(encoding="utf-8")):
                path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
                found.setdefault(path, (caption, page))
    return found
