"""The tables of the pages on theory, from the numbers beside the pictures in `docs/theory`."""

import math
import re
import statistics
from pathlib import Path

from mf_zoo import files
from mf_zoo.markdown import table

FOLDER = Path(__file__).resolve().parent / "theory"
# Networks by their names in `smoothness.csv`, and what the page calls them.
NETWORKS = {
    "MFResNet20": "MFResNet20, shipped",
    "ResNet20": "ResNet20, shipped",
    "MFResNet32": "MFResNet32 from scratch, 16 epochs of 5,000 images",
    "MFResNet56": "MFResNet56 from scratch, 13 epochs of 5,000 images",
    "MFResNet32, grown": "MFResNet32 grown from MFResNet20 after 10 of 20 epochs",
    "MFResNet56, grown": "MFResNet56 grown from the same",
    "MFResNet20, refined to 56": "MFResNet20 refined to 56, not trained",
}
# Starts by their names in `minima.csv`, and what the page calls them.
STARTS = {
    "random": "random",
    "equal": "all neurons equal",
    "zero output": "`B = 0`",
    "zero": "`A = B = 0`",
    "dead": "all ReLUs dead",
}
KINDS = ("mean-field", "mean-field, noise", "shallow", "ResNet")
# What `adjoint.csv` calls the stage beside the networks, and what the page does.
SMOOTH_STAGE, SMOOTH = "smooth stage", "smooth contraction, steps 0.05"


def adjoint() -> str:
    """How the costate grows from output to input, and how large the blocks' gradients are."""
    rows = _rows("adjoint")
    lines = []
    for network, stage in _keys(rows, "network", "stage"):
        here = {"network": network, "stage": stage}
        if not (costates := _numbers(rows, "value", quantity="costate norm", **here)):
            continue
        gradients = _numbers(rows, "value", quantity="gradient norm", **here)
        growth, first = costates[0] / costates[-1], costates[0] / costates[1]
        sizes = f"{min(gradients):.2f} to {max(gradients):.2f}"
        lines.append([network, stage, str(len(gradients)), f"{growth:.1f}", f"{first:.1f}", sizes])
    header = ["network", "stage", "blocks", "costate grows by", "in the first block", "gradients"]
    return table(header, lines)


def reconstruction() -> str:
    """How far states that are computed backwards are off."""
    rows = _rows("adjoint")
    lines = []
    for network, stage in _keys(rows, "network", "stage"):
        errors = [
            _numbers(
                rows,
                "value",
                network=network,
                stage=stage,
                quantity=f"error of the {name}, {iterations} iterations",
            )
            for iterations in (1, 5)
            for name in ("state", "gradient")
        ]
        said = SMOOTH if network == SMOOTH_STAGE else f"{network}, {stage}"
        first = [_short(values[0]) for values in errors]
        line = [said, str(len(errors[0]) - 1), ", ".join(first[:2]), ", ".join(first[2:])]
        lines.append(line)
    header = [
        "stage",
        "blocks",
        "steps backwards: state, gradient",
        "5 iterations: state, gradient",
    ]
    return table(header, lines)


def gradient_gap() -> str:
    """Gradients of trained networks beside those of their shallow ensembles, block by block."""
    rows = [row for row in _rows("gradient_gap") if row["panel"] == "blocks"]
    networks = [network for (network,) in _keys(rows, "network")]
    lines = []
    for stage, depth in _keys(rows, "stage", "depth"):
        found = {
            row["network"]: row for row in rows if (row["stage"], row["depth"]) == (stage, depth)
        }
        cells = [f"{float(r['ratio']):.2f} ({float(r['cosine']):.2f})" for r in found.values()]
        lines.append([f"{stage}, {int(depth) + 1}", *cells])
    losses = {row["network"]: (row["loss"], row["ensemble_loss"]) for row in rows}
    lines.append(
        ["losses", *(" and ".join(f"{float(loss):.2f}" for loss in losses[n]) for n in networks)]
    )
    return table(["stage, block", *(f"{n} ratio (cosine)" for n in networks)], lines)


def minima() -> str:
    """How low the loss of small networks gets: median over seeds, and the worst."""
    rows = [row for row in _rows("minima") if row["panel"] == "particles"]
    particles = [count for (count,) in _keys(rows, "particles")]
    lines = []
    for problem, network in sorted(_keys(rows, "problem", "network"), key=_problem_then_kind):
        line = [f"{problem}, {network}"]
        for count in particles:
            wanted = {"problem": problem, "network": network, "particles": count}
            losses = _numbers(rows, "loss", **wanted)
            cell = ""
            if losses:
                cell = f"{_digit(statistics.median(losses))} ({_digit(max(losses))})"
            line.append(cell)
        lines.append(line)
    return table(["particles", *particles], lines)


def starts() -> str:
    """How low it gets from bad places: median over seeds."""
    rows = [row for row in _rows("minima") if row["panel"] == "starts"]
    networks = [network for (network,) in _keys(rows, "network")]
    lines = []
    for start, said in STARTS.items():
        line = [said]
        for network in networks:
            losses = _numbers(rows, "loss", start=start, network=network)
            line.append(_digit(statistics.median(losses)))
        lines.append(line)
    return table(["start", *networks], lines)


def path_lengths() -> str:
    """How much of the gradient the paths of each length carry."""
    rows = _rows("path_lengths")
    networks = [network for (network,) in _keys(rows, "network")]
    of = {n: [row for row in rows if row["network"] == n] for n in networks}
    lines = [["paths", *(row["paths"] for row in of[networks[0]])]]
    for n in networks:
        norms = [f"{1e4 * float(row['path_norm']):.1f}" for row in of[n]]
        lines.append([f"norm of one path times 10^4, {n}", *norms])
    for n in networks:
        whole = sum(float(row["total"]) for row in of[n])
        shares = [f"{100 * float(row['total']) / whole:.1f}" for row in of[n]]
        lines.append([f"number times norm, {n}, %", *shares])
    for n in networks:
        lines.append(
            [f"exact share, {n}, %", *(f"{100 * float(row['share']):.1f}" for row in of[n])]
        )
    return table(["blocks on the path", *(row["length"] for row in of[networks[0]])], lines)


def refinement() -> str:
    """How far trained networks are from the limit of their measure."""
    rows = [row for row in _rows("limits") if row["picture"] == "refined"]
    lines = []
    for (series,) in _keys(rows, "series"):
        found = [row for row in rows if row["series"] == series]
        whole = 100 * float(found[0]["error"])
        last = 100 * float(found[-2]["change"])
        orders = [float(row["order"]) for row in found if not math.isnan(float(row["order"]))]
        lines.append([series, f"{whole:.0f} %", f"{last:.1f} %", f"{orders[-1]:.1f}"])
    header = ["network, stage", "moved in all", "by the last halving", "order from 8 to 32 parts"]
    return table(header, lines)


def smoothness() -> str:
    """Distances of kernels of neighbours in depth."""
    rows = [*_rows("smoothness"), *_rows("grown/smoothness")]
    rows = [row for row in rows if row["what"] == "kernels"]
    lines = []
    for network, said in NETWORKS.items():
        found = [row for row in rows if row["network"] == network]
        distances = [f"{float(row['distance']):.2f}" for row in found]
        lines.append([said, " ".join(row["particles"] for row in found), *distances])
    return table(["network", "particles", "stage 1", "stage 2", "stage 3"], lines)


def _short(value: float) -> str:
    """Two digits, as a person writes them."""
    return f"{value:.0f}" if 10 <= value < 1000 else _power(f"{value:.2g}")


def _digit(value: float) -> str:
    """Two decimals, or for a small number one digit and a power of ten."""
    return f"{value:.2f}" if value >= 0.01 else _power(f"{value:.0e}")


def _power(text: str) -> str:
    return re.sub("e([+-])0*", lambda sign: "e" + sign[1].strip("+"), text)


def _problem_then_kind(key: tuple[str, ...]) -> tuple[bool, int]:
    problem, network = key
    return problem != "sphere", KINDS.index(network)


def _rows(name: str) -> list[dict[str, str]]:
    return files.read_rows(FOLDER / f"{name}.csv")


def _keys(rows: list[dict[str, str]], *columns: str) -> list[tuple[str, ...]]:
    """Each combination of values in these columns once, in the order of the rows."""
    return list(dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


def _numbers(rows: list[dict[str, str]], column: str, **wanted: str) -> list[float]:
    """The numbers in a column of the rows that have these values in the others."""
    return [float(row[column]) for row in rows if wanted.items() <= row.items()]
