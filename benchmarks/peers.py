"""`python -m benchmarks.peers --data-dir D --peers P`: public weights of others, converted.

The state dicts of akamaster/pytorch_resnet_cifar10 in the folder `P` are converted to networks with
identity shortcuts and evaluated on all test images of CIFAR-10: as the plain network, and as its
mean-field twin. Beside it stands the error that their README publishes. Needs PyTorch.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files

# By file: the network of the zoo, and the error in % of akamaster's README.
PUBLISHED = {
    "resnet20-12fca82f.th": ("ResNet20", 8.27),
    "resnet56-4bfd9763.th": ("ResNet56", 6.61),
}


@dataclass(frozen=True)
class Found:
    """One state dict: a row of the CSV file. Errors are in %.

    Attributes:
        file: Its name.
        network: The plain network it went into, with identity shortcuts.
        published: The error that its authors publish.
        plain: That of the plain network.
        mean_field: That of its mean-field twin.
    """

    file: str
    network: str
    published: float
    plain: float
    mean_field: float


def measure(path: Path, images: Any, labels: Any, batch: int) -> Found:
    """Converts a state dict and evaluates both twins.

    Args:
        path: The file.
        images, labels: The test images.
        batch: Images in a batch.
    """
    import torch

    from mf_zoo import applications, convert
    from mf_zoo.training import evaluate

    name, published = PUBLISHED[path.name]
    arrays = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    normalization = next(
        one
        for one in convert.recognize(arrays).normalizations
        if one.repository.startswith("akamaster")
    )
    plain = applications.get(name)(shortcut="identity", classifier_activation=None)
    convert.from_torch(arrays, plain, normalization.mean, normalization.std)
    errors = [
        evaluate(network, images, labels, batch, from_logits=True).error
        for network in (plain, convert.to_mean_field(plain))
    ]
    return Found(path.name, name, published, *errors)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of rows as in the CSV file."""
    lines = [
        "| weights | network | published | plain | mean-field twin |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        errors = (f"{float(row[key]):.2f}" for key in ("published", "plain", "mean_field"))
        network = f'`{row["network"]}(shortcut="identity")`'
        lines.append(f"| {row['file']} | {network} | {' | '.join(errors)} |")
    return "\n".join(lines)


def readme_table() -> str:
    """The committed result as a table with its circumstances."""
    rows = files.read_rows(harness.RESULTS / "peers-torch.csv")
    return f"{table(rows)}\n\nAll 10,000 test images; {rows[0]['date']}, {rows[0]['versions']}."


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="Public weights of others, converted.")
    parser.add_argument("--data-dir", type=Path, metavar="D", required=True)
    parser.add_argument(
        "--peers", type=Path, metavar="P", required=True, help="folder of the files"
    )
    parser.add_argument("--batch", type=harness.positive, default=500, help="images in a batch")
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV file to write")
    options = parser.parse_args(arguments)
    paths = [options.peers / name for name in PUBLISHED if (options.peers / name).is_file()]
    if not paths:
        parser.error(f"--peers must hold {' or '.join(PUBLISHED)}. Received: {options.peers}")
    harness.limit_threads(options.threads)
    from mf_zoo import data

    shared = harness.circumstances(options.batch, options.threads, "torch")
    output = options.output or harness.RESULTS / f"peers-{shared['backend']}.csv"
    images, labels = data.load("cifar10", "test", data_dir=options.data_dir)
    rows = []
    for path in paths:
        harness.say(path.name)
        rows.append(measure(path, images, labels, options.batch))
        harness.write_csv(output, rows, shared)
    print(table(map(asdict, rows)))
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
