"""Gradients of a deep residual network beside those of its shallow ensemble."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage
from mf_zoo.theory import autodiff, segments
from mf_zoo.theory.ensemble import shallow_twin


@dataclasses.dataclass(frozen=True, eq=False)
class StageGap:
    """The gradients of one stage and of its shallow twin. Arrays are in depth order.

    Args:
        stage: Name of the stage.
        particles: `(n,)`, the index in storage of the particle at each depth.
        resnet: `(n,)`, norm of the gradient of each particle's weights in the ResNet.
        ensemble: `(n,)`, the same in the shallow ensemble.
        cosine: `(n,)`, cosine of the angle between the two gradients of a particle.
        resnet_times: `(n,)`, derivative by each particle's time in the ResNet.
        ensemble_times: `(n,)`, the same in the shallow ensemble.
    """

    stage: str
    particles: np.ndarray
    resnet: np.ndarray
    ensemble: np.ndarray
    cosine: np.ndarray
    resnet_times: np.ndarray
    ensemble_times: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """`(n,)`, the ratio of the norms for each particle; NaN where the ensemble's is 0."""
        return _ratio(self.resnet, self.ensemble)

    @property
    def ratio(self) -> float:
        """The ratio of the norms over all weights of the stage's particles."""
        return float(_ratio(np.linalg.norm(self.resnet), np.linalg.norm(self.ensemble)))

    @property
    def times_ratio(self) -> float:
        """The ratio of the norms of the gradients by all times of the stage."""
        norms = np.linalg.norm(self.resnet_times), np.linalg.norm(self.ensemble_times)
        return float(_ratio(*norms))


@dataclasses.dataclass(frozen=True, eq=False)
class GradientGap:
    """What `gradient_gap` measures.

    Args:
        loss: Mean loss of the ResNet.
        ensemble_loss: Mean loss of the model in which every stage is replaced by its shallow twin.
        stages: A `StageGap` for each stage, from input to output.
    """

    loss: float
    ensemble_loss: float
    stages: list[StageGap]

    @property
    def ratio(self) -> float:
        """The ratio of the norms over all weights of all particles."""
        norms = [
            np.linalg.norm(np.concatenate([getattr(stage, kind) for stage in self.stages]))
            for kind in ("resnet", "ensemble")
        ]
        return float(_ratio(*norms))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each particle, for a table.

        Returns:
            List of dictionaries, one for each particle of each stage, in depth order.
        """
        return [
            {
                "stage": stage.stage,
                "depth": depth,
                "particle": int(stage.particles[depth]),
                "resnet": float(stage.resnet[depth]),
                "ensemble": float(stage.ensemble[depth]),
                "ratio": float(stage.ratios[depth]),
                "cosine": float(stage.cosine[depth]),
                "resnet_time": float(stage.resnet_times[depth]),
                "ensemble_time": float(stage.ensemble_times[depth]),
            }
            for stage in self.stages
            for depth in range(len(stage.particles))
        ]


def gradient_gap(
    model: keras.Model,
    x: Any,
    y: Any = None,
    loss: Any = "sparse_categorical_crossentropy",
    batch_size: int = 128,
    training: bool = False,
) -> GradientGap:
    """How the gradients of a ResNet compare with those of the shallow ensemble of its particles.

    Each stage is compared with its shallow twin, `X(0) + sum_l dt_l f(X(0), theta_l)`, in its place
    in the network: both get the same input `X(0)` and, at their output, the same cotangent `p(T)`,
    the gradient of the ResNet's loss. Compared are the gradients of `<p(T), output>` by the weights
    and the time of each particle,

        ResNet:   `dt_l E[df(X^(l-1), theta_l)/dtheta p^l]`, which is that of its loss;
        ensemble: `dt_l E[df(X(0), theta_l)/dtheta p(T)]`.

    The same cotangent is what makes the two losses comparable: for the quadratic loss of the paper
    `p(T)` is the residual times the output weights, and its norm the root of twice the loss. Two
    networks of the same residual have the same loss and the same `p(T)`; what then differs is where
    the residual functions are evaluated (`X^(l-1)` or `X(0)`) and which cotangent they see (`p^l`
    or `p(T)`). On this rests the paper's argument that gradients of the ResNet cannot vanish before
    those of a two-layer network do: `|p(t)|` is bounded below by `exp(-L (T - t)) |p(T)|`, see
    `mf_zoo.theory.costate_bounds`.

    Nothing in the model changes.

    Args:
        model: A functional or sequential model whose stages lie one after another, see
            `mf_zoo.theory.cut`.
        x: Inputs, `(samples, ...)`, or batches of `(inputs, targets)`: a `keras.utils.PyDataset`, a
            `tf.data.Dataset`, a `DataLoader` or a generator that ends.
        y: Targets of an array `x`.
        loss: As in `compile`: a name, a `keras.losses.Loss` or a function of targets and outputs.
            The name `"sparse_categorical_crossentropy"` takes the outputs as probabilities, as
            `compile` does: give a model of logits
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`.
        batch_size: Samples in a batch of an array.
        training: Whether blocks run in training mode. In inference mode, the default,
            BatchNormalization is a fixed map and both networks are made of the same residual
            functions. In training mode each normalises by the batches that it sees. (The rest of
            the network runs in inference mode.)

    Returns:
        A `GradientGap`.

    Raises:
        ValueError: For a model that cannot be cut at its stages, a stage without trainable weights,
            or data without samples.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508: the comparison of a deep residual network with a two-layer network of the same
    particles, at the same level of the loss, by the adjoint equation.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> gap = mf_zoo.theory.gradient_gap(model, images[:8], labels[:8])
    >>> [(stage.stage, len(stage.ratios)) for stage in gap.stages]
    [('stage1', 3), ('stage2', 2), ('stage3', 2)]
    >>> bool(gap.ensemble_loss > gap.loss)
    True
    """
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    parts = segments.cut(model)
    twins = [shallow_twin(stage) for stage in parts.stages]
    variables = [_compared(stage) for stage in parts.stages]
    loss_of = _loss(loss)
    last = parts.pieces[-1]
    totals: list[list[list[np.ndarray]]] = [[[], []] for _ in parts.stages]
    losses, count = np.zeros(2), 0
    for inputs, targets in _batches(x, y, batch_size):
        size = len(inputs)
        inputs = ops.convert_to_tensor(inputs, dtype=model.inputs[0].dtype)
        targets = ops.convert_to_tensor(targets)
        # Forward: inputs and outputs of the stages, and the output of the ensemble's model.
        starts, ends, shallow = [], [inputs], inputs
        for piece, stage, twin in zip(parts.pieces, parts.stages, twins, strict=False):
            starts.append(ops.stop_gradient(piece(ends[-1])))
            ends.append(_run(stage, starts[-1], training))
            shallow = _run(twin, piece(shallow), training)
        value, (cotangent,) = autodiff.vjp(
            lambda z, targets=targets: loss_of(targets, last(z)), [ends[-1]]
        )
        losses += size * np.array(
            [float(ops.stop_gradient(loss)) for loss in (value, loss_of(targets, last(shallow)))]
        )
        # Backward: the cotangent of each stage's output.
        for k in reversed(range(len(parts.stages))):
            pair = [
                _vjp(stage, starts[k], variables[k], cotangent, training)
                for stage in (parts.stages[k], twins[k])
            ]
            for total, (_, found) in zip(totals[k], pair, strict=True):
                new = [size * _numpy(gradient) for gradient in found]
                total[:] = [a + b for a, b in zip(total, new, strict=True)] if total else new
            if k:
                _, (cotangent,) = autodiff.vjp(parts.pieces[k], [ends[k]], pair[0][0])
        count += size
    if not count:
        raise ValueError("`x` must hold at least one sample. Received: none")
    return GradientGap(
        float(losses[0] / count),
        float(losses[1] / count),
        [
            _stage_gap(stage, *([value / count for value in total] for total in pair))
            for stage, pair in zip(parts.stages, totals, strict=True)
        ],
    )


def _batches(x: Any, y: Any, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of each batch."""
    if hasattr(x, "shape"):
        if y is None or len(y) != len(x):
            raise ValueError(
                "`y` must hold a target for each sample of an array `x`. "
                f"Received: {len(x)} samples, {'no' if y is None else len(y)} targets"
            )
        for start in range(0, len(x), batch_size):
            yield np.asarray(x[start : start + batch_size]), np.asarray(y[start:][:batch_size])
        return
    if y is not None:
        raise ValueError(
            "`y` must be None where `x` is batches of inputs and targets. "
            f"Received: x of type {type(x).__name__} and y"
        )
    if isinstance(x, keras.utils.PyDataset):
        dataset = x
        x = (dataset[index] for index in range(len(dataset)))
    for inputs, targets in x:
        yield ops.convert_to_numpy(inputs), ops.convert_to_numpy(targets)


def _loss(loss: Any) -> Callable[[Any, Any], Any]:
    """The mean loss of a batch as a function of targets and outputs."""
    loss = keras.losses.get(loss)
    if getattr(loss, "reduction", "mean") not in ("mean", "sum_over_batch_size"):
        raise ValueError(
            "`loss` must be a mean over the samples, for batches to be averaged. "
            f"Received: reduction={loss.reduction!r}"
        )
    return lambda targets, outputs: ops.mean(loss(targets, outputs))


def _compared(stage: MeanFieldStage) -> list[Any]:
    """The times of a stage and those of its weights that are trained."""
    weights = [weight for weight in stage._stacked if weight.trainable]
    if not weights:
        raise ValueError(
            "Every stage must have weights that are not frozen, by which to derive. "
            f"Received: stage {stage.name!r} without any"
        )
    return [stage.times, *weights]


def _run(stage: MeanFieldStage, inputs: Any, training: bool) -> Any:
    """The output of a stage, whose statistics stay."""
    with keras.StatelessScope(stage._current()):
        return ops.stop_gradient(stage(inputs, training=training))


def _vjp(
    stage: MeanFieldStage, start: Any, variables: Sequence[Any], cotangent: Any, training: bool
) -> tuple[Any, list[Any]]:
    """The products of a cotangent with the derivatives of a stage by its input and variables."""

    def output(inputs: Any, *values: Any) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return stage(inputs, training=training)

    values = [variable.value for variable in variables]
    _, (before, *found) = autodiff.vjp(output, [start, *values], cotangent)
    return before, found


def _numpy(tensor: Any) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32")).astype("float64")


def _stage_gap(
    stage: MeanFieldStage, resnet: list[np.ndarray], ensemble: list[np.ndarray]
) -> StageGap:
    order = ops.convert_to_numpy(stage.depth_order())
    n = stage.num_particles
    weights = [
        np.concatenate([part.reshape(n, -1) for part in gradients[1:]], axis=1)[order]
        for gradients in (resnet, ensemble)
    ]
    norms = [np.linalg.norm(part, axis=1) for part in weights]
    return StageGap(
        stage=stage.name,
        particles=order,
        resnet=norms[0],
        ensemble=norms[1],
        cosine=_ratio(np.sum(weights[0] * weights[1], axis=1), norms[0] * norms[1]),
        resnet_times=resnet[0][order],
        ensemble_times=ensemble[0][order],
    )


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    numerator, denominator = np.asarray(numerator, "float64"), np.asarray(denominator, "float64")
    nothing = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
