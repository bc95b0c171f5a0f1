"""Attacks on one example: `x` in, `(x_adv, info)` out; `jax.vmap` makes the batch."""

from mixjax.attacks.gradient_ascent import AttackInfo, fgsm, pgd

__all__ = ["AttackInfo", "fgsm", "pgd"]
