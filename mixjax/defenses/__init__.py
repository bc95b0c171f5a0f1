"""Training of robust classifiers: a `Defense` is `(init, step)`, both pure."""

from mixjax.defenses.adversarial import (
    Objective,
    adversarial_training,
    trades,
    trades_start,
)
from mixjax.defenses.classifier import ClassifierInfo, ClassifierState
from mixjax.defenses.members import (
    MemberInfo,
    MemberState,
    Past,
    adversarial_member,
    natural_member,
)
from mixjax.defenses.minimax import against_network
from mixjax.defenses.mixture_training import (
    MEMBER_FIELDS,
    Defense,
    MixtureInfo,
    MixtureState,
    mixture,
    scale_by_step,
)
from mixjax.defenses.rounds import cat_and_mouse
from mixjax.defenses.sequence import (
    Succession,
    barre,
    boosted,
    independent,
    margin_boosted,
    solved_weights,
    uniform,
    with_share,
)
from mixjax.defenses.several_attacks import against_several
from mixjax.defenses.single_attack import learning_with_adversary, sensitivity
from mixjax.defenses.weighing import Weighing, entropic_weighing, oracle_weighing

__all__ = [
    "MEMBER_FIELDS",
    "ClassifierInfo",
    "ClassifierState",
    "Defense",
    "MemberInfo",
    "MemberState",
    "MixtureInfo",
    "MixtureState",
    "Objective",
    "Past",
    "Succession",
    "Weighing",
    "adversarial_member",
    "adversarial_training",
    "against_network",
    "against_several",
    "barre",
    "boosted",
    "cat_and_mouse",
    "entropic_weighing",
    "independent",
    "learning_with_adversary",
    "margin_boosted",
    "mixture",
    "natural_member",
    "oracle_weighing",
    "scale_by_step",
    "sensitivity",
    "solved_weights",
    "trades",
    "trades_start",
    "uniform",
    "with_share",
]
