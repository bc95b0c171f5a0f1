"""What the experiments of Hamm 2018 share: settings, data, networks and attacks.

Units: the paper's pixels lie in [-1, 1] and so do its radii, eta. Ours lie in [0, 1], where two
values are half as far apart. `ball` is the one place that knows: `epsilon = eta / 2`. All networks
rescale their input to [-1, 1] themselves; `defenses.sensitivity` has the paper's penalty as its
default.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from experiments.hamm_2018.initialization import tutorial
from experiments.hamm_2018.variants import ATTACKERS, GRADIENT_ATTACKS, STRONG, Attacker
from experiments.run.command_line import flag
from mixjax import attacks, checks, data, defenses, models, threats
from mixjax.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Every field is a flag; the defaults are the paper's for MNIST."""

    dataset: str = flag("mnist", "name of the data set", options=data.NAMES)
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    manual_dir: str = flag("", "folder with the official archives, to prepare data offline")
    train_examples: int = flag(0, "training examples used; 0: all")
    test_examples: int = flag(10_000, "test examples used, at most")
    model: str = flag("mnist_cnn", "classifier", options=("mnist_cnn", "cifar_cnn", "small_resnet"))
    width: int = flag(32, "channels of its first convolution")
    batch_size: int = flag(128, "examples per training step")
    steps: int = flag(50_000, "training steps of a classifier")
    learning_rate: float = flag(1e-4, "of Adam, for classifiers")
    network_width: int = flag(300, "units of each of the opponent's three hidden layers")
    network_steps: int = flag(30_000, "training steps of an opponent against what is finished")
    network_learning_rate: float = flag(1e-3, "of Adam, for opponents")
    test_batch_size: int = flag(500, "examples evaluated at once")
    measurements: int = flag(20, "test errors and checkpoints during one training")
    dispatch_steps: int = flag(100, "training steps per dispatch, at most")
    seed: int = flag(0, "root of all randomness")
    run_dir: str = flag("", "folder of the run; empty: runs/<experiment>-<preset>")
    resume: bool = flag(False, "continue the run in this folder")
    cpu: bool = flag(False, "insist on a CPU for a preset that is made for accelerators")
    debug: bool = flag(False, "show the traceback of an error")


@dataclasses.dataclass(frozen=True)
class AttackConfig(RunConfig):
    """And the attacks; radii are in the paper's units, of pixels within [-1, 1]."""

    etas: str = flag("0.3 0.4 0.5 0.6", "l-inf radii, for pixels in [-1, 1]")
    initialization: str = flag(
        "tutorial", "initial weights of the classifiers", options=("tutorial", "he")
    )
    gradient_attacks: str = flag(
        "printed",
        "FGSM and IFGSM: printed, eqs. 1 and 2; boxed: within [-1, 1], IFGSM with small steps",
        options=GRADIENT_ATTACKS,
    )
    ifgsm_steps: int = flag(10, "steps of IFGSM")
    apgd_steps: int = flag(100, "steps of AutoPGD, which the paper does not run")


@dataclasses.dataclass(frozen=True)
class Config(AttackConfig):
    """And the attack network, of the games and of the judge alike."""

    attacker: str = flag(
        "strong",
        "attack network: paper, its network, bounds and loss as they are; strong: what learns more",
        options=tuple(ATTACKERS),
    )


PLACES = ("data_dir", "manual_dir", "run_dir", "resume", "cpu", "debug", "dispatch_steps")
DIGITS: dict[str, Any] = dict(
    dataset="digits", width=8, etas="0.4", steps=600, learning_rate=2e-3, network_steps=600,
    initialization="he", apgd_steps=20, test_batch_size=360, measurements=6,
    cpu=True,
)  # fmt: skip
CIFAR10: dict[str, Any] = dict(
    dataset="cifar10", model="cifar_cnn", initialization="he", width=64, etas="0.1 0.2 0.3 0.4",
    steps=100_000,
)  # fmt: skip


class Setting(NamedTuple):
    """What a config stands for.

    Attributes:
      config: the flags.
      dataset: images in [0, 1], standardised where the paper does.
      model: the classifier.
      network: the attack network.
      folder: of the run.
      command: the command line, for provenance.
      attacker: what the attack network raises and what is made of its output.
    """

    config: Any
    dataset: data.Dataset
    model: models.Model
    network: models.Model
    folder: pathlib.Path
    command: str
    attacker: Attacker = STRONG


def check(config: RunConfig):
    """Raises `ValueError` for what would otherwise go wrong only after the run has begun."""
    names = (
        "width batch_size steps network_width network_steps test_examples test_batch_size "
        "measurements dispatch_steps"
    ).split()
    checks.at_least(1, **{name: getattr(config, name) for name in names})
    checks.at_least(0, train_examples=config.train_examples)
    checks.seed(seed=config.seed)
    names = ("learning_rate", "network_learning_rate")
    checks.positive(**{name: getattr(config, name) for name in names})
    if isinstance(config, AttackConfig):
        checks.at_least(1, ifgsm_steps=config.ifgsm_steps, apgd_steps=config.apgd_steps)
        checks.positive(etas=np.array(etas(config)))
        for word in words(config.initialization):
            checks.one_of(("tutorial", "he"), initialization=word)
            if word == "tutorial" and config.model != "mnist_cnn":
                raise ValueError(
                    f"initialization tutorial is of model mnist_cnn, got {config.model}: take he"
                )


def recorded(config: RunConfig) -> dict:
    """What identifies a run: places may change when it is continued."""
    fields = dataclasses.asdict(config)
    if isinstance(config, AttackConfig):  # what earlier runs, scored otherwise, lack
        fields["auto_pgd_keeps"] = "lowest accuracy"
        if config.gradient_attacks == "boxed":
            fields["ifgsm_keeps"] = "lowest accuracy"
    return {name: value for name, value in fields.items() if name not in PLACES}


def etas(config: AttackConfig) -> list[float]:
    """The radii of the flag `etas`."""
    try:
        values = [float(word) for word in words(config.etas)]
    except ValueError as error:
        raise ValueError(f"etas must be numbers, got {config.etas!r}") from error
    if not values:
        raise ValueError(f"etas must hold at least one number, got {config.etas!r}")
    return values


def words(text: str) -> list[str]:
    """The words of a flag that is a list."""
    return text.replace(",", " ").split()


def ball(eta: float | Array) -> threats.Threat:
    """The paper's l-inf ball of radius `eta` for pixels in [-1, 1], for pixels in [0, 1]."""
    return threats.linf(eta / 2)


def load(config: RunConfig) -> data.Dataset:
    """The data set, cut to size; CIFAR standardised as in the paper's appendix B."""
    dataset = data.load(
        config.dataset, config.data_dir or None, manual_dir=config.manual_dir or None
    )
    prepare = standardize if config.dataset.startswith("cifar") else data.to_float

    def cut(split, number):
        return data.Split(prepare(split.images[:number]), split.labels[:number])

    return dataclasses.replace(
        dataset,
        train=cut(dataset.train, config.train_examples or None),
        validation=cut(dataset.validation, None),
        test=cut(dataset.test, config.test_examples),
    )


def standardize(images: np.ndarray) -> np.ndarray:
    """Each image minus its mean, over its standard deviation, clipped to +-2, rescaled to [0, 1].

    Args:
      images: `[N, H, W, C]` uint8.

    Returns:
      The float32 images, 0 standing for the paper's -1.
    """
    axes = (1, 2, 3)
    images = data.to_float(images)
    mean, std = images.mean(axes, keepdims=True), images.std(axes, keepdims=True)
    floor = 1 / np.sqrt(images[0].size)  # as in TensorFlow, for an image of one colour
    return (np.clip((images - mean) / np.maximum(std, floor), -2, 2) / 4 + 0.5).astype(np.float32)


def build(config: RunConfig, dataset: data.Dataset) -> tuple[models.Model, models.Model]:
    """The classifier and the attack network."""
    shape, num_classes = dataset.image_shape, dataset.num_classes
    model = getattr(models, config.model)(num_classes, config.width, input_shape=shape)
    model = started(model, getattr(config, "initialization", "he"))
    return model, attack_network_of(config, dataset, attacker_of(config))


def attacker_of(config: RunConfig) -> Attacker:
    """What the flag `attacker` stands for."""
    return ATTACKERS[getattr(config, "attacker", "strong")]


def attack_network_of(config: RunConfig, dataset: data.Dataset, attacker: Attacker) -> models.Model:
    """An attacker's network for a data set."""
    return models.attack_network(
        dataset.num_classes,
        input_shape=dataset.image_shape,
        hidden=(config.network_width,) * 3,
        dropout=attacker.dropout,
        label_scale=attacker.label_scale,
    )


def started(model: models.Model, initialization: str) -> models.Model:
    """`models.mnist_cnn` from the tutorial's initial weights or, as any model is, from its own."""
    return tutorial(model) if initialization == "tutorial" else model


def stay(key, loss_fn, x, threat):
    """No attack, in the form that defences take."""
    del key, loss_fn, threat
    return x, ()


@functools.cache
def undefended(setting: Setting) -> Callable[[], defenses.Defense]:
    """`() -> Defense`: training on images as they are."""

    def make():
        optimizer = optax.adam(setting.config.learning_rate)
        return defenses.learning_with_adversary(setting.model, optimizer, ball(1.0), stay)

    return make


def under_network(setting: Setting, network: PyTree, loss_fn, x, label, threat) -> Array:
    """The input that a finished attack network makes of one, as judged and as drawn.

    Args:
      setting: with the network and its attacker.
      network: the network's variables.
      loss_fn: `[...] -> []`, the loss of the classifier attacked.
      x: `[...]` one image.
      label: `[]` its label.
      threat: the ball.
    """
    return attacks.attack_network(
        functools.partial(setting.network.apply, network),
        loss_fn,
        x,
        label,
        threat,
        move=setting.attacker.finished,
        bounds=setting.attacker.bounds,
    )[0]


@functools.cache
def attacker(setting: Setting) -> Callable[[Array, PyTree], defenses.Defense]:
    """`(eta, variables of a classifier) -> Defense`: training of an attack network against it."""

    def raised(variables, x, label):
        return setting.attacker.raised(setting.model.apply(variables, x), label)

    def make(eta, variables):
        return network_training(setting, raised, eta, variables)

    return make


def network_training(setting: Setting, raised, eta, classifier: PyTree) -> defenses.Defense:
    """Training of the setting's attack network: `raised` is `(classifier, x, label) -> []`."""
    training = attacks.attack_network_training(
        setting.network,
        optax.adam(setting.config.network_learning_rate),
        raised,
        ball(eta),
        move=setting.attacker.move,
        bounds=setting.attacker.bounds,
    )

    def step(state, images, labels):
        return training.step(state, classifier, images, labels)

    return defenses.Defense(training.init, step)
