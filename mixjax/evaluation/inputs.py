"""What comes into an evaluation: checked where it is known, and in one form for all attacks.

Inputs become float32, labels int32, both in the byte order of this machine; keys become keys of
threefry, whose draws for one example do not depend on how many others there are.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mixjax import checks
from mixjax.evaluation.suite import Attack
from mixjax.typing import Bounds, LogitsFn

UNIT: Bounds = (0.0, 1.0)  # of inputs, if nobody says otherwise
_ROUNDING = 1e-6


def bounds_of(attacks: Sequence[Attack]) -> Bounds:
    """The bounds of the inputs that these attacks were made for; [0, 1] if none says.

    Raises:
      ValueError: if two attacks were made for different ones.
    """
    said = [attack.bounds for attack in attacks if attack.bounds is not None]
    for other in said[1:]:
        if not all(np.array_equal(*ends) for ends in zip(said[0], other, strict=True)):
            raise ValueError(f"attacks must all have the same bounds, got {said[0]} and {other}")
    return said[0] if said else UNIT


def checked(images: Any, labels: Any, bounds: Bounds = UNIT) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, ...]` and labels `[N]`, int32, as NumPy arrays of this machine's byte order.

    Raises:
      ValueError: if they are not what an evaluation can use.
    """
    images, labels = as_array(images), np.asarray(labels)
    check_batch(images, labels, bounds)
    if not images.dtype.isnative:
        images = images.astype(images.dtype.newbyteorder("="))
    return images, labels.astype(np.int32)


def as_array(images: Any) -> np.ndarray:
    """Images as a NumPy array `[N, ...]` of any type.

    Raises:
      ValueError: if they are none.
    """
    images = np.asarray(images)
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"images must be [N, ...] and not empty, got {list(images.shape)}")
    return images


def check_batch(images: Any, labels: Any, bounds: Bounds | None) -> None:
    """Raises `ValueError` unless a batch is what an attack can use; traced values pass unchecked.

    uint8 is scaled to [0, 1] before any attack sees it, so that no other bounds go with it.
    """
    if images.dtype == np.uint8:
        if bounds is not None and not all(
            np.array_equal(*ends) for ends in zip(UNIT, bounds, strict=True)
        ):
            raise ValueError(
                f"uint8 images are scaled to [0, 1], which must be the bounds, got {bounds}: "
                "give floats instead"
            )
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or floats within bounds, got {images.dtype}")
    elif bounds is not None and not isinstance(images, Tracer):
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
    checks.shape(logits.shape[:1], weights=weights)
    checks.within(0, logits.shape[1] - 1, labels=labels)


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
            f"images must lie in {place}, got values from {images.min()} to {images.max()}"
        )


def as_pytree(logits_fn: LogitsFn) -> LogitsFn:
    """The function as an argument of compiled code; a `Partial` in a `Partial` hides its leaves."""
    is_pytree = isinstance(logits_fn, jax.tree_util.Partial)
    return logits_fn if is_pytree else jax.tree_util.Partial(logits_fn)


def check_evaluation(
    logits_fn: LogitsFn, weights: Any, images: Any, labels: Any, batch_size: int, bounds: Bounds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights `[L]`, the images `[N, ...]` and the labels `[N]` as NumPy arrays.

    Raises:
      ValueError: if they are not what an evaluation asks for, or do not fit the members.
    """
    checks.at_least(1, batch_size=batch_size)
    checks.simplex(weights=weights)
    images, labels = checked(images, labels, bounds)
    check_members(logits_fn, weights, images.shape[1:], labels)
    return np.asarray(weights, np.float64), images, labels
