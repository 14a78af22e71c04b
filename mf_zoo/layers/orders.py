"""Depth orders: how far two are apart, and how many lie at a distance."""

import functools
import random
from collections.abc import Sequence

import numpy as np


def order_swaps(before: Sequence[int], after: Sequence[int]) -> int:
    """Counts the pairs of particles that changed places: Kendall's tau distance.

    Args:
        before: Depth order, the particles' indices from first to last.
        after: The later depth order of the same particles.

    Returns:
        The least number of swaps of neighbours that leads from one to the other
        (Kendall, 1938).

    Example:

    >>> order_swaps([0, 1, 2], [2, 0, 1])
    2
    """
    ranks = np.argsort(np.asarray(after))[np.asarray(before)]
    return int(np.sum(np.triu(ranks[:, None] > ranks[None, :], k=1)))


def count_at_distance(sizes: Sequence[int], distance: int) -> int:
    """How many depth orders lie at a distance from a given one.

    Args:
        sizes: The number of particles of each stage.
        distance: Kendall's tau distance, summed over the stages.

    Returns:
        The number of ways to order all stages; for one stage a Mahonian number, the number of
        permutations with that many inversions.

    Source: MacMahon, *Two applications of general theorems in combinatory analysis*, Proceedings of
    the London Mathematical Society 15, 1917: the generating function
    `prod_j (1 + q + ... + q^(j-1))`.

    Example:

    >>> [count_at_distance([4], k) for k in range(7)]
    [1, 3, 5, 6, 5, 3, 1]
    """
    counts = _completions(tuple(sizes))[0]
    return counts[distance] if 0 <= distance < len(counts) else 0


def largest_distance(sizes: Sequence[int]) -> int:
    """The distance between an order and its reverse, summed over stages of these sizes.

    Example:

    >>> largest_distance([3, 2, 2])
    5
    """
    return sum(n * (n - 1) // 2 for n in sizes)


def sample_at_distance(
    sizes: Sequence[int], distance: int, generator: random.Random
) -> list[list[int]]:
    """Draws depth orders at a distance from the identity, each with the same probability.

    A permutation of `n` particles is the same as `n` digits, the `j`-th of `0 ... j - 1`, that say
    how many of the particles before it in the old order the `j`-th comes to lie in front of. The
    distance is the sum of the digits. So the digits are drawn one after another, each with the
    exact number of ways in which the rest can make up the distance.

    Args:
        sizes: The number of particles of each stage.
        distance: Kendall's tau distance, summed over the stages.
        generator: Where the random numbers come from. (Of Python's, for whole numbers of any size.)

    Returns:
        For each stage a permutation `p`: what was at depth `p[l]` comes to depth `l`.

    Raises:
        ValueError: If no order has that distance.

    Source: Knuth, *The Art of Computer Programming*, volume 3, section 5.1.1 (inversion tables).

    Example:

    >>> import random
    >>> sample_at_distance([3, 2], 4, random.Random(0))
    [[2, 1, 0], [1, 0]]
    """
    if not 0 <= distance <= largest_distance(sizes):
        raise ValueError(
            f"The distance must be from 0 to {largest_distance(sizes)}, that of the reversed order "
            f"of stages of {list(sizes)} particles. Received: {distance}"
        )
    ways = _completions(tuple(sizes))
    orders: list[list[int]] = []
    left, place = distance, 0
    for n in sizes:
        order: list[int] = []
        for j in range(n):
            rest = ways[place + 1]
            drawn = generator.randrange(ways[place][left])
            digit = 0
            while True:
                found = rest[left - digit] if left - digit < len(rest) else 0
                if drawn < found:
                    break
                drawn -= found
                digit += 1
            order.insert(j - digit, j)
            left -= digit
            place += 1
        orders.append(order)
    return orders


@functools.lru_cache(maxsize=32)
def _completions(sizes: tuple[int, ...]) -> list[list[int]]:
    """For each digit: in how many ways it and those after it add up to 0, 1, 2, ..."""
    bounds = [j for n in sizes for j in range(n)]  # largest values of the digits
    ways = [[1]]
    for bound in reversed(bounds):
        after = ways[0]
        total = [0] * (len(after) + bound)
        for digit in range(bound + 1):
            for k, count in enumerate(after):
                total[k + digit] += count
        ways.insert(0, total)
    return ways
