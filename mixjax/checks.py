"""Checks of arguments: each raises `ValueError` naming the argument and its value.

Every function takes its arguments by keyword so that the message can name them:

>>> from mixjax import checks
>>> checks.positive(step_size=-0.1)
Traceback (most recent call last):
    ...
ValueError: step_size must be positive, got -0.1

Traced values pass unchecked: inside `jit` a value is known only when it is too late to raise.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_SIMPLEX_TOLERANCE = 1e-4
_ROUNDING = 1e-6
_HIGHEST_SEED = 2**32 - 1


def positive(**values: Any) -> None:
    """Raises `ValueError` unless every value holds finite numbers above 0 only."""
    _require(values, "positive", lambda value: np.all(np.isfinite(value) & (value > 0)))


def non_negative(**values: Any) -> None:
    """Raises `ValueError` unless every value holds finite numbers of at least 0 only."""
    _require(values, "at least 0", lambda value: np.all(np.isfinite(value) & (value >= 0)))


def at_least(minimum: int, **values: Any) -> None:
    """Raises `ValueError` unless every value is a whole number of at least `minimum`.

    A float is refused even where it is whole: nothing can be done 3.0 times.

    Example:
      >>> from mixjax import checks
      >>> checks.at_least(1, num_steps=0)
      Traceback (most recent call last):
      ...
      ValueError: num_steps must be a whole number of at least 1, got 0
    """
    for name, value in values.items():
        if not _is_traced(value):
            number = np.asarray(value)
            if number.ndim or not np.issubdtype(number.dtype, np.integer) or number < minimum:
                is_whole = (
                    number.ndim == 0 and number.dtype.kind == "f" and float(number).is_integer()
                )
                hint = f": pass {int(number)}" if is_whole and number >= minimum else ""
                raise ValueError(
                    f"{name} must be a whole number of at least {minimum}, got {_told(value)}{hint}"
                )


def seed(**values: Any) -> None:
    """Raises `ValueError` unless every value is a whole number that makes a random key of its own.

    JAX and NumPy's frozen generator take 32 bits: a larger seed would give a smaller one's key.
    """
    _require(
        values,
        f"a whole number from 0 to {_HIGHEST_SEED}",
        lambda value: value.ndim == 0 and 0 <= value <= _HIGHEST_SEED and value == value // 1,
    )


def fraction(**values: Any) -> None:
    """Raises `ValueError` unless every value lies in [0, 1)."""
    _require(values, "in [0, 1)", lambda value: 0 <= value < 1)


def one_of(options: Collection[Any], **values: Any) -> None:
    """Raises `ValueError` unless every value is one of `options`."""
    for name, value in values.items():
        if value not in options:
            raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, got {value}")


def simplex(**values: Any) -> None:
    """Raises `ValueError` unless every value is a vector of probabilities."""

    def is_simplex(value):
        on_simplex = np.all(value >= 0) and abs(value.sum() - 1) <= _SIMPLEX_TOLERANCE
        return value.ndim == 1 and value.size > 0 and on_simplex

    _require(values, "on the simplex (non-negative, summing to 1)", is_simplex)


def for_members(number: int, **values: Any) -> None:
    """Raises `ValueError` unless every value is a probability for each of so many members."""
    simplex(**values)
    try:
        shape((number,), **values)
    except ValueError as error:
        raise ValueError(f"{error}: pass one for each member") from None


def increasing(**values: Any) -> None:
    """Raises `ValueError` unless every value is a pair, the first below the second everywhere."""
    for name, pair in values.items():
        is_pair = isinstance(pair, (tuple, list)) or (np.ndim(pair) and not _is_traced(pair))
        if is_pair and len(pair) == 2:
            for end in pair:
                native_order(**{name: end})
            if _is_traced(*pair) or np.all(np.asarray(pair[0]) < np.asarray(pair[1])):
                continue
            if np.ndim(pair[0]) or np.ndim(pair[1]):
                pair = "a low that is not below its high"
        raise ValueError(f"{name} must be a pair (low, high) with low < high, got {pair}")


def within(low: Any, high: Any, **values: Any) -> None:
    """Raises `ValueError` unless every value holds numbers in [low, high] only, up to 1e-6.

    NaN is never within.
    """
    for name, value in values.items():
        if not _is_traced(value, low, high):
            lowest, highest = float(np.min(np.asarray(value))), float(np.max(np.asarray(value)))
            if not (low - _ROUNDING <= lowest and highest <= high + _ROUNDING):
                got = f"values from {lowest} to {highest}" if np.ndim(value) else value
                raise ValueError(f"{name} must lie in [{low}, {high}], got {got}")


def floating(**values: Any) -> None:
    """Raises `ValueError` unless every array holds floating-point numbers in native byte order.

    Traced values are checked, too: their dtype is known.
    """
    for name, value in values.items():
        dtype = _dtype(value)
        native_order(**{name: value})
        if not jnp.issubdtype(dtype, jnp.floating):
            hint = "pass it divided by 255" if dtype == np.uint8 else "pass it as float32"
            raise ValueError(f"{name} must hold floating-point numbers, got {dtype}: {hint}")


def native_order(**values: Any) -> None:
    """Raises `ValueError` for an array in the other byte order, which JAX cannot hold."""
    for name, value in values.items():
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.isnative:
            native = value.dtype.newbyteorder("=")
            raise ValueError(
                f"{name} must be in native byte order, got {value.dtype.str}: "
                f"pass it as .astype({native.name!r})"
            )


def inside(bounds: tuple[Any, Any], **values: Any) -> None:
    """Raises `ValueError` unless every input is of floating point and lies within `bounds`.

    The bounds are `(low, high)`, numbers or arrays per feature that broadcast to the input; an
    input may miss them by 1e-6 of the largest finite bound, or of 1.
    """
    increasing(bounds=bounds)
    floating(**values)
    for name, value in values.items():
        if not all(_broadcasts(np.shape(bound), np.shape(value)) for bound in bounds):
            shapes = " and ".join(str(list(np.shape(bound))) for bound in bounds)
            wanted = f"the shape {list(np.shape(value))} of {name}"
            raise ValueError(f"bounds must broadcast to {wanted}, got {shapes}")
        if not _is_traced(value, *bounds):
            low, high = (np.asarray(bound, np.float64) for bound in bounds)
            numbers = np.asarray(value).astype(np.float64)
            slack = _ROUNDING * max(
                1.0, *(np.max(np.abs(b), initial=0, where=np.isfinite(b)) for b in (low, high))
            )
            if not np.all((numbers >= low - slack) & (numbers <= high + slack)):
                single = not (low.ndim or high.ndim)
                where = f"lie in [{low:g}, {high:g}]" if single else "lie within its bounds"
                got = f"values from {np.min(numbers):g} to {np.max(numbers):g}"
                if np.any(np.isnan(numbers)):
                    got = "NaN"
                raise ValueError(f"{name} must {where}, got {got}")


def integers(**values: Any) -> None:
    """Raises `ValueError` unless every value is an array of an integer type."""
    for name, value in values.items():
        native_order(**{name: value})
        if not np.issubdtype(_dtype(value), np.integer):
            raise ValueError(
                f"{name} must be a whole number, got {_dtype(value)}: pass it as .astype(int)"
            )


def label(num_classes: int, **values: Any) -> None:
    """Raises `ValueError` unless every value is one class of `num_classes`."""
    integers(**values)
    for name, value in values.items():
        if np.ndim(value):
            raise ValueError(
                f"{name} must be that of one example, got shape {list(np.shape(value))}: "
                "make the batch by jax.vmap"
            )
        if not _is_traced(value) and not 0 <= int(value) < num_classes:
            raise ValueError(f"{name} must lie in [0, {num_classes - 1}], got {int(value)}")


def logits(axes: str, **values: Any) -> None:
    """Raises `ValueError` unless every value has the axes named in `axes`, such as "L C"."""
    for name, value in values.items():
        native_order(**{name: value})
        if np.ndim(value) != len(axes.split()):
            told = "all members' on one example" if "L" in axes else "one member's on one example"
            raise ValueError(
                f"{name} must be {told}, [{', '.join(axes.split())}], "
                f"got shape {list(np.shape(value))}"
            )


def threat(**values: Any) -> None:
    """Raises `ValueError` unless every value is a `Threat` of one radius."""
    for name, value in values.items():
        if not (hasattr(value, "project") and hasattr(value, "epsilon")):
            example = value if isinstance(value, (int, float)) else 0.1
            raise ValueError(
                f"{name} must be a Threat, such as threats.linf({example}), got {value}"
            )
        if np.ndim(value.epsilon):
            raise ValueError(
                f"{name} must have one radius for one example, got shape "
                f"{list(np.shape(value.epsilon))}: make the batch by jax.vmap"
            )


def threat_or_schedule(**values: Any) -> None:
    """Raises `ValueError` unless every value is a `Threat`, or a function of the step."""
    for name, value in values.items():
        if not callable(value):
            threat(**{name: value})


def function(example: str, **values: Any) -> None:
    """Raises `ValueError` unless every value is a function, such as `example`."""
    for name, value in values.items():
        if not callable(value):
            raise ValueError(f"{name} must be a function, such as {example}, got {value!r}")


def key(**values: Any) -> None:
    """Raises `ValueError` unless every value is one random key, typed or of the old form."""
    for name, value in values.items():
        dtype = getattr(value, "dtype", None)
        is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        if not (is_typed or (dtype == np.uint32 and np.ndim(value))):
            example = value if isinstance(value, int) and value >= 0 else 0
            raise ValueError(
                f"{name} must be a random key, such as jax.random.key({example}), got {value!r}"
            )
        if np.ndim(value) != (0 if is_typed else 1):
            raise ValueError(f"{name} must be one random key, got shape {list(np.shape(value))}")


_DIFFERENTIATED = "loss_fn", "targeted_loss_fn", "margin_fn"


def one_number(x: Any, **functions: Callable[[Any], Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Raises `ValueError` unless every function of one input `x` returns one number.

    Of losses and margins, which attacks differentiate, it must be a floating-point one.

    Returns:
      What each returns, by its name: they are traced together, for they may share a network.
    """
    answers = jax.eval_shape(lambda x: {name: each(x) for name, each in functions.items()}, x)
    for name in functions:
        answer = answers[name]
        if not hasattr(answer, "shape") or answer.shape != ():
            got = f"shape {list(answer.shape)}" if hasattr(answer, "shape") else f"{answer}"
            raise ValueError(
                f"{name} must return one number for one example, got {got}: "
                "make the batch by jax.vmap"
            )
        if name in _DIFFERENTIATED and not jnp.issubdtype(answer.dtype, jnp.floating):
            raise ValueError(f"{name} must return a floating-point number, got {answer.dtype}")
    return answers


def non_empty(num_axes: int, **values: Any) -> None:
    """Raises `ValueError` unless every array has `num_axes` axes, none of size 0."""
    for name, value in values.items():
        if np.ndim(value) != num_axes or 0 in np.shape(value):
            raise ValueError(
                f"{name} must have {num_axes} axes, none empty, got {list(np.shape(value))}"
            )


def shape(expected: Sequence[int | None], **values: Any) -> None:
    """Raises `ValueError` unless every array has the `expected` shape; `None` fits any size.

    As `native_order` for an array in the other byte order.
    """
    for name, value in values.items():
        native_order(**{name: value})
        fits = len(expected) == np.ndim(value) and all(
            want is None or want == size
            for want, size in zip(expected, np.shape(value), strict=True)
        )
        if not fits:
            text = ", ".join("any" if size is None else str(size) for size in expected)
            raise ValueError(f"{name} must have shape [{text}], got {list(np.shape(value))}")


def _require(values, description, holds):
    native_order(**values)
    for name, value in values.items():
        # NumPy, because inside `jit` even an operation of JAX on a known value is traced.
        if not _is_traced(value) and not (_is_number(value) and holds(np.asarray(value))):
            raise ValueError(f"{name} must be {description}, got {_told(value)}")


def _told(value):
    """A text in quotation marks: without them it may look like the number that is asked for."""
    array = np.asarray(value)
    return repr(array.tolist()) if array.dtype.kind == "U" else value


def _is_number(value):
    """Whether it holds numbers, of NumPy's types or, as bfloat16, of others: no text, no None."""
    return np.asarray(value).dtype.kind in "biufcV"


def _broadcasts(shape, to):
    return len(shape) <= len(to) and all(
        size in (1, wanted) for size, wanted in zip(shape[::-1], to[::-1], strict=False)
    )


def _dtype(value):
    return value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype


def _is_traced(*values):
    return any(isinstance(value, Tracer) for value in values)
