"""The notebooks as pages, with what their cells printed and drew."""

from pathlib import Path

import nbconvert

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def pages() -> dict[str, str | bytes]:
    """For each notebook its page, the pictures on it and the file itself, by path."""
    found: dict[str, str | bytes] = {}
    for path in sorted(FOLDER.glob("*.ipynb")):
        exporter = nbconvert.MarkdownExporter()
        text, resources = exporter.from_filename(str(path))
        for name, content in resources["outputs"].items():
            found[f"notebooks/{path.stem}_{name}"] = content
            text = text.replace(f"]({name})", f"]({path.stem}_{name})")
        found[f"notebooks/{path.name}"] = path.read_bytes()
        # As HTML: links of pages to notebooks lead to their pages.
        download = f'<a href="{path.name}" download>Download this notebook</a>'
        title, _, rest = text.strip().partition("\n")
        found[f"notebooks/{path.stem}.md"] = f"{title}\n\n{download}\n{rest}\n"
    return found
