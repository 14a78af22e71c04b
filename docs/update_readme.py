"""Writes the generated tables of `README.md`: `make readme`.

The weights come from the records in `weights/`, the benchmark from `benchmarks/results/`.
"""

import re
from pathlib import Path

from benchmarks import deployment, grouped_convolution, train_step
from mf_zoo.weights.__main__ import table

README = Path(__file__).resolve().parent.parent / "README.md"


def updated(text: str) -> str:
    """The text with its generated parts made anew."""
    parts = {
        "weights": table(),
        "benchmark": train_step.readme_table(),
        "deployment": deployment.readme_table(),
        "grouped": grouped_convolution.readme_table(),
    }
    for name, content in parts.items():
        pattern = rf"(<!-- {name}: begin [^\n]*-->\n).*?(<!-- {name}: end -->)"
        text, count = re.subn(
            pattern, lambda m, new=content: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"README.md must have one part {name!r}. Received: {count}")
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
