"""Attacks on one example: `x` in, `(x_adv, info)` out; `jax.vmap` makes the batch."""

from mixjax.attacks._steps import AttackInfo
from mixjax.attacks.auto_pgd import apgd, apgd_targeted, likeliest_wrong
from mixjax.attacks.gradient_ascent import fgsm, pgd
from mixjax.attacks.square import square

__all__ = ["AttackInfo", "apgd", "apgd_targeted", "fgsm", "likeliest_wrong", "pgd", "square"]
