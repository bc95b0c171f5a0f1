"""One attack run after the other on a data set, each on the examples that are not yet lost.

An example is lost when a point has been found at which every member of positive weight is wrong:
no attack can lower its expected accuracy any more. A part of the examples meets every run all the
same, so that each attack can be judged alone. What is done is written down batch by batch: a
process that is killed goes on from there, to the same numbers.
"""

import contextlib
import functools
import hashlib
import io
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _fingerprint, checks, files, mixture, program
from mixjax.batch import example_keys, to_float
from mixjax.evaluation import diagnostics, outcomes
from mixjax.evaluation.batches import attack_batch, equal_batches, judge_batch, padded, single
from mixjax.evaluation.compilation import for_work, work_of
from mixjax.evaluation.inputs import (
    as_pytree,
    bounds_of,
    check_evaluation,
)
from mixjax.evaluation.passes import passes_in, trace
from mixjax.evaluation.result import Evaluation, expected_accuracy
from mixjax.evaluation.suite import Attack
from mixjax.typing import Key, LogitsFn

Progress = Callable[[str, int, int], Any]

_STORED = "rows", *outcomes.Answers._fields, "seconds", "lowered", "points"
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
    batch_size: int = 256,
    folder: Any = None,
    progress: Progress = lambda name, num_done, num_all: None,
    transform: Callable | None = None,
) -> Evaluation:
    """Attacks a mixture, each member alone and their average, with the same runs.

    The results depend on neither `batch_size` nor `transform`, up to the rounding of the logits,
    nor on whether the process was killed in between, if there is a `folder`.

    Args:
      key: random key; consumed.
      logits_fn: `x -> [L, C]`, the members' logits on one input; members may come from anywhere.
        What it closes over is compiled in as constants: give large variables as
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
        run, so that each attack can be judged alone; None: all. The others are left alone once no
        attack can lower their expected accuracy, as all are where only the worst counts: for the
        members and the average.
      num_diagnosed: number of examples that `diagnose` probes; 0: none.
      batch_size: number of examples attacked at once, at most.
      folder: where to write down what is done, and to continue from; None: nowhere. It knows
        again all that decides the answers: key, data, weights, what `logits_fn` and the attacks
        compute and with which arrays, and the versions of JAX and of this library.
      progress: called after each batch with the name of who is under attack, the number of
        examples times runs that are done, and of all.
      transform: what is done to functions of positional arguments, the last three of them
        `[B, ...]`, before they are called; None: they are compiled for one device, on a CPU with as
        little optimisation as the work is worth; a
        `parallel.over_examples` splits the three over several.

    Returns:
      An `Evaluation`. For one member those of the member and of the average are the same one.

    Raises:
      ValueError: if images, labels or weights are not what they should be, there are too few runs
        for the members, or `folder` holds another evaluation (the message names the differing
        settings) or is in use by another process.
    """
    if num_complete is not None:
        checks.at_least(0, num_complete=num_complete)
    checks.at_least(0, num_diagnosed=num_diagnosed)
    check_names(attacks)
    logits_fn = as_pytree(logits_fn)
    weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, batch_size, bounds_of(attacks)
    )

    num_members = len(weights)
    if transform is None:
        seen = those_that_count(logits_fn, weights) if alone else (logits_fn, single(weights))
        work = work_of(attacks, *seen, images.shape[1:], len(images))
        transform = for_work((1 + alone * num_members) * work)
    batch_size = equal_batches(len(images), batch_size)
    if member_fns is None:
        rows = np.arange(num_members, dtype=np.int32)
        member_fns = [jax.tree_util.Partial(_member, logits_fn, row) for row in rows]
    if len(member_fns) != num_members:
        raise ValueError(f"member_fns must be {num_members} functions, got {len(member_fns)}")
    whole = len(images) if num_complete is None else num_complete

    def under_attack(subject, num_complete):
        return _attack_in_turn(
            key,
            subject,
            images,
            labels,
            attacks,
            num_complete=num_complete,
            batch_size=batch_size,
            folder=None
            if folder is None
            else pathlib.Path(folder) / subject.name.replace(" ", "_"),
            progress=functools.partial(progress, subject.name),
            transform=transform,
        )

    with _alone(folder):
        of_mixture, of_average = _together(logits_fn, weights, alone)
        found = under_attack(of_mixture, whole)
        if alone and num_members > 1:
            certain = np.ones(1, np.float32)
            members = tuple(
                under_attack(_Subject(f"member {k}", fn, certain, fn, certain), 0)
                for k, fn in enumerate(map(as_pytree, member_fns), 1)
            )
            found = found._replace(alone=members, averaged=under_attack(of_average, 0))
        elif alone:
            found = found._replace(alone=(found,), averaged=found)
    findings = diagnostics.compare_attacks(found)
    if num_diagnosed and found.threat is not None and float(found.threat.epsilon) > 0:
        findings = (
            diagnostics.diagnose(
                logits_fn,
                weights,
                images,
                labels,
                found.threat,
                num_examples=num_diagnosed,
                bounds=bounds_of(attacks),
                transform=transform,
            )
            + findings
        )
    return found._replace(findings=findings)


class _Subject(NamedTuple):
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

    If members are attacked `alone`, the attacks on these two know only those that count: what the
    others answer cannot matter, in no order of turns, direction or draw. Both share what is
    compiled: the average is a mixture whose members all answer the mean, of which one is drawn for
    certain.
    """
    if not alone or len(weights) == 1:
        return _Subject("mixture", logits_fn, single(weights), logits_fn, weights), None
    seen, seen_weights = those_that_count(logits_fn, weights)
    certain = np.eye(1, len(seen_weights), dtype=np.float32)[0]
    of_mixture, of_average = (
        jax.tree_util.Partial(_or_average, seen, seen_weights, np.bool_(is_average))
        for is_average in (False, True)
    )
    return (
        _Subject("mixture", of_mixture, seen_weights, logits_fn, weights),
        _Subject("averaged", of_average, certain, logits_fn, weights, is_average=True),
    )


def those_that_count(logits_fn: LogitsFn, weights: np.ndarray) -> tuple[LogitsFn, np.ndarray]:
    """The mixture without its members of weight 0."""
    counting = tuple(np.flatnonzero(weights > 0).tolist())
    if len(counting) == len(weights):
        return logits_fn, single(weights)
    return jax.tree_util.Partial(_Rows(counting), logits_fn), single(weights[np.asarray(counting)])


class _Rows(NamedTuple):
    """Some of the members: equal rows are one function, compiled once."""

    rows: tuple[int, ...]

    def __call__(self, logits_fn, x):
        return logits_fn(x)[np.asarray(self.rows)]


def _or_average(logits_fn, weights, is_average, x):
    logits = logits_fn(x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def average(logits):
        mean = mixture.log_probs(logits, weights).astype(logits.dtype)
        return jnp.broadcast_to(mean, logits.shape)

    return jax.lax.cond(is_average, average, lambda logits: logits, logits)


def _member(logits_fn, k, x):
    return logits_fn(x)[k][None]


def _attack_in_turn(
    key, subject, images, labels, attacks, *, num_complete, batch_size, folder, progress, transform
) -> Evaluation:
    """Makes every run of the attacks on one subject, after a look at the clean examples."""
    num_examples = len(images)
    bounds = bounds_of(attacks)
    stages = [
        attack._replace(bounds=bounds, number=place if attack.number is None else attack.number)
        for place, attack in enumerate((_CLEAN, *attacks))
    ]
    traces = [_traced(stage, subject, images.shape[1:], key) for stage in stages]
    runs = [
        (stage, passes, run, name)
        for stage, (passes, _) in zip(stages, traces, strict=True)
        for run, name in enumerate(stage.names)
    ]
    weights = np.ones(1) if subject.is_average else np.asarray(subject.weights, np.float64)
    threat = next((each.threat for each in attacks if each.threat is not None), None)
    if folder is not None:
        settings = {
            "num_examples": num_examples,
            "num_complete": num_complete,
            "batch_size": batch_size,
            "weights": np.asarray(subject.weights),
            "threat": threat and {"norm": threat.name, "epsilon": float(threat.epsilon)},
            "bounds": [np.asarray(bound).tolist() for bound in bounds],
            "attacks": [[name, *passes] for _, passes, _, name in runs],
            "numbers": {_called(stage): _numbers(stage.function) for stage in stages},
            "programs": {
                _called(stage): _short(program.fingerprint_of_jaxpr(closed))
                for stage, (_, closed) in zip(stages, traces, strict=True)
            },
            "logits_fn": program.fingerprint(
                subject.judged, jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)
            )._asdict(),
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
    counts = weights > 0
    lowest, is_lost = np.full(num_examples, np.inf), np.zeros(num_examples, bool)
    points = np.array(to_float(images))

    def judge(*batch):
        found = judge_batch(subject.judged, subject.weights, *batch, transform=transform)
        found = jax.device_get(found)
        if subject.is_average:
            is_nan = (found.is_nan & (subject.weights > 0)).any(axis=1, keepdims=True)
            return outcomes.Answers(found.averaged[:, None], found.averaged, is_nan)
        return found

    for place, (stage, _, run, name) in enumerate(runs):
        file = f"{place:03d}-{_in_a_file_name(name)}"
        rows = np.flatnonzero(~is_lost | is_complete)
        num_attacked[place] = len(rows)
        find = functools.partial(
            attack_batch,
            key,
            subject.logits_fn,
            subject.seen_weights,
            stage,
            run,
            transform=transform,
        )
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            path = folder and folder / f"{file}-{start // batch_size:05d}.npz"
            found = _read(path, batch)
            if found is None:
                began = time.monotonic()
                filled = padded(batch, batch_size)
                at = images[filled] if place == 0 else find(images[filled], labels[filled], filled)
                answers = judge(at, labels[filled], filled)
                at = np.asarray(to_float(at))
                answers = outcomes.Answers(*(each[: len(batch)] for each in answers))
                accuracy = expected_accuracy(answers.correct, weights)
                lowered = np.flatnonzero(accuracy < lowest[batch] - _SAME)
                found = (*answers, time.monotonic() - began, lowered, at[lowered])
                _write(path, batch, found)
            *answers, duration, lowered, moved = found
            for whole, part in zip((correct, averaged, is_nan), answers, strict=True):
                whole[batch, place] = part
            points[batch[lowered]] = moved
            lowest[batch] = np.minimum(
                lowest[batch], expected_accuracy(correct[batch, place], weights)
            )
            seconds[place] += duration
            progress(place * num_examples + start + len(batch), len(runs) * num_examples)
        progress((place + 1) * num_examples, len(runs) * num_examples)
        is_lost |= ~correct[:, place, counts].any(axis=1)

    answers, gradients = np.array([passes for _, passes, _, _ in runs[1:]], int).reshape(-1, 2).T
    return Evaluation(
        name=subject.name,
        threat=threat,
        weights=weights,
        runs=tuple(name for *_, name in runs[1:]),
        num_steps=tuple(stage.num_steps for stage, *_ in runs[1:]),
        labels=labels,
        correct=correct,
        averaged_correct=averaged,
        is_nan=is_nan,
        is_complete=is_complete,
        images=points,
        num_attacked=num_attacked[1:],
        num_answers=answers,
        num_gradients=gradients,
        seconds=seconds[1:],
    )


def check_names(attacks: Iterable[Attack]) -> None:
    """Raises `ValueError` for what is no attack, or one whose name means something else."""
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise ValueError(f"attacks must be a list of Attack, got {attack!r}")
    if reserved := {"clean", "worst"} & {name for attack in attacks for name in attack.names}:
        raise ValueError(f"attacks must not be named clean or worst, got {min(reserved)}")


def _traced(attack, subject, shape, key):
    """Passes of one run on one example, and its program with a stand-in for the networks."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits = jax.eval_shape(subject.logits_fn, x)
    run_key = jax.eval_shape(lambda key: example_keys(key, jnp.zeros(1, jnp.int32))[0], key)
    closed = trace(attack, logits, subject.seen_weights, x, run_key)
    return passes_in(closed, attack.num_steps, logits), closed


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


def _write(path, batch, found):
    if path is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **dict(zip(_STORED, (batch, *found), strict=True)))
        files.write(path, buffer.getvalue())


def _read(path, batch):
    """What was written down of this batch; None if nothing, or if the file is damaged."""
    if path is None or not path.exists():
        return None
    try:
        stored = files.read_arrays(path)
        rows, *answers, seconds, lowered, points = (stored[name] for name in _STORED)
    except (ValueError, KeyError):
        return None
    if not np.array_equal(rows, batch):
        return None
    return *answers, float(seconds), lowered, points


def _called(stage):
    return f"{stage.number} {stage.names[0]}"


def _numbers(function):
    """The numbers of an attack, as far as they are known: for the message, which names them."""
    numbers = function.keywords if isinstance(function, functools.partial) else {}
    return {name: str(value) for name, value in numbers.items()}


def _short(found):
    """A program with its arrays, in as many characters as a sentence bears."""
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12]
