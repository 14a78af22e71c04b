"""Writes the generated tables of `README.md`: `make readme`.

The weights come from the records in `weights/`, the benchmark from `benchmarks/results/`.
"""

import re
from pathlib import Path

from benchmarks.train_step import readme_table
from mf_zoo.weights.__main__ import table

README = Path(__file__).resolve().parent.parent / "README.md"


def updated(text: str) -> str:
    """The text with its generated parts made anew."""
    for name, content in (("weights", table()), ("benchmark", readme_table())):
        pattern = rf"(<!-- {name}: begin [^\n]*-->\n).*?(<!-- {name}: end -->)"
        text, count = re.subn(
            pattern, lambda m, new=content: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"README.md must have one part {name!r}. Received: {count}")
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
