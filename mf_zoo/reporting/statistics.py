"""Mean, standard deviation, Student's interval and McNemar's test of a few numbers."""

import math
import statistics
from collections.abc import Sequence


def t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's distribution, from SciPy.

    Args:
        degrees: Degrees of freedom, at least 1.

    Returns:
        The number that a variable of that distribution is below with probability 0.975.

    Raises:
        ValueError: For less than one degree of freedom.

    Example:

    >>> round(t_975(2), 3)
    4.303
    """
    if degrees < 1:
        raise ValueError(f"`degrees` must be at least 1. Received: degrees={degrees}")
    from scipy.special import stdtrit  # here, for its import takes long

    return float(stdtrit(degrees, 0.975))


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (divided by n - 1); `None` for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval for the mean of a normal law that a sample was drawn from.

    `mean -+ t s / sqrt(n)` with the standard deviation `s` of the sample and the 97.5 % quantile
    `t` of Student's distribution of `n - 1` degrees of freedom (Student, *The probable error of a
    mean*, Biometrika 1908). Of differences between twins of the same seed it is the paired t
    interval.

    Args:
        values: The sample.

    Returns:
        Both ends; `None` for less than two values, which say nothing about their spread.

    Example:

    >>> low, high = t_interval([1.0, 2.0, 3.0])  # 2 -+ 4.3027 / sqrt(3)
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    spread = deviation(values)
    if spread is None:
        return None
    mean, half = statistics.fmean(values), t_975(len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact p-value of McNemar's test: whether two classifiers are right equally often.

    Of the images that only one of the two gets right, each is the first one's with probability 1/2
    if they are: a two-sided binomial test (McNemar, *Note on the sampling error of the difference
    between correlated proportions or percentages*, Psychometrika 1947).

    Args:
        only_first: Number of images that only the first gets right.
        only_second: Number of images that only the second gets right.

    Returns:
        The p-value, 1 where there are no such images.

    Example:

    >>> mcnemar(0, 4)  # 2 / 2^4
    0.125
    """
    from scipy.special import bdtr  # here, for its import takes long

    fewer, both = min(only_first, only_second), only_first + only_second
    return min(1.0, 2 * float(bdtr(fewer, both, 0.5)))
