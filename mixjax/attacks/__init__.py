"""Attacks on one example: `x` in, `(x_adv, info)` out; `jax.vmap` makes the batch."""

from mixjax.attacks._steps import AttackInfo, once
from mixjax.attacks.adaptive_boundary import AdaptiveBoundaryInfo, fab, fab_targeted
from mixjax.attacks.attack_networks import (
    AttackNetworkInfo,
    AttackNetworkState,
    AttackTraining,
    attack_network,
    attack_network_batch,
    attack_network_training,
    follow,
    log_error,
    squash,
)
from mixjax.attacks.auto_pgd import apgd, apgd_targeted, likeliest_wrong
from mixjax.attacks.boundaries import MixtureAttackInfo, arc
from mixjax.attacks.gradient_ascent import fgsm, pgd
from mixjax.attacks.lattice import lattice_climber
from mixjax.attacks.minimum_norm import CarliniWagnerInfo, carlini_wagner
from mixjax.attacks.protocol import NEEDS, check_numbers, name_of, on_mixture
from mixjax.attacks.random_search import square

__all__ = [
    "NEEDS",
    "AdaptiveBoundaryInfo",
    "AttackInfo",
    "AttackNetworkInfo",
    "AttackNetworkState",
    "AttackTraining",
    "CarliniWagnerInfo",
    "MixtureAttackInfo",
    "apgd",
    "apgd_targeted",
    "arc",
    "attack_network_batch",
    "attack_network",
    "attack_network_training",
    "carlini_wagner",
    "check_numbers",
    "fab",
    "fab_targeted",
    "fgsm",
    "follow",
    "lattice_climber",
    "likeliest_wrong",
    "log_error",
    "name_of",
    "on_mixture",
    "once",
    "pgd",
    "square",
    "squash",
]
