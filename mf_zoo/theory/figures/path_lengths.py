"""Which path lengths carry the gradient at the input of trained networks.

After Veit et al., arXiv 1605.06431, figure 6.
"""

from typing import Any

IMAGES = 60  # at most
SAMPLES = 2  # random paths of each length for each image


def draw(figure: Any, inputs: Any) -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty `matplotlib.figure.Figure`.
        inputs: The `Inputs` of the command.

    Returns:
        A row for every network and length.
    """
    from mf_zoo import theory

    figure.set_size_inches(11, 4.6)
    single, total, exact = figure.subplots(1, 3)
    rows: list[dict[str, Any]] = []
    for i, (name, model) in enumerate(inputs.networks.items()):
        found = theory.path_lengths(
            model, inputs.images[:IMAGES], inputs.labels[:IMAGES], samples=SAMPLES
        )
        first, last = found.carriers(0.9)
        colour = f"C{i}"
        single.semilogy(found.length, found.path_norm, "o-", color=colour, label=name)
        total.plot(
            found.length,
            100 * found.total / found.total.sum(),
            "o-",
            color=colour,
            label=f"{name}: 90 % in {first} to {last}",
        )
        total.plot(found.length, 100 * found.paths / found.paths.sum(), ":", color=colour)
        exact.plot(found.length, 100 * found.share, "o-", color=colour, label=name)
        for k in found.length:
            rows.append(
                {
                    "network": name,
                    "images": found.images,
                    "samples": found.samples,
                    "length": int(k),
                    "layers": "" if found.layers is None else int(found.layers[k]),
                    "paths": int(found.paths[k]),
                    "path_norm": float(f"{found.path_norm[k]:.5g}"),
                    "path_deviation": float(f"{found.path_deviation[k]:.5g}"),
                    "total": float(f"{found.total[k]:.5g}"),
                    "norm": float(f"{found.norm[k]:.5g}"),
                    "share": float(f"{found.share[k]:.5g}"),
                    "gradient_norm": float(f"{found.gradient_norm:.5g}"),
                    "carriers": f"{first}-{last}",
                }
            )
    for axes in (single, total, exact):
        axes.set_xlabel("blocks on the path")
        axes.xaxis.get_major_locator().set_params(integer=True)
    single.set_ylabel("gradient norm of one path")
    single.set_title("a single path", fontsize="medium")
    total.set_ylabel("part of the sum in %")
    total.set_title("number x norm (dotted: number)", fontsize="medium")
    exact.set_ylabel("share of the gradient in %")
    exact.set_title("all together, exact", fontsize="medium")
    single.legend(frameon=False, fontsize="small")
    # Above the curves, whatever they are.
    total.set_ylim(0, 1.3 * total.get_ylim()[1])
    total.legend(loc="upper left", frameon=False, fontsize="small")
    exact.axhline(0, color="0.7", linewidth=0.8)
    return rows
