"""The loop of a training run on the host: steps, measurements, checkpoints, resuming from them.

For any `(init, step)` whose state counts its steps in `step` and whose info holds the `loss`: a
defence, an attack network, a filter. The loop sees the training as one compiled function of a few
steps at once, on whatever devices.
"""

import contextlib
import math
import pathlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checkpoint, reporting
from mixjax.front.progress import bar as progress_bar
from mixjax.interrupt import Interrupt, Stopped, interruptible
from mixjax.typing import Array, PyTree


class Progress(NamedTuple):
    """State of the loop: the training's, and sums over the steps with a loss since a mark."""

    training: Any
    loss_sum: Array
    num_losses: Array


class Placement(NamedTuple):
    """Where the steps run: the compiled steps, and the ways there and back to the host.

    Attributes:
      steps: `(progress, examples, number) -> (progress, losses [K])`, so many steps, at most `K`;
        the progress given may be donated.
      place_state: progress, to where `steps` wants it.
      place_data: examples, likewise.
      fetch: the other way, to NumPy arrays.
    """

    steps: Callable[[Progress, PyTree, int], tuple[Progress, Array]]
    place_state: Callable[[Progress], Progress] = jax.device_put
    place_data: Callable[[PyTree], PyTree] = jax.device_put
    fetch: Callable[[PyTree], PyTree] = jax.device_get


def start(training: Any) -> Progress:
    """The progress of a training's first state, or of a later one at the beginning of an epoch."""
    return Progress(training, jnp.zeros(()), jnp.zeros((), jnp.int32))


def in_dispatches(
    step: Callable[..., tuple[Any, Any]],
    batch: Callable[[PyTree, Array], tuple],
    *,
    most: int | None = None,
) -> Callable[[Progress, PyTree, Any], tuple[Progress, Array]]:
    """Several training steps as one function, to be compiled.

    Args:
      step: `(state, *batch) -> (state, info)`, the state with its `step`, the info with its `loss`;
        one with a true `is_weight_step` has none.
      batch: `(examples, step []) -> (images, labels, ..)`, what step number `step` sees.
      most: the most steps at once, `K`, for a number that is traced; None: it is static, and `K`.

    Returns:
      `(progress, examples, number) -> (progress, losses [K])`, pure; the losses after the first
      `number` are 0. If `number` is a static argument of `jit`, each value has a program of its
      own, of known length; if it is traced, one program serves all.
    """

    def steps(progress, examples, number):
        def one(index, carry):
            progress, losses = carry
            training, info = step(progress.training, *batch(examples, progress.training.step))
            has_loss = ~jnp.asarray(getattr(info, "is_weight_step", False))
            sums = progress.loss_sum + info.loss, progress.num_losses + has_loss
            return Progress(training, *sums), losses.at[index].set(info.loss)

        losses = jnp.zeros(number if most is None else most)
        return jax.lax.fori_loop(0, number, one, (progress, losses))

    return steps


def run(
    placement: Placement,
    progress: Progress,
    examples: PyTree,
    *,
    marks: Sequence[int],
    dispatch_steps: int,
    measure: Callable[[Any], dict[str, Any]] | None,
    folder: pathlib.Path,
    checkpoints: pathlib.Path,
    config: dict[str, Any],
    metric: str | None = "robust_accuracy",
    name: str = "training",
    show: bool = True,
    tensorboard: bool = False,
) -> Any:
    """Trains to the end, and returns the training's state that was best, or the last one.

    At each mark the state is measured and saved. A run that was killed continues from its newest
    sound checkpoint, to the same numbers; on SIGTERM or Ctrl-C it finishes its dispatch, saves, and
    ends the process with the exit code of the signal.

    Args:
      placement: the steps and where they run.
      progress: where to start from if there is no checkpoint; else it gives structure and shapes.
      examples: what the steps draw their batches from.
      marks: the numbers of steps, ascending, after which is measured and saved; the last one is the
        end of the run.
      dispatch_steps: steps per dispatch, at most.
      measure: `training -> dict`, a line of the metrics, of a state on the host; `step` and `loss`,
        the mean since the last mark, stand before it. None: there are no metrics.
      folder: where the metrics are written; it exists.
      checkpoints: folder of the checkpoints.
      config: what the checkpoints belong to.
      metric: which entry of the metrics says how good a state is; the best ones are kept beside the
        newest, and the best is returned. None: the last one is.
      name: what the progress bar is called.
      show: whether there is one, on stderr.
      tensorboard: whether the metrics are written for TensorBoard as well, below `folder`.

    Returns:
      The state, in NumPy arrays.

    Raises:
      ValueError: if the checkpoints belong to another config or do not fit `progress`.
      FloatingPointError: at the first loss that is not finite.
      mixjax.interrupt.Stopped: after a signal, which ends the process.
    """
    num_steps = marks[-1]
    num_latest, num_best = (2, 3) if metric else (1, 0)
    with (
        checkpoint.open(
            checkpoints,
            config,
            metric=metric or "step",
            num_latest=num_latest,
            num_best=num_best,
        ) as saved,
        reporting.open_scalars(folder, is_wanted=tensorboard) as write_scalars,
        _interruptible() as interrupt,
    ):
        skipped = []
        if checkpoint.steps(saved):
            progress, _, skipped = checkpoint.restore(saved, progress)
        done = int(progress.training.step)
        reporting.truncate_metrics(folder, done)
        progress = placement.place_state(progress)
        examples = placement.place_data(examples)
        with progress_bar(
            total=num_steps, initial=done, desc=name, unit="step", disable=not show
        ) as bar:
            _tell(bar, skipped)
            if done < num_steps:
                bar.set_description(f"{name}, compiling")
            while done < num_steps:
                mark = next(mark for mark in marks if mark > done)
                number = min(dispatch_steps, mark - done)
                progress, step_losses = placement.steps(progress, examples, number)
                _stop_at_nan(step_losses[:number], done, checkpoints)
                done += number
                bar.set_description(name, refresh=False)
                bar.update(number)
                score = {"step": done} | ({metric: math.nan} if metric else {})
                if done == mark and measure is not None:
                    here = placement.fetch(progress)
                    row = {"step": done, "loss": _mean_loss(here)} | measure(here.training)
                    score |= {metric: row[metric]} if metric else {}
                    reporting.append_metrics(folder, row)
                    write_scalars(row)
                    bar.set_postfix_str(_summary(row))
                if done == mark:
                    progress = _at_mark(progress)
                if done == mark or interrupt.received:
                    checkpoint.save(saved, done, progress, score)
                if interrupt.received:
                    where = f"after step {done} of {num_steps} of {name}"
                    raise Stopped(interrupt.exit_code, where)
            if metric:
                progress, _, skipped = checkpoint.restore(saved, progress, "best")
                _tell(bar, skipped)
        return placement.fetch(progress.training)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(k for k in range(1, limit + 1) if number % k == 0)


def skipped_lines(skipped: list[tuple[int, str]]) -> list[str]:
    """Which checkpoints were damaged, as `checkpoint.restore` tells it, one line each."""
    return [f"checkpoint {step} is left out: {reason}" for step, reason in skipped]


@contextlib.contextmanager
def _interruptible():
    """`interruptible` where it can be: signals are received by the main thread alone."""
    if threading.current_thread() is threading.main_thread():
        with interruptible() as interrupt:
            yield interrupt
    else:
        yield Interrupt()


def _tell(bar, skipped):
    for line in skipped_lines(skipped):
        bar.write(line, file=sys.stderr)


def _mean_loss(progress):
    """Of the steps since the last mark; they may be weight steps alone, and then have no loss."""
    return float(progress.loss_sum / progress.num_losses) if progress.num_losses else None


def _at_mark(progress):
    """The same state with its sums at 0, where they lie."""
    loss_sum, num_losses = map(jnp.zeros_like, (progress.loss_sum, progress.num_losses))
    return Progress(progress.training, loss_sum, num_losses)


def _summary(row):
    """The numbers of a line that are worth a look."""
    names = {"clean_accuracy": "clean", "robust_accuracy": "robust"}
    shown = [f"{told} {row[name]:.3f}" for name, told in names.items() if name in row]
    if "weights" in row:
        shown.append(f"weights {np.round(row['weights'], 2)}")
    return " ".join(shown)


def _stop_at_nan(step_losses, done, checkpoints):
    wrong = np.flatnonzero(~np.isfinite(step_losses))
    if wrong.size:
        raise FloatingPointError(
            f"the training loss is {step_losses[wrong[0]]} at step {done + wrong[0] + 1}: try a "
            f"lower learning_rate; {checkpoints} holds the state before"
        )
