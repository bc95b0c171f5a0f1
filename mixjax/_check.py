"""Checks of arguments: each raises `ValueError` naming the argument and its value.

Every function takes its arguments by keyword so that the message can name them:
`_check.positive(step_size=step_size)`. Traced values pass unchecked: inside `jit` a value is
known only when it is too late to raise.
"""

import numpy as np
from jax.core import Tracer

_SIMPLEX_TOLERANCE = 1e-4
_ROUNDING = 1e-6
_HIGHEST_SEED = 2**32 - 1


def positive(**values):
    """Raises `ValueError` unless every value holds finite numbers above 0 only."""
    _require(values, "positive", lambda value: np.all(np.isfinite(value) & (value > 0)))


def non_negative(**values):
    """Raises `ValueError` unless every value holds finite numbers of at least 0 only."""
    _require(values, "at least 0", lambda value: np.all(np.isfinite(value) & (value >= 0)))


def at_least(minimum, **values):
    """Raises `ValueError` unless every value is a whole number of at least `minimum`."""
    _require(
        values,
        f"a whole number of at least {minimum}",
        lambda value: value.ndim == 0 and np.isfinite(value) and value == value // 1 >= minimum,
    )


def seed(**values):
    """Raises `ValueError` unless every value is a whole number that makes a random key of its own.

    JAX and NumPy's frozen generator take 32 bits: one more would be another seed's second name.
    """
    _require(
        values,
        f"a whole number from 0 to {_HIGHEST_SEED}",
        lambda value: value.ndim == 0 and 0 <= value <= _HIGHEST_SEED and value == value // 1,
    )


def fraction(**values):
    """Raises `ValueError` unless every value lies in [0, 1)."""
    _require(values, "in [0, 1)", lambda value: 0 <= value < 1)


def one_of(options, **values):
    """Raises `ValueError` unless every value is one of `options`."""
    for name, value in values.items():
        if value not in options:
            raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, got {value}")


def simplex(**values):
    """Raises `ValueError` unless every value is a vector of probabilities."""

    def is_simplex(value):
        on_simplex = np.all(value >= 0) and abs(value.sum() - 1) <= _SIMPLEX_TOLERANCE
        return value.ndim == 1 and value.size > 0 and on_simplex

    _require(values, "on the simplex (non-negative, summing to 1)", is_simplex)


def increasing(**values):
    """Raises `ValueError` unless every value is a pair, all of the first below the second."""
    for name, pair in values.items():
        if not _is_traced(*pair) and not (
            len(pair) == 2 and np.all(np.asarray(pair[0]) < np.asarray(pair[1]))
        ):
            raise ValueError(f"{name} must be a pair (low, high) with low < high, got {pair}")


def within(low, high, **values):
    """Raises `ValueError` unless every value holds numbers of [low, high] only; NaN never does."""
    for name, value in values.items():
        if not _is_traced(value, low, high):
            lowest, highest = float(np.min(np.asarray(value))), float(np.max(np.asarray(value)))
            if not (low - _ROUNDING <= lowest and highest <= high + _ROUNDING):
                got = f"values from {lowest} to {highest}" if np.ndim(value) else value
                raise ValueError(f"{name} must lie in [{low}, {high}], got {got}")


def non_empty(num_axes, **values):
    """Raises `ValueError` unless every array has `num_axes` axes, none of size 0."""
    for name, value in values.items():
        if np.ndim(value) != num_axes or 0 in np.shape(value):
            raise ValueError(
                f"{name} must have {num_axes} axes, none empty, got {list(np.shape(value))}"
            )


def shape(expected, **values):
    """Raises `ValueError` unless every array has the `expected` shape; `None` fits any size."""
    for name, value in values.items():
        fits = len(expected) == np.ndim(value) and all(
            want is None or want == size
            for want, size in zip(expected, np.shape(value), strict=True)
        )
        if not fits:
            text = ", ".join("any" if size is None else str(size) for size in expected)
            raise ValueError(f"{name} must have shape [{text}], got {list(np.shape(value))}")


def _require(values, description, holds):
    for name, value in values.items():
        # NumPy, because inside `jit` even an operation of JAX on a known value is traced.
        if not _is_traced(value) and not holds(np.asarray(value)):
            raise ValueError(f"{name} must be {description}, got {value}")


def _is_traced(*values):
    return any(isinstance(value, Tracer) for value in values)
