"""Mean, standard deviation, Student's interval and McNemar's test of a few numbers."""

import math
import statistics
from collections.abc import Iterable, Sequence


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


def pooled_deviation(samples: Iterable[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation of samples whose laws have different means but the same deviation.

    The root of the sum of squares about each sample's own mean, divided by the degrees of freedom
    (Fisher, *Statistical Methods for Research Workers*, 1925).

    Args:
        samples: The samples, each of at least one number.

    Returns:
        The deviation and its degrees of freedom, `n - 1` for each sample of `n`; `None` where all
        samples are of one number.

    Example:

    >>> pooled_deviation([[1.0, 3.0], [10.0, 14.0], [5.0]])  # sqrt((2 + 8) / 2)
    (2.23606797749979, 2)
    """
    samples = [sample for sample in samples if len(sample) > 1]
    degrees = sum(len(sample) - 1 for sample in samples)
    if not degrees:
        return None
    squares = sum(statistics.variance(sample) * (len(sample) - 1) for sample in samples)
    return math.sqrt(squares / degrees), degrees


def difference_interval(
    first: Sequence[float], second: Sequence[float], spread: float, degrees: int
) -> tuple[float, float]:
    """95 % confidence interval for the difference of the means of two normal laws.

    `mean(first) - mean(second) -+ t s sqrt(1 / n1 + 1 / n2)`. Where `s` is pooled over the two
    samples alone, this is the interval of Student's test of two samples.

    Args:
        first: A sample.
        second: Another one.
        spread: The deviation `s` of both laws, as `pooled_deviation` finds it.
        degrees: Its degrees of freedom.

    Returns:
        Both ends.

    Example:

    >>> low, high = difference_interval([3.0], [1.0], 1.0, 2)  # 2 -+ 4.3027 sqrt(2)
    >>> round(low, 3), round(high, 3)
    (-4.085, 8.085)
    """
    mean = statistics.fmean(first) - statistics.fmean(second)
    half = t_975(degrees) * spread * math.sqrt(1 / len(first) + 1 / len(second))
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
