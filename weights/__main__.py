"""`python -m mf_zoo.weights`: the registered weights as the table of the README."""

from typing import Any

from mf_zoo import markdown, weights


def table(**which: Any) -> str:
    """Registered weights as a Markdown table, ordered by file name.

    Args:
        which: Arguments of `mf_zoo.weights.records`, such as `model="MFResNet20"`; all without.
    """
    columns = ["model", "`weights=`", "parameters", "test error %", "top-5", "coarse", "epochs"]
    columns += ["recipe", "seed", "trained on"]
    rows = []
    for record in weights.records(**which):
        errors = (record.test_error, record.test_top5_error, record.test_coarse_error)
        rows.append(
            [
                f"`{record.model}`",
                f"`{record.name!r}`",
                f"{record.parameters:,}",
                *("" if error is None else f"{error:.2f}" for error in errors),
                *(str(value) for value in (record.epochs, record.recipe, record.seed)),
                f"{record.device}, {record.train_seconds / 60:.0f} min",
            ]
        )
    return markdown.table(columns, rows)


if __name__ == "__main__":
    print(table())
