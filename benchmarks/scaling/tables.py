"""Tables of what was measured and of what it would make many devices do."""

from pathlib import Path

from benchmarks import harness
from benchmarks.accelerator import OPERATIONS_PER_MULTIPLY_ADD
from benchmarks.scaling.all_reduce import AllReduce, all_reduce_seconds, link
from benchmarks.scaling.estimates import (
    BYTES_OF_IMAGE,
    H100,
    IMAGES,
    Assumption,
    Estimate,
    estimate,
)
from mf_zoo import files, markdown

DEVICES = (1, 8, 64)
EPOCHS = 90  # of Goyal et al., 2017

HEAD = ("devices", "batch", "step, ms", "gradients, ms", "statistics, ms", "images/s")
HEAD += ("efficiency, %", "epochs/h", f"h for {EPOCHS} epochs")


def number(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells(found: Estimate, images: int = IMAGES) -> list[str]:
    """An estimate as cells of a table."""
    seconds = (found.seconds, found.gradient_seconds, found.statistics_seconds)
    epoch = found.epoch_seconds(images)
    return [
        str(found.devices),
        f"{found.batch:,}",
        *(number(1000 * value) for value in seconds),
        number(found.images_per_second),
        f"{100 * found.efficiency:.1f}",
        number(3600 / epoch),
        number(EPOCHS * epoch / 3600),
    ]


def step_table(results: Path = harness.RESULTS) -> str:
    """The committed training steps as a Markdown table.

    Args:
        results: Folder of the `scaling-*.csv`.
    """
    head = ("model", "parameters", "multiply-adds", "activations, MB", "batch", "step, s")
    head += ("images/s", "G operations/s", "of matmul, %", "of convolution, %")
    rows, notes = [], []
    for path in sorted(results.glob("scaling-*.csv")):
        lines = files.read_rows(path)
        for row in lines:
            rows.append(
                [
                    f"`{row['model']}`",
                    f"{int(row['parameters']):,}",
                    f"{int(row['multiply_adds']):,}",
                    number(int(row["activation_bytes"]) / 1e6),
                    row["batch"],
                    number(float(row["seconds"])),
                    number(float(row["images_per_second"])),
                    number(float(row["operations_per_second"]) / 1e9),
                    number(100 * float(row["matmul_fraction"])),
                    number(100 * float(row["convolution_fraction"])),
                ]
            )
        note = "- {backend}: {policy}, {input_size} pixels a side, {machine}; {date}; {versions}."
        notes.append(note.format(**lines[0]))
    return "\n".join([markdown.table(head, rows), "", *notes])


def all_reduces(results: Path = harness.RESULTS) -> tuple[list[AllReduce], dict[str, str]]:
    """The committed all-reduces, and what was the same for all of them."""
    lines = files.read_rows(results / "all_reduce-gloo.csv")
    rows = [
        AllReduce(row["library"], int(row["processes"]), int(row["bytes"]), float(row["seconds"]))
        for row in lines
    ]
    return rows, lines[0]


def all_reduce_table(results: Path = harness.RESULTS) -> str:
    """The committed all-reduces as a Markdown table, with what `link` makes of them.

    Args:
        results: Folder of `all_reduce-gloo.csv`.
    """
    rows, shared = all_reduces(results)
    bandwidth, latency = link(rows)
    processes = rows[0].processes
    lines = [
        [
            f"{row.bytes:,}",
            number(1000 * row.seconds),
            number(1000 * all_reduce_seconds(row.bytes, processes, bandwidth, latency)),
        ]
        for row in rows
    ]
    return "\n".join(
        [
            markdown.table(("bytes", "measured, ms", "by the model, ms"), lines),
            "",
            f"- {rows[0].library}, {processes} processes, {shared['machine']}; {shared['date']}; "
            f"{shared['versions']}.",
            f"- The model's bandwidth is {number(bandwidth / 1e9)} GB/s, its latency "
            f"{number(1e6 * latency)} µs.",
        ]
    )


def _network_of(row: dict[str, str]) -> dict[str, int]:
    """What `estimate` wants to know of the network of a committed step."""
    return {key: int(row[key]) for key in ("parameters", "normalizations", "channels")}


def example_table(results: Path = harness.RESULTS) -> str:
    """Estimates from what was measured here alone, as a Markdown table.

    Args:
        results: Folder of the committed results.
    """
    bandwidth, latency = link(all_reduces(results)[0])
    rows = [
        [
            f"`{row['model']}`",
            *cells(
                estimate(
                    float(row["images_per_second"]),
                    devices,
                    batch=devices * int(row["batch"]),
                    bandwidth=bandwidth,
                    latency=latency,
                    **_network_of(row),
                )
            ),
        ]
        for path in sorted(results.glob("scaling-*.csv"))
        for row in files.read_rows(path)
        for devices in DEVICES
    ]
    return markdown.table(("model", *HEAD), rows)


def assumed_table(assumed: Assumption = H100, results: Path = harness.RESULTS) -> str:
    """Estimates for accelerators of which nothing was measured, as a Markdown table.

    Args:
        assumed: The accelerators.
        results: Folder of the committed results, which say how large the networks are.
    """
    networks = {
        row["model"]: row
        for path in sorted(results.glob("scaling-*.csv"))
        for row in files.read_rows(path)
        if row["policy"] == "float32"
    }
    rows = []
    for model, row in networks.items():
        # The bytes are those of float32, of which bfloat16 has half.
        activations = int(row["activation_bytes"]) / 2
        batch = assumed.batch_of(activations)
        operations = OPERATIONS_PER_MULTIPLY_ADD * int(row["multiply_adds"])
        for fraction in assumed.fractions:
            for devices, (bandwidth, latency) in assumed.links.items():
                found = estimate(
                    fraction * assumed.peak / operations,
                    devices,
                    batch=devices * batch,
                    bandwidth=bandwidth,
                    latency=latency,
                    **_network_of(row),
                )
                more = (batch * activations, BYTES_OF_IMAGE * found.images_per_second)
                rows.append(
                    [
                        f"`{model}`",
                        f"{100 * fraction:.0f}",
                        *cells(found),
                        *(number(value / 1e9) for value in more),
                    ]
                )
    notes = [
        f"- **Assumed, not measured**: {assumed.name}, {assumed.peak / 1e12:.0f} T operations/s. "
        f"On each at most {assumed.batch} images, whose activations in bfloat16 take at most three "
        f"quarters of {assumed.memory / 1e9:.0f} GB."
    ]
    notes += [
        f"- {devices} devices: {bandwidth / 1e9:.0f} GB/s, {1e6 * latency:.0f} µs a message."
        for devices, (bandwidth, latency) in assumed.links.items()
        if devices > 1
    ]
    notes.append(f"- An image is {BYTES_OF_IMAGE / 1000:.0f} kB on disk.")
    head = ("model", "of peak, %", *HEAD, "activations, GB", "read, GB/s")
    return "\n".join([markdown.table(head, rows), "", *notes])
