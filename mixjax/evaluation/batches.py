"""Batches of a data set: the loop on the host, and the compiled programs that it calls.

Radius, weights and the members' variables are arguments of what is compiled: a program is compiled
once for all of them, as long as the function inside is the same.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mixjax import checks
from mixjax.batch import to_float
from mixjax.evaluation import outcomes
from mixjax.evaluation.inputs import UNIT, checked
from mixjax.evaluation.suite import Attack, run_attack
from mixjax.typing import Array, Bounds, Key, LogitsFn


def attack_batch(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    attack: Attack,
    run: int,
    images: Any,
    labels: Any,
    indices: Any,
    *,
    transform: Callable | None = None,
) -> Array:
    """The points `[B, ...]` that one run of an attack finds on a batch."""
    find = compiled(_points, transform, attack.function)
    settings = attack.threat, UNIT if attack.bounds is None else attack.bounds
    numbers = np.array(attack.number, np.int32), np.array(run, np.int32)
    return find(key, numbers, logits_fn, single(weights), settings, images, labels, indices)


def judge_batch(
    logits_fn: LogitsFn,
    weights: Any,
    points: Any,
    labels: Any,
    indices: Any,
    *,
    transform: Callable | None = None,
) -> outcomes.Answers:
    """The `Answers` of all members at the points `[B, ...]` of a batch."""
    score = compiled(_answers, transform)
    return score(logits_fn, single(weights), points, labels, indices)


def padded_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`(rows, padded)` of each batch; the last is filled up with copies of the last example."""
    for start in range(0, num_examples, batch_size):
        rows = np.arange(start, min(start + batch_size, num_examples), dtype=np.int32)
        yield rows, padded(rows, batch_size)


def padded(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """`[batch_size]` rows, the last one repeated."""
    return rows[np.minimum(np.arange(batch_size), len(rows) - 1)].astype(np.int32)


def over_batches(
    batch_fn: Callable,
    images: Any,
    labels: Any,
    *,
    batch_size: int = 256,
    progress: Callable[[range], Iterable[int]] = iter,
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
    batches = list(padded_batches(len(images), batch_size))
    found = []
    for place in progress(range(len(batches))):
        _, rows = batches[place]
        found.append(jax.device_get(batch_fn(images[rows], labels[rows], rows)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *found)


@functools.lru_cache(maxsize=256)
def compiled(function: Callable, transform: Callable | None, *static: Any) -> Callable:
    """`transform` of a function whose first arguments are known; once for equal ones."""
    return (jax.jit if transform is None else transform)(functools.partial(function, *static))


def _points(function, key, numbers, logits_fn, weights, settings, images, labels, indices):
    number, run = numbers

    def one(key, x, label):
        return run_attack(function, key, run, logits_fn, weights, x, label, *settings)

    return jax.vmap(one)(outcomes.run_keys(key, number, run, indices), to_float(images), labels)


def _answers(logits_fn, weights, points, labels, indices):
    del indices  # for a `transform`, which splits the last three
    return outcomes.answers(logits_fn, weights, points, labels)


def single(weights: Any) -> np.ndarray:
    """In the precision of the networks."""
    return np.asarray(weights, np.float32)


def equal_batches(num_examples: int, batch_size: int) -> int:
    """The size of as many batches as `batch_size` needs, the last one hardly smaller."""
    return -(-num_examples // -(-num_examples // batch_size))
