"""One attack run after the other on a data set, each on the examples that are not yet lost.

An example is lost when a point has been found at which every member of positive weight is wrong:
no attack can lower its expected accuracy any more. A part of the examples meets every run all the
same, so that each attack can be judged alone. What is done is written down batch by batch: a
process that is killed goes on from there, to the same numbers.
"""

import functools
import hashlib
import inspect
import io
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _fingerprint, files, program
from mixjax.batch import example_keys
from mixjax.evaluation.outcomes import Outcomes
from mixjax.evaluation.passes import passes_in
from mixjax.evaluation.suite import Attack
from mixjax.threats import Threat
from mixjax.typing import Array, Key, LogitsFn

_STORED = "rows", *Outcomes._fields, "seconds"

CLEAN = Attack(("clean",), 0, lambda key, run, logits_fn, weights, x, label: x)


class Record(NamedTuple):
    """What `R` attack runs did to `N` examples, in NumPy arrays.

    Attributes:
      outcomes: answers at `R + 1` points, the clean one first; where a run was left out because
        the example was lost, nobody is right, nor answers NaN.
      is_complete: `[N]` whether the example met every run, lost or not.
      num_attacked: `[R]` number of examples that met each run.
      num_answers: `[R]` forward passes through single networks of one run on one example.
      num_gradients: `[R]` the same of backward passes.
      seconds: `[R]` wall-clock time, that of compilation in the first run of each attack.
    """

    outcomes: Outcomes
    is_complete: np.ndarray
    num_attacked: np.ndarray
    num_answers: np.ndarray
    num_gradients: np.ndarray
    seconds: np.ndarray


class Stage(NamedTuple):
    """An attack, `evaluate_run` with it, compiled, and `passes.trace` of it, which remembers."""

    attack: Attack
    evaluate: Callable
    trace: Callable


def attack_in_turn(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    images: np.ndarray,
    labels: np.ndarray,
    stages: Sequence[Stage],
    *,
    num_complete: int,
    batch_size: int,
    folder: pathlib.Path | None,
    progress: Callable[[int, int], None],
) -> Record:
    """Makes every run of the stages, the first of which must be `CLEAN`.

    Args:
      key: random key of the data set.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[N, ...]` inputs, floats within the bounds of the attacks or uint8.
      labels: `[N]` integer classes.
      stages: attacks in the order of their turns.
      num_complete: number of examples, evenly spread, that meet every run.
      batch_size: number of examples attacked at once.
      folder: where to write down what is done and to continue from; None: nowhere.
      progress: called after each batch with the number of examples times runs done and of all.

    Returns:
      The `Record` of all runs.

    Raises:
      ValueError: if `folder` holds another evaluation.
    """
    num_examples = len(images)
    x = jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)
    logits = jax.eval_shape(logits_fn, x)
    shapes = logits, *jax.eval_shape(lambda *each: each, weights, x), _shape_of_run_key(key)
    traces = [stage.trace(*shapes) for stage in stages]
    runs = [
        (stage, passes_in(traced, logits), run, name)
        for stage, traced in zip(stages, traces, strict=True)
        for run, name in enumerate(stage.attack.names)
    ]
    if folder is not None:
        settings = {
            "num_examples": num_examples,
            "num_complete": num_complete,
            "batch_size": batch_size,
            "weights": np.asarray(weights),
            "attacks": [[name, *passes] for _, passes, _, name in runs],
            "numbers": _numbers([stage.attack.run for stage in stages]),
            "programs": {
                f"{place} {each.attack.names[0]}": _short(program.fingerprint_of_jaxpr(each.closed))
                for place, each in enumerate(traces)
            },
            "logits_fn": program.fingerprint(logits_fn, x)._asdict(),
            "key": _fingerprint.fingerprints(key)[""],
            "images": _fingerprint.fingerprints(images)[""],
            "labels": _fingerprint.fingerprints(labels)[""],
            "versions": program.versions(),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.claim(folder, settings, argument="folder")

    is_complete = np.zeros(num_examples, bool)
    is_complete[np.linspace(0, num_examples - 1, min(num_complete, num_examples)).astype(int)] = (
        True
    )
    of_members = (num_examples, len(runs), len(weights))
    outcomes = Outcomes(
        np.zeros(of_members, bool), np.zeros(of_members[:2], bool), np.zeros(of_members, bool)
    )
    num_attacked, seconds = np.zeros(len(runs), int), np.zeros(len(runs))
    counts = np.asarray(weights) > 0
    is_lost = np.zeros(num_examples, bool)
    for place, (stage, _, run, name) in enumerate(runs):
        file = f"{place:03d}-{_in_a_file_name(name)}"
        rows = np.flatnonzero(~is_lost | is_complete)
        num_attacked[place] = len(rows)
        evaluate = functools.partial(stage.evaluate, key, np.int32(run), logits_fn, weights)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            path = folder and folder / f"{file}-{start // batch_size:05d}.npz"
            found = _read(path, batch)
            if found is None:
                found = _timed(evaluate, images, labels, batch, batch_size)
                _write(path, batch, found)
            answers, duration = found
            for whole, part in zip(outcomes, answers, strict=True):
                whole[batch, place] = part
            seconds[place] += duration
            progress(place * num_examples + start + len(batch), len(runs) * num_examples)
        progress((place + 1) * num_examples, len(runs) * num_examples)
        is_lost |= ~outcomes.members[:, place, counts].any(axis=1)

    answers, gradients = np.array([passes for _, passes, _, _ in runs[1:]], int).reshape(-1, 2).T
    return Record(outcomes, is_complete, num_attacked[1:], answers, gradients, seconds[1:])


def _in_a_file_name(name):
    """An attack may be called `pgd 8/255`; the number before it in the file's name is its own."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:64]


def _timed(evaluate, images, labels, batch, batch_size):
    """One batch, filled up with copies of its last example, and the seconds that it took."""
    start = time.monotonic()
    padded = np.minimum(np.arange(batch_size), len(batch) - 1)
    rows = batch[padded].astype(np.int32)
    found = jax.device_get(evaluate(images[rows], labels[rows], rows))
    return Outcomes(*(each[: len(batch)] for each in found)), time.monotonic() - start


def _write(path, batch, found):
    if path is not None:
        outcomes, duration = found
        buffer = io.BytesIO()
        np.savez(buffer, **dict(zip(_STORED, (batch, *outcomes, duration), strict=True)))
        files.write(path, buffer.getvalue())


def _read(path, batch):
    """What was written down of this batch; None if nothing, or if the file is damaged."""
    if path is None or not path.exists():
        return None
    try:
        stored = files.read_arrays(path)
        rows, *outcomes, seconds = (stored[name] for name in _STORED)
    except (ValueError, KeyError):
        return None
    if not np.array_equal(rows, batch):
        return None
    return Outcomes(*outcomes), float(seconds)


def _shape_of_run_key(key):
    return jax.eval_shape(lambda key: example_keys(key, jnp.zeros(1, jnp.int32))[0], key)


def _short(found):
    """A program with its arrays, in as many characters as a sentence bears."""
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12]


def _numbers(functions):
    """What the functions close over, as far as it is plain: name -> its values.

    For the message alone, which says "epsilon" where the programs say that something differs.
    """
    found = {}

    def note(name, value):
        if isinstance(value, Threat):
            value = {"norm": value.name, "epsilon": value.epsilon}
        elif hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, dict):
            for key, entry in value.items():
                note(f"{name}.{key}", entry)
        elif isinstance(value, tuple):
            note(name, dict(enumerate(value)))
        elif isinstance(value, bool | int | float | str):
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)

    for function in functions:
        if inspect.isfunction(function):
            for name, value in inspect.getclosurevars(function).nonlocals.items():
                note(name, value)
    return {name: [str(value) for value in values] for name, values in found.items()}
