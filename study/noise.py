"""What paired differences say, and where they say nothing: Student's t."""

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its 95 % interval `low` to `high`, and whether that holds zero.

    Where a figure cannot be determined it is None, and the difference counts as within the noise.
    """

    difference: float | None
    low: float | None
    high: float | None
    within_noise: bool


def interval(differences, confidence=0.95):
    """The confidence interval of a mean, (low, high); (None, None) from fewer than two differences."""
    if len(differences) < 2:
        return None, None
    from scipy.stats import t

    n, mean = len(differences), statistics.mean(differences)
    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean - half, mean + half


def mean(values):
    """Of the values that are not None; None where none is left."""
    values = [value for value in values if value is not None]
    return statistics.mean(values) if values else None


def deviation(values):
    """The sample standard deviation; None from fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired(differences):
    low, high = interval(differences)
    return Difference(mean(differences), low, high, low is None or low <= 0 <= high)


def shown(value, form, scale=1):
    """A number for a table, or "-" for None."""
    return "-" if value is None else format(value * scale, form)
