"""Runs the notebooks and keeps what they show: `python notebooks/run.py [NAME ...]`."""

import os
import pathlib
import sys
import tempfile

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent


def run(path: pathlib.Path) -> nbformat.NotebookNode:
    """A notebook with what its cells print and draw, run from top to bottom in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook, timeout=300, record_timing=False, resources={"metadata": {"path": folder}}
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # Warnings and logs name paths and processes.
            shown = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = shown
    return notebook


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in sys.argv[1:] or [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]:
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(run(path), path)
        print(path)
