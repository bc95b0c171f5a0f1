"""Training of robust classifiers: a `Defense` is `(init, step)`, both pure."""

from mixjax.defenses.adversarial import (
    Objective,
    adversarial_training,
    trades,
    trades_start,
)
from mixjax.defenses.classifier import ClassifierInfo, ClassifierState
from mixjax.defenses.minimax import against_network
from mixjax.defenses.mixture_training import (
    Defense,
    MixtureInfo,
    MixtureState,
    mixture,
    scale_by_step,
)
from mixjax.defenses.rounds import cat_and_mouse
from mixjax.defenses.several_attacks import against_several
from mixjax.defenses.single_attack import learning_with_adversary, sensitivity
from mixjax.defenses.weighing import Weighing, entropic_weighing, oracle_weighing

__all__ = [
    "ClassifierInfo",
    "ClassifierState",
    "Defense",
    "MixtureInfo",
    "MixtureState",
    "Objective",
    "Weighing",
    "adversarial_training",
    "against_network",
    "against_several",
    "cat_and_mouse",
    "entropic_weighing",
    "learning_with_adversary",
    "mixture",
    "oracle_weighing",
    "scale_by_step",
    "sensitivity",
    "trades",
    "trades_start",
]
