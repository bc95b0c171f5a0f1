"""Finished runs of `experiments.cifar10_mixture`, for the programs that look at them."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.meunier_2021.algorithm import Config, Game
from experiments.meunier_2021.training import Progress
from mixjax import checkpoint, defenses, reporting


class Run(NamedTuple):
    """A finished run, or the single classifier in it."""

    folder: pathlib.Path
    recorded: dict
    config: Config
    result: dict


def read_run(folder: pathlib.Path) -> Run:
    """Reads a finished run.

    Raises:
      ValueError: if there is none, or one that is not finished or of another program.
    """
    for file, what in (
        ("config.json", "no run of experiments.cifar10_mixture"),
        ("result.json", "a run that is not finished (continue it with --resume of its program)"),
        ("checkpoints", "a run without its checkpoints"),
    ):
        if not (folder / file).exists():
            raise ValueError(f"run_dir {folder} holds {what}: it has no {file}")
    recorded = reporting.read_config(folder)
    known = {field.name for field in dataclasses.fields(Config)}
    if foreign := sorted(recorded.keys() - known):
        raise ValueError(
            f"run_dir {folder} holds a run of another program or version: "
            f"config.json has {', '.join(foreign)}"
        )
    return Run(folder, recorded, Config(**recorded), reporting.read_result(folder))


def restore(each: Run, game: Game) -> defenses.MixtureState:
    """The state that was most robust on validation data: the one that the run has tested."""
    training = game.defense.init(jax.random.key(0))
    progress = Progress(training, jnp.zeros(()), jnp.zeros((), jnp.int32))
    with checkpoint.open(each.folder / "checkpoints", each.recorded) as saved:
        progress, _, skipped = checkpoint.restore(saved, progress, "best")
    if skipped:
        raise ValueError(
            f"the best checkpoint of {each.folder} is damaged: "
            + "; ".join(f"step {step}: {reason}" for step, reason in skipped)
        )
    return progress.training
