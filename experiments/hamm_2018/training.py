"""The training loop of the experiments of Hamm 2018: any `Defense`, with checkpoints and curves."""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments.hamm_2018.settings import Setting
from experiments.meunier_2021.training import tell_skipped
from mixjax import checkpoint, data, defenses, reporting
from mixjax.interrupt import interruptible
from mixjax.typing import PyTree


def train(
    setting: Setting,
    name: str,
    make: Callable[..., defenses.Defense],
    *args: PyTree,
    num_steps: int,
    measure: Callable[[Any], dict[str, float]] | None = None,
    measurements: int | None = None,
) -> Any:
    """Trains to the end, or goes on from the last checkpoint.

    Leaves `<folder>/<name>/checkpoints` and, if asked to measure, `metrics.jsonl` beside it.

    Args:
      setting: what is trained on what.
      name: folder below that of the run.
      make: `(*args) -> Defense`. The same function is compiled once, whatever the `args`: so make
        it once, and give it what differs from row to row as `args`.
      *args: pytrees, traced: a radius, the variables of the opponent.
      num_steps: training steps.
      measure: `state -> numbers`, a line of the metrics each time.
      measurements: how often, at equal distances and at the end, it is called and a checkpoint is
        saved; None: `config.measurements` times.

    Returns:
      The state after `num_steps` steps.

    Raises:
      ValueError: if the folder holds a training of another length or of other `args`.
    """
    config, folder = setting.config, setting.folder / name
    state = make(*args).init(jax.random.fold_in(jax.random.key(config.seed), 0))
    steps = compiled(make, config.seed, config.batch_size)
    number = min(measurements or config.measurements, num_steps)
    marks = -(-np.arange(1, number + 1) * num_steps // number)  # rounded up
    recorded = {"name": name, "steps": num_steps, "args": identity(args)}
    with (
        reporting.open_run(folder, recorded, resume=True),
        checkpoint.open(
            folder / "checkpoints", {}, metric="step", num_latest=1, num_best=0
        ) as saved,
        interruptible() as interrupt,
    ):
        if checkpoint.steps(saved):
            state, _, skipped = checkpoint.restore(saved, state)
            tell_skipped(skipped)
        done = int(state.step)
        reporting.truncate_metrics(folder, done)
        examples = jax.device_put(setting.dataset.train)
        with tqdm.tqdm(total=num_steps, initial=done, desc=name, unit="step", leave=False) as bar:
            while done < num_steps:
                mark = int(marks[np.searchsorted(marks, done, side="right")])
                number = min(mark - done, config.dispatch_steps)
                state, loss = steps(args, state, examples, number)
                done += number
                bar.update(number)
                if not np.isfinite(loss):
                    raise FloatingPointError(
                        f"the training loss of {name} is {loss} at step {done}: try a lower rate; "
                        f"{folder / 'checkpoints'} holds the state before"
                    )
                if done == mark and measure is not None:
                    row = {"step": done, "loss": float(loss), **measure(state)}
                    reporting.append_metrics(folder, row)
                if done == mark or interrupt.received:
                    checkpoint.save(saved, done, state, {"step": done})
                if interrupt.received:
                    raise SystemExit(interrupt.exit_code)
    return state


def identity(tree: PyTree) -> str:
    """What tells one opponent, radius or classifier from another: all leaves, in 12 characters."""
    text = json.dumps(checkpoint.fingerprints(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=64)
def compiled(make, seed: int, batch_size: int):
    """`(args, state, examples, number) -> (state, loss)`: so many steps, at least one."""
    key = jax.random.fold_in(jax.random.key(seed), 1)

    def steps(args, state, examples, number):
        defense = make(*args)

        def step(_, carry):
            state, _ = carry
            picked = data.batch_indices(key, state.step, len(examples.labels), batch_size)
            state, info = defense.step(state, *data.take(examples, picked))
            return state, info[0].astype(jnp.float32)

        return jax.lax.fori_loop(0, number, step, (state, jnp.zeros(())))

    return jax.jit(steps)
