"""`python -m mf_zoo.weights`: the registered weights as the table of the README."""

from mf_zoo import weights


def table() -> str:
    """The registered weights as a Markdown table, ordered by file name."""
    lines = [
        "| model | `weights=` | parameters | test error % | epochs | recipe | seed | trained on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in weights.records():
        lines.append(
            f"| `{record.model}` | `{record.name!r}` | {record.parameters:,} "
            f"| {record.test_error:.2f} | {record.epochs} | {record.recipe} | {record.seed} "
            f"| {record.device}, {record.train_seconds / 60:.0f} min |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
