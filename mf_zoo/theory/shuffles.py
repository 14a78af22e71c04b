"""Shuffles: what a trained network does with its blocks in another order."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import keras

from mf_zoo.layers import stages
from mf_zoo.layers.orders import largest_distance, order_swaps, sample_at_distance
from mf_zoo.theory.interventions import Evaluator, schedules, whole_numbers


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """A network with its blocks in another order.

    Args:
        distance: Kendall's tau distance from the trained order, summed over the stages: the least
            number of swaps of neighbours that leads from one to the other.
        orders: For each stage the depth order: the particles' places in storage, first to last.
        error: Top-1 error in %.
        loss: Mean loss.
        intact_error: Top-1 error in % in the trained order.
        intact_loss: The mean loss then.
    """

    distance: int
    orders: tuple[tuple[int, ...], ...]
    error: float
    loss: float
    intact_error: float
    intact_loss: float


def shuffle(
    model: keras.Model,
    x: Any,
    y: Any = None,
    k: int | Sequence[int] | None = None,
    *,
    samples: int = 10,
    seed: int = 0,
    stage: str | None = None,
    batch_size: int = 200,
    loss: Any = "sparse_categorical_crossentropy",
    recalibrate_on: Any = None,
) -> list[Shuffle]:
    """Error and loss of a trained network in random depth orders at a given distance.

    The distance counts swaps of neighbours (Kendall's tau distance) from the order that the times
    give, summed over the stages: blocks change places within their stage. All orders at a distance
    have the same probability. A block takes its step along.

    Nothing is trained, and the model is as before afterwards. It is compiled once for all orders.

    Args:
        model: A built classifier with stages: mean-field or plain, of the zoo or your own. Stages
            with `reorder=False` are shuffled too.
        x: Images as the model takes them, an array; or batches of `(x, y)`: a `PyDataset`, a
            `tf.data.Dataset`, a `DataLoader`, a generator that ends. These are read once and kept.
        y: Integer labels `(count,)`; `None` with batches.
        k: The distance, or several; `None` for all, from 0 to that of the reversed order. A stage
            of `n` particles has distances up to `n (n - 1) / 2`.
        samples: Number of orders drawn for each distance, with repetition. (An order that comes
            again is not measured again.)
        seed: Seed of the orders. They depend on it, the distance and the stages' sizes alone.
        stage: Name of a stage; then the others keep their order. `None` shuffles all.
        batch_size: Images in a batch of an array; changes memory and speed only.
        loss: A loss of integer labels and outputs, as in `compile`. The default takes outputs as
            probabilities; for a model that ends in logits give
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. The error does not
            depend on it.
        recalibrate_on: Training images, augmented as in training, on which the statistics of
            BatchNormalization are estimated anew for every order (the trained one too), as
            `mf_zoo.depth.recalibrate` takes them; a generator is read once and kept. `None` leaves
            them.

    Returns:
        List of `Shuffle`, by distance and draw.

    Raises:
        ValueError: For a model that is not built or has no stages, labels that are no classes of
            it, a distance that no order has, or a stage that it does not have.

    Source: Veit, Wilber, Belongie, *Residual Networks Behave Like Ensembles of Relatively Shallow
    Networks*, NIPS 2016, arXiv 1605.06431, section 4.3. (They swap random pairs of blocks and
    report Kendall's tau of what comes out; here the distance is given and the draw is uniform.)

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> found = mf_zoo.theory.shuffle(model, images[:20], labels[:20], k=5, samples=1)
    >>> found[0].orders  # the stages have 3, 2 and 2 particles: every order is reversed
    ((2, 1, 0), (1, 0), (1, 0))
    """
    whole = schedules(model)
    names = [one.name for one in stages(model)]
    if stage is not None and stage not in names:
        raise ValueError(
            f"`stage` must be None or one of the model's stages, {names}. Received: stage={stage!r}"
        )
    moved = [i for i, name in enumerate(names) if stage in (None, name)]
    sizes = [len(whole[i].order) for i in moved]
    largest = largest_distance(sizes)
    distances = whole_numbers(range(largest + 1) if k is None else k, "k", 0, largest)
    (samples,) = whole_numbers(samples, "samples", 1)
    evaluate = Evaluator(model, x, y, batch_size, loss, recalibrate_on)
    trained = tuple(tuple(one.order.tolist()) for one in whole)
    intact = evaluate(whole)
    measured = {trained: intact}
    result = []
    for distance in distances:
        generator = random.Random(f"{seed} {distance}")
        for _ in range(samples):
            chosen = list(whole)
            for i, permutation in zip(
                moved, sample_at_distance(sizes, distance, generator), strict=True
            ):
                chosen[i] = whole[i].permuted(permutation)
            orders = tuple(tuple(one.order.tolist()) for one in chosen)
            if orders not in measured:
                measured[orders] = evaluate(chosen)
            swaps = sum(map(order_swaps, trained, orders))
            result.append(Shuffle(swaps, orders, *measured[orders], *intact))
    return result
