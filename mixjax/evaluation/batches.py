"""Whole data sets: the loop over batches on the host, and the checks of what comes in."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _check
from mixjax.evaluation.outcomes import Outcomes, evaluate_batch
from mixjax.evaluation.suite import Attack
from mixjax.typing import Key, LogitsFn

Progress = Callable[[range], Iterable[int]]  # as `tqdm.tqdm`


def evaluate_mixture(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    images: Any,
    labels: Any,
    attacks: Sequence[Attack],
    *,
    batch_size: int = 256,
    progress: Progress = iter,
    transform: Callable = jax.jit,
) -> Outcomes:
    """Attacks a data set with every run of `attacks` and notes who is right at the points found.

    The results depend on neither `batch_size` nor `transform`, up to the rounding of the logits.

    Args:
      key: random key; consumed.
      logits_fn: `x -> [L, C]`, the members' logits on one input; members may come from anywhere.
        What it closes over is compiled in as constants: give large variables as
        `jax.tree_util.Partial(function, variables)`, then they are arguments.
      weights: `[L]` probabilities of the members.
      images: `[N, ...]` inputs, floats in [0, 1] or uint8.
      labels: `[N]` integer classes.
      attacks: see `pgd_attacks`; any attack may be added.
      batch_size: number of examples attacked at once.
      progress: wrapper around the range of batches, for example `tqdm.tqdm`.
      transform: what is done to `evaluate_batch` with its six positional arguments before the
        loop calls it: compiled for one device, or a `shard_map` that splits the last three.

    Returns:
      `Outcomes` in NumPy arrays; `report` turns them into figures.

    Raises:
      ValueError: if images, labels or weights are not what they should be, or if there are too
        few runs for the members.
    """
    logits_fn = as_pytree(logits_fn)
    weights = check_evaluation(logits_fn, weights, images, labels, batch_size)
    evaluate = transform(functools.partial(evaluate_batch, attacks=tuple(attacks)))
    return over_batches(
        functools.partial(evaluate, key, logits_fn, weights),
        images,
        labels,
        batch_size=batch_size,
        progress=progress,
    )


def over_batches(
    batch_fn: Callable,
    images: Any,
    labels: Any,
    *,
    batch_size: int = 256,
    progress: Progress = iter,
) -> Any:
    """Calls a compiled function on batches of one size and joins what it returns.

    The last batch is filled up with copies of the last example, whose results are dropped.

    Args:
      batch_fn: `(images [B, ...], labels [B], indices [B]) -> pytree of [B, ...]`.
      images: `[N, ...]` inputs, floats in [0, 1] or uint8.
      labels: `[N]` integer classes.
      batch_size: number of examples `B` in every call.
      progress: wrapper around the range of batches, for example `tqdm.tqdm`.

    Returns:
      The same pytree of NumPy arrays `[N, ...]`, in the order of the examples.

    Raises:
      ValueError: if `batch_size` is not at least 1, or images or labels are not what they should
        be.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check.at_least(1, batch_size=batch_size)
    _check_examples(images, labels)
    num_examples = len(images)
    batches = []
    for batch in progress(range(-(-num_examples // batch_size))):
        indices = np.arange(batch * batch_size, (batch + 1) * batch_size, dtype=np.int32)
        rows = np.minimum(indices, num_examples - 1)
        result = batch_fn(images[rows], labels[rows], rows)
        batches.append(jax.device_get(result))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_examples], *batches)


def as_pytree(logits_fn: LogitsFn) -> LogitsFn:
    """The function as an argument of compiled code; a `Partial` in a `Partial` hides its leaves."""
    is_pytree = isinstance(logits_fn, jax.tree_util.Partial)
    return logits_fn if is_pytree else jax.tree_util.Partial(logits_fn)


def check_evaluation(logits_fn, weights, images, labels, batch_size):
    """The weights `[L]` as an array.

    Raises:
      ValueError: if they or the examples are not what `evaluate_mixture` asks for, or do not fit
        the members.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check.at_least(1, batch_size=batch_size)
    _check.simplex(weights=weights)
    _check_examples(images, labels)
    logits = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(images.shape[1:], jnp.float32))
    if len(logits.shape) != 2:
        raise ValueError(f"logits_fn must return [L, C] logits, got shape {list(logits.shape)}")
    _check.shape(logits.shape[:1], weights=weights)
    _check.within(0, logits.shape[1] - 1, labels=labels)
    return jnp.asarray(weights, jnp.float32)


def _check_examples(images, labels):
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"images must be [N, ...] and not empty, got {list(images.shape)}")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images must be uint8 or floats in [0, 1], got {images.dtype}")
        _check.within(0, 1, images=images)
    _check.shape(images.shape[:1], labels=labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(f"labels must be at least 0, got {labels.min()}")
