"""The notebooks as pages, with what their cells printed and drew."""

from pathlib import Path

import nbconvert

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def pages() -> dict[str, str | bytes]:
    """For each notebook its page, and the pictures on it, by path."""
    found: dict[str, str | bytes] = {}
    for path in sorted(FOLDER.glob("*.ipynb")):
        exporter = nbconvert.MarkdownExporter()
        text, resources = exporter.from_filename(str(path))
        for name, content in resources["outputs"].items():
            found[f"notebooks/{path.stem}_{name}"] = content
            text = text.replace(f"]({name})", f"]({path.stem}_{name})")
        download = f"[Download this notebook]({path.name})"
        title, _, rest = text.strip().partition("\n")
        found[f"notebooks/{path.stem}.md"] = f"{title}\n\n{download}\n{rest}\n"
    return found
