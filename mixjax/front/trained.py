"""A trained mixture, and its way to a folder and back: `mixjax.load`."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, ensemble, files, reporting
from mixjax.front import stored
from mixjax.typing import Array, PyTree

MEMBERS = "members.npz"
KIND = "mixjax.train"


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A trained mixture, for `mixjax.evaluate(run.members, ..., weights=run.weights)`.

    Attributes:
      members: `L` functions of a batch, `images [N, ...] -> logits [N, C]`, of floats within the
        bounds of the training; pytrees of their variables.
      weights: `[L]` their probabilities.
      history: what was measured after each epoch, one dict each: `step`, `epoch`, `loss`,
        `clean_accuracy` and `robust_accuracy` of the mixture on validation data, `weights`.
      folder: where the run lies; None if it was not to be kept.
    """

    members: list[Callable[[Array], Array]]
    weights: np.ndarray
    history: list[dict[str, Any]]
    folder: pathlib.Path | None

    def __repr__(self) -> str:
        best = max(self.history, key=lambda row: row["robust_accuracy"] or 0.0)
        weights = [round(float(weight), 3) for weight in self.weights]
        return (
            f"Run({len(self.members)} members, weights {weights}, "
            f"validation clean {best['clean_accuracy']:.3f} robust {best['robust_accuracy']:.3f} "
            f"after epoch {best['epoch']} of {len(self.history)}, folder {self.folder})"
        )


def load(folder: str | os.PathLike, model: Any = None) -> Run:
    """The run that `mixjax.train` left in a folder.

    Without the model, the members are the program that was stored beside their variables: the same
    function, for batches of any size, differentiable once in the images, on CPUs and NVIDIA GPUs.

    >>> import mixjax
    >>> mixjax.load("runs/none")
    Traceback (most recent call last):
    ...
    ValueError: folder runs/none holds no run of mixjax.train: it has no config.json

    Args:
      folder: that of the run.
      model: the model that was trained, as it was; None: not needed.

    Returns:
      The `Run`.

    Raises:
      ValueError: if the folder holds no finished run, a file of it is damaged, `model` is needed
        because the program could not be stored or this version of JAX cannot read it, or `model` is
        another one.
    """
    folder = pathlib.Path(folder)
    if not (folder / files.CONFIG).exists():
        raise ValueError(f"folder {folder} holds no run of {KIND}: it has no {files.CONFIG}")
    config = reporting.read_config(folder)
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise ValueError(f"folder {folder} holds no run of {KIND}, but one of something else")
    if not (folder / MEMBERS).exists():
        raise ValueError(
            f"folder {folder} holds a run that is not finished: the same call of {KIND} goes on"
        )
    arrays = files.read_arrays(folder / MEMBERS)
    try:
        leaves, weights = stored.unpacked(arrays), arrays["weights"]
        apply_fn = _program_in(arrays, folder) if model is None else model.apply
    except KeyError as error:
        raise ValueError(f"{folder / MEMBERS} is no file of {KIND}: it has no {error}") from error
    variables = leaves if model is None else _variables(model, leaves)
    return Run(
        ensemble.members(apply_fn, variables), weights, reporting.read_metrics(folder), folder
    )


def write(
    folder: pathlib.Path,
    apply_fn: Callable,
    variables: PyTree,
    weights: Any,
    input_shape: Sequence[int],
) -> None:
    """Writes the members to one file, whole or not at all, with their program if there can be one.

    Args:
      folder: that of the run.
      apply_fn: `(variables, x) -> logits` of one member.
      variables: the members', leaves `[L, ...]`.
      weights: `[L]` their probabilities.
      input_shape: shape of one example.
    """
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), variables)
    try:
        program = stored.program(apply_fn, one, input_shape)
        told = {
            "forward": np.frombuffer(program.forward, np.uint8),
            "pullback": np.frombuffer(program.pullback, np.uint8),
            "size": np.asarray([program.most, program.is_fixed]),
        }
    except ValueError as error:
        told = {"reason": np.asarray(str(error))}
    contents: dict[str, Any] = stored.packed(jax.tree.leaves(variables)) | told
    contents |= {"weights": np.asarray(weights), "input_shape": np.asarray(input_shape, int)}
    content = io.BytesIO()
    np.savez(content, **contents)
    files.write(folder / MEMBERS, content.getvalue())


def _program_in(arrays, folder):
    """`(leaves, x [N, ...]) -> logits [N, C]`, from the file."""
    if "reason" in arrays:
        raise ValueError(f"model must be given, mixjax.load({folder!s}, model): {arrays['reason']}")
    forward, pullback = (arrays[name].tobytes() for name in ("forward", "pullback"))
    most, is_fixed = arrays["size"].tolist()
    program = stored.Program(forward, pullback, most, bool(is_fixed))
    try:
        function = stored.function(program)
    except Exception as error:  # Whatever another version of JAX finds in it that it cannot read.
        raise ValueError(
            f"model must be given, mixjax.load({folder!s}, model), for this version of JAX cannot "
            f"read the program in {MEMBERS}: {type(error).__name__}"
        ) from error
    input_shape = tuple(arrays["input_shape"].tolist())

    def apply(leaves, x):
        x = jnp.asarray(x)
        checks.floating(x=x)
        checks.shape((None, *input_shape), x=x)
        return function(leaves, x.astype(jnp.float32))

    return apply


def _variables(model, leaves):
    """The leaves as the variables of the model."""
    wanted, structure = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    for place, (want, found) in enumerate(zip(wanted, leaves, strict=False)):
        if (want.shape, want.dtype) != (found.shape[1:], found.dtype):
            raise ValueError(
                f"model must be the one that was trained: its variable {place} is "
                f"{want.dtype}{list(want.shape)}, that of the run "
                f"{found.dtype}{list(found.shape[1:])}"
            )
    if len(wanted) != len(leaves):
        raise ValueError(
            f"model must be the one that was trained: it has {len(wanted)} variables, "
            f"that of the run {len(leaves)}"
        )
    return jax.tree.unflatten(structure, leaves)
