"""The settings of algorithm 2: every field is a flag; the presets, the paper's among them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.run import program
from experiments.run.command_line import flag
from mixjax import checks, data, defenses, parallel, threats


class Loss(NamedTuple):
    """What members are trained with.

    Attributes:
      objective: `config -> Objective`, what the members minimise and their attacker raises.
      start: `threat -> threat`, where the training attack starts.
    """

    objective: Callable[[Any], defenses.Objective]
    start: Callable[[threats.Threat], threats.Threat] = lambda threat: threat


# Another loss is another entry: its name is one of the flag's options then.
LOSSES = {
    "at": Loss(lambda config: defenses.adversarial_training()),
    "trades": Loss(lambda config: defenses.trades(config.beta), defenses.trades_start),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag; distances are in units of pixels within [0, 1]."""

    # What is trained on what.
    dataset: str = flag("cifar10", "name of the data set", options=data.NAMES)
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    manual_dir: str = flag("", "folder with the official archives, to prepare data offline")
    train_examples: int = flag(0, "training examples used; 0: all")
    model: str = flag("resnet18", "architecture", options=("resnet18", "small_resnet", "linear"))
    width: int = flag(64, "channels of the network's first stage")
    dtype: str = flag("bfloat16", "of the convolutions", options=("bfloat16", "float32"))
    members: int = flag(2, "number of classifiers L in the mixture")
    single: bool = flag(False, "first train one classifier at the same cost, to compare with")
    # The game.
    norm: str = flag("linf", "norm of the perturbations", options=tuple(threats.BY_NAME))
    epsilon: float = flag(8 / 255, "radius of the perturbations, also as a fraction: 8/255")
    ramp: float = flag(0.0, "part of the training over which the radius grows from 0, below 1")
    loss: str = flag("at", "adversarial training or TRADES", options=tuple(LOSSES))
    beta: float = flag(6.0, "weight of TRADES' divergence")
    attack_steps: int = flag(10, "PGD steps of the training attack")
    attack_step_size: float = flag(2 / 255, "length of one PGD step")
    update: str = flag(
        "one", "members updated per step: one drawn at random, or all", options=("one", "all")
    )
    model_steps: int = flag(100, "T_theta: model steps per member between two weight steps")
    weights: str = flag(
        "oracle", "how the weights are found", options=("oracle", "entropic", "uniform")
    )
    weight_steps: int = flag(
        0,
        "T_lambda: iterations of one weight step; 0: 5 of the oracle, or as many of the relaxation "
        "as bring its risk within .001 of the least",
    )
    weight_batches: int = flag(1, "batches on which a weight step finds the weights; the paper: 1")
    temperature: float = flag(0.01, "alpha of the entropic relaxation, in errors")
    samples: int = flag(4, "points per ball in the entropic relaxation, besides the attacked one")
    # The optimiser.
    epochs: int = flag(30, "epochs per member")
    batch_size: int = flag(512, "examples per step, over all devices")
    optimizer: str = flag("sgd", "gradient transformation", options=("sgd", "adam"))
    learning_rate: float = flag(0.2, "highest learning rate")
    schedule: str = flag(
        "one_cycle",
        "up and down to 0, or a tenth at 1/2 and 3/4",
        options=("one_cycle", "piecewise"),
    )
    momentum: float = flag(0.9, "of SGD")
    weight_decay: float = flag(5e-4, "L2 penalty of SGD, decoupled decay of Adam")
    average_decay: float = flag(0.995, "of the parameters' moving average, used for evaluation")
    crop: int = flag(-1, "largest random shift in pixels; -1: what suits the data set")
    flip: str = flag(
        "auto",
        "mirror every second image; auto: where that suits the data set",
        options=("auto", "yes", "no"),
    )
    # The evaluation.
    validation_examples: int = flag(1000, "validation examples scored each epoch")
    validation_steps: int = flag(20, "PGD steps on validation data")
    test_examples: int = flag(10_000, "test examples of the final evaluation, at most")
    test_runs: int = flag(12, "attack runs of the final evaluation, the same for every L")
    test_steps: int = flag(20, "PGD steps of each run")
    test_batch_size: int = flag(500, "examples per batch of both evaluations")
    # The run.
    seed: int = flag(0, "root of all randomness")
    run_dir: str = flag("", "folder of the run; empty: runs/<preset>")
    resume: bool = flag(False, "continue the run in this folder")
    devices: int = flag(0, "number of devices; 0: all")
    member_devices: int = flag(1, "devices over which the members are spread")
    coordinator: str = flag("", "host:port of process 0; empty: one process")
    processes: int = flag(1, "number of processes, of all hosts together")
    process: int = flag(0, "number of this process, from 0")
    dispatch_steps: int = flag(30, "training steps per dispatch, at most")
    tensorboard: bool = flag(False, "write the metrics for TensorBoard too: extra tensorboard")
    cpu: bool = flag(False, "insist on a CPU for a preset that is made for accelerators")
    debug: bool = flag(False, "show the traceback of an error")


PRESETS = {
    "demo": Config(
        dataset="digits",
        model="small_resnet",
        width=16,
        dtype="float32",
        single=True,
        epsilon=0.2,
        ramp=0.3,
        attack_step_size=0.05,
        update="all",
        model_steps=20,
        weight_steps=3,
        epochs=15,
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-2,
        weight_decay=0.0,
        average_decay=0.98,
        test_batch_size=200,
        dispatch_steps=10,
        cpu=True,
    ),
    "fast": Config(),
    "paper": Config(
        epochs=200,
        batch_size=1024,
        learning_rate=0.1,
        schedule="piecewise",
        average_decay=0.0,
        validation_examples=5000,
        test_runs=15,
        test_steps=100,
    ),
}


# Fields that may change between a run and its continuation.
PLACES = "devices member_devices coordinator processes process tensorboard".split()


def check(config: Config, dataset: data.Dataset, num_devices: int):
    """Raises `ValueError` for what would otherwise go wrong only after the run has begun."""
    names = "epsilon attack_step_size temperature learning_rate".split()
    checks.positive(**{name: getattr(config, name) for name in names})
    names = (
        "members width attack_steps model_steps weight_batches epochs batch_size "
        "validation_examples validation_steps test_examples test_steps test_batch_size "
        "member_devices dispatch_steps"
    ).split()
    checks.at_least(1, **{name: getattr(config, name) for name in names})
    checks.at_least(0, samples=config.samples, devices=config.devices)
    checks.at_least(-1, crop=config.crop)
    checks.within(-1, min(dataset.image_shape[:2]) - 1, crop=config.crop)
    checks.seed(seed=config.seed)
    checks.at_least(0, weight_steps=config.weight_steps)
    checks.non_negative(beta=config.beta, weight_decay=config.weight_decay)
    checks.fraction(ramp=config.ramp, momentum=config.momentum, average_decay=config.average_decay)
    # A third of the runs attacks the members in turn, each at least once.
    checks.at_least(3 * config.members, test_runs=config.test_runs)
    checks.within(1, len(dataset.train.labels), batch_size=config.batch_size)
    checks.within(1, num_devices, devices=config.devices or num_devices)
    num_devices = config.devices or num_devices
    parallel.check_divisible(config.member_devices, devices=num_devices, members=config.members)
    parallel.check_divisible(num_devices // config.member_devices, batch_size=config.batch_size)


def oracle_steps(config: Config) -> int:
    """Attacks of one weight step by the oracle."""
    return config.weight_steps or 5


def recorded(config: Config) -> dict[str, Any]:
    """What identifies a run: places may change when it is continued."""
    fields = program.recorded_of(config)
    return {name: value for name, value in fields.items() if name not in PLACES}
