"""Checkpoints of any state: the latest few and the best few, verified when they are read.

A folder belongs to one config. A checkpoint is written under a temporary name, renamed when it is
complete, and only then are superseded ones deleted: a process killed at any moment leaves the
previous checkpoints sound. With each goes the sha256 of every leaf, because flipped bytes in an
array restore silently otherwise. Everything is arrays and JSON, nothing is pickled.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import shutil

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mixjax import _check, _files, _fingerprint
from mixjax.interrupt import Interrupt, interruptible

__all__ = ["Interrupt", "Manager", "interruptible", "open", "restore", "save", "steps"]


class UnsoundError(ValueError):
    """A checkpoint whose content is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Manager:
    """An open folder of checkpoints; made by `open`, closed by `close` or by a `with` block."""

    orbax: ocp.CheckpointManager
    metric: str
    scores: dict  # step -> the metric, None where it is not finite or not readable
    records: dict  # step -> the record of a checkpoint that this process wrote or verified

    def close(self):
        """Waits until the last save is on disk and frees the folder."""
        self.orbax.close()

    def __enter__(self):
        """The manager itself."""
        return self

    def __exit__(self, *exception):
        """Closes the manager."""
        self.close()


@dataclasses.dataclass(frozen=True)
class _Best:
    """Orbax policy: preserve the steps of highest score. Orbax's own fails on unreadable scores."""

    scores: dict
    number: int

    def should_preserve(self, checkpoints, *, context):
        del context
        ranked = _ranked(self.scores, [checkpoint.step for checkpoint in checkpoints])
        kept = ranked[: self.number]
        return [checkpoint.step in kept for checkpoint in checkpoints]


def open(directory, config, *, metric="robust_accuracy", num_latest=2, num_best=3):
    """Opens a folder of checkpoints, making it if there is none.

    Args:
      directory: the folder; missing, empty, or opened before with the same config.
      config: dict that JSON can hold; stored as `config.json` and compared.
      metric: name of the metric that ranks checkpoints, higher is better; NaN ranks last.
      num_latest: number of newest checkpoints to keep, at least 1.
      num_best: number of best checkpoints to keep beside them.

    Returns:
      A `Manager`, to be closed.

    Raises:
      ValueError: if a number is out of range, the folder cannot be written, holds foreign files,
        or belongs to another config (the message names the differing fields).
    """
    _check.at_least(1, num_latest=num_latest)
    _check.at_least(0, num_best=num_best)
    _files.claim(directory, config, argument="directory")
    scores = {}
    policies = [preservation_policy.LatestN(num_latest), _Best(scores, num_best)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies)
    )
    manager = Manager(
        ocp.CheckpointManager(pathlib.Path(directory).resolve(), options=options),
        metric,
        scores,
        records={},
    )
    for step in manager.orbax.all_steps():
        scores[step] = _stored_score(manager, step)
    return manager


def steps(manager):
    """The steps that have a checkpoint, ascending; sound or not."""
    manager.orbax.wait_until_finished()
    return sorted(manager.orbax.all_steps())


def save(manager, step, state, metrics):
    """Saves `state` as checkpoint `step`; the files are written in the background.

    `state` may be donated or changed as soon as this returns. Checkpoints of the same or later
    steps, left by a history that this run does not continue, are removed.

    Args:
      manager: an open `Manager`.
      step: number of training steps done, at least 0.
      state: pytree of arrays: NamedTuples, optax states, typed keys, sharded arrays.
      metrics: dict of numbers that holds the manager's metric; NaN is stored as null.

    Raises:
      ValueError: if `step` is negative or the metric is missing.
    """
    _check.at_least(0, step=step)
    if manager.metric not in metrics:
        raise ValueError(f"metrics must hold {manager.metric}, got {', '.join(metrics) or 'none'}")
    metrics = {name: _finite_or_none(value) for name, value in metrics.items()}
    record = _signed({"metrics": metrics, "leaves": _fingerprint.fingerprints(state)})
    if manager.records.get(step) == record:
        return
    for superseded in [each for each in steps(manager) if each >= step]:
        manager.orbax.delete(superseded)
        manager.records.pop(superseded, None)
    _remove_leftovers(manager.orbax.directory)
    manager.scores[step] = metrics[manager.metric]
    manager.records[step] = record
    manager.orbax.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        ),
        force=True,
    )


def restore(manager, template, step=None):
    """Restores a sound checkpoint.

    Args:
      manager: an open `Manager`.
      template: pytree of arrays or `jax.ShapeDtypeStruct`s like the saved state; its shardings
        rule: a template on one device restores there what was saved on four.
      step: None for the newest sound checkpoint; "best" for the sound one of highest metric, the
        latest among equals; a number for that checkpoint and no other.

    Returns:
      `(state, step, skipped)`: the state bit for bit as it was saved, its step, and a list of
      `(step, reason)` of the checkpoints that came first but were not sound.

    Raises:
      ValueError: if there is no sound checkpoint to restore, or the template has another
        structure, shape or dtype than the checkpoint.
    """
    present = steps(manager)
    if step is None:
        candidates = present[::-1]
    elif step == "best":
        candidates = _ranked(manager.scores, present)
    else:
        candidates = [each for each in present if each == step]
    skipped = []
    for candidate in candidates:
        try:
            return _read(manager, candidate, template), candidate, skipped
        except UnsoundError as error:
            skipped.append((candidate, str(error)))
    wanted = {None: "checkpoint", "best": f"checkpoint with a finite {manager.metric}"}
    raise ValueError(
        f"no sound {wanted.get(step, f'checkpoint {step}')} in {manager.orbax.directory}"
        + "".join(f"; step {each}: {reason}" for each, reason in skipped)
    )


def _read(manager, step, template):
    """The state of one checkpoint, if it fits the template and is what was saved."""
    record = _stored_record(manager, step)
    _check_template(record["leaves"], template, step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    try:
        state = manager.orbax.restore(step, args=args)["state"]
    except Exception as error:  # Whatever damage makes a reader raise, the checkpoint is unsound.
        raise UnsoundError(f"unreadable: {_first_line(error)}") from error
    for name, found in _fingerprint.fingerprints(state).items():
        if found != record["leaves"][name]:
            raise UnsoundError(f"sha256 of state{name} is not what was saved")
    manager.records[step] = record
    return state


def _remove_leftovers(directory):
    """Removes what killed processes were writing; not in `open`, which may only want to read."""
    if jax.process_index() == 0:
        for leftover in pathlib.Path(directory).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover)


def _stored_record(manager, step):
    """What was stored beside the state: metrics, and shape, dtype, sha256 of each leaf."""
    try:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = manager.orbax.restore(step, args=args)["record"]
        sound = _signed({name: record[name] for name in ("metrics", "leaves")}) == record
    except Exception as error:
        raise UnsoundError(f"unreadable: {_first_line(error)}") from error
    if not sound:
        raise UnsoundError("sha256 of the record is not what was saved")
    return record


def _stored_score(manager, step):
    try:
        return _stored_record(manager, step)["metrics"].get(manager.metric)
    except UnsoundError:
        return None


def _signed(record):
    text = json.dumps(record, sort_keys=True)
    return record | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _finite_or_none(value):
    return float(value) if math.isfinite(value) else None


def _ranked(scores, present):
    """Steps with a finite score from best to worst; the latest first among equals."""
    finite = [step for step in present if scores.get(step) is not None]
    return sorted(finite, key=lambda step: (scores[step], step), reverse=True)


def _first_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _check_template(saved, template, step):
    wanted = _fingerprint.forms(template)
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = (
            f"{form['dtype']}{form['shape']}" if form else "absent"
            for form in (saved.get(name), wanted.get(name))
        )
        if there != here:
            raise ValueError(f"state{name} is {there} in checkpoint {step}, {here} in the template")
