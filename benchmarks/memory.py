"""`python -m benchmarks.memory`: what `mf-zoo train --dry-run` counts, against what is kept.

Two batches of each network; the difference is what an image takes, without weights and what else is
there once. On JAX the training step is compiled, not run, and XLA tells how much memory it has set
aside for what lives only within the step (`temp_size_in_bytes`). On PyTorch the forward pass and
the loss are run, and `saved_tensors_hooks` sees every tensor that autograd keeps, each once however
often it is kept.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files, markdown

MODELS = ("MFResNet20", "MFResNet56", "MFResNet164", "MFResNeXt29_32x4d")


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step keeps for an image: a row of the table and of the CSV file.

    Attributes:
        model: Name of the network.
        policy: Dtype policy.
        input_size: Pixels a side.
        counted: By `mf_zoo.training.dry_run.activation_bytes`.
        measured: By the backend.
        ratio: Measured over counted.
    """

    model: str
    policy: str
    input_size: int
    counted: int
    measured: int
    ratio: float


def lowered_step(network: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    """A training step traced and lowered for XLA (JAX), and the state that it takes."""
    import jax

    from mf_zoo.optimizers import MeanFieldSGD

    optimizer = MeanFieldSGD(0.1, momentum=0.9)
    harness.compile_model(network, optimizer)
    optimizer.build(network.trainable_variables)
    network._symbolic_build(data_batch=(images[:1], labels[:1]))  # the metrics
    parts = (
        network.trainable_variables,
        network.non_trainable_variables,
        optimizer.variables,
        network.metrics_variables,
    )
    state = tuple([variable.value for variable in part] for part in parts)
    step = jax.jit(network.train_step, donate_argnums=0)
    return step.lower(state, (images, labels)), state


def compiled_step(network: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    """A training step compiled by XLA (JAX), and the state that it takes, with the batch."""
    lowered, state = lowered_step(network, images, labels)
    return lowered.compile(), state


def xla_bytes(network: Any, images: Any, labels: Any) -> int:
    """Bytes that XLA sets aside for what lives only within a training step (JAX)."""
    compiled, _ = compiled_step(network, images, labels)
    return compiled.memory_analysis().temp_size_in_bytes


def saved_bytes(network: Any, images: Any, labels: Any) -> int:
    """Bytes of the tensors that autograd keeps after the forward pass and the loss (PyTorch)."""
    import torch

    from mf_zoo.training.losses import SmoothedCrossentropy

    storages = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = SmoothedCrossentropy()(labels, network(images, training=True))
    found = sum(storage.nbytes() for storage in storages.values())
    del loss  # until here everything is kept, and no storage has another's place
    return found


def measure(model: str, policy: str, input_size: int, batch: int) -> Memory:
    """Measures one network with `batch` images and with twice as many.

    Raises:
        SystemExit: On TensorFlow, which tells nothing of the kind on the CPU.
    """
    import keras

    from mf_zoo import applications
    from mf_zoo.training.assembly import dtype_policy
    from mf_zoo.training.dry_run import activation_bytes

    backend = keras.config.backend()
    if backend not in ("jax", "torch"):
        raise SystemExit(f"Only JAX and PyTorch tell. Received: KERAS_BACKEND={backend}")
    found = []
    for size in (batch, 2 * batch):
        with dtype_policy(policy):
            network = applications.get(model)(
                input_shape=(input_size, input_size, 3), classifier_activation=None
            )
        images, labels = harness.images_and_labels(size, input_size)
        found.append((xla_bytes if backend == "jax" else saved_bytes)(network, images, labels))
    measured = (found[1] - found[0]) // batch
    counted = activation_bytes(network)
    return Memory(model, policy, input_size, counted, measured, measured / counted)


def readme_table(results: Path = harness.RESULTS) -> str:
    """The committed results as a Markdown table.

    Args:
        results: Folder of the `memory-*.csv`.
    """
    lines = []
    notes = []
    for path in sorted(results.glob("memory-*.csv")):
        rows = files.read_rows(path)
        for row in rows:
            counted, measured = (f"{int(row[key]) / 1000:,.0f}" for key in ("counted", "measured"))
            cells = [row["backend"], f"`{row['model']}`", row["policy"], counted, measured]
            lines.append([*cells, f"{float(row['ratio']):.2f}"])
        notes.append(
            "- {backend}: an image of {input_size} pixels a side, {machine}; {date}; "
            "{versions}.".format(**rows[0])
        )
    header = ("backend", "model", "policy", "counted, kB", "measured, kB", "measured / counted")
    return "\n".join([markdown.table(header, lines), "", *notes])


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="Memory of a training step, counted and measured.")
    parser.add_argument("--batch", type=harness.positive, default=8, help="images, then twice that")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--input-size", type=harness.positive, default=32, help="pixels a side")
    parser.add_argument("--dtype-policies", nargs="+", default=["float32", "mixed_bfloat16"])
    parser.add_argument("--output", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)

    shared = harness.circumstances(options.batch, None)
    output = options.output or harness.RESULTS / f"memory-{shared['backend']}.csv"
    harness.measure_each(
        options.models,
        options.dtype_policies,
        lambda model, policy: measure(model, policy, options.input_size, options.batch),
        output,
        shared,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
