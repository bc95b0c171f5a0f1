"""What is trained: a config and the pure functions that it stands for."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.run.command_line import flag
from mixjax import attacks, checks, data, defenses, ensemble, models, parallel, threats


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
    loss: str = flag("at", "adversarial training or TRADES", options=("at", "trades"))
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
    cpu: bool = flag(False, "insist on a CPU for a preset that is made for accelerators")
    debug: bool = flag(False, "show the traceback of an error")


# Fields that may change between a run and its continuation.
PLACES = (
    "data_dir",
    "manual_dir",
    "run_dir",
    "resume",
    "devices",
    "member_devices",
    "coordinator",
    "processes",
    "process",
    "cpu",
    "debug",
)


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


class Game(NamedTuple):
    """What a config stands for: pure functions only."""

    model: models.Model
    defense: defenses.Defense
    threat: threats.Threat
    learning_rate: optax.Schedule
    num_epochs: int
    steps_per_epoch: int


def build(config: Config, dataset: data.Dataset, data_axis=None, member_axis=None) -> Game:
    """The game of a config; raises `ValueError` for a number out of its range."""
    shape, num_classes = dataset.image_shape, dataset.num_classes
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

    ball = threats.BY_NAME[config.norm]

    def growing(step):
        return ball(config.epsilon * jnp.minimum(1.0, (step + 1) / (config.ramp * num_steps)))

    def attack(key, loss_fn, x, threat):
        step_size = config.attack_step_size / config.epsilon * threat.epsilon
        start = defenses.trades_start(threat) if config.loss == "trades" else threat
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
        objective=(
            defenses.trades(config.beta)
            if config.loss == "trades"
            else defenses.adversarial_training()
        ),
        weighing=weighing,
        num_model_steps=config.model_steps,
        num_weight_batches=config.weight_batches,
        update=config.update,
        average_decay=config.average_decay,
        data_axis=data_axis,
        member_axis=member_axis,
    )
    return Game(model, defense, ball(config.epsilon), learning_rate, num_epochs, steps_per_epoch)


def oracle_steps(config: Config) -> int:
    """Attacks of one weight step by the oracle."""
    return config.weight_steps or 5


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


def recorded(config: Config) -> dict:
    """What identifies a run: places may change when it is continued."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in PLACES}


def members(game: Game, state: defenses.MixtureState):
    """`x -> [L, C]`: the logits of the averaged members; a pytree, which `jit` knows again."""
    apply_fn = jax.tree_util.Partial(game.model.apply)
    return jax.tree_util.Partial(ensemble.apply, apply_fn, state.average)


def step_size(config: Config, num_steps: int) -> float:
    """Length of one evaluation step: all together reach two and a half times across the ball."""
    return float(threats.linf(config.epsilon).step_size(num_steps))
