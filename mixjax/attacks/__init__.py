"""Attacks on one example: `x` in, `(x_adv, info)` out; `jax.vmap` makes the batch."""

from mixjax.attacks._steps import AttackInfo
from mixjax.attacks.arc import MixtureInfo, arc
from mixjax.attacks.auto_pgd import apgd, apgd_targeted, likeliest_wrong
from mixjax.attacks.carlini_wagner import CarliniWagnerInfo, carlini_wagner
from mixjax.attacks.gradient_ascent import fgsm, pgd
from mixjax.attacks.lattice_climber import lattice_climber
from mixjax.attacks.square import square

__all__ = [
    "AttackInfo",
    "CarliniWagnerInfo",
    "MixtureInfo",
    "apgd",
    "apgd_targeted",
    "arc",
    "carlini_wagner",
    "fgsm",
    "lattice_climber",
    "likeliest_wrong",
    "pgd",
    "square",
]
