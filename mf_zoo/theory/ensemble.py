"""The shallow ensemble that a deep stage resembles: all its blocks at the stage's input."""

from typing import Any

import keras
from keras import ops

from mf_zoo.layers import MeanFieldStage, integrators, stages
from mf_zoo.layers.copying import copy_flags


@keras.saving.register_keras_serializable(package="mf_zoo")
class ShallowStage(MeanFieldStage):
    """The two-layer network of the particles of a stage: no block sees another's output.

        `Y = activation(X + sum_l dt_l f(X, theta_l))`

    This is what a `MeanFieldStage` computes up to terms of second order in its horizon: the state
    is expanded around the input, and of the products of residual functions only the first order is
    kept. It is a mean-field stage in all other respects: it has the same weights and times, trains
    by `fit`, is found by `mf_zoo.layers.stages` and can be recalibrated. To make one that holds the
    particles of a given stage use `shallow_twin`.

    Args:
        *args, **kwargs: Those of `mf_zoo.layers.MeanFieldStage`. The integrator must be `"euler"`:
            there are no states between the blocks that another could use.

    Raises:
        ValueError: As by `MeanFieldStage`, and for another integrator.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508, where a deep residual network is expanded into an ensemble of shallow ones;
    the view is that of Veit, Wilber, Belongie, *Residual Networks Behave Like Ensembles of
    Relatively Shallow Networks*, NIPS 2016, arXiv 1605.06431.

    Example:

    >>> stage = mf_zoo.theory.ShallowStage(mf_zoo.layers.BasicBlock(4), 3)
    >>> keras.ops.shape(stage(keras.ops.ones((1, 8, 8, 4))))
    (1, 8, 8, 4)
    """

    _shared: list[Any] | None = None  # variables of another stage, while it is built

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.integrator, integrators.EulerIntegrator):
            raise ValueError(
                '`integrator` must be "euler" in a stage whose blocks all see its input. '
                f"Received: integrator={self.integrator!r}"
            )

    def share(self, stage: MeanFieldStage) -> None:
        """Builds the stage with the variables of another one, of the same blocks.

        Args:
            stage: A stage that has been built.
        """
        self._shared = [stage.times, *stage._stacked]
        try:
            self.build(stage.get_build_config()["input_shape"])
        finally:
            self._shared = None

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        if not self._shared:
            return super().add_weight(*args, **kwargs)
        variable = self._shared.pop(0)  # in the order in which a stage makes its weights
        self._track_variable(variable)
        return variable

    def _block_step(
        self, x: Any, values: Any, step: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        """What a block adds, in the place of the state after it."""
        update, states, added = self._updater(values, step, arguments)
        return update(x), states, [loss for part in added for loss in part]

    def _unrolled(
        self, x: Any, values: list[Any], steps: Any, arguments: dict[str, Any], all_states: bool
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        n = self.num_particles
        parts = list(zip(*(ops.unstack(value, n) for value in values), strict=True)) or [()] * n
        sums, losses, changes = [x], [], []
        for part, step in zip(parts, ops.unstack(steps, n), strict=True):
            update, state, added = self._step(x, part, step, arguments)
            sums.append(sums[-1] + update)
            changes.append(state)
            losses += added
        states = {k: ops.stack([state[k] for state in changes]) for k in changes[0]}
        if all_states:  # the sums over the first blocks
            return [x, *(self.activation(total) for total in sums[1:])], states, losses
        return self.activation(sums[-1]), states, losses

    _scanned = _unrolled  # no block waits for another: there is nothing to scan


def shallow_twin(
    source: MeanFieldStage | keras.Model, share: bool = True
) -> ShallowStage | keras.Model:
    """The shallow ensemble with the particles of a stage, or of all stages of a model.

    With `share` the twin has the very variables of its source: what trains one trains the other,
    the statistics of BatchNormalization included. Inference leaves them as they are, and in
    inference mode a BatchNormalization is a fixed map, so that both networks are made of the same
    residual functions: this is the comparison that the theory makes, and `gradient_gap` does.

    The statistics of a deep network do not fit the shallow one, whose later blocks see other
    states, though. To judge the twin as a classifier, or to train it beside its source, take a copy
    (`share=False`) and give it statistics of its own by `mf_zoo.depth.recalibrate` (or by training:
    in training mode each batch is normalised by itself).

    Args:
        source: A `MeanFieldStage` that has been built, or a functional or sequential model with
            stages among its layers. It is not changed.
        share: Whether the twin has the variables of the source, not copies of them. Layers outside
            of stages are then shared too.

    Returns:
        A `ShallowStage`, or a model, not compiled, in which `ShallowStage`s take the place of the
        stages. Once saved and loaded a twin has variables of its own.

    Raises:
        ValueError: For a stage that has not been built, or a model whose stages cannot be replaced:
            a subclassed one, one without stages, one with stages inside of other layers.

    Source: as of `ShallowStage`.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> twin = mf_zoo.theory.shallow_twin(model)
    >>> images = mf_zoo.data.sample("cifar10")[0][:8].astype("float32")
    >>> keras.ops.shape(twin(images))
    (8, 10)
    >>> twin.get_layer("stage1").times is model.get_layer("stage1").times
    True
    """
    if isinstance(source, MeanFieldStage):
        return _twin_of_stage(source, share)
    found = stages(source) if isinstance(source, keras.Model) else []
    if not found or not all(stage.built for stage in found):
        raise ValueError(
            "`source` must be a built MeanFieldStage or a model with stages. "
            f"Received: source={source!r}"
        )
    direct = [layer for layer in source.layers if isinstance(layer, MeanFieldStage)]
    graph = isinstance(source, keras.Sequential) or hasattr(source, "_nodes_by_depth")
    if not graph or len(direct) != len(found):
        raise ValueError(
            "`source` must be a functional or sequential model with its stages among its layers. "
            f"Received: {source.name!r} of type {type(source).__name__}, with {len(direct)} of "
            f"{len(found)} stages among its layers"
        )

    def replace(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, MeanFieldStage):
            return _twin_of_stage(layer, share)
        return layer if share else type(layer).from_config(layer.get_config())

    twin = keras.models.clone_model(source, clone_function=replace)
    if not share:
        _copy_values(source, twin)
        copy_flags(source, twin)
    return twin


def _twin_of_stage(stage: MeanFieldStage, share: bool) -> ShallowStage:
    if not stage.built:
        raise ValueError(
            "`source` must be a stage that has been built: its particles are to be shared. "
            f"Received: {stage.name!r}, which has not been built"
        )
    config = {**stage.get_config(), "integrator": "euler"}
    twin = ShallowStage.from_config(config)
    if share:
        twin.share(stage)
    else:
        twin.build(stage.get_build_config()["input_shape"])
        _copy_values(stage, twin)
    return twin


def _copy_values(source: keras.layers.Layer, twin: keras.layers.Layer) -> None:
    for old, new in zip(source.variables, twin.variables, strict=True):
        new.assign(ops.convert_to_numpy(old))
