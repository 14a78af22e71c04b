"""The model card of registered weights: a page of the documentation, and of a model hub."""

import dataclasses
import importlib.metadata
import json
from typing import Any

from mf_zoo import applications, data, markdown, weights
from mf_zoo.applications.inputs import cifar10_normalization
from mf_zoo.weights import WeightRecord


def model_card(model: str, name: str = "cifar10", repository: str | None = None) -> str:
    """What registered weights are, how good they are, how they were made, and how to load them.

    All of it comes from the registries of networks, datasets and weights. The text starts with the
    metadata that the Hugging Face Hub reads: a README.md of it tells the Hub licence, library,
    dataset and accuracy.

    Args:
        model: Name of the network, such as `"MFResNet20"`.
        name: Name of its weights.
        repository: Where the folded network lies on the Hub, `"user/name"`: the page then says how
            Keras loads it from there.

    Returns:
        Markdown with YAML in front.

    Raises:
        ValueError: If there is no such network, or no weights of that name are registered for it.

    Example:

    >>> from mf_zoo.reporting import model_card
    >>> print(model_card("MFResNet20", "cifar10").splitlines()[1])
    license: "apache-2.0"
    """
    network = applications.network(model)
    record = weights.get(network.name, name)
    dataset = data.get(record.dataset)
    kind = "mean-field" if network.mean_field else "plain"
    parts = [
        _metadata(record, dataset, network.mean_field),
        f"# {network.name}, trained on {dataset.title}",
        f"{network.architecture.title}, {kind}, for images of {dataset.title}. "
        f"{about(network.mean_field)}",
        "## What it is",
        _network(network, record, dataset),
        f"Network: {network.architecture.source}. Images: {dataset.source}.",
        "## How good it is",
        _results(record),
        f"After the last epoch, on all {dataset.images['test']:,} test images. It is one run, with "
        f"the seed {record.seed}: it has no interval, and is no evidence for or against a method.",
        "## How it was made",
        _training(record),
        "The command that trained it:",
        f"```\n{record.command}\n```",
        "## How to load it",
        _loading(network.name, record, repository),
        "## Limits",
        _limits(dataset, network.mean_field),
        "## Licence",
        f"Code and weights: {_licence()}. The images of {dataset.title} have terms of their own.",
    ]
    return "\n\n".join(parts) + "\n"


def _licence() -> str:
    return importlib.metadata.metadata("mf_zoo")["License-Expression"]


def _metadata(record: WeightRecord, dataset: data.Dataset, mean_field: bool) -> str:
    """The metadata that the Hub reads; texts in quotes, as YAML takes them from JSON too."""
    text = json.dumps
    tags = ["image-classification", "residual-network", *["mean-field"] * mean_field, "mf_zoo"]
    lines = [
        "---",
        f"license: {text(_licence().lower())}",
        'library_name: "keras"',
        'pipeline_tag: "image-classification"',
        f"tags: {text(tags)}",
        f"datasets: {text([record.dataset])}",
        'metrics: ["accuracy"]',
        "model-index:",
        f"- name: {text(record.model)}",
        "  results:",
        '  - task: {type: "image-classification"}',
        f"    dataset: {{name: {text(dataset.title)}, type: {text(record.dataset)}, split: test}}",
        "    metrics:",
        *(
            f"    - {{type: {kind}, name: {text(title)}, value: {round(1 - error / 100, 6)}}}"
            for kind, title, error in (
                ("accuracy", "Top-1 accuracy", record.test_error),
                ("top_5_accuracy", "Top-5 accuracy", record.test_top5_error),
            )
            if error is not None
        ),
        "---",
    ]
    return "\n".join(lines)


def about(mean_field: bool) -> str:
    """What the blocks of a mean-field or a plain network are, in a sentence."""
    if mean_field:
        return (
            "Its residual blocks are particles with times, which are trained with their weights: "
            "the times say in which order blocks are applied and with which steps (Lu, Ma, Lu, Lu, "
            "Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020, arXiv 2003.05508)."
        )
    return "Its residual blocks have a fixed order and steps of 1: it is an ordinary ResNet."


def _facts(rows: list[tuple[str, Any]]) -> str:
    return markdown.table(["", ""], [(what, str(value)) for what, value in rows])


def _network(network: Any, record: WeightRecord, dataset: data.Dataset) -> str:
    architecture = network.architecture
    if record.shortcut is not None:
        architecture = dataclasses.replace(architecture, shortcut=record.shortcut)
    rows, cols, channels = dataset.image_shape
    particles = " + ".join(map(str, architecture.particles))
    multiply_adds = architecture.multiply_adds(dataset.image_shape, record.classes)
    mean, std = record.normalization or cifar10_normalization()
    return _facts(
        [
            ("parameters", f"{record.parameters:,}"),
            ("multiply-adds for an image", f"{multiply_adds:,}"),
            (
                "particles in the stages" if network.mean_field else "blocks in the stages",
                particles,
            ),
            ("shortcuts of the blocks that change the shape", architecture.shortcut),
            ("images", f"{rows} x {cols}, {channels} channels, 0..255, normalised inside"),
            ("mean and deviation", f"{_numbers(mean)}; {_numbers(std)}"),
            ("classes", f"{record.classes}: {', '.join(dataset.class_names)}"),
            ("weights", f"{record.total_size / 1e6:.1f} MB, {record.dtype}, `{record.file}`"),
            ("SHA-256", f"`{record.sha256}`"),
        ]
    )


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _results(record: WeightRecord) -> str:
    errors = [
        ("top-1", record.test_error),
        ("top-5", record.test_top5_error),
        ("of the superclass", record.test_coarse_error),
    ]
    return markdown.table(
        ["error", "%"], [(what, f"{error:.2f}") for what, error in errors if error is not None]
    )


def _training(record: WeightRecord) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    rows = [
        ("recipe", f"`{record.recipe}`, {record.epochs} epochs, seed {record.seed}"),
        ("started from", record.initial_weights or "random weights"),
        ("not trained", ", ".join(f"`{pattern}`" for pattern in record.freeze)),
        (
            "grown from",
            ", ".join(f"{rung.model} until epoch {rung.epochs}" for rung in record.grown_from),
        ),
        ("stages", _stages(record)),
        ("on", f"{record.device}, {record.train_seconds / 60:.0f} minutes, until {record.date}"),
        ("backend", f"{record.backend}; {versions}"),
    ]
    return _facts([row for row in rows if row[1]])


def _stages(record: WeightRecord) -> str:
    horizon = "number of particles" if record.horizon is None else f"{record.horizon:g}"
    order = "" if record.reorder else ", blocks in the order of storage"
    return (
        f"quadrature `{record.quadrature}`, horizon: {horizon}, integrator "
        f"`{record.integrator}`{order}"
    )


def _loading(model: str, record: WeightRecord, repository: str | None) -> str:
    ours = (
        f"```python\nimport mf_zoo\n\n"
        f'model = mf_zoo.applications.{model}(weights="{record.name}")\n```'
    )
    if repository is None:
        return ours
    return (
        "Here lies the network folded into plain layers, for inference. Keras loads it without "
        "mf_zoo, on any backend, where huggingface_hub is installed:\n\n"
        f'```python\nimport keras\n\nmodel = keras.saving.load_model("hf://{repository}")\n```\n\n'
        f"The network as it was trained, to train it further:\n\n{ours}"
    )


def _limits(dataset: data.Dataset, mean_field: bool) -> str:
    rows, cols, _ = dataset.image_shape
    lines = [
        f"- It was trained on {dataset.images['train']:,} images of {dataset.title} alone, of "
        f"{rows} x {cols} pixels. It gives one of its {dataset.classes} classes to any image.",
        "- Nothing was measured but the errors above: neither other images, nor whether its "
        "probabilities are right, nor what becomes of its answers when images are disturbed.",
    ]
    if mean_field:
        lines.append(
            "- Its weights are this network with the quadrature rule, horizon and integrator above "
            "only: with others they are another function."
        )
    return "\n".join(lines)
