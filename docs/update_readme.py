"""Writes the generated tables of `README.md` and the pages in `docs`: `make readme`.

The weights come from the records in `weights/`, the others from `benchmarks/results/`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    deployment,
    depth,
    determinism,
    grouped_convolution,
    growth,
    harness,
    integrators,
    lesions,
    memory,
    peers,
    quantization,
    robustness,
    single_image,
    train_step,
)
from benchmarks.scaling import tables
from docs import dependencies, theory_tables
from examples import transfer
from mf_zoo import files, reporting
from mf_zoo.weights.__main__ import table
from tests import trust

ROOT = Path(__file__).resolve().parent.parent
# For each document its generated parts.
DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"weights": table},
    "docs/evidence.md": {
        "evidence": lambda: reporting.evidence(sorted((ROOT / "results").iterdir())),
    },
    "docs/fine_tune.md": {
        "transfer": lambda: transfer.table(
            files.read_rows(harness.RESULTS / "transfer-tensorflow.csv")
        ),
    },
    "docs/method.md": {"integrators": integrators.readme_table},
    "docs/performance.md": {
        "benchmark": train_step.readme_table,
        "grouped": grouped_convolution.readme_table,
    },
    "docs/depth.md": {
        "depth": depth.readme_table,
        "growth": growth.readme_table,
        "coarsening": depth.coarsening_table,
    },
    "docs/convert.md": {"peers": peers.readme_table},
    "docs/evaluate.md": {
        "robustness": robustness.readme_table,
        "calibration": robustness.readme_calibration,
    },
    "docs/deploy.md": {
        "deployment": deployment.readme_table,
        "quantization": quantization.readme_table,
        "single_image": single_image.readme_table,
    },
    "docs/trust.md": {
        "faults": lambda: trust.table("faults"),
        "fuzzing": lambda: trust.table("fuzzing"),
        "determinism": determinism.readme_table,
        "dependencies": dependencies.table,
    },
    "docs/theory_lesions.md": {
        "lesions": lambda: lesions.readme_table(lesions.LESION),
        "shuffles": lambda: lesions.readme_table(lesions.SHUFFLE),
        "path_lengths": theory_tables.path_lengths,
    },
    "docs/theory_adjoint.md": {
        "adjoint": theory_tables.adjoint,
        "reconstruction": theory_tables.reconstruction,
    },
    "docs/theory_ensemble.md": {
        "gradient_gap": theory_tables.gradient_gap,
        "minima": theory_tables.minima,
        "starts": theory_tables.starts,
    },
    "docs/theory_limits.md": {
        "refinement": theory_tables.refinement,
        "smoothness": theory_tables.smoothness,
    },
    "docs/imagenet.md": {
        "steps": tables.step_table,
        "memory": memory.readme_table,
        "all_reduce": tables.all_reduce_table,
        "example": tables.example_table,
        "assumed": tables.assumed_table,
    },
}


def updated(text: str, document: str = "README.md") -> str:
    """The text of a document with its generated parts made anew."""
    for name, content in DOCUMENTS[document].items():
        pattern = rf"(<!-- {name}: begin [^\n]*-->\n).*?(<!-- {name}: end -->)"
        new = content()
        text, count = re.subn(
            pattern, lambda m, new=new: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"{document} must have one part {name!r}. Received: {count}")
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        path = ROOT / document
        path.write_text(updated(path.read_text(encoding="utf-8"), document), encoding="utf-8")
