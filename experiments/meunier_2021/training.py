"""The training of a game by the library's loop, on whatever devices, and its state again."""

import functools
import pathlib
from functools import partial
from typing import Any

import jax

from experiments.meunier_2021.algorithm import Game
from mixjax import checkpoint, data, defenses, parallel
from mixjax.front import loop


def train(
    name: str,
    game: Game,
    examples: data.Split,
    folder: pathlib.Path,
    checkpoints: pathlib.Path,
    recorded: dict[str, Any],
    *,
    tensorboard: bool = False,
) -> defenses.MixtureState:
    """Trains one mixture and returns its state that was most robust on validation data."""
    progress = loop.start(game.defense.init(jax.random.fold_in(game.key, 0)))
    return loop.run(
        on_devices(game, progress),
        progress,
        examples,
        marks=range(game.steps_per_epoch, game.num_steps + 1, game.steps_per_epoch),
        dispatch_steps=loop.largest_divisor(game.steps_per_epoch, game.dispatch_steps),
        measure=game.validate,
        folder=folder,
        checkpoints=checkpoints,
        config=recorded,
        name=name,
        tensorboard=tensorboard,
    )


def on_devices(game: Game, progress: loop.Progress) -> loop.Placement:
    """One device, several with all members on each (pmap), or a mesh of members and data.

    Several hosts always make a mesh: they can save its arrays together, and not those of pmap.
    """
    steps, devices = loop.in_dispatches(game.defense.step, game.batches), game.devices
    if len(devices) == 1:
        return loop.Placement(jax.jit(steps, static_argnums=2, donate_argnums=0))
    if game.member_devices == 1 and jax.process_count() == 1:
        replicate = partial(parallel.replicate, devices=devices)
        pmapped = of_each_number(steps, partial(parallel.pmap_step, devices=devices))
        return loop.Placement(pmapped, replicate, replicate, jax.device_get)
    mesh = parallel.mesh(game.member_devices, devices)
    spec = parallel.state_spec(progress, defenses.MEMBER_FIELDS)
    place = partial(parallel.place, mesh=mesh)
    sharded = of_each_number(steps, partial(parallel.shard_step, mesh=mesh, spec=spec))

    def fetch(tree):
        return jax.device_get(place(tree))

    return loop.Placement(sharded, partial(place, spec=spec), place, fetch)


def of_each_number(steps, spread):
    """`(progress, examples, number) -> (progress, losses)`, a program for each number of steps."""

    @functools.cache
    def at(number):
        return spread(partial(steps, number=number))

    return lambda progress, examples, number: at(number)(progress, examples)


def restore(game: Game, checkpoints: pathlib.Path, recorded: dict[str, Any]):
    """The state that was most robust on validation data: the one that the run has tested."""
    progress = loop.start(game.defense.init(jax.random.key(0)))
    with checkpoint.open(checkpoints, recorded) as saved:
        progress, _, skipped = checkpoint.restore(saved, progress, "best")
    if skipped:
        raise ValueError(
            f"the best checkpoint of {checkpoints.parent} is damaged: "
            + "; ".join(f"step {step}: {reason}" for step, reason in skipped)
        )
    return progress.training
