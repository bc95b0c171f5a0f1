"""What is trained: the pure functions that a config stands for, made of it once."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.meunier_2021.settings import LOSSES, Config, oracle_steps
from mixjax import attacks, data, defenses, ensemble, evaluation, models, parallel, threats
from mixjax.typing import Key


class Game(NamedTuple):
    """What a config stands for: pure functions, and the numbers that the loop needs.

    Attributes:
      model: of every member.
      defense: the training of the mixture, on one device of several.
      threat: the ball at the end of the training.
      batches: `(examples, step) -> (images, labels, others)`, what a step sees on one device.
      validate: `training -> dict`, a line of the metrics.
      key: root of all randomness.
      num_steps: training steps.
      steps_per_epoch: steps between two validations.
      dispatch_steps: steps per dispatch, at most.
      devices: where the steps run.
      member_devices: over how many of them the members are spread.
    """

    model: models.Model
    defense: defenses.Defense
    threat: threats.Threat
    batches: Callable
    validate: Callable[[defenses.MixtureState], dict]
    key: Key
    num_steps: int
    steps_per_epoch: int
    dispatch_steps: int
    devices: tuple
    member_devices: int


def build(config: Config, dataset: data.Dataset) -> Game:
    """The game of a config; raises `ValueError` for a number out of its range."""
    shape, num_classes = dataset.image_shape, dataset.num_classes
    devices = tuple(jax.devices()[: config.devices or None])
    data_axis = parallel.DATA_AXIS if len(devices) > 1 else None
    member_axis = parallel.MEMBER_AXIS if config.member_devices > 1 else None
    if config.model == "linear":
        model = models.linear(num_classes, input_shape=shape)
    else:
        model = getattr(models, config.model)(
            num_classes,
            config.width,
            input_shape=shape,
            dtype=jnp.dtype(config.dtype),
            axis_name=data_axis,
        )
    num_epochs = config.epochs * (config.members if config.update == "one" else 1)
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    num_steps = num_epochs * steps_per_epoch

    ball, loss = threats.BY_NAME[config.norm], LOSSES[config.loss]

    def growing(step):
        return ball(config.epsilon * jnp.minimum(1.0, (step + 1) / (config.ramp * num_steps)))

    def attack(key, loss_fn, x, threat):
        step_size = config.attack_step_size / config.epsilon * threat.epsilon
        start = loss.start(threat)
        return attacks.pgd(
            key, loss_fn, x, threat, num_steps=config.attack_steps, step_size=step_size, start=start
        )

    weighing = {
        "oracle": partial(defenses.oracle_weighing, num_steps=oracle_steps(config)),
        "entropic": partial(
            defenses.entropic_weighing,
            num_steps=config.weight_steps or None,
            temperature=config.temperature,
            num_samples=config.samples,
        ),
        "uniform": lambda: None,
    }[config.weights]()
    learning_rate = schedule(config, num_steps)
    defense = defenses.mixture(
        model,
        optimizer(config, learning_rate),
        growing if config.ramp else ball(config.epsilon),
        attack,
        num_members=config.members,
        objective=loss.objective(config),
        weighing=weighing,
        num_model_steps=config.model_steps,
        num_weight_batches=config.weight_batches,
        update=config.update,
        average_decay=config.average_decay,
        data_axis=data_axis,
        member_axis=member_axis,
    )
    key, threat = jax.random.key(config.seed), ball(config.epsilon)
    changes = augmentation(config, dataset.augmentation)
    batches = batches_of(config, jax.random.fold_in(key, 1), changes, data_axis)
    validate = validation(
        config, dataset, model, threat, jax.random.fold_in(key, 2), learning_rate, num_steps
    )
    return Game(
        model,
        defense,
        threat,
        batches,
        validate,
        key,
        num_steps,
        steps_per_epoch,
        config.dispatch_steps,
        devices,
        config.member_devices,
    )


def augmentation(config: Config, suits: data.Augmentation) -> data.Augmentation:
    """What the flags say, and for those left alone what suits the data set."""
    return data.Augmentation(
        suits.pad if config.crop == -1 else config.crop,
        suits.flip if config.flip == "auto" else config.flip == "yes",
    )


def batches_of(config: Config, key: Key, changes: data.Augmentation, data_axis: str | None):
    """`(examples, step) -> (images, labels, others)` on one device of several."""
    data_key, augment_key = jax.random.split(key)
    # The other batches of a weight step come in an order of their own.
    other_key, other_augment_key = jax.random.split(jax.random.fold_in(data_key, 1))

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

    return batches


def validation(config: Config, dataset: data.Dataset, model, threat, key, learning_rate, num_steps):
    """`training -> dict`, for a line of the metrics: accuracies on validation data."""
    images, labels = (part[: config.validation_examples] for part in dataset.validation)
    score = jax.jit(
        partial(
            evaluation.validate,
            threat=threat,
            num_steps=config.validation_steps,
            step_size=step_size(config, config.validation_steps),
        )
    )

    def validate(training):
        scores = evaluation.over_batches(
            partial(score, key, members(model, training), training.weights),
            images,
            labels,
            batch_size=min(config.test_batch_size, len(labels)),
        )
        step = int(training.step)
        return {
            "epoch": step / num_steps * config.epochs,
            "learning_rate": float(jnp.asarray(learning_rate(step - 1))),
            "clean_accuracy": scores.clean.mean(),
            "robust_accuracy": scores.robust.mean(),
            "weights": training.weights,
        }

    return validate


def schedule(config: Config, num_steps: int):
    """Learning rate as a function of the step."""
    if config.schedule == "piecewise":
        drops = {num_steps // 2: 0.1, 3 * num_steps // 4: 0.1}
        return optax.piecewise_constant_schedule(config.learning_rate, drops)
    peak = 0.3 * num_steps
    return lambda step: (
        config.learning_rate
        * jnp.interp(step, jnp.array([0.0, peak, num_steps]), jnp.array([0.0, 1.0, 0.0]))
    )


def optimizer(
    config: Config, learning_rate: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of each member, its learning rate that of the step of the game."""
    decay = optax.add_decayed_weights(config.weight_decay)
    rate = optax.scale(-1.0), defenses.scale_by_step(learning_rate)
    if config.optimizer == "adam":
        return optax.chain(optax.scale_by_adam(), decay, *rate)
    return optax.chain(decay, optax.trace(config.momentum), *rate)


def members(model: models.Model, state: defenses.MixtureState):
    """`x -> [L, C]`: the logits of the averaged members; a pytree, which `jit` knows again."""
    apply_fn = jax.tree_util.Partial(model.apply)
    return jax.tree_util.Partial(ensemble.apply, apply_fn, state.average)


def step_size(config: Config, num_steps: int) -> float:
    """Length of one evaluation step: all together reach two and a half times across the ball."""
    return float(threats.linf(config.epsilon).step_size(num_steps))
