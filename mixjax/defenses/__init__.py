"""Training of robust classifiers: a `Defense` is `(init, step)`, both pure."""

from mixjax.defenses.adversarial import Objective, adversarial_training, trades
from mixjax.defenses.mixture import Defense, MixtureInfo, MixtureState, mixture
from mixjax.defenses.weighing import Weighing, entropic, oracle

__all__ = [
    "Defense",
    "MixtureInfo",
    "MixtureState",
    "Objective",
    "Weighing",
    "adversarial_training",
    "entropic",
    "mixture",
    "oracle",
    "trades",
]
