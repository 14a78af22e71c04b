"""Twins: the same network with learned times, or with ordinary residual blocks."""

from typing import Any

import keras

from mf_zoo.layers import BackwardRule, MeanFieldStage, stages
from mf_zoo.layers.copying import built_stages, copy_flags, copy_model, copy_outside


def to_mean_field(
    model: keras.Model, quadrature: Any = "backward", horizon: float | None = None
) -> keras.Model:
    """The mean-field twin of a model: a copy that computes the same and whose times are learned.

    Each stage gets new times, on the grid of the quadrature rule. With the default horizon every
    step is 1 there. Another horizon `T` makes the steps `T/n`; each block is then scaled by `n/T`,
    in the variables that it names in `output_scale_variables`, so that the function of the model
    stays. (Built anew with that horizon it would start with smaller steps instead.) Blocks are
    stored in depth order. A model whose times are learned already starts afresh on the grid.

    Args:
        model: A built `keras.Model` with `mf_zoo.layers.MeanFieldStage` in it, also in nested
            models, that Keras can save: functional, Sequential, or a subclass with `get_config`.
            It is not changed.
        quadrature: Quadrature rule of every stage: see `MeanFieldStage`.
        horizon: Horizon `T` of every stage; `None` for its number of particles `n`.

    Returns:
        A new model, not compiled, with the same names, weights, trainable flags and dtype policies.

    Raises:
        ValueError: The model has no stage or cannot be copied, or steps change in a stage whose
            residual function does not name variables that scale its output.

    Example:

    >>> plain = mf_zoo.applications.ResNet20(weights="cifar10")
    >>> model = mf_zoo.convert.to_mean_field(plain, quadrature="midpoint")
    >>> model.compile(mf_zoo.optimizers.MeanFieldSGD(0.01), "sparse_categorical_crossentropy")
    """
    # Checks both arguments as any stage would.
    stage = MeanFieldStage(keras.layers.Identity(), 1, quadrature=quadrature, horizon=horizon)
    return _twin(model, quadrature=stage.quadrature, horizon=horizon, train_times=True)


def to_plain(model: keras.Model) -> keras.Model:
    """The plain twin of a model: a copy that computes the same, with ordinary residual blocks.

    Blocks are stored in depth order, step sizes become part of the variables that blocks name in
    `output_scale_variables`, and times are fixed on the grid, where every step is 1. What became
    of the times is lost: `to_mean_field` starts them on the grid.

    Args:
        model: As in `to_mean_field`.

    Returns:
        A new model, not compiled, with the same names, weights, trainable flags and dtype policies;
        that of a network `MF...` of `mf_zoo.applications` is the network without `MF`, and its
        weight files load there. (Stages keep their integrator; builders of plain networks know
        Euler's method only.)

    Raises:
        ValueError: As in `to_mean_field`.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> mf_zoo.convert.to_plain(model).save_weights("plain.weights.h5")
    >>> plain = mf_zoo.applications.ResNet20(weights="plain.weights.h5")
    """
    return _twin(model, quadrature=BackwardRule(), horizon=None, train_times=False, reorder=True)


def _twin(model: Any, horizon: float | None, **arguments: Any) -> keras.Model:
    """A copy of a model that computes the same, with other arguments of its stages."""
    sources = built_stages(model)
    arguments = {"horizon": horizon, "initial_times": "grid", **arguments}
    twin = copy_model(model, lambda config: arguments)
    copy_outside(model, twin)
    for source, target in zip(sources, stages(twin), strict=True):
        blocks = source.blocks()
        target.set_blocks([block.weights for block in blocks], [block.step for block in blocks])
    copy_flags(model, twin)
    return twin
