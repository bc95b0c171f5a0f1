"""Checkpoints of any state: the latest few and the best few, verified when they are read.

A folder belongs to one config. A checkpoint is written under a temporary name, renamed when it is
complete, and only then are superseded ones deleted: a process killed at any moment, or a disk that
is full, leaves the previous checkpoints sound. The checkpoints are numbered in the order in which
they were written, by their steps as long as these grow; so one never takes the place of another
while it is written. With each goes the sha256 of every leaf, because flipped bytes in an array
restore silently otherwise. Everything is arrays and JSON, nothing is pickled.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import numpy as np

from mixjax import _extras, _fingerprint, checks, files
from mixjax._fingerprint import fingerprints
from mixjax.interrupt import Interrupt, interruptible
from mixjax.typing import PyTree

with _extras.needed("train"):
    importlib.import_module("orbax")  # what is in it takes a third as long as JAX to import

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

__all__ = [
    "Interrupt",
    "Manager",
    "check_directory",
    "fingerprints",
    "interruptible",
    "open",
    "restore",
    "save",
    "steps",
]

_PATTERNS = "*?["  # Orbax looks for its own files with `glob`, the folder's name unescaped


class UnsoundError(ValueError):
    """A checkpoint whose content is not what was saved."""


class _Entry(NamedTuple):
    """What is known of a checkpoint."""

    step: int
    score: float | None  # the metric, None where it is not finite or not readable
    record: dict | None  # of a checkpoint that this process wrote or verified


@dataclasses.dataclass(frozen=True)
class Manager:
    """An open folder of checkpoints; made by `open`, closed by `close` or by a `with` block."""

    orbax: "ocp.CheckpointManager"
    metric: str
    entries: dict[int, _Entry]  # by number, which is the name of the checkpoint's folder

    def close(self) -> None:
        """Waits until the last save is on disk and frees the folder.

        Raises:
          OSError: if the last save could not be written.
        """
        try:
            _settle(self)
        finally:
            self.orbax.close()

    def __enter__(self) -> Self:
        """The manager itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the manager."""
        self.close()


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Orbax policy: preserve the latest, and those of highest score; no superseded ones.

    Orbax calls it for the checkpoint that is being written, too, and obeys when that is whole.
    """

    entries: dict[int, _Entry]
    num_latest: int
    num_best: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        numbers = _current(self.entries, [checkpoint.step for checkpoint in checkpoints])
        best = _ranked(self.entries, numbers)[: self.num_best]
        kept = {*numbers[-self.num_latest :], *best}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def open(
    directory: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    metric: str = "robust_accuracy",
    num_latest: int = 2,
    num_best: int = 3,
) -> Manager:
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
        belongs to another config (the message names the differing fields), or fails
        `check_directory`.

    Example:
      >>> import jax.numpy as jnp, tempfile
      >>> from mixjax import checkpoint
      >>> with (
      ...     tempfile.TemporaryDirectory() as folder,
      ...     checkpoint.open(folder, {"seed": 0}) as manager,
      ... ):
      ...     checkpoint.save(manager, 1, {"x": jnp.arange(3)}, {"robust_accuracy": 0.5})
      ...     state, step, skipped = checkpoint.restore(manager, {"x": jnp.zeros(3, jnp.int32)})
      >>> state["x"], step, skipped
      (Array([0, 1, 2], dtype=int32), 1, [])
    """
    import orbax.checkpoint as ocp

    checks.at_least(1, num_latest=num_latest)
    checks.at_least(0, num_best=num_best)
    check_directory(directory)
    files.claim(directory, config, argument="directory")
    entries = {}
    policy = _Kept(entries, num_latest, num_best)
    manager = Manager(
        ocp.CheckpointManager(
            pathlib.Path(directory).resolve(),
            options=ocp.CheckpointManagerOptions(preservation_policy=policy),
        ),
        metric,
        entries,
    )
    for number in manager.orbax.all_steps():
        entries[number] = _stored_entry(manager, number)
    return manager


def check_directory(directory: str | os.PathLike, *, argument: str = "directory") -> None:
    """Raises `ValueError` if the path of a folder can hold no checkpoints that can be read again.

    Args:
      directory: the folder; it need not exist.
      argument: what to call it in the error.
    """
    path = str(pathlib.Path(directory).resolve())
    if found := [character for character in _PATTERNS if character in path]:
        raise ValueError(
            f"{argument} must not have {' or '.join(found)} in its path, "
            f"which checkpoints cannot be read from, got {path}"
        )


def steps(manager: Manager) -> list[int]:
    """The steps that have a checkpoint, ascending; sound or not.

    Raises:
      OSError: if the last save could not be written.
    """
    return sorted({manager.entries[number].step for number in _settle(manager)})


def save(manager: Manager, step: int, state: PyTree, metrics: Mapping[str, Any]) -> None:
    """Saves `state` as checkpoint `step`; the files are written in the background.

    `state` may be donated or changed as soon as this returns. Checkpoints of the same or later
    steps, left by a history that this run does not continue, are removed when this one is whole.
    The next `save`, `steps`, `restore` or `close` waits until it is on disk, and raises if that
    failed: then all earlier checkpoints are there, and `save` may be tried again.

    Args:
      manager: an open `Manager`.
      step: number of training steps done, at least 0.
      state: dict, list or tuple, nested, of arrays: NamedTuples, optax states, typed keys, sharded
        arrays; numbers of Python and NumPy, too.
      metrics: dict of numbers that holds the manager's metric; NaN is stored as null.

    Raises:
      ValueError: if `step` is negative, the metric is missing or no number, or `state` is a lone
        array or holds something that is no array, an empty array, or two leaves of one name
        (`a.b`).
      OSError: if this or the last save could not be written.
    """
    checks.at_least(0, step=step)
    import orbax.checkpoint as ocp

    step = int(step)
    if manager.metric not in metrics:
        raise ValueError(f"metrics must hold {manager.metric}, got {', '.join(metrics) or 'none'}")
    metrics = {name: _finite_or_none(name, value) for name, value in metrics.items()}
    _check_state(state)
    state = jax.tree.map(_as_array, state)
    leaves = fingerprints(state)
    record = _signed({"step": step, "metrics": metrics, "leaves": leaves})
    present = _settle(manager)
    # The same state again, as after a run that was stopped right after saving: nothing to write.
    if any(manager.entries[number].record == record for number in present):
        return
    _remove_leftovers(manager.orbax.directory)
    # A number above all there are: Orbax would delete a checkpoint of the same number before the
    # new one is whole.
    number = max(step, *(each + 1 for each in present)) if present else step
    manager.entries[number] = _Entry(step, metrics[manager.metric], record)
    with _written_or_forgotten(manager):
        manager.orbax.save(
            number,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
            force=True,
        )


def restore(
    manager: Manager, template: PyTree, step: int | str | None = None
) -> tuple[PyTree, int, list[tuple[int, str]]]:
    """Restores a sound checkpoint.

    Args:
      manager: an open `Manager`.
      template: pytree of arrays or `jax.ShapeDtypeStruct`s like the saved state; its shardings
        decide where the arrays go: a template on one device restores there what was saved on four.
        For arrays that are bound to no device (`committed`) those restored are not either: what was
        compiled for the first ones serves them.
      step: None for the newest sound checkpoint; "best" for the sound one of highest metric, the
        latest among equals; a number for that checkpoint and no other.

    Returns:
      `(state, step, skipped)`: the state bit for bit as it was saved, its step, and a list of
      `(step, reason)` of the checkpoints that came first but were not sound.

    Raises:
      ValueError: if there is no sound checkpoint to restore, or the template has another
        structure, shape or dtype than the checkpoint.
      OSError: if the last save could not be written.
    """
    newest_first = _settle(manager)[::-1]
    if step is None:
        candidates = newest_first
    elif isinstance(step, str) and step == "best":
        # From best to worst, and to the next where one is damaged.
        candidates = _ranked(manager.entries, newest_first)
    else:
        checks.at_least(0, step=step)
        step = int(step)
        candidates = [number for number in newest_first if manager.entries[number].step == step]
    skipped = []
    for number in candidates:
        found = manager.entries[number].step
        try:
            return _read(manager, number, template), found, skipped
        except UnsoundError as error:
            skipped.append((found, str(error)))
    wanted = {None: "checkpoint", "best": f"checkpoint with a finite {manager.metric}"}
    raise ValueError(
        f"no sound {wanted.get(step, f'checkpoint {step}')} in {manager.orbax.directory}"
        + "".join(f"; step {each}: {reason}" for each, reason in skipped)
    )


def _read(manager, number, template):
    """The state of one checkpoint, if it fits the template and is what was saved."""
    import orbax.checkpoint as ocp

    record = _stored_record(manager, number)
    arrays = jax.tree.map(_as_array, template)
    _check_template(record["leaves"], arrays, manager.entries[number].step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    try:
        state = manager.orbax.restore(number, args=args)["state"]
    except Exception as error:  # Whatever damage makes a reader raise, the checkpoint is unsound.
        raise UnsoundError(f"unreadable: {_first_line(error)}") from error
    # A flipped bit in an array restores silently: only the digests of the leaves find it.
    for name, found in fingerprints(state).items():
        if found != record["leaves"][name]:
            raise UnsoundError(f"sha256 of state{name} is not what was saved")
    manager.entries[number] = manager.entries[number]._replace(record=record)
    return jax.tree.map(_like, template, state)


def _check_state(state):
    """Raises `ValueError` for what Orbax cannot store, or stores under one name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    if not leaves or not leaves[0][0]:
        got = "one leaf alone" if leaves else "none"
        raise ValueError(f"state must be a dict, list or tuple that holds arrays, got {got}")
    names = set()
    for path, leaf in leaves:
        where = f"state{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, jax.Array) and not _is_stored(_as_array(leaf).dtype):
            raise ValueError(f"{where} must be an array or a number, got {leaf!r}")
        if 0 in np.shape(leaf):
            raise ValueError(f"{where} must not be empty, got shape {list(np.shape(leaf))}")
        name = ".".join(_key(entry) for entry in path)
        if name in names:
            raise ValueError(f"{where} must not share the name {name} with another leaf")
        names.add(name)


def _is_stored(dtype):
    """Whether Orbax stores arrays of that type: of numbers, but none of extended precision."""
    return not (dtype.kind in "OSUmM" or dtype.char in "gG" or issubclass(dtype.type, np.void))


def _key(entry):
    """The name that Orbax gives to an entry of a path."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _as_array(leaf):
    """A leaf as Orbax stores it: numbers as arrays, in the byte order of this machine."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    array = np.asarray(leaf)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _like(template, value):
    """A restored leaf as what the template has: its kind of number, or an array like its own."""
    if isinstance(template, bool | int | float | complex | np.generic):
        return type(template)(np.asarray(value)[()])
    # Orbax binds each array to its device, and what is bound would be compiled anew by `jax.jit`.
    if isinstance(template, jax.Array) and not template.committed:
        return _unbound(value)
    return value


def _unbound(array):
    """The array where JAX puts what is bound to no device."""
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _unbound(jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    # A copy: an array that shares the memory of another could not be donated.
    return jax.device_put(np.array(array))


def _settle(manager):
    """The numbers of all checkpoints on disk, ascending, when nothing is being written."""
    with _written_or_forgotten(manager):
        manager.orbax.wait_until_finished()
    return sorted(manager.orbax.all_steps())


@contextlib.contextmanager
def _written_or_forgotten(manager):
    """Forgets a checkpoint that could not be written, remembers those it was to replace."""
    try:
        yield
    except Exception as error:
        manager.orbax.reload()
        for number in manager.entries.keys() - set(manager.orbax.all_steps()):
            del manager.entries[number]
        with contextlib.suppress(OSError):
            _remove_leftovers(manager.orbax.directory)
        raise OSError(
            f"a checkpoint could not be written to {manager.orbax.directory}, "
            f"those of before are kept: {_first_line(error)}"
        ) from error


def _remove_leftovers(directory):
    """Removes what killed processes were writing; not in `open`, which may only want to read."""
    if jax.process_index() == 0:
        for leftover in pathlib.Path(directory).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover)


def _stored_record(manager, number):
    """What was stored beside the state: step, metrics, and shape, dtype, sha256 of each leaf."""
    import orbax.checkpoint as ocp

    try:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = manager.orbax.restore(number, args=args)["record"]
        sound = _signed({name: record[name] for name in record if name != "sha256"}) == record
        sound = sound and {"metrics", "leaves"} <= record.keys()
    except Exception as error:
        raise UnsoundError(f"unreadable: {_first_line(error)}") from error
    if not sound:
        raise UnsoundError("sha256 of the record is not what was saved")
    return record


def _stored_entry(manager, number):
    try:
        record = _stored_record(manager, number)
    except UnsoundError:
        return _Entry(number, None, None)
    # Records of version 0.1.0 have no step: their numbers are the steps.
    return _Entry(record.get("step", number), record["metrics"].get(manager.metric), None)


def _signed(record):
    text = json.dumps(record, sort_keys=True)
    return record | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _finite_or_none(name, value):
    if isinstance(value, str) or np.shape(value):
        raise ValueError(f"metrics[{name!r}] must be a number, got {value!r}")
    return float(value) if math.isfinite(value) else None


def _current(entries, numbers):
    """Those that none of the same or an earlier step has been written after, ascending."""
    current, first = [], math.inf
    for number in sorted(numbers, reverse=True):
        if entries[number].step < first:
            current.append(number)
            first = entries[number].step
    return current[::-1]


def _ranked(entries, numbers):
    """Numbers with a finite score from best to worst; the latest first among equals."""
    finite = [number for number in numbers if entries[number].score is not None]
    return sorted(finite, key=lambda number: (entries[number].score, number), reverse=True)


def _first_line(error):
    # TensorStore appends pages of settings to the first line.
    line = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
    return f"{type(error).__name__}: {line}"


def _check_template(saved, template, step):
    wanted = _fingerprint.forms(template)
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = (
            f"{form['dtype']}{form['shape']}" if form else "absent"
            for form in (saved.get(name), wanted.get(name))
        )
        if there != here:
            raise ValueError(f"state{name} is {there} in checkpoint {step}, {here} in the template")
