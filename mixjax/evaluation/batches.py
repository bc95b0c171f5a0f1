"""Whole data sets: the loop over batches on the host, and the checks of what comes in."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks
from mixjax.evaluation.inputs import UNIT, bounds_of, check_members, checked
from mixjax.evaluation.outcomes import Outcomes, evaluate_batch
from mixjax.evaluation.suite import Attack
from mixjax.typing import Bounds, Key, LogitsFn

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
      images: `[N, ...]` inputs, floats within the bounds of the attacks, [0, 1] if these say
        nothing else, or uint8, which is scaled to [0, 1].
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
    bounds = bounds_of(attacks)
    weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, batch_size, bounds
    )
    evaluate = transform(functools.partial(evaluate_batch, attacks=tuple(attacks)))
    return over_batches(
        functools.partial(evaluate, key, logits_fn, weights),
        images,
        labels,
        batch_size=batch_size,
        progress=progress,
        bounds=bounds,
    )


def over_batches(
    batch_fn: Callable,
    images: Any,
    labels: Any,
    *,
    batch_size: int = 256,
    progress: Progress = iter,
    bounds: Bounds = UNIT,
) -> Any:
    """Calls a compiled function on batches of one size and joins what it returns.

    The last batch is filled up with copies of the last example, whose results are dropped.

    Args:
      batch_fn: `(images [B, ...], labels [B], indices [B]) -> pytree of [B, ...]`.
      images: `[N, ...]` inputs, floats within `bounds` or uint8.
      labels: `[N]` integer classes.
      batch_size: number of examples `B` in every call.
      progress: wrapper around the range of batches, for example `tqdm.tqdm`.
      bounds: lowest and highest value of an input.

    Returns:
      The same pytree of NumPy arrays `[N, ...]`, in the order of the examples.

    Raises:
      ValueError: if `batch_size` is not at least 1, or images or labels are not what they should
        be.
    """
    checks.at_least(1, batch_size=batch_size)
    images, labels = checked(images, labels, bounds)
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


def check_evaluation(logits_fn, weights, images, labels, batch_size, bounds):
    """The weights `[L]`, the images `[N, ...]` and the labels `[N]` as arrays.

    Raises:
      ValueError: if they are not what `evaluate_mixture` asks for, or do not fit the members.
    """
    checks.at_least(1, batch_size=batch_size)
    checks.simplex(weights=weights)
    images, labels = checked(images, labels, bounds)
    check_members(logits_fn, weights, images.shape[1:], labels)
    return jnp.asarray(weights, jnp.float32), images, labels
