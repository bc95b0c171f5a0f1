"""The settings of Hamm 2018: flags, presets, and the error rates that the paper prints.

Units: the paper's pixels lie in [-1, 1] and so do its radii, eta. Ours lie in [0, 1], where two
values are half as far apart: `training.ball` is the one place that knows.

The paper's tables contradict each other: a classifier without defence errs on .006 of clean MNIST
in table 1 and on .026 in table 3, Adv FGSM80 at eta .3 under FGSM-curr on .442 in table 3 and .473
in table 4, and FGSM on CIFAR-10's classifier without defence reaches .825 at .2 in table 6 and as
FGSM-1 of table 8, .969 as its FGSM-curr. Numbers that the text at hand has lost are left out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.hamm_2018.variants import ATTACKERS, GRADIENT_ATTACKS
from experiments.run import program
from experiments.run.command_line import flag
from mixjax import checks, data


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


# The presets: the paper's two data sets, Fashion-MNIST with MNIST's settings, and quick digits.
DIGITS: dict[str, Any] = dict(
    dataset="digits", width=8, etas="0.4", steps=600, learning_rate=2e-3, network_steps=600,
    initialization="he", apgd_steps=20, test_batch_size=360, measurements=6,
    cpu=True,
)  # fmt: skip
CIFAR10: dict[str, Any] = dict(
    dataset="cifar10", model="cifar_cnn", initialization="he", width=64, etas="0.1 0.2 0.3 0.4",
    steps=100_000,
)  # fmt: skip
FILTER: dict[str, Any] = dict(
    dataset="digits", width=8, steps=600, learning_rate=2e-3, network_width=64, network_steps=300,
    network_learning_rate=5e-3, test_batch_size=360, measurements=6, cpu=True,
)  # fmt: skip
# What an experiment has otherwise, on digits and on CIFAR-10.
OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attack_network": (dict(etas="0.4", initialization="tutorial he"), {}),
    "cat_and_mouse": (dict(rounds=8, steps=150, network_steps=300), dict(steps=10_000)),
    "minimax_defense": (
        dict(steps=400, network_steps=400, mixture_examples=100, rows="adv lwa sens alt minimax"),
        {},
    ),
    "sensitivity": ({}, {}),
}


def presets(experiment: str, make: Callable[..., AttackConfig]) -> dict[str, Any]:
    """The presets of an experiment, by the last part of its module's name."""
    demo, cifar10 = OWN[experiment]
    return {
        "demo": make(**DIGITS | demo),
        "mnist": make(),
        "fashion_mnist": make(dataset="fashion_mnist"),
        "cifar10": make(**CIFAR10 | cifar10),
    }


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


def recorded(config: RunConfig) -> dict[str, Any]:
    """What identifies a run: places may change when it is continued."""
    fields = program.recorded_of(config)
    del fields["dispatch_steps"]
    if isinstance(config, AttackConfig):  # what earlier runs, scored otherwise, lack
        fields["auto_pgd_keeps"] = "lowest accuracy"
        if config.gradient_attacks == "boxed":
            fields["ifgsm_keeps"] = "lowest accuracy"
    return fields


def etas(config: AttackConfig) -> list[float]:
    """The radii of the flag `etas`."""
    return program.numbers(-np.inf, np.inf, etas=config.etas)


def words(text: str) -> list[str]:
    """The words of a flag that is a list."""
    return text.replace(",", " ").split()


# Error rates that the paper reports, each with the number of its table.
_BY_ROUND = ("clean", "FGSM1", "FGSM2", "FGSM80", "fgsm_curr")
_CURRENT = ("fgsm_curr", "attack_network_curr")
_PLAIN = ("clean", "fgsm_curr", "ifgsm_curr")
_NAMES = ("No defense", "Adv FGSM1", "Adv FGSM2", "Adv FGSM80", "LWA FGSM", "Sens FGSM")
_HARDENED = ("No defense", "Adv FGSM1", "Adv FGSM80", "Sens FGSM")
_GAMES = ("Minimax", "Alt", "Sens FGSM")

# `table -> columns, rows, eta -> a line of numbers for each row`.
_MNIST = {
    1: (_PLAIN, _NAMES[:1], {
        0.3: ((0.006, 1.000, 1.000),), 0.4: ((0.006, 1.000, 1.000),),
        0.5: ((0.006, 1.000, 1.000),), 0.6: ((0.006, None, None),),
    }),
    3: (_BY_ROUND, _NAMES, {
        0.3: (
            (0.026, 1.000, 0.881, 0.355, 1.000), (0.012, 0.004, 0.995, 0.499, 0.995),
            (0.012, 0.999, 0.002, 0.505, 0.995), (0.009, 0.335, 0.273, 0.009, 0.442),
            (0.008, 0.121, 0.188, 0.210, 0.048), (0.009, 0.104, 0.176, 0.194, 0.048),
        ),
        0.4: (
            (0.026, 1.000, 0.944, 0.528, 1.000), (0.013, 0.003, 0.984, 0.589, 0.984),
            (0.017, 0.999, 0.005, 0.549, 0.999), (0.009, 0.509, 0.525, 0.024, 0.131),
            (0.009, 0.204, 0.284, 0.336, 0.043), (0.009, 0.128, 0.234, 0.296, 0.038),
        ),
        0.5: (
            (0.026, 1.000, 0.931, 0.662, 1.000), (0.010, 0.002, 0.970, 0.724, 0.970),
            (0.010, 0.866, 0.006, 0.604, 0.871), (0.008, 0.653, 0.559, 0.023, 0.089),
            (0.009, 0.248, 0.260, 0.432, 0.035), (0.009, 0.266, 0.285, 0.365, 0.039),
        ),
        0.6: (
            (0.026, 1.000, 0.963, 0.803, 1.000), (0.012, 0.003, 0.889, 0.790, 0.889),
            (0.008, 0.649, 0.007, 0.687, 0.767), (0.009, 0.439, 0.426, 0.020, 0.021),
            (0.011, 0.317, 0.315, 0.488, 0.034), (0.010, 0.264, 0.244, 0.465, 0.033),
        ),
    }),
    4: (_CURRENT, _HARDENED, {
        0.3: ((1.000, 1.000), (0.996, 1.000), (0.473, 0.899), (0.048, 0.965)),
        0.4: ((1.000, 1.000), (0.984, 1.000), (0.131, 0.903), (0.038, 0.902)),
        0.5: ((1.000, 1.000), (0.985, 1.000), (0.089, 0.897), (0.039, 1.000)),
        0.6: ((1.000, 1.000), (0.966, 1.000), (0.021, 0.897), (0.033, 0.903)),
    }),
    5: (_CURRENT, _GAMES, {
        0.3: ((0.218, 0.020), (0.244, 0.104), (0.048, 0.965)),
        0.4: ((0.238, 0.552), (0.503, 0.873), (0.038, 0.902)),
        0.5: ((0.342, 1.000), (0.289, 0.902), (0.039, 1.000)),
        0.6: ((0.299, 1.000), (0.157, 0.899), (0.033, 0.903)),
    }),
}  # fmt: skip
_CIFAR10 = {
    6: (_PLAIN, _NAMES[:1], {
        0.1: ((0.222, 0.976, 0.668),), 0.2: ((0.222, 0.825, 0.907),),
        0.3: ((0.222, 0.869, 0.959),), 0.4: ((0.222, 0.884, None),),
    }),
    8: (_BY_ROUND, _NAMES, {
        0.1: (
            (0.222, 0.976, 0.671, 0.595, 0.976), (0.220, 0.196, 0.680, 0.616, 0.245),
            (0.258, 0.640, 0.484, 0.612, 0.708), (0.228, 0.644, 0.529, 0.087, 0.086),
            (0.223, 0.283, 0.692, 0.652, 0.125), (0.223, 0.342, 0.701, 0.663, 0.106),
        ),
        0.2: (
            (0.222, 0.825, 0.692, 0.819, 0.969), (0.216, 0.642, 0.630, 0.609, 0.264),
            (0.305, 0.579, 0.290, 0.599, 0.556), (0.218, 0.445, 0.502, 0.078, 0.078),
            (0.209, 0.689, 0.666, 0.615, 0.105), (0.209, 0.713, 0.672, 0.637, 0.073),
        ),
        0.3: (
            (0.222, 0.869, 0.891, 0.877, 0.955), (0.214, 0.668, 0.628, 0.642, 0.424),
            (0.205, 0.499, 0.407, 0.514, 0.389), (0.223, 0.471, 0.324, 0.081, 0.084),
            (0.215, 0.686, 0.634, 0.640, 0.215), (0.213, 0.715, 0.628, 0.652, 0.089),
        ),
        0.4: (
            (0.222, 0.884, 0.899, 0.892, 0.941), (0.208, 0.702, 0.687, 0.697, 0.536),
            (0.206, 0.592, 0.546, 0.618, 0.545), (0.225, 0.497, 0.385, 0.121, 0.124),
            (0.210, 0.693, 0.639, 0.626, 0.173), (0.214, 0.714, 0.635, 0.640, 0.109),
        ),
    }),
    9: (_CURRENT, _HARDENED, {
        0.1: ((0.976, 0.740), (0.245, 0.999), (0.086, 1.000), (0.106, 0.898)),
        0.2: ((0.969, 0.905), (0.264, 1.000), (0.078, 1.000), (0.073, 0.979)),
        0.3: ((0.955, 0.888), (0.424, 1.000), (0.084, 1.000), (0.089, 1.000)),
        0.4: ((0.941, 0.999), (0.536, 1.000), (0.124, 0.900), (0.109, 1.000)),
    }),
    10: (_CURRENT, _GAMES, {
        0.1: ((0.967, 0.276), (0.994, 0.264), (0.106, 0.898)),
        0.2: ((0.980, 0.418), (0.996, 0.857), (0.073, 0.979)),
        0.3: ((0.967, 0.875), (0.987, 0.896), (0.089, 1.000)),
        0.4: ((0.931, 0.994), (0.958, 1.000), (0.109, 1.000)),
    }),
}  # fmt: skip


def _published(tables):
    """`eta -> classifier -> attack -> table -> error`."""
    found = {}
    for number, (columns, names, by_eta) in tables.items():
        for eta, rows in by_eta.items():
            for name, row in zip(names, rows, strict=True):
                cells = found.setdefault(eta, {}).setdefault(name, {})
                for attack, error in zip(columns, row, strict=True):
                    if error is not None:
                        cells.setdefault(attack, {})[number] = error
    return found


PAPER = {"mnist": _published(_MNIST), "cifar10": _published(_CIFAR10)}
