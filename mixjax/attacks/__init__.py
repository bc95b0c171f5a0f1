"""Attacks on one example: `x` in, `(x_adv, info)` out; `jax.vmap` makes the batch."""

from mixjax.attacks._steps import AttackInfo, once
from mixjax.attacks.arc import MixtureInfo, arc
from mixjax.attacks.attack_network import (
    AttackNetworkInfo,
    AttackNetworkState,
    AttackTraining,
    attack_batch,
    attack_network,
    attack_network_over_labels,
    attack_network_training,
    follow,
    log_error,
    squash,
)
from mixjax.attacks.auto_pgd import apgd, apgd_targeted, likeliest_wrong
from mixjax.attacks.carlini_wagner import CarliniWagnerInfo, carlini_wagner
from mixjax.attacks.gradient_ascent import fgsm, pgd
from mixjax.attacks.lattice_climber import lattice_climber
from mixjax.attacks.square import square

__all__ = [
    "AttackInfo",
    "AttackNetworkInfo",
    "AttackNetworkState",
    "AttackTraining",
    "CarliniWagnerInfo",
    "MixtureInfo",
    "apgd",
    "apgd_targeted",
    "arc",
    "attack_batch",
    "attack_network",
    "attack_network_over_labels",
    "attack_network_training",
    "carlini_wagner",
    "fgsm",
    "follow",
    "lattice_climber",
    "likeliest_wrong",
    "log_error",
    "once",
    "pgd",
    "square",
    "squash",
]
