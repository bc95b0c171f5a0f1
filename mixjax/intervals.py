"""How certain a mean is, over examples and over training runs, in double precision."""

from typing import Any

import numpy as np
import scipy

from mixjax import checks


def mean_and_error_bar(values: Any) -> tuple[float, float]:
    """Mean over `[N]` examples and its standard error, `std / sqrt(N)`."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std() / np.sqrt(values.size))


def paired_difference(values: Any, others: Any) -> tuple[float, float]:
    """Mean of `values - others` on the same `[N]` examples and its standard error.

    Smaller than the two error bars suggest: what makes an example hard makes it hard for both.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> from mixjax import intervals
      >>> intervals.paired_difference([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0])
      (0.5, 0.25)
    """
    values, others = np.asarray(values, np.float64), np.asarray(others, np.float64)
    checks.shape(values.shape, others=others)
    return mean_and_error_bar(values - others)


def over_seeds(values: Any) -> tuple[float, tuple[float, float]]:
    """Mean over trainings that differ in their seed, and Student's 95 % interval for it.

    What a method does, not what one of its runs did: the interval of one run over its examples
    says nothing about another seed.

    Args:
      values: `[S]` one number for each seed, at least two.

    Returns:
      The mean, and the lower and the upper end `mean -+ t sd / sqrt(S)`, `t` with `S - 1` degrees
      of freedom.

    Raises:
      ValueError: if there are not two numbers, or one is not finite.

    Example:
      >>> from mixjax import intervals
      >>> mean, (low, high) = intervals.over_seeds([0.5, 0.6, 0.7])
      >>> round(mean, 2), round(low, 2), round(high, 2)
      (0.6, 0.35, 0.85)
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"values must be at least two finite numbers, got {values}")
    spread = (
        scipy.special.stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / np.sqrt(values.size)
    )
    mean = values.mean()
    return float(mean), (float(mean - spread), float(mean + spread))


def wilson_interval(mean: Any, num_examples: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a mean of values in [0, 1]: each `m` with `|mean - m| <= z sigma(m)`.

    `sigma(m) = sqrt(m (1 - m) / N)` is the standard error if `m` is the truth, not if what was
    seen is: 200 right answers of 200 give (.981, 1), where `mean_and_error_bar` gives an error of
    0. The expected accuracies of a mixture lie between 0 and 1. Among all variables there with
    mean `m` a coin has the largest variance, `E[X^2] - m^2 <= m - m^2`: for a mixture the interval
    may be wider than need be and is not too narrow.

    Args:
      mean: mean over the examples, in [0, 1]; of errors as well as of accuracies.
      num_examples: number `N` of independent examples.
      z: half the width, in standard errors; 1.96 for 95 %.

    Returns:
      The lower and the upper end, within [0, 1] and around `mean`.

    Raises:
      ValueError: if an argument is out of its range.

    References:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Example:
      >>> from mixjax import intervals
      >>> [round(end, 3) for end in intervals.wilson_interval(1.0, 200)]
      [0.981, 1.0]
    """
    checks.within(0, 1, mean=mean)
    checks.at_least(1, num_examples=num_examples)
    checks.positive(z=z)
    mean = float(np.clip(mean, 0.0, 1.0))  # of float32 it may be 1 + 1e-7
    drawn = z**2 / num_examples
    center = (mean + drawn / 2) / (1 + drawn)
    half = z / (1 + drawn) * np.sqrt((mean * (1 - mean) + drawn / 4) / num_examples)
    # At 0 and at 1 one end is the mean itself, but for rounding.
    return float(np.clip(center - half, 0.0, mean)), float(np.clip(center + half, mean, 1.0))


def paired_interval(values: Any, others: Any, *, z: float = 1.96) -> tuple[float, float]:
    """Interval of the mean of `values - others` on the same examples, from two of Wilson's.

    The difference is a mean gain less a mean loss, both of values in [0, 1], and no example has
    both: their covariance is minus the product of the two means. Where all examples are equal
    the interval is not 0 wide, as the error of `paired_difference` is.

    Args:
      values: `[N]` in [0, 1].
      others: `[N]` in [0, 1].
      z: half the width, in standard errors; 1.96 for 95 %.

    Returns:
      The lower and the upper end, around the mean difference.

    Raises:
      ValueError: if the shapes differ or a value is out of its range.

    References:
      Newcombe, Improved confidence intervals for the difference between binomial proportions based
      on paired data, 1998, method 10.

    Example:
      >>> from mixjax import intervals
      >>> ends = intervals.paired_interval([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0])
      >>> [round(end, 2) for end in ends]
      [-0.1, 0.85]
    """
    values, others = np.asarray(values, np.float64), np.asarray(others, np.float64)
    checks.shape(values.shape, others=others)
    checks.within(0, 1, values=values, others=others)
    gains, losses = np.maximum(values - others, 0), np.maximum(others - values, 0)
    gain, loss = gains.mean(), losses.mean()
    least_gain, most_gain = wilson_interval(gain, values.size, z=z)
    least_loss, most_loss = wilson_interval(loss, values.size, z=z)
    rest = (1 - gain) * (1 - loss)
    correlation = -np.sqrt(gain * loss / rest) if rest > 0 else 0.0

    def distance(of_gain, of_loss):
        return np.sqrt(of_gain**2 - 2 * correlation * of_gain * of_loss + of_loss**2)

    down = distance(gain - least_gain, most_loss - loss)
    up = distance(most_gain - gain, loss - least_loss)
    return float(max(gain - loss - down, -1.0)), float(min(gain - loss + up, 1.0))
