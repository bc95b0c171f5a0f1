"""The training loop of a mixture: steps on devices, validation, checkpoints and resuming."""

import math
import pathlib
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments._game import Config, Game, build, members, recorded, step_size
from mixjax import checkpoint, data, defenses, evaluation, parallel, reporting
from mixjax.interrupt import interruptible
from mixjax.typing import Array


class Progress(NamedTuple):
    """State of the loop: the training's, and the sums over the model steps of this epoch."""

    training: defenses.MixtureState
    loss_sum: Array
    num_losses: Array


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

    def step(progress, examples):
        now = progress.training.step

        def others(k):
            number = now * (config.weight_batches - 1) + k - 1
            return batch(other_key, other_augment_key, number, examples)

        images, labels = batch(data_key, augment_key, now, examples)
        training, info = game.defense.step(progress.training, images, labels, others)
        num_losses = progress.num_losses + ~info.is_weight_step
        return Progress(training, progress.loss_sum + info.loss, num_losses), info.loss

    def steps(progress, examples):
        return jax.lax.scan(lambda carry, _: step(carry, examples), progress, length=num_steps)

    return steps


class Placement(NamedTuple):
    """Where the steps run: the compiled steps, and the ways there and back to the host."""

    steps: Callable
    place_state: Callable
    place_data: Callable
    fetch: Callable


def on_devices(config: Config, steps, progress: Progress) -> Placement:
    """One device, several with all members on each (pmap), or a mesh of members and data.

    Several hosts always make a mesh: they can save its arrays together, and not those of pmap.
    """
    devices = jax.devices()[: config.devices or None]
    if len(devices) == 1:
        jitted = jax.jit(steps, donate_argnums=0)
        return Placement(jitted, jax.device_put, jax.device_put, jax.device_get)
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
    progress = Progress(training, jnp.zeros(()), jnp.zeros((), jnp.int32))
    steps = make_steps(config, game, dataset.augmentation, num_steps)
    placement = on_devices(config, steps, progress)
    validate = make_validation(config, dataset, build(config, dataset))
    with (
        checkpoint.open(checkpoints, recorded(config)) as saved,
        interruptible() as interrupt,
    ):
        if checkpoint.steps(saved):
            progress, _, skipped = checkpoint.restore(saved, progress)
            tell_skipped(skipped)
        done = int(progress.training.step)
        reporting.truncate_metrics(folder, done)
        progress = placement.place_state(progress)
        examples = placement.place_data(dataset.train)
        with tqdm.tqdm(total=total, initial=done, desc=name, unit="step") as bar:
            while done < total:
                progress, step_losses = placement.steps(progress, examples)
                stop_at_nan(step_losses, done, checkpoints)
                done += num_steps
                bar.update(num_steps)
                score = math.nan
                if done % game.steps_per_epoch == 0:
                    row = validate(placement.fetch(progress), done / total * config.epochs)
                    progress = forget_losses(progress)
                    score = row["robust_accuracy"]
                    reporting.append_metrics(folder, row)
                    bar.set_postfix_str(
                        f"clean {row['clean_accuracy']:.3f} robust {row['robust_accuracy']:.3f} "
                        f"weights {np.round(row['weights'], 2)}"
                    )
                if done % game.steps_per_epoch == 0 or interrupt.received:
                    checkpoint.save(saved, done, progress, {"robust_accuracy": score})
                if interrupt.received:
                    raise SystemExit(interrupt.exit_code)
        best, _, skipped = checkpoint.restore(saved, progress, "best")
        tell_skipped(skipped)
        return placement.fetch(best.training)


def make_validation(config: Config, dataset: data.Dataset, game: Game):
    """`(progress, epoch) -> dict`, a line of the metrics: accuracies on validation data."""
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

    def validate(progress, epoch):
        training = progress.training
        scores = evaluation.over_batches(
            partial(score, key, members(game, training), training.weights),
            images,
            labels,
            batch_size=min(config.test_batch_size, len(labels)),
        )
        step = int(training.step)
        return {
            "step": step,
            "epoch": epoch,
            # An epoch may be weight steps alone.
            "loss": float(progress.loss_sum / progress.num_losses) if progress.num_losses else None,
            "learning_rate": float(jnp.asarray(game.learning_rate(training.step - 1))),
            "clean_accuracy": scores.clean.mean(),
            "robust_accuracy": scores.robust.mean(),
            "weights": training.weights,
        }

    return validate


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(k for k in range(1, limit + 1) if number % k == 0)


def forget_losses(progress: Progress) -> Progress:
    """The same state at the beginning of an epoch."""
    loss_sum, num_losses = map(jnp.zeros_like, (progress.loss_sum, progress.num_losses))
    return Progress(progress.training, loss_sum, num_losses)


def stop_at_nan(step_losses: Array, done: int, checkpoints: pathlib.Path):
    """Raises `FloatingPointError` at the first loss that is not finite."""
    wrong = np.flatnonzero(~np.isfinite(step_losses))
    if wrong.size:
        raise FloatingPointError(
            f"the training loss is {step_losses[wrong[0]]} at step {done + wrong[0] + 1}: try a "
            f"lower learning_rate; {checkpoints} holds the state before"
        )


def tell_skipped(skipped):
    """Says which checkpoints were damaged."""
    for step, reason in skipped:
        print(f"checkpoint {step} is left out: {reason}", file=sys.stderr)
