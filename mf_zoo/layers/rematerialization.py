"""What a stage keeps of its states for the backward pass, and what it computes again."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def check(remat: Any) -> bool | int | str:
    """Checks what `MeanFieldStage(remat=...)` was given.

    Args:
        remat: The value.

    Returns:
        The value.

    Raises:
        ValueError: If it is neither `True`, `False`, an integer of at least 1 nor `"sqrt"`.

    Example:

    >>> from mf_zoo.layers import rematerialization
    >>> rematerialization.check("sqrt")
    'sqrt'
    """
    if isinstance(remat, (bool, int)):
        if isinstance(remat, bool) or remat >= 1:
            return remat
    elif remat == "sqrt":
        return remat
    raise ValueError(
        '`remat` must be True, False, an integer of at least 1 or "sqrt". '
        f"Received: remat={remat!r}"
    )


def segments(remat: bool | int | str, num_particles: int) -> list[int]:
    """How many blocks lie between two states that are kept.

    Args:
        remat: As of `MeanFieldStage`; not `False`.
        num_particles: Number of blocks `n`.

    Returns:
        List of lengths that add up to `n`: `k` each, but for the last, which has what is left.

    Source: Chen, Xu, Zhang, Guestrin, *Training Deep Nets with Sublinear Memory Cost*, 2016, arXiv
    1604.06174 (with `k` near the root of `n`, memory grows as the root of the depth).

    Example:

    >>> from mf_zoo.layers import rematerialization
    >>> rematerialization.segments("sqrt", 18), rematerialization.segments(True, 2)
    ([5, 5, 5, 3], [1, 1])
    """
    length = math.isqrt(num_particles - 1) + 1 if remat == "sqrt" else int(remat)
    whole, rest = divmod(num_particles, length)
    return [length] * whole + [rest] * (rest > 0)


def rematerialized(function: Callable[..., Any]) -> Callable[..., Any]:
    """`keras.remat` for a function whose arguments and results are nested.

    Args:
        function: Takes and returns lists, tuples and dictionaries of tensors.

    Returns:
        The function; of it the backward pass computes everything but the arguments again.
    """

    def wrapped(*arguments: Any) -> Any:
        leaves = keras.tree.flatten(arguments)
        # What takes no gradient, such as the state of a seed, is none of the arguments:
        # TensorFlow would warn of it.
        floats = [k for k, leaf in enumerate(leaves) if keras.backend.is_float_dtype(leaf.dtype)]
        given = [leaves[k] for k in floats]
        # What `flat` holds lives until the backward pass is over: the others and forms alone.
        others = [None if k in set(floats) else leaf for k, leaf in enumerate(leaves)]
        form = _form(arguments)
        form_of_results: list[Any] = []

        def flat(*given: Any) -> list[Any]:
            filled = list(others)
            for k, leaf in zip(floats, given, strict=True):
                filled[k] = leaf
            results = function(*keras.tree.pack_sequence_as(form, filled))
            form_of_results[:] = [_form(results)]
            return keras.tree.flatten(results)

        results = keras.remat(flat)(*given)
        return keras.tree.pack_sequence_as(form_of_results[0], results)

    return wrapped


def _form(nested: Any) -> Any:
    return keras.tree.map_structure(lambda _: 0, nested)


def scanned(
    segment: Callable[[Any, Any], tuple[Any, Any]], x: Any, particles: Any, lengths: list[int]
) -> tuple[Any, Any]:
    """Scans over segments, whose inside the backward pass computes again.

    Args:
        segment: What `keras.ops.scan` does with a body: takes a state and the blocks of a segment,
            and returns the state after them and what is put out on the way.
        x: The state before the first block.
        particles: Nested tensors whose first axis counts blocks.
        lengths: What `segments` returned.

    Returns:
        What `segment` would return for all blocks together.
    """
    run = rematerialized(segment)
    length, rest = lengths[0], lengths[-1] % lengths[0]
    count = len(lengths) - (rest > 0)

    def split(value: Any) -> Any:
        return ops.reshape(value[: count * length], (count, length, *value.shape[1:]))

    def join(value: Any) -> Any:
        return ops.reshape(value, (count * length, *value.shape[2:]))

    x, outputs = ops.scan(run, x, keras.tree.map_structure(split, particles))
    outputs = keras.tree.map_structure(join, outputs)
    if rest:
        remaining = keras.tree.map_structure(lambda value: value[count * length :], particles)
        x, last = run(x, remaining)
        outputs = keras.tree.map_structure(lambda *values: ops.concatenate(values), outputs, last)
    return x, outputs
