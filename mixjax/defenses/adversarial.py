"""What adversarial training and TRADES minimise, and what their attackers raise.

Both are functions of one member's logits on one example; a mixture takes their expectation over
members, and a single classifier is the mixture of one.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from mixjax import checks, losses
from mixjax.threats import Threat
from mixjax.typing import Array


class Objective(NamedTuple):
    """The two losses of an adversarially trained member, each `[]` from logits `[C]`.

    Attributes:
      attack_loss: `(clean_logits, logits, label) -> []`, what the attacker raises.
      train_loss: `(clean_logits, logits, label) -> []`, what the member minimises.
      uses_clean: whether `train_loss` needs the logits on clean inputs: a second forward pass.
    """

    attack_loss: Callable[[Array, Array, Array], Array]
    train_loss: Callable[[Array, Array, Array], Array]
    uses_clean: bool


def adversarial_training() -> Objective:
    """Cross-entropy on the attacked input, for both players.

    References:
      Madry et al., Towards deep learning models resistant to adversarial attacks, 2018.
    """

    def cross_entropy(clean_logits, logits, label):
        del clean_logits
        return losses.cross_entropy(logits, label)

    return Objective(cross_entropy, cross_entropy, uses_clean=False)


def trades(beta: float = 6.0) -> Objective:
    """`CE(x) + beta KL(p(x) || p(x'))` against an attacker who raises the divergence.

    Args:
      beta: weight of the divergence, at least 0.

    Raises:
      ValueError: if `beta` is negative.

    References:
      Zhang et al., Theoretically principled trade-off between robustness and accuracy, 2019.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import defenses
      >>> objective, logits = defenses.trades(), jnp.array([1.0, 0.0])
      >>> bool(objective.attack_loss(logits, logits, 0) == 0)  # no attack, no divergence
      True
    """
    checks.non_negative(beta=beta)

    def attack_loss(clean_logits, logits, label):
        del label
        return losses.trades(clean_logits, logits)

    def train_loss(clean_logits, logits, label):
        divergence = losses.trades(clean_logits, logits)
        return losses.cross_entropy(clean_logits, label) + beta * divergence

    return Objective(attack_loss, train_loss, uses_clean=True)


def trades_start(threat: Threat, *, deviation: float = 1e-3) -> Threat:
    """Where the attack on TRADES' divergence starts: normal noise in each coordinate.

    At the input itself the divergence has no gradient. The start of the authors' code is the same
    for both norms, `x + .001 * randn`; an attack keeps it within its ball.

    Args:
      threat: the attacker's ball.
      deviation: of each coordinate, positive, in the units of the images.

    Returns:
      The same ball, whose `sample` draws the noise: the `start` of `attacks.pgd`.

    Raises:
      ValueError: if `deviation` is not positive or the threat is no `Threat`.

    References:
      Zhang et al., Theoretically principled trade-off between robustness and accuracy, 2019.
    """
    checks.positive(deviation=deviation)
    checks.threat(threat=threat)
    geometry = dataclasses.replace(threat.geometry, sample=_Noise(deviation))
    return dataclasses.replace(threat, geometry=geometry)


@dataclasses.dataclass(frozen=True)
class _Noise:
    """Equal and of equal hash for equal deviations: a static argument must not compile anew."""

    deviation: float

    def __call__(self, key, shape, epsilon):
        del epsilon
        return self.deviation * jax.random.normal(key, shape)
