"""`mf-zoo list`, `mf-zoo info` and `mf-zoo card`: what is in the zoo."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from mf_zoo.errors import UserError, user_errors


def add_parser(commands: Any) -> None:
    """Adds the subcommands."""
    parser = commands.add_parser("list", help="list the networks")
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="such as 'mf*29*', in any case"
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="only networks with registered weights"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_list)

    parser = commands.add_parser("info", help="describe a network and its weights")
    parser.add_argument("model", metavar="MODEL", help="such as MFResNet20")
    parser.add_argument(
        "--input-size", type=int, metavar="N", help="pixels a side (default: the network's own)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)

    parser = commands.add_parser(
        "card",
        help="describe registered weights as a model card",
        description="Write the model card of registered weights, Markdown with the metadata that "
        "the Hugging Face Hub reads.",
    )
    parser.add_argument("model", metavar="MODEL", help="such as MFResNet20")
    parser.add_argument(
        "--weights", metavar="NAME", default="cifar10", help="registered name (default: cifar10)"
    )
    parser.add_argument(
        "--repository", metavar="USER/NAME", help="where the folded network lies on the Hub"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.set_defaults(run=_card)


def _list(options: argparse.Namespace) -> None:
    from mf_zoo import applications, weights

    records = weights.records()
    rows = []
    for name in applications.list_models(options.pattern, pretrained=options.pretrained):
        network = applications.network(name)
        architecture = network.architecture
        rows.append(
            {
                "name": name,
                "title": architecture.title,
                "mean_field": network.mean_field,
                "particles": list(architecture.particles),
                "weights": {
                    record.name: record.test_error for record in records if record.model == name
                },
            }
        )
    if not rows:
        raise UserError(
            f"No network fits; `mf-zoo list` names all. Received: {options.pattern!r}"
            + (" with --pretrained" if options.pretrained else "")
        )
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        blocks = "particles" if row["mean_field"] else "blocks"
        found = ", ".join(f"{name} {error:.2f} %" for name, error in row["weights"].items())
        particles = f"{'+'.join(map(str, row['particles']))} {blocks}"
        print(f"{row['name']:{width}}  {particles:18}  {found}".rstrip())


def _info(options: argparse.Namespace) -> None:
    from mf_zoo import applications, weights
    from mf_zoo.applications.inputs import check_shape

    with user_errors():
        network = applications.network(options.model)
        architecture = network.architecture
        rows, cols, channels = architecture.image_shape
        if options.input_size is not None:
            rows = cols = options.input_size
        shape = check_shape((rows, cols, channels), channels)
        counts = architecture.weights(mean_field=network.mean_field)
        multiply_adds = architecture.multiply_adds(shape)
    records = weights.records(model=options.model)
    shapes = architecture.stage_shapes(shape)
    about = {
        "name": options.model,
        "title": architecture.title,
        "parameters": counts.trained,
        "statistics": counts.others,
        "multiply_adds": multiply_adds,
        "input_shape": list(shape),
        "stages": [
            {
                "name": f"stage{number}",
                "block": architecture.block_name,
                "particles": particles,
                "shape": list(shapes[number - 1]),
            }
            for number, particles in enumerate(architecture.particles, start=1)
        ],
        "weights": [dataclasses.asdict(record) for record in records],
    }
    if options.json:
        print(json.dumps(about, indent=2))
        return
    kind = "mean-field" if network.mean_field else "plain"
    print(f"{options.model}: {architecture.title}, {kind}")
    print(f"parameters     {counts.trained:,} trained, {counts.others:,} others")
    print(f"multiply-adds  {multiply_adds:,} for an image of {rows} x {cols} pixels")
    for stage in about["stages"]:
        shape = " x ".join(map(str, stage["shape"]))
        print(f"{stage['name']:14} {stage['particles']} x {stage['block']}, {shape}")
    for record in records:
        rungs = ", ".join(f"{rung.model} to epoch {rung.epochs}" for rung in record.grown_from)
        print(
            f"weights        {record.name!r}: test error {record.test_error:.2f} % on "
            f"{record.dataset}, recipe {record.recipe}, {record.epochs} epochs, seed "
            f"{record.seed}, {record.total_size / 1e6:.1f} MB ({record.dtype})"
            + (f", grown from {rungs}" if rungs else "")
        )
    if not records:
        print("weights        none registered")


def _card(options: argparse.Namespace) -> None:
    from mf_zoo import files
    from mf_zoo.reporting import model_card

    with user_errors():
        text = model_card(options.model, options.weights, options.repository)
    if options.output is None:
        print(text, end="")
    else:
        files.write_atomically(
            options.output, lambda partial: partial.write_text(text, encoding="utf-8")
        )
