"""The loop of a training run on the host: steps, validation, checkpoints, and going on from them.

For any `(init, step)` whose state counts its steps in `step` and whose info holds the `loss`. The
loop sees the training as one compiled function of a few steps at once, on whatever devices.
"""

import contextlib
import math
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from mixjax import checkpoint, reporting
from mixjax.interrupt import Interrupt, interruptible
from mixjax.typing import Array, PyTree


class Progress(NamedTuple):
    """State of the loop: the training's, and the sums over the steps with a loss of this epoch."""

    training: Any
    loss_sum: Array
    num_losses: Array


class Placement(NamedTuple):
    """Where the steps run: the compiled steps, and the ways there and back to the host.

    Attributes:
      steps: `(progress, examples) -> (progress, losses [K])`; the progress given is donated.
      place_state: progress, to where `steps` wants it.
      place_data: examples, likewise.
      fetch: the other way, to NumPy arrays.
    """

    steps: Callable[[Progress, PyTree], tuple[Progress, Array]]
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
    num_steps: int,
) -> Callable[[Progress, PyTree], tuple[Progress, Array]]:
    """Several training steps as one function, to be compiled.

    Args:
      step: `(state, *batch) -> (state, info)`. An info with a true `is_weight_step` has no loss.
      batch: `(examples, step []) -> (images, labels, ..)`, what step number `step` sees.
      num_steps: number of steps `K` at once, static.

    Returns:
      `(progress, examples) -> (progress, losses [K])`, pure.
    """

    def one(progress, examples):
        training, info = step(progress.training, *batch(examples, progress.training.step))
        has_loss = ~jnp.asarray(getattr(info, "is_weight_step", False))
        sums = progress.loss_sum + info.loss, progress.num_losses + has_loss
        return Progress(training, *sums), info.loss

    def steps(progress, examples):
        return jax.lax.scan(lambda carry, _: one(carry, examples), progress, length=num_steps)

    return steps


def run(
    placement: Placement,
    progress: Progress,
    examples: PyTree,
    *,
    num_steps: int,
    steps_per_epoch: int,
    dispatch_steps: int,
    validate: Callable[[Any], dict[str, Any]],
    folder: pathlib.Path,
    checkpoints: pathlib.Path,
    config: dict[str, Any],
    metric: str = "robust_accuracy",
    name: str = "training",
    show: bool = True,
) -> Any:
    """Trains to the end, and returns the training's state that was best on validation data.

    After each epoch the state is validated and saved. A run that was killed goes on from its newest
    sound checkpoint, to the same numbers; on SIGTERM or Ctrl-C it finishes its dispatch, saves, and
    ends the process with the exit code of the signal.

    Args:
      placement: the steps and where they run.
      progress: where to start from if there is no checkpoint; else the form of one.
      examples: what the steps draw their batches from.
      num_steps: number of steps of the whole run, a multiple of `steps_per_epoch`.
      steps_per_epoch: steps between two validations, a multiple of `dispatch_steps`.
      dispatch_steps: the `K` of `placement.steps`.
      validate: `training -> dict`, a line of the metrics, of a state on the host; its `metric`
        says which state is best. `step`, `epoch` and `loss` stand before it.
      folder: where the metrics are written; it exists.
      checkpoints: folder of the checkpoints.
      config: what the checkpoints belong to.
      metric: name of the metric by which the best state is chosen, higher is better.
      name: what the progress bar is called.
      show: whether there is one, on stderr.

    Returns:
      The state, in NumPy arrays.

    Raises:
      ValueError: if the checkpoints belong to another config or are none of this run.
      FloatingPointError: at the first loss that is not finite.
      SystemExit: after a signal.
    """
    with (
        checkpoint.open(checkpoints, config, metric=metric) as saved,
        _interruptible() as interrupt,
    ):
        skipped = []
        if checkpoint.steps(saved):
            progress, _, skipped = checkpoint.restore(saved, progress)
        done = int(progress.training.step)
        reporting.truncate_metrics(folder, done)
        progress = placement.place_state(progress)
        examples = placement.place_data(examples)
        with tqdm.tqdm(
            total=num_steps, initial=done, desc=name, unit="step", disable=not show
        ) as bar:
            _tell(bar, skipped)
            if done < num_steps:
                bar.set_description(f"{name}, compiling")
            while done < num_steps:
                progress, step_losses = placement.steps(progress, examples)
                _stop_at_nan(step_losses, done, checkpoints)
                done += dispatch_steps
                bar.set_description(name, refresh=False)
                bar.update(dispatch_steps)
                score, is_end = math.nan, done % steps_per_epoch == 0
                if is_end:
                    here = placement.fetch(progress)
                    row = _row(here, done, steps_per_epoch) | validate(here.training)
                    progress = _at_epoch_start(progress)
                    score = row[metric]
                    reporting.append_metrics(folder, row)
                    bar.set_postfix_str(_summary(row))
                if is_end or interrupt.received:
                    checkpoint.save(saved, done, progress, {metric: score})
                if interrupt.received:
                    raise SystemExit(interrupt.exit_code)
            best, _, skipped = checkpoint.restore(saved, progress, "best")
            _tell(bar, skipped)
        return placement.fetch(best.training)


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


def _row(progress, done, steps_per_epoch):
    """What the loop knows of an epoch; one may be weight steps alone, and then has no loss."""
    loss = float(progress.loss_sum / progress.num_losses) if progress.num_losses else None
    return {"step": done, "epoch": done // steps_per_epoch, "loss": loss}


def _at_epoch_start(progress):
    """The same state with its sums at 0, where they lie."""
    loss_sum, num_losses = map(jnp.zeros_like, (progress.loss_sum, progress.num_losses))
    return Progress(progress.training, loss_sum, num_losses)


def _summary(row):
    weights = f" weights {np.round(row['weights'], 2)}" if "weights" in row else ""
    return f"clean {row['clean_accuracy']:.3f} robust {row['robust_accuracy']:.3f}{weights}"


def _stop_at_nan(step_losses, done, checkpoints):
    wrong = np.flatnonzero(~np.isfinite(step_losses))
    if wrong.size:
        raise FloatingPointError(
            f"the training loss is {step_losses[wrong[0]]} at step {done + wrong[0] + 1}: try a "
            f"lower learning_rate; {checkpoints} holds the state before"
        )
