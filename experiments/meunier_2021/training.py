"""The training of a mixture: what a step sees, where it runs, and what validation tells."""

import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp

from experiments.meunier_2021.algorithm import Config, Game, build, members, recorded, step_size
from mixjax import data, defenses, evaluation, parallel
from mixjax.front.loop import (
    Placement,
    Progress,
    in_dispatches,
    largest_divisor,
    run,
    skipped_lines,
    start,
)


def axes(config: Config):
    """Names of the axes over which examples and members are spread; None: on one device."""
    if (config.devices or jax.device_count()) == 1:
        return None, None
    return parallel.DATA_AXIS, parallel.MEMBER_AXIS if config.member_devices > 1 else None


def augmentation(config: Config, suits: data.Augmentation) -> data.Augmentation:
    """What the flags say, and for those left alone what suits the data set."""
    return data.Augmentation(
        suits.pad if config.crop == -1 else config.crop,
        suits.flip if config.flip == "auto" else config.flip == "yes",
    )


def make_steps(config: Config, game: Game, suits: data.Augmentation, num_steps: int):
    """`(progress, examples) -> (progress, losses [num_steps])`, pure, on one device of several."""
    changes = augmentation(config, suits)
    data_key, augment_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    # The other batches of a weight step come in an order of their own.
    other_key, other_augment_key = jax.random.split(jax.random.fold_in(data_key, 1))
    data_axis, _ = axes(config)

    def batch(data_key, augment_key, number, examples):
        picked = data.batch_indices(data_key, number, len(examples.labels), config.batch_size)
        images, labels = examples.images[picked], examples.labels[picked]
        if any(changes):
            key = jax.random.fold_in(augment_key, number)
            images = data.augment(key, images, **changes._asdict())
        images, labels = parallel.local_share((images, labels), data_axis)
        return data.to_float(images), labels

    def batches(examples, now):
        def others(k):
            number = now * (config.weight_batches - 1) + k - 1
            return batch(other_key, other_augment_key, number, examples)

        return *batch(data_key, augment_key, now, examples), others

    return in_dispatches(game.defense.step, batches, num_steps=num_steps)


def on_devices(config: Config, steps, progress: Progress) -> Placement:
    """One device, several with all members on each (pmap), or a mesh of members and data.

    Several hosts always make a mesh: they can save its arrays together, and not those of pmap.
    """
    devices = jax.devices()[: config.devices or None]
    if len(devices) == 1:
        jitted = jax.jit(steps, donate_argnums=0)
        return Placement(jitted)
    if config.member_devices == 1 and jax.process_count() == 1:
        replicate = partial(parallel.replicate, devices=devices)
        pmapped = parallel.pmap_step(steps, devices=devices)
        return Placement(pmapped, replicate, replicate, jax.device_get)
    mesh = parallel.mesh(config.member_devices, devices)
    spec = parallel.state_spec(progress)
    place = partial(parallel.place, mesh=mesh)
    sharded = parallel.shard_step(steps, mesh, spec)

    def fetch(tree):
        return jax.device_get(place(tree))

    return Placement(sharded, partial(place, spec=spec), place, fetch)


def train(
    name: str,
    config: Config,
    dataset: data.Dataset,
    folder: pathlib.Path,
    checkpoints: pathlib.Path,
) -> defenses.MixtureState:
    """Trains one mixture and returns its state that was most robust on validation data."""
    game = build(config, dataset, *axes(config))
    total = game.num_epochs * game.steps_per_epoch
    num_steps = largest_divisor(game.steps_per_epoch, config.dispatch_steps)
    training = game.defense.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    progress = start(training)
    steps = make_steps(config, game, dataset.augmentation, num_steps)
    return run(
        on_devices(config, steps, progress),
        progress,
        dataset.train,
        num_steps=total,
        steps_per_epoch=game.steps_per_epoch,
        dispatch_steps=num_steps,
        validate=make_validation(config, dataset, build(config, dataset)),
        folder=folder,
        checkpoints=checkpoints,
        config=recorded(config),
        name=name,
    )


def make_validation(config: Config, dataset: data.Dataset, game: Game):
    """`training -> dict`, for a line of the metrics: accuracies on validation data."""
    images, labels = (part[: config.validation_examples] for part in dataset.validation)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    score = jax.jit(
        partial(
            evaluation.validate,
            threat=game.threat,
            num_steps=config.validation_steps,
            step_size=step_size(config, config.validation_steps),
        )
    )

    def validate(training):
        scores = evaluation.over_batches(
            partial(score, key, members(game, training), training.weights),
            images,
            labels,
            batch_size=min(config.test_batch_size, len(labels)),
        )
        step = int(training.step)
        return {
            "epoch": step / (game.num_epochs * game.steps_per_epoch) * config.epochs,
            "learning_rate": float(jnp.asarray(game.learning_rate(step - 1))),
            "clean_accuracy": scores.clean.mean(),
            "robust_accuracy": scores.robust.mean(),
            "weights": training.weights,
        }

    return validate


def tell_skipped(skipped):
    """Says which checkpoints were damaged."""
    for line in skipped_lines(skipped):
        print(line, file=sys.stderr)
