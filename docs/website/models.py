"""The pages of the models, from the registries: one for each architecture, and the model cards."""

from mf_zoo import applications, markdown, weights
from mf_zoo.applications import Architecture, Network
from mf_zoo.reporting import model_card
from mf_zoo.reporting.card import about
from mf_zoo.weights.__main__ import table

FOLDER = "models"


def pages() -> dict[str, str]:
    """For each path its Markdown: an overview, the architectures, and a card for all weights."""
    twins: dict[str, list[Network]] = {}
    for name in applications.list_models():
        network = applications.network(name)
        twins.setdefault(network.architecture.name, []).append(network)
    found = {f"{FOLDER}/index.md": _overview(twins)}
    for name, networks in twins.items():
        found[f"{FOLDER}/{name}.md"] = _page(networks)
        for record in _records(networks):
            found[f"{FOLDER}/{_card(record)}"] = model_card(record.model, record.name)
    return found


def reference() -> str:
    """The networks as a part of the reference of `mf_zoo.applications`."""
    names = applications.list_models()
    pages = {name: f"../{FOLDER}/{applications.architecture(name).name}.md" for name in names}
    links = [f"[`{name}`]({page}#mf_zoo.applications.{name})" for name, page in pages.items()]
    return (
        f"## Networks\n\n{', '.join(links)}\n\nEach is called with the arguments below; plain "
        "networks have none of `quadrature`, `horizon`, `initial_times`, `reorder` and "
        "`integrator`.\n\n"
        "::: mf_zoo.applications.builders.MeanFieldBuilder.__call__\n"
    )


def _records(networks: list[Network]) -> list[weights.WeightRecord]:
    return [record for network in networks for record in weights.records(model=network.name)]


def _card(record: weights.WeightRecord) -> str:
    return f"{record.model}-{record.name}.md"


def _overview(twins: dict[str, list[Network]]) -> str:
    rows = []
    for name, networks in twins.items():
        architecture = networks[0].architecture
        errors = [
            f"[{record.model}, {record.name}: {record.test_error:.2f}]({_card(record)})"
            for record in _records(networks)
        ]
        rows.append(
            [
                f"[{architecture.title}]({name}.md)",
                ", ".join(f"`{one.name}`" for one in networks),
                f"{architecture.parameters():,}",
                f"{architecture.multiply_adds():,}",
                "<br>".join(errors) or "no weights yet",
            ]
        )
    columns = ["architecture", "networks", "parameters", "multiply-adds", "test error %"]
    return (
        "# Models\n\nEach architecture is two networks, made by the same code: `MF...` learns the "
        "times of its blocks, its plain twin keeps them on the grid. Parameters are those of the "
        "plain twin, for 10 classes.\n\n" + markdown.table(columns, rows) + "\n"
    )


def _page(networks: list[Network]) -> str:
    architecture = networks[0].architecture
    parts = [
        f"# {architecture.name}",
        f"{architecture.title[0].upper()}{architecture.title[1:]} for {architecture.purpose}. "
        f"Source: {architecture.source}.",
        _facts(networks),
        "## Stages",
        _stages(architecture),
    ]
    for network in networks:
        parts += _network(network)
    return "\n\n".join(parts) + "\n"


def _facts(networks: list[Network]) -> str:
    architecture = networks[0].architecture
    rows, cols, channels = architecture.image_shape
    counts = [architecture.weights(mean_field=network.mean_field) for network in networks]
    return markdown.table(
        ["", *(f"`{network.name}`" for network in networks)],
        [
            ["trained parameters", *(f"{count.trained:,}" for count in counts)],
            ["other numbers, such as statistics", *(f"{count.others:,}" for count in counts)],
            [
                f"multiply-adds for {rows} x {cols} pixels",
                *[f"{architecture.multiply_adds():,}"] * len(networks),
            ],
            ["images", *[f"{rows} x {cols} x {channels}, values 0..255"] * len(networks)],
        ],
    )


def _stages(architecture: Architecture) -> str:
    shapes = architecture.stage_shapes(architecture.image_shape)
    return markdown.table(
        ["stage", "blocks with a time", "kind of block", "state"],
        [
            [f"`stage{number}`", str(count), f"`{architecture.block_name}`", _shape(shape)]
            for number, (count, shape) in enumerate(
                zip(architecture.particles, shapes, strict=True), start=1
            )
        ],
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _network(network: Network) -> list[str]:
    name = network.name
    records = weights.records(model=name)
    parts = [f"## {name} {{ #mf_zoo.applications.{name} }}", about(network.mean_field)]
    if not records:
        return [
            *parts,
            f"**There are no weights of {name} yet**, so this page has no errors. It starts from "
            "random weights, or from those of a smaller network "
            "([grow in depth](../docs/depth.md)):",
            f"```python\nimport mf_zoo\n\nmodel = mf_zoo.applications.{name}()\n```",
            "The command that trains it, with a folder `D` of data:",
            f"```\nmf-zoo train {name} --dataset cifar10 --data-dir D --recipe paper "
            f"--output runs/{name}\n```",
        ]
    parts.append(table(model=name))
    for record in records:
        parts += [
            f"[Model card of the weights `{record.name!r}`]({_card(record)}): how they were made, "
            "how to load them, and their limits. The command that checks their errors:",
            f"```\nmf-zoo evaluate {name} --weights {record.name} --dataset {record.dataset} "
            "--data-dir D\n```",
        ]
    return parts
