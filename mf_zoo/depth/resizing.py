"""Models with more or fewer particles a stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo import applications
from mf_zoo.applications.assembly import assemble
from mf_zoo.applications.loading import architecture_of as architecture_of
from mf_zoo.depth.optimizer import carry_over
from mf_zoo.layers import MeanFieldStage, measures, stages
from mf_zoo.layers.copying import (
    built_stages,
    copy_flags,
    copy_model,
    copy_outside,
    variables_outside,
)
from mf_zoo.layers.measures import Resampling


def rules() -> list[str]:
    """The names of the rules by which measures are refined and coarsened.

    Returns:
        List of names that `refine` and `coarsen` take. Each is documented in
        `mf_zoo.layers.measures`.

    Example:

    >>> mf_zoo.depth.rules()
    ['split', 'constant', 'linear', 'merge', 'merge_updates']
    """
    return list(measures.RULES)


def refine(
    model: keras.Model,
    particles: str | Sequence[int],
    rule: "str | measures.Rule" = "split",
    *,
    optimizer: bool = False,
    noise: float = 0.0,
    seed: int | None = None,
) -> keras.Model:
    """The same measure with more particles: a deeper network that does nearly the same.

    The statistics of BatchNormalization come along with the weights; `recalibrate` estimates them
    anew, which brings the deeper network much nearer to the one it is made of.

    Args:
        model: A built `keras.Model` with `mf_zoo.layers.MeanFieldStage` in it, also in nested
            models, that Keras can save. It is not changed.
        particles: The number of particles of each stage, from input to output; or the name of a
            network of `mf_zoo.applications` of which `model` is a shallower one, `"MFResNet56"`,
            mean-field or plain.
        rule: `"split"` (each block becomes several that share its step), `"constant"` or
            `"linear"` (weights as functions of time, at equal steps), or a callable: see
            `mf_zoo.layers.measures`. Stages that keep their number of particles stay the same, to
            the bit.
        optimizer: Whether the new model is compiled as `model` is, with the optimizer's state:
            its step counts, and the slots of each weight mixed as the weights are.
        noise: Standard deviation of normal noise that is added to the kernels of new blocks, in
            units of a kernel's own standard deviation. Blocks of equal weights stand at different
            depths, so they part by themselves; noise has them part sooner.
        seed: Seed of the noise; `None` for a new one each time.

    Returns:
        A new model with the same names, weights outside of the stages, trainable flags and dtype
        policies. A stage whose horizon is its number of particles `n` gets its new number as its
        horizon, if that is so for all stages; then the steps stay near 1, and what is missing goes
        into the variables that blocks name in `output_scale_variables`. Other horizons stay, and
        steps get smaller. Blocks are stored in the order of depth.

    Raises:
        ValueError: If the model has no stages or cannot be copied, a number of particles does not
            fit, the named network is of another family, or a block cannot take up its step.

    Source: Chang et al., *Multi-level Residual Networks from Dynamical Systems View*, ICLR 2018,
    arXiv 1710.10348; Queiruga et al., *Stateful ODE-Nets using Basis Function Expansions*, NeurIPS
    2021, arXiv 2106.10820.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> deeper = mf_zoo.depth.refine(model, "MFResNet32")
    >>> [stage.num_particles for stage in mf_zoo.layers.stages(deeper)]
    [5, 4, 4]
    """
    return _resized(model, particles, {+1: rule}, None, optimizer=optimizer, noise=noise, seed=seed)


def coarsen(
    model: keras.Model,
    particles: str | Sequence[int],
    rule: "str | measures.Rule" = "merge",
    *,
    images: Any = None,
    optimizer: bool = False,
) -> keras.Model:
    """The same measure with fewer particles: a shallower network that does nearly the same.

    Args:
        model: As in `refine`. It is not changed.
        particles: As in `refine`, with fewer particles.
        rule: `"merge"` (neighbours with the nearest weights become their average),
            `"merge_updates"` (of neighbours that do nearly the same to `images` one takes over the
            other's step), `"constant"`, `"linear"`, or a callable: see `mf_zoo.layers.measures`.
        images: Inputs of the model for `"merge_updates"`, `(batch, ...)`; a hundred or so.
        optimizer: As in `refine`.

    Returns:
        A new model, as in `refine`.

    Raises:
        ValueError: As in `refine`; or a rule that needs images got none.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> deeper = mf_zoo.depth.refine(model, "MFResNet56")
    >>> again = mf_zoo.depth.coarsen(deeper, "MFResNet20")
    >>> one, other = (model.get_layer("stage1").blocks(), again.get_layer("stage1").blocks())
    >>> bool(np.allclose(one[0].weights[0], other[0].weights[0]))
    True
    """
    return _resized(model, particles, {-1: rule}, images, optimizer=optimizer)


def resize(
    model: keras.Model,
    particles: str | Sequence[int],
    *,
    refine: "str | measures.Rule" = "split",
    coarsen: "str | measures.Rule" = "merge",
    images: Any = None,
    optimizer: bool = False,
    noise: float = 0.0,
    seed: int | None = None,
) -> keras.Model:
    """Refines the stages that need more particles, and coarsens those that need fewer.

    Args:
        model, particles: As in `refine`.
        refine: Rule for stages that get more particles.
        coarsen: Rule for stages that get fewer.
        images, optimizer, noise, seed: As in `refine` and `coarsen`.

    Returns:
        A new model, as in `refine`.

    Raises:
        ValueError: As in `refine` and `coarsen`.

    Example:

    >>> model = mf_zoo.applications.MFResNet20()
    >>> resized = mf_zoo.depth.resize(model, (2, 2, 5))
    >>> [stage.num_particles for stage in mf_zoo.layers.stages(resized)]
    [2, 2, 5]
    """
    return _resized(
        model,
        particles,
        {+1: refine, -1: coarsen},
        images,
        optimizer=optimizer,
        noise=noise,
        seed=seed,
    )


def _resized(
    model: Any,
    particles: Any,
    rules: Mapping[int, Any],
    images: Any,
    *,
    optimizer: bool,
    noise: float = 0.0,
    seed: int | None = None,
) -> keras.Model:
    """A model with other numbers of particles; `rules` by the direction in which they change."""
    sources = built_stages(model)
    chosen = {direction: measures.get(rule) for direction, rule in rules.items()}
    if not (isinstance(noise, (int, float)) and np.isfinite(noise) and noise >= 0):
        raise ValueError(f"`noise` must be a number from 0. Received: noise={noise!r}")
    if optimizer and not getattr(model, "compiled", False):
        raise ValueError(
            "`optimizer=True` needs a model that is compiled. "
            f"Received: {model.name!r}, which is not"
        )
    named = applications.network(particles) if isinstance(particles, str) else None
    counts = _counts(model, particles, named, sources)
    for stage, count in zip(sources, counts, strict=True):
        direction = int(np.sign(count - stage.num_particles))
        if direction and direction not in chosen:
            word, function = ("more", "coarsen") if direction > 0 else ("fewer", "refine")
            raise ValueError(
                f"Stage {stage.name!r} would get {word} particles, which `{function}` does not "
                f"do: use `resize`. Received: {count} particles instead of {stage.num_particles}"
            )
    updates = [None] * len(sources)
    if images is not None:
        updates = _updates(model, sources, images)
    resized = copy_model(model, _arguments(sources, counts, named))
    if named is not None:
        resized.name = named.name.lower()
    copy_outside(model, resized)
    generator = np.random.default_rng(seed)
    found: list[Resampling] = []
    for source, target, done in zip(sources, stages(resized), updates, strict=True):
        direction = int(np.sign(target.num_particles - source.num_particles))
        found.append(measures.transfer(source, target, chosen.get(direction), done))
        if noise and direction:
            _add_noise(target, noise, generator)
    copy_flags(model, resized)
    if optimizer:
        carry_over(model, resized, found)
    return resized


def _counts(
    model: keras.Model,
    particles: Any,
    named: "applications.Network | None",
    sources: Sequence[MeanFieldStage],
) -> tuple[int, ...]:
    """The number of particles of each stage."""
    if named is not None:
        _check_family(model, named, sources)
        return named.architecture.particles
    counts = tuple(particles) if isinstance(particles, (list, tuple)) else ()
    if len(counts) != len(sources) or not all(
        isinstance(count, (int, np.integer)) and not isinstance(count, bool) and count > 0
        for count in counts
    ):
        now = tuple(stage.num_particles for stage in sources)
        raise ValueError(
            f"`particles` must be {len(sources)} positive integers, one a stage, which now are "
            f"{now}, or the name of a network. Received: particles={particles!r}"
        )
    return tuple(map(int, counts))


def _check_family(
    model: keras.Model, named: "applications.Network", sources: Sequence[MeanFieldStage]
) -> None:
    """Raises ValueError unless a model is, but for its depth, the network of a name."""
    architecture = named.architecture
    expected = (len(architecture.filters), architecture.block_name)
    blocks = {type(stage.template()).__name__ for stage in sources}
    received = (len(sources), " and ".join(sorted(blocks)))
    if expected == received:
        own = _shapes(sources, variables_outside(model))
        has_shortcut = any(name.startswith("head") and "shortcut" in name for name in own)
        channels = architecture.image_shape[-1]
        first = keras.config.image_data_format() == "channels_first"
        # The smallest network of the family has the shapes of all weights but the classifier's.
        smallest = architecture.with_particles((1,) * len(sources))
        if not has_shortcut:
            smallest = dataclasses.replace(smallest, shortcut="identity")
        network = assemble(
            smallest,
            name="smallest",
            input_shape=(channels, None, None) if first else (None, None, channels),
        )
        if own == _shapes(stages(network), variables_outside(network)):
            return
    raise ValueError(
        f"`particles` must name a network of the family of the model, but for depth the same: "
        f"{named.name} has {expected[0]} stages of {expected[1]}, with {architecture.filters} "
        f"filters. Received: {model.name!r} with {received[0]} stages of {received[1]}, or with "
        "other weights"
    )


def _shapes(found: Sequence[MeanFieldStage], outside: Sequence[Any]) -> dict[str, Any]:
    """Shapes of weights by their names, but for those of the top and of the images' statistics."""
    ours = [v for v in outside if v.path.split("/")[-2] not in ("predictions", "normalization")]
    shapes = {"/".join(v.path.split("/")[-2:]): tuple(v.shape) for v in ours}
    # That of the first convolution depends on the number of channels of images.
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith("stem_conv/")}
    for number, stage in enumerate(found):
        variables = stage.template().variables
        shapes |= {f"{number}.{k}": tuple(v.shape) for k, v in enumerate(variables)}
    return shapes


def _arguments(
    sources: Sequence[MeanFieldStage],
    counts: Sequence[int],
    named: "applications.Network | None",
) -> Any:
    """What changes in the configurations of stages, as `copy_model` wants to know it."""
    follows = all(stage.horizon == stage.num_particles for stage in sources)
    by_name: dict[str, dict[str, Any]] = {}
    for stage, count in zip(sources, counts, strict=True):
        arguments: dict[str, Any] = {"num_particles": count}
        if count != stage.num_particles:
            arguments["initial_times"] = "grid"
        if follows:
            arguments["horizon"] = float(count)
        if named is not None and not named.mean_field:
            plain = {"quadrature": "backward", "horizon": float(count), "initial_times": "grid"}
            arguments |= {**plain, "train_times": False, "reorder": True}
        elif named is not None:
            arguments["train_times"] = True
        if by_name.setdefault(stage.name, arguments) != arguments:
            raise ValueError(
                "Stages that get different numbers of particles must have different names. "
                f"Received: {stage.name!r} twice"
            )
    return lambda config: by_name[config["name"]]


def _add_noise(stage: MeanFieldStage, noise: float, generator: np.random.Generator) -> None:
    """Adds noise to the kernels of all blocks."""
    blocks = [block.weights for block in stage.blocks()]
    for weights in blocks:
        for k, weight in enumerate(weights):
            if weight.ndim > 1 and weight.dtype.kind not in "iub":
                deviation = noise * np.std(weight.astype("float64"))
                added = weight + deviation * generator.standard_normal(weight.shape)
                weights[k] = added.astype(weight.dtype)
    stage.set_blocks(blocks)


def _updates(
    model: keras.Model, sources: Sequence[MeanFieldStage], images: Any
) -> list[np.ndarray]:
    """What the residual functions of each stage do to images, in the order of depth."""
    inputs: dict[int, Any] = {}

    def recorder(stage: MeanFieldStage) -> Any:
        call = stage.call

        def record(x: Any, training: bool | None = None) -> Any:
            inputs[id(stage)] = ops.convert_to_numpy(x)
            return call(x, training=training)

        return record

    recorded = [(stage, recorder(stage)) for stage in sources]
    try:
        for stage, record in recorded:
            stage.call = record
        # Directly, not by `predict`: a compiled function would have no values to record.
        model(ops.convert_to_tensor(images), training=False)
    finally:
        for stage, _ in recorded:
            stage.__dict__.pop("call", None)
    return [_updates_of(stage, inputs[id(stage)]) for stage in sources]


def _updates_of(stage: MeanFieldStage, x: np.ndarray) -> np.ndarray:
    """The residual functions of a stage at the states where its blocks stand."""
    template, found = stage.template(), []
    arguments = {"training": False} if stage._template.takes_training else {}
    states = stage.states(ops.convert_to_tensor(x))
    for block, state in zip(stage.blocks(), states[:-1], strict=True):
        values = map(ops.convert_to_tensor, block.weights)
        with keras.StatelessScope(list(zip(template.variables, values, strict=True))):
            update = template(state, **arguments)
        found.append(ops.convert_to_numpy(ops.cast(update, "float32")))
    return np.stack(found)
