"""Lesions: what a trained network does without some of its blocks."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from mf_zoo.layers import stages
from mf_zoo.theory.interventions import Evaluator, Schedule, schedules, whole_numbers


@dataclasses.dataclass(frozen=True)
class Removed:
    """A block that a lesion removed.

    Args:
        stage: Name of its stage.
        particle: Its place in storage.
        position: Its depth in the stage, from 0.
        time: Its time.
        step: The step that it had.
    """

    stage: str
    particle: int
    position: int
    time: float
    step: float


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A network without some blocks.

    Args:
        blocks: The blocks that were removed, from input to output.
        error: Top-1 error in % without them.
        loss: Mean loss without them.
        intact_error: Top-1 error in % of the whole network.
        intact_loss: Its mean loss.
    """

    blocks: tuple[Removed, ...]
    error: float
    loss: float
    intact_error: float
    intact_loss: float


def lesion(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    count: int | Sequence[int] | None = None,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 200,
    loss: Any = "sparse_categorical_crossentropy",
    recalibrate_on: Any = None,
) -> list[Lesion]:
    """Error and loss of a trained network without single blocks, or without several at once.

    A missing block has the step 0: `X^l = activation(X^(l-1))`. Nothing takes its place: the steps
    of the others stay what they are. (To take its time out of the stage would be another
    intervention: with the rule `"backward"` the next block would take over its step.) The blocks at
    the heads of stages, which change the shape, are no particles and are never removed.

    Nothing is trained, and the model is as before afterwards. It is compiled once for all lesions.

    Args:
        model: A built classifier with stages: mean-field or plain, of the zoo or your own.
        x: Images as the model takes them, an array; or batches of `(x, y)`: a `PyDataset`, a
            `tf.data.Dataset`, a `DataLoader`, a generator that ends. These are read once and kept.
        y: Integer labels `(count,)`; `None` with batches.
        count: How many blocks to remove at once. `None` removes every block alone, one after
            another. A number removes sets of that many blocks, drawn at random from all stages
            alike; several numbers do so for each.
        samples: Number of sets drawn for each number of blocks, with repetition. (A set that comes
            again is not measured again.)
        seed: Seed of the sets. They depend on it, the number of blocks and the stages' sizes alone.
        batch_size: Images in a batch of an array; changes memory and speed only.
        loss: A loss of integer labels and outputs, as in `compile`. The default takes outputs as
            probabilities; for a model that ends in logits give
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. The error does not
            depend on it.
        recalibrate_on: Training images, augmented as in training, on which the statistics of
            BatchNormalization are estimated anew for every lesion (and for the whole network), as
            `mf_zoo.depth.recalibrate` takes them; a generator is read once and kept. `None` leaves
            them. The difference tells how much of the harm comes from means and variances that no
            longer fit.

    Returns:
        List of `Lesion`: in the order of stages and depth, or by number of blocks and draw.

    Raises:
        ValueError: For a model that is not built or has no stages, labels that are no classes of
            it, or a number of blocks that it does not have.

    Source: Veit, Wilber, Belongie, *Residual Networks Behave Like Ensembles of Relatively Shallow
    Networks*, NIPS 2016, arXiv 1605.06431, sections 4.1 (single blocks) and 4.2 (several).

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> found = mf_zoo.theory.lesion(model, images[:20], labels[:20])
    >>> [(one.blocks[0].stage, one.blocks[0].position) for one in found][:4]
    [('stage1', 0), ('stage1', 1), ('stage1', 2), ('stage2', 0)]
    >>> found[0].error >= found[0].intact_error
    True
    """
    whole = schedules(model)
    places = [(k, position) for k, one in enumerate(whole) for position in range(len(one.order))]
    chosen = list(_sets(places, count, samples, seed))
    evaluate = Evaluator(model, x, y, batch_size, loss, recalibrate_on)
    intact = evaluate(whole)
    measured = {(): intact}
    times = [np.asarray(keras.ops.convert_to_numpy(stage.times)) for stage in stages(model)]
    names = [stage.name for stage in stages(model)]
    result = []
    for removed in chosen:
        if removed not in measured:
            measured[removed] = evaluate(_without(whole, removed))
        blocks = tuple(
            Removed(
                stage=names[k],
                particle=int(whole[k].order[position]),
                position=position,
                time=float(times[k][whole[k].order[position]]),
                step=float(whole[k].steps[position]),
            )
            for k, position in removed
        )
        result.append(Lesion(blocks, *measured[removed], *intact))
    return result


def _without(whole: Sequence[Schedule], removed: Sequence[tuple[int, int]]) -> list[Schedule]:
    rest = list(whole)
    for k, position in removed:
        rest[k] = rest[k].without(position)
    return rest


def _sets(
    places: Sequence[tuple[int, int]], count: int | Sequence[int] | None, samples: int, seed: int
) -> Iterator[tuple[tuple[int, int], ...]]:
    """The sets of blocks to remove."""
    if count is None:
        yield from ((place,) for place in places)
        return
    (samples,) = whole_numbers(samples, "samples", 1)
    for k in whole_numbers(count, "count", 0, len(places)):
        generator = np.random.default_rng([seed, k])
        for _ in range(samples):
            drawn = generator.choice(len(places), size=k, replace=False)
            yield tuple(places[i] for i in sorted(drawn))
