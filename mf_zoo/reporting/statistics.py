"""Mean, standard deviation and Student's interval of a few numbers."""

import math
import statistics
from collections.abc import Sequence

# t such that a variable of Student's distribution of so many degrees of freedom is below it with
# probability 0.975: 1 to 30, then some. Source: NIST/SEMATECH e-Handbook of Statistical Methods,
# 1.3.6.7.2, https://www.itl.nist.gov/div898/handbook/eda/section3/eda3672.htm
_T_975 = dict(
    enumerate(
        (
            *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
            *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
            *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
        ),
        1,
    )
) | {40: 2.021, 60: 2.000, 100: 1.984}


def t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's distribution.

    Args:
        degrees: Degrees of freedom, at least 1.

    Returns:
        The quantile, to three decimals; above 30 that of the next lower tabulated number, which
        makes an interval a little too wide.

    Raises:
        ValueError: For less than one degree of freedom.

    Source: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.

    Example:

    >>> t_975(2)
    4.303
    """
    if degrees < 1:
        raise ValueError(f"`degrees` must be at least 1. Received: degrees={degrees}")
    return _T_975[max(known for known in _T_975 if known <= degrees)]


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

    >>> t_interval([1.0, 2.0, 3.0])  # 2 -+ 4.303 / sqrt(3)
    (-0.484..., 4.484...)
    """
    spread = deviation(values)
    if spread is None:
        return None
    mean, half = statistics.fmean(values), t_975(len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half
