"""Attack the classifier, retrain it on that attack, attack again: as many rounds as are trained.

Round 0 trains on clean inputs. In round r the attack is made with the classifier that round r - 1
left, and the current one is trained on clean and attacked inputs, one to one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixjax import checks
from mixjax.defenses.classifier import (
    ClassifierInfo,
    attack_classifier,
    dropout_key,
    mean_loss,
    train,
)
from mixjax.defenses.mixture_training import Defense
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array

_CLEAN_WEIGHT = 0.5


def cat_and_mouse(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat,
    attack: Callable[..., tuple[Array, Any]],
    *,
    num_steps_per_round: int,
    data_axis: str | None = None,
) -> Defense:
    """Adversarial training in rounds, each against the attack on the classifier of the last one.

    The classifier of round r, the paper's "Adv FGSM r", is `state.variables` after
    `(r + 1) num_steps_per_round` steps, and in the round after that `state.opponent`.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included; its state is kept from round to round.
      threat: the attacker's ball, in the units of the images.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)` on one example; the paper's is FGSM.
      num_steps_per_round: training steps of a round.
      data_axis: mapped axis over which a batch is spread; `step` then gets this device's part.

    Returns:
      A `Defense` with `ClassifierState` and `ClassifierInfo`.

    Raises:
      ValueError: if `num_steps_per_round` is below 1, the threat is no `Threat` or the attack no
        function.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      section 3.1.
    """
    checks.at_least(1, num_steps_per_round=num_steps_per_round)
    checks.threat(threat=threat)
    checks.function("attacks.pgd", attack=attack)

    def opponent(state):
        is_first = state.step % num_steps_per_round == 0
        last = state.opponent or state.variables  # none yet in `init`
        return jax.tree.map(lambda new, old: jnp.where(is_first, new, old), state.variables, last)

    def objective(variables, state, key, images, labels):
        clean_key, attacked_key = jax.random.split(dropout_key(key, data_axis))
        clean, new = mean_loss(model, variables, images, labels, clean_key)

        def attacked_loss(variables):
            attacked = attack_classifier(
                model, state.opponent, attack, key, images, labels, threat, data_axis=data_axis
            )
            attacked_loss, new = mean_loss(model, variables, attacked, labels, attacked_key)
            return _CLEAN_WEIGHT * clean + (1 - _CLEAN_WEIGHT) * attacked_loss, new

        is_clean = state.step < num_steps_per_round
        loss, new = jax.lax.cond(is_clean, lambda _: (clean, new), attacked_loss, variables)
        return loss, (new, ClassifierInfo(loss, jnp.zeros_like(loss)))

    return train(model, optimizer, objective, opponent, data_axis=data_axis)
