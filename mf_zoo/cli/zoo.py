"""`mf-zoo list` and `mf-zoo info`: what is in the zoo."""

import argparse
import dataclasses
import json
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
        "--input-size", type=int, default=32, metavar="N", help="pixels a side (default: 32)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _list(options: argparse.Namespace) -> None:
    from mf_zoo import applications, weights

    records = weights.records()
    rows = []
    for name in applications.list_models(options.pattern, pretrained=options.pretrained):
        architecture = applications.architecture(name)
        rows.append(
            {
                "name": name,
                "title": architecture.title,
                "mean_field": name.startswith("MF"),
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
    import math

    from mf_zoo import applications, weights
    from mf_zoo.layers import stages

    size = options.input_size
    with user_errors():
        model = applications.get(options.model)(input_shape=_shape(size))
    architecture = applications.architecture(options.model)
    records = weights.records(model=options.model)
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    about = {
        "name": options.model,
        "title": architecture.title,
        "parameters": trainable,
        "statistics": model.count_params() - trainable,
        "multiply_adds": applications.multiply_adds(model),
        "input_shape": list(model.input_shape[1:]),
        "stages": [
            {
                "name": stage.name,
                "block": architecture.block.__name__,
                "particles": stage.num_particles,
                "shape": list(stage.output.shape[1:]),
            }
            for stage in stages(model)
        ],
        "weights": [dataclasses.asdict(record) for record in records],
    }
    if options.json:
        print(json.dumps(about, indent=2))
        return
    kind = "mean-field" if options.model.startswith("MF") else "plain"
    print(f"{options.model}: {architecture.title}, {kind}")
    print(f"parameters     {trainable:,} trained, {about['statistics']:,} others")
    print(f"multiply-adds  {about['multiply_adds']:,} for an image of {size} x {size} pixels")
    for stage in about["stages"]:
        shape = " x ".join(map(str, stage["shape"]))
        print(f"{stage['name']:14} {stage['particles']} x {stage['block']}, {shape}")
    for record in records:
        print(
            f"weights        {record.name!r}: test error {record.test_error:.2f} % on "
            f"{record.dataset}, recipe {record.recipe}, {record.epochs} epochs, seed "
            f"{record.seed}, {record.total_size / 1e6:.1f} MB ({record.dtype})"
        )
    if not records:
        print("weights        none registered")


def _shape(size: int) -> tuple[int, int, int]:
    import keras

    first = keras.config.image_data_format() == "channels_first"
    return (3, size, size) if first else (size, size, 3)
