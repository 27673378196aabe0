"""Tables and figures of the results of the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


def mean_and_deviation(values: Sequence[float], form: str) -> str:
    """The mean of `values` and, of several, their sample standard deviation, `1.00 ± 0.01`."""
    mean = form.format(fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(stdev(values))}"
