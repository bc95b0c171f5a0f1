"""The inputs of an evaluation: checked as far as they are known, and in one form for all attacks.

Inputs become float32, labels int32, both in the byte order of this machine; keys become keys of
threefry, whose draws for one example do not depend on how many others there are. A function becomes
an argument of compiled code, in which its arrays are traced if it is a `jax.tree_util.Partial`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mixjax import checks
from mixjax.evaluation.suite import Attack, run_attack
from mixjax.typing import Array, Bounds, Key, LogitsFn

UNIT: Bounds = (0.0, 1.0)  # of inputs, by default
_ROUNDING = 1e-6


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A value without arrays as an argument of compiled code; equal ones share what is compiled."""

    value: Any

    def __call__(self, *args: Any) -> Any:
        """Of a function: its result."""
        return self.value(*args)


def as_pytree(function: Any) -> Any:
    """The function as an argument of compiled code; a `Partial` in a `Partial` hides its leaves."""
    is_partial = isinstance(function, jax.tree_util.Partial)
    try:
        hash(function.func if is_partial else function)
    except TypeError:  # it may compare by the arrays that it holds: equal to itself alone, then
        return Static(functools.partial(function))
    return function if is_partial else Static(function)


def plain(function: Any) -> Any:
    """What was made a pytree, as a function whose parameters say what it needs."""
    return function.value if isinstance(function, Static) else function


def as_argument(attack: Attack) -> tuple[Any, ...]:
    """What an attack is made of, as an argument of compiled code, for `run`."""
    return as_pytree(attack.function), attack.threat, attack.bounds


def run(
    argument: tuple[Any, ...],
    key: Key,
    number: Array,
    logits_fn: LogitsFn,
    weights: Array,
    x: Array,
    label: Array,
) -> Array:
    """The point that run `number` of an attack finds on one example: `[...]`."""
    function, threat, bounds = argument
    return run_attack(plain(function), key, number, logits_fn, weights, x, label, threat, bounds)


def numbered(attacks: Iterable[Attack]) -> tuple[list[Attack], Bounds]:
    """The attacks with the bounds and the random numbers that they did not know, and the bounds.

    Raises:
      ValueError: for what is no attack, one whose name means something else, or two that were made
        for different bounds.
    """
    attacks = list(attacks)
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise ValueError(f"attacks must be a list of Attack, got {attack!r}")
    if reserved := {"clean", "worst"} & {name for attack in attacks for name in attack.names}:
        raise ValueError(f"attacks must not be named clean or worst, got {min(reserved)}")
    said = [attack.bounds for attack in attacks if attack.bounds is not None]
    for other in said[1:]:
        if not _same(said[0], other):
            raise ValueError(f"attacks must all have the same bounds, got {said[0]} and {other}")
    bounds = said[0] if said else UNIT
    told = [
        attack._replace(bounds=bounds, number=place if attack.number is None else attack.number)
        for place, attack in enumerate(attacks, 1)
    ]
    return told, bounds


def checked(images: Any, labels: Any, bounds: Bounds = UNIT) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, ...]` and labels `[N]`, int32, as NumPy arrays of this machine's byte order.

    Raises:
      ValueError: if they are not what an evaluation can use.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"images must be [N, ...] and not empty, got {list(images.shape)}")
    images, labels = native(images), native(labels)
    check_batch(images, labels, bounds)
    return images, labels.astype(np.int32)


def native(array: Any) -> np.ndarray:
    """The array of NumPy in the byte order of this machine, the only one that JAX can hold."""
    array = np.asarray(array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_floats(images: np.ndarray) -> np.ndarray:
    """`[N, ...]` as `batch.to_float` gives them in compiled code: XLA multiplies by 1 / 255."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) * np.float32(1 / 255)
    return images.astype(np.float32, copy=False)


def check_batch(images: Any, labels: Any, bounds: Bounds) -> None:
    """Raises `ValueError` unless a batch is what an attack can use; traced values pass unchecked.

    uint8 is scaled to [0, 1] before any attack sees it, so no other bounds are allowed for it.
    """
    if images.dtype == np.uint8:
        if not _same(UNIT, bounds):
            raise ValueError(
                f"uint8 images are scaled to [0, 1], which must be the bounds, got {bounds}: "
                "give floats instead"
            )
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or floats within bounds, got {images.dtype}")
    elif not isinstance(images, Tracer):
        _check_within(np.asarray(images).astype(np.float32), bounds)
    checks.shape(images.shape[:1], labels=labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if not isinstance(labels, Tracer) and np.min(np.asarray(labels)) < 0:
        raise ValueError(f"labels must be at least 0, got {np.min(np.asarray(labels))}")


def check_members(logits_fn: LogitsFn, weights: Any, shape: Sequence[int], labels: Any) -> None:
    """Raises `ValueError` unless an input of this shape has `[L, C]` logits, and the rest fits."""
    checks.simplex(weights=weights)
    logits = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    if len(logits.shape) != 2:
        raise ValueError(f"logits_fn must return [L, C] logits, got shape {list(logits.shape)}")
    checks.for_members(logits.shape[0], weights=weights)
    try:
        checks.within(0, logits.shape[1] - 1, labels=labels)
    except ValueError as error:
        raise ValueError(f"{error}: number the classes from 0") from None


def check_evaluation(
    logits_fn: LogitsFn, weights: Any, images: Any, labels: Any, bounds: Bounds
) -> tuple[LogitsFn, np.ndarray, np.ndarray, np.ndarray]:
    """The members as a pytree, weights `[L]`, images `[N, ...]`, floats, and labels `[N]`.

    Raises:
      ValueError: if they are not what an evaluation can use, or do not fit the members.
    """
    checks.simplex(weights=weights)
    images, labels = checked(images, labels, bounds)
    logits_fn = as_pytree(logits_fn)
    check_members(logits_fn, weights, images.shape[1:], labels)
    return logits_fn, np.asarray(weights, np.float64), as_floats(images), labels


def _same(bounds, others):
    return all(np.array_equal(*ends) for ends in zip(bounds, others, strict=True))


def _check_within(images, bounds):
    low, high = (np.asarray(end, np.float32) for end in bounds)
    place = "bounds"
    if low.ndim == high.ndim == 0:
        place = f"[{low.item():g}, {high.item():g}]"
    try:
        low, high = (np.broadcast_to(end, images.shape[1:]) for end in (low, high))
    except ValueError:
        raise ValueError(
            f"bounds must be numbers or fit an input of shape {list(images.shape[1:])}, got shapes "
            f"{list(np.shape(bounds[0]))} and {list(np.shape(bounds[1]))}"
        ) from None
    room = _ROUNDING * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
    if not np.all((images >= low - room) & (images <= high + room)):
        raise ValueError(
            f"images must lie in {place}, got values from {images.min()} to {images.max()}: "
            "scale them, or pass their own bounds"
        )
