"""One attack run after the other on a data set, each on the examples that are not yet lost.

An example is lost when a point has been found at which every member of positive weight is wrong:
no attack can lower its expected accuracy any more. Some of the examples meet every run all the
same, so that each attack can be judged alone. What is done is written down batch by batch: after a
kill the same call continues from there, to the same numbers.
"""

import contextlib
import functools
import hashlib
import io
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _fingerprint, checks, files, mixture, program
from mixjax.evaluation import batches, diagnostics
from mixjax.evaluation.batches import single
from mixjax.evaluation.inputs import (
    Static,
    as_argument,
    as_pytree,
    check_evaluation,
    numbered,
)
from mixjax.evaluation.result import Evaluation, expected_accuracy
from mixjax.evaluation.suite import Attack
from mixjax.typing import Array, Bounds, Key, LogitsFn

_SAME = 1e-9  # accuracies of two points that differ by rounding alone
_CLEAN = Attack(("clean",), 0, lambda x: x, number=0)


def evaluate(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    images: Any,
    labels: Any,
    attacks: Sequence[Attack],
    *,
    alone: bool = True,
    member_fns: Sequence[LogitsFn] | None = None,
    num_complete: int | None = 1000,
    num_diagnosed: int = 0,
    batch_size: int | None = None,
    folder: Any = None,
    progress: Callable[[str, int, int], Any] = lambda name, num_done, num_all: None,
    transform: Callable | None = None,
) -> Evaluation:
    """Attacks a mixture, each member alone and their average, with the same runs.

    The results depend on neither `batch_size` nor `transform`, up to the rounding of the logits,
    nor on whether the process was killed in between, if there is a `folder`.

    Args:
      key: random key; consumed.
      logits_fn: `x -> [L, C]`, the members' logits on one input; members may come from anywhere.
        What it closes over is compiled in as constants, and not read again while the function is
        the same object: give variables that are large, or that change in place, as
        `jax.tree_util.Partial(function, variables)`, then they are arguments.
      weights: `[L]` probabilities of the members; the attacks on the mixture know nothing of
        members of weight 0, which are attacked alone as the others.
      images: `[N, ...]` inputs, floats within the bounds of the attacks, [0, 1] if these say
        nothing else, or uint8, which is scaled to [0, 1].
      labels: `[N]` integer classes.
      attacks: such as `attack_suite(threat, QUICK)`; the first ones spare the later ones what they
        fool.
      alone: whether the members and their average are attacked too, each with the whole list; if
        not, they are judged at the points of the mixture.
      member_fns: for each member `x -> [1, C]`; None: its row of `logits_fn`, at `L` times the
        cost.
      num_complete: number of examples, evenly spread, that the mixture defends against every
        run, so that each attack can be judged alone; None: all. The others are attacked no more
        once no attack can lower their expected accuracy; so are all examples of the members and of
        the average, of which only the worst point counts.
      num_diagnosed: number of examples that `diagnose` probes; 0: none.
      batch_size: number of examples attacked at once, at most; None: 64 on a CPU, 256 elsewhere.
      folder: where to write down what is done, and to continue from; None: nowhere. It holds, and
        compares, all that the results depend on: key, data, weights, what `logits_fn` and the
        attacks compute and with which arrays, and the versions of JAX and of this library.
      progress: called after each batch with the name of who is under attack, the number of
        examples times runs that are done, and of all.
      transform: what is done to functions of positional arguments, the last three of them
        `[B, ...]`, before they are called; None: they are compiled for one device, on a CPU with
        only as much optimisation as the work is worth; a `parallel.over_examples` splits the three
        over several devices.

    Returns:
      An `Evaluation`. With one member, `alone` and `averaged` are the same evaluation.

    Raises:
      ValueError: if key, images, labels or weights are not what they should be, there are too few
        runs for the members, or `folder` holds another evaluation (the message names the differing
        settings) or is in use by another process.

    Example:
      >>> import jax, numpy as np
      >>> from mixjax import evaluation, threats
      >>> images, labels = np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 0])
      >>> attacks = evaluation.pgd_attacks(
      ...     threats.linf(0.2), num_runs=3, num_steps=2, step_size=0.2
      ... )
      >>> found = evaluation.evaluate(  # one member, whose logits are the pixels
      ...     jax.random.key(0), lambda x: x[None], [1.0], images, labels, attacks
      ... )
      >>> found.clean_accuracy, found.robust_accuracy
      (1.0, 0.5)
    """
    checks.key(key=key)
    if num_complete is not None:
        checks.at_least(0, num_complete=num_complete)
    checks.at_least(0, num_diagnosed=num_diagnosed)
    attacks, bounds = numbered(attacks)
    logits_fn, weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, bounds
    )
    num_members = len(weights)
    if member_fns is None:
        rows = np.arange(num_members, dtype=np.int32)
        member_fns = [jax.tree_util.Partial(_member, logits_fn, row) for row in rows]
    if len(member_fns) != num_members:
        raise ValueError(f"member_fns must be {num_members} functions, got {len(member_fns)}")
    of_mixture, of_average = _together(logits_fn, weights, alone)
    batch_size = batches.equal_batches(len(images), batch_size)
    whole = len(images) if num_complete is None else num_complete

    def runs_on(subject):
        return [run for attack in attacks for run in attack.runs(len(subject.seen_weights))]

    if transform is None:
        share = 1 + num_members if alone else 1
        shape, runs = (batch_size, *images.shape[1:]), runs_on(of_mixture)
        num_passes = sum(passes.cost for _, passes in _traced(key, of_mixture, runs, shape))
        transform = batches.for_work(share * len(images) * num_passes, logits_fn, shape[1:])

    def under_attack(subject, num_complete):
        return attack_in_turn(
            key,
            subject,
            images,
            labels,
            runs_on(subject),
            bounds=bounds,
            num_complete=num_complete,
            batch_size=batch_size,
            folder=folder and pathlib.Path(folder) / subject.name.replace(" ", "_"),
            progress=functools.partial(progress, subject.name),
            transform=transform,
        )

    with _alone(folder):
        found = under_attack(of_mixture, whole)
        if alone and num_members > 1:
            certain = np.ones(1)
            members = tuple(
                under_attack(Subject(f"member {k}", fn, certain, fn, certain), 0)
                for k, fn in enumerate(map(as_pytree, member_fns), 1)
            )
            found = found._replace(alone=members, averaged=under_attack(of_average, 0))
        elif alone:
            found = found._replace(alone=(found,), averaged=found)
    findings = diagnostics.compare_attacks(found)
    if num_diagnosed and found.threat is not None and float(found.threat.epsilon) > 0:
        probed = diagnostics.diagnose(
            logits_fn,
            weights,
            images,
            labels,
            found.threat,
            num_examples=num_diagnosed,
            bounds=bounds,
            transform=transform,
        )
        findings = probed + findings
    return found._replace(findings=findings)


class Subject(NamedTuple):
    """Who is attacked, and whose answers are written down.

    Attributes:
      name: what to call it.
      logits_fn: `x -> [L, C]`, what the attacks see.
      seen_weights: `[L]`.
      judged: `x -> [M, C]`, who answers at the points found.
      weights: `[M]`.
      is_average: whether the class of highest mean probability is the answer.
    """

    name: str
    logits_fn: LogitsFn
    seen_weights: Any
    judged: LogitsFn
    weights: Any
    is_average: bool = False


def _together(logits_fn, weights, alone):
    """The mixture, and the classifier that answers with the class of highest mean probability.

    If members are attacked `alone`, the attacks on these two know only the members of positive
    weight: what the others answer cannot matter to any order, direction or draw. Both share what is
    compiled: the average is a mixture whose members all return the mean, of which the first is
    drawn with certainty.
    """
    if not alone or len(weights) == 1:
        return Subject("mixture", logits_fn, weights, logits_fn, weights), None
    seen, seen_weights = those_that_count(logits_fn, weights)
    certain = np.eye(1, len(seen_weights))[0]
    of_mixture, of_average = (
        jax.tree_util.Partial(_or_average, seen, single(seen_weights), np.bool_(is_average))
        for is_average in (False, True)
    )
    return (
        Subject("mixture", of_mixture, seen_weights, logits_fn, weights),
        Subject("averaged", of_average, certain, logits_fn, weights, is_average=True),
    )


def those_that_count(logits_fn: LogitsFn, weights: np.ndarray) -> tuple[LogitsFn, np.ndarray]:
    """The mixture without its members of weight 0."""
    counting = tuple(np.flatnonzero(weights > 0).tolist())
    if len(counting) == len(weights):
        return logits_fn, weights
    return jax.tree_util.Partial(_rows, Static(counting), logits_fn), weights[list(counting)]


def _rows(counting, logits_fn, x):
    return logits_fn(x)[np.asarray(counting.value)]


def _or_average(logits_fn, weights, is_average, x):
    logits = logits_fn(x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def average(logits):
        mean = mixture.log_probs(logits, weights).astype(logits.dtype)
        return jnp.broadcast_to(mean, logits.shape)

    return jax.lax.cond(is_average, average, lambda logits: logits, logits)


def _member(logits_fn, k, x):
    return logits_fn(x)[k][None]


class _Batch(NamedTuple):
    """What is written down of a batch under one run: its rows, the `Answers` there, and `seconds`.

    `lowered` are places in `rows` at which no point before left so little, and `points` these.
    """

    rows: np.ndarray
    correct: Array | np.ndarray
    averaged: Array | np.ndarray
    is_nan: Array | np.ndarray
    seconds: Any
    lowered: np.ndarray
    points: np.ndarray


def attack_in_turn(
    key: Key,
    subject: Subject,
    images: np.ndarray,
    labels: np.ndarray,
    runs: Sequence[tuple[Attack, int]],
    *,
    bounds: Bounds,
    num_complete: int,
    batch_size: int,
    transform: Callable,
    folder: pathlib.Path | None = None,
    progress: Callable[[int, int], Any] = lambda num_done, num_all: None,
    visit: Callable[[int, np.ndarray], Any] = lambda run, points: None,
) -> Evaluation:
    """Makes runs, each `(attack, number)`, on one subject, after a look at the clean examples.

    `visit` is called with each batch of points that a run has found, the clean ones as run 0.
    """
    num_examples = len(images)
    runs = [(_CLEAN._replace(bounds=bounds), 0), *runs]
    names = [attack.names[run] for attack, run in runs]
    shape = (min(batch_size, num_examples), *images.shape[1:])
    seen = key, subject.logits_fn, subject.seen_weights
    traces = _traced(key, subject, runs, shape)
    weights = np.ones(1) if subject.is_average else np.asarray(subject.weights, np.float64)
    threat = next((each.threat for each, _ in runs if each.threat is not None), None)
    if folder is not None:
        settings = {
            "num_examples": num_examples,
            "num_complete": num_complete,
            "batch_size": batch_size,
            "weights": np.asarray(subject.weights),
            "threat": threat and {"norm": threat.name, "epsilon": float(threat.epsilon)},
            "bounds": [np.asarray(bound).tolist() for bound in bounds],
            "attacks": [[name, *passes] for name, (_, passes) in zip(names, traces, strict=True)],
            **_described(runs, traces),
            "logits_fn": _fingerprint_of(subject.judged, shape[1:]),
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
    correct, is_nan = np.zeros(of_members, bool), np.zeros(of_members, bool)
    averaged = np.zeros(of_members[:2], bool)
    num_attacked, seconds = np.zeros(len(runs), int), np.zeros(len(runs))
    lowest, is_lost = np.full(num_examples, np.inf), np.zeros(num_examples, bool)
    points = images.copy()

    def judge(*batch):
        found = batches.judge_batch(subject.judged, subject.weights, *batch, transform=transform)
        found = jax.device_get(found)
        if subject.is_average:
            is_nan = (found.is_nan & (subject.weights > 0)).any(axis=1, keepdims=True)
            return batches.Answers(found.averaged[:, None], found.averaged, is_nan)
        return found

    shrink, soon = batches.may_shrink(transform), {}
    for place, (attack, run) in enumerate(runs):
        file = f"{place:03d}-{_in_a_file_name(names[place])}"
        left = np.flatnonzero(~is_lost | is_complete)
        parts = list(batches.split(left, batch_size, shrink=shrink))
        paths = [folder and folder / f"{file}-{number:05d}.npz" for number in range(len(parts))]
        known = [_read(path, rows) for path, (rows, _) in zip(paths, parts, strict=True)]
        asked = [part for part, found in zip(parts, known, strict=True) if found is None]
        given = ((images[filled], labels[filled], filled) for _, filled in asked)
        moved = (at for at, *_ in given)
        if asked:
            # One ahead: if all examples are lost before its turn, one program is compiled in vain.
            following = next((each for each, _ in runs[place:] if each is not attack), None)
            if following is not None and id(following) not in soon:
                filled = asked[0][1]
                batch = images[filled], labels[filled], filled
                soon[id(following)] = batches.compile_attack(*seen, following, batch, transform)
            if (compiling := soon.get(id(attack))) is not None:
                compiling.result()  # not twice at the same time
        if place:
            moved = batches.attack_batches(*seen, attack, run, given, transform)
        for path, (rows, filled), found in zip(paths, parts, known, strict=True):
            if found is None:
                began = time.monotonic()  # several are computed at once: as long as one waits
                at = np.asarray(next(moved))
                answers = judge(at, labels[filled], filled)
                answers = batches.Answers(*(each[: len(rows)] for each in answers))
                accuracy = expected_accuracy(answers.correct, weights)
                lowered = np.flatnonzero(accuracy < lowest[rows] - _SAME)
                visit(place, at[: len(rows)])
                found = _Batch(rows, *answers, time.monotonic() - began, lowered, at[lowered])
                _write(path, found)
            for whole, part in zip((correct, averaged, is_nan), found[1:4], strict=True):
                whole[rows, place] = part
            points[rows[found.lowered]] = found.points
            lowest[rows] = np.minimum(lowest[rows], expected_accuracy(found.correct, weights))
            seconds[place] += found.seconds
            num_attacked[place] += len(rows)
            progress(place * num_examples + num_attacked[place], len(runs) * num_examples)
        progress((place + 1) * num_examples, len(runs) * num_examples)
        is_lost |= ~correct[:, place, weights > 0].any(axis=1)

    passes = np.array([passes for _, passes in traces], int)
    return Evaluation(
        name=subject.name,
        threat=threat,
        weights=weights,
        runs=tuple(names[1:]),
        num_steps=tuple(attack.num_steps for attack, _ in runs[1:]),
        labels=labels,
        correct=correct,
        averaged_correct=averaged,
        is_nan=is_nan,
        is_complete=is_complete,
        images=points,
        num_attacked=num_attacked[1:],
        num_answers=passes[1:, 0],
        num_gradients=passes[1:, 1],
        seconds=seconds[1:],
    )


def _traced(key, subject, runs, shape):
    """For each run the program of its attack, and the passes of one run on one example."""
    attacks = {id(attack): attack for attack, _ in runs}
    seen = key, subject.logits_fn, subject.seen_weights
    known = {name: batches.trace_attack(*seen, each, shape) for name, each in attacks.items()}
    return [known[id(attack)] for attack, _ in runs]


def _fingerprint_of(logits_fn, shape):
    return program.fingerprint(logits_fn, jax.ShapeDtypeStruct(shape, jnp.float32))._asdict()


def _described(runs, traces):
    """Of each attack the numbers that are known, for the message that names them, and all it is."""
    numbers, programs = {}, {}
    for (attack, _), (closed, _) in zip(runs, traces, strict=True):
        name, function = f"{attack.number} {attack.names[0]}", attack.function
        if name in programs:
            continue
        known = function.keywords if isinstance(function, functools.partial) else {}
        numbers[name] = {each: str(value) for each, value in known.items()}
        told = [*program.fingerprint_of_jaxpr(closed)]
        arrays = jax.tree.leaves(as_argument(attack)[0])
        told += [str(_fingerprint.fingerprints(each)) for each in arrays]
        programs[name] = hashlib.sha256(" ".join(told).encode()).hexdigest()[:12]
    return {"numbers": numbers, "programs": programs}


def _alone(folder):
    """Keeps other processes out of the folder; of several hosts the first one does."""
    if folder is None or jax.process_index() > 0:
        return contextlib.nullcontext()
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be written: {error.strerror}") from error
    return files.hold(folder, argument="folder")


def _in_a_file_name(name):
    """An attack may be called `pgd 8/255`; the number before it in the file's name is its own."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:64]


def _write(path, found):
    if path is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **found._asdict())
        files.write(path, buffer.getvalue())


def _read(path, rows):
    """What was written down of this batch; None if nothing, or if the file is damaged."""
    if path is None or not path.exists():
        return None
    try:
        found = _Batch(**files.read_arrays(path))
    except (ValueError, TypeError):
        return None
    return found if np.array_equal(found.rows, rows) else None
