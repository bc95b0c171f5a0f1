"""Attacks on one example: `x` in, `(x_adv, info)` out; `jax.vmap` makes the batch."""

from mixjax.attacks._steps import AttackInfo
from mixjax.attacks.gradient_ascent import fgsm, pgd

__all__ = ["AttackInfo", "fgsm", "pgd"]
