"""What is trained one after another: a config; the networks, optimisers and attacks it means."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.pinot_2020.boosted_attacks import pgd
from experiments.run.command_line import flag
from mixjax import checks, data, defenses, models, threats
from mixjax.front.sequence import Plan
from mixjax.models import Model
from mixjax.models import conv as convolutions
from mixjax.threats import Threat

_DROPS = (0.3, 0.6, 0.8)  # epochs 60, 120 and 160 of 200
_DROP = 0.2


@dataclasses.dataclass(frozen=True)
class Setting:
    """Every field is a flag; distances are in units of pixels within [0, 1]."""

    dataset: str = flag("digits", "name of the data set", options=data.NAMES)
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    manual_dir: str = flag("", "folder with the official archives, to prepare data offline")
    train_examples: int = flag(0, "training examples used; 0: all")
    model: str = flag(
        "small_resnet",
        "architecture",
        options=("small_resnet", "resnet18", "wide_resnet_28_10", "linear"),
    )
    width: int = flag(8, "channels of the first stage; WideResNet has 16 times 10")
    dropout: float = flag(0.0, "of WideResNet in training; the paper: .3")
    negative_slope: float = flag(0.0, "of WideResNet's LeakyReLU; the paper: .1")
    dtype: str = flag("float32", "of the convolutions", options=("bfloat16", "float32"))
    conv: str = flag(
        "unrolled",
        "how convolutions of residual networks are computed: banded is faster on 8 x 8 images",
        options=("unrolled", "banded"),
    )
    epsilon: float = flag(0.2, "radius of the l-inf ball, also as a fraction: 8/255")
    ramp: float = flag(0.3, "part of adversarial training over which the radius grows from 0")
    attack_steps: int = flag(10, "PGD steps of each training attack")
    epochs: int = flag(12, "epochs of each member")
    batch_size: int = flag(64, "images per step")
    optimizer: str = flag("adam", "gradient transformation", options=("sgd", "adam"))
    learning_rate: float = flag(1e-2, "highest learning rate")
    schedule: str = flag(
        "one_cycle",
        "up and down to 0, or a fifth of it at .3, .6 and .8 of the training as in the paper",
        options=("one_cycle", "steps"),
    )
    momentum: float = flag(0.9, "of SGD")
    weight_decay: float = flag(0.0, "L2 penalty")
    average_decay: float = flag(0.98, "of the parameters' moving average; the paper: 0")
    label_smoothing: float = flag(0.0, "of the first member's adversarial training")
    weight_perturbation: float = flag(0.0, "AWP's gamma in the first member's training")
    validations: int = flag(4, "validations of each member's training, at most one an epoch")
    validation_examples: int = flag(100, "validation images attacked each time")
    test_examples: int = flag(200, "test images attacked, at most")
    attack_batch_size: int = flag(200, "images attacked at once")
    seed: int = flag(0, "root of all randomness")
    run_dir: str = flag("", "folder of the run; empty: runs/<program>")
    resume: bool = flag(False, "continue the run in this folder")
    cpu: bool = flag(False, "insist on a CPU for a preset that is made for accelerators")
    debug: bool = flag(False, "show the traceback of an error")


def check(setting: Setting):
    """Raises `ValueError` for what would otherwise go wrong only after the run has begun."""
    names = (
        "width attack_steps epochs batch_size validations validation_examples test_examples "
        "attack_batch_size"
    )
    checks.at_least(1, **{name: getattr(setting, name) for name in names.split()})
    checks.positive(epsilon=setting.epsilon, learning_rate=setting.learning_rate)
    for name in "dropout ramp momentum average_decay label_smoothing".split():
        checks.fraction(**{name: getattr(setting, name)})
    names = "negative_slope weight_decay weight_perturbation"
    checks.non_negative(**{name: getattr(setting, name) for name in names.split()})
    checks.at_least(0, train_examples=setting.train_examples)
    checks.seed(seed=setting.seed)


def load(setting: Setting) -> data.Dataset:
    """The data set with as many training, validation and test images as asked for."""
    dataset = data.load(
        setting.dataset, setting.data_dir or None, manual_dir=setting.manual_dir or None
    )

    def part(split, number):
        return data.Split(*(array[: number or None] for array in split))

    dataset = dataclasses.replace(
        dataset,
        train=part(dataset.train, setting.train_examples),
        validation=part(dataset.validation, setting.validation_examples),
        test=part(dataset.test, setting.test_examples),
    )
    checks.within(1, len(dataset.train.labels), batch_size=setting.batch_size)
    return dataset


def network(setting: Setting, dataset: data.Dataset) -> Model:
    """The architecture of a member."""
    height, width, channels = dataset.image_shape
    return _network(
        setting.model,
        dataset.num_classes,
        (height, width, channels),
        setting.width,
        setting.dropout,
        setting.negative_slope,
        setting.dtype,
        setting.conv,
    )


# Remembered: what is compiled for one member serves all others of its architecture.
@functools.cache
def _network(name, num_classes, input_shape, width, dropout, negative_slope, dtype, conv):
    if name == "linear":
        return models.linear(num_classes, input_shape=input_shape)
    dtype = jnp.dtype(dtype)
    if name == "wide_resnet_28_10":
        return models.wide_resnet_28_10(
            num_classes,
            dropout=dropout,
            negative_slope=negative_slope,
            input_shape=input_shape,
            dtype=dtype,
        )
    make = {"small_resnet": models.small_resnet, "resnet18": models.resnet18}[name]
    convolve = {"unrolled": convolutions.unrolled, "banded": convolutions.banded}[conv]
    return make(num_classes, width, input_shape=input_shape, dtype=dtype, conv=convolve)


def plan(setting: Setting, dataset: data.Dataset) -> Plan:
    """How long each member is trained: whole epochs, as many between two validations."""
    steps_per_epoch = len(dataset.train.labels) // setting.batch_size
    epochs = max(
        each
        for each in range(1, setting.epochs + 1)
        if setting.epochs % each == 0
        and (each == 1 or setting.epochs // each >= setting.validations)
    )
    return Plan(
        num_steps=setting.epochs * steps_per_epoch,
        steps_per_validation=epochs * steps_per_epoch,
        batch_size=setting.batch_size,
        attack_batch_size=setting.attack_batch_size,
    )


def optimizer(setting: Setting, num_steps: int) -> optax.GradientTransformation:
    """That of one member, its learning rate by the member's own steps."""
    corners = jnp.array([0.0, 0.3 * num_steps, num_steps])

    def up_and_down(count):
        return setting.learning_rate * jnp.interp(count, corners, jnp.array([0.0, 1.0, 0.0]))

    drops = {round(part * num_steps): _DROP for part in _DROPS}
    steps = optax.piecewise_constant_schedule(setting.learning_rate, drops)
    decay = optax.add_decayed_weights(setting.weight_decay)
    last = optax.scale_by_learning_rate(steps if setting.schedule == "steps" else up_and_down)
    if setting.optimizer == "adam":
        return optax.chain(optax.scale_by_adam(), decay, last)
    return optax.chain(decay, optax.trace(setting.momentum), last)


def ball(setting: Setting) -> Threat:
    """The attacker's."""
    return threats.linf(setting.epsilon)


def growing(setting: Setting, num_steps: int) -> Threat | Callable[[Any], Threat]:
    """The ball of adversarial training, small at first: networks learn no large one at once."""
    if not setting.ramp:
        return ball(setting)

    def at(step):
        part = jnp.minimum(1.0, (step + 1) / (setting.ramp * num_steps))
        return threats.linf(setting.epsilon * part)

    return at


def adversarial(setting: Setting, dataset: data.Dataset) -> tuple[Model, defenses.Defense]:
    """The first member: adversarial training, with what options there are."""
    num_steps = plan(setting, dataset).num_steps
    model = network(setting, dataset)
    return model, defenses.adversarial_member(
        model,
        optimizer(setting, num_steps),
        growing(setting, num_steps),
        pgd(setting.attack_steps),
        label_smoothing=setting.label_smoothing,
        weight_perturbation=setting.weight_perturbation,
        average_decay=setting.average_decay,
    )


def natural(setting: Setting, dataset: data.Dataset) -> tuple[Model, defenses.Defense]:
    """A member that learns from its images as they are."""
    model = network(setting, dataset)
    numbers = {"average_decay": setting.average_decay}
    num_steps = plan(setting, dataset).num_steps
    return model, defenses.natural_member(model, optimizer(setting, num_steps), **numbers)


def boosted(
    setting: Setting, dataset: data.Dataset, alpha: float
) -> tuple[Model, defenses.Succession]:
    """The members after the first one in boosted adversarial training."""
    model = network(setting, dataset)
    return model, defenses.boosted(
        model,
        optimizer(setting, plan(setting, dataset).num_steps),
        ball(setting),
        pgd(setting.attack_steps),
        alpha=alpha,
        average_decay=setting.average_decay,
    )


def root(setting: Setting) -> Any:
    """The random key of the run."""
    return jax.random.key(setting.seed)
