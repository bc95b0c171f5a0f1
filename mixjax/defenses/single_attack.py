"""Training on an attack against the current classifier.

With `f(u, Z) = (1 / N) sum_i l(u, z_i)` and `Z` the attack on the current classifier `u`, LWA
descends `f(u, Z)` with `Z` held fixed. Sens accounts for how the attack changes with the
classifier: for a gradient attack `dz_i/du = eta d2l/dz_i du`, and the gradient of `f(u, Z(u))` is
that of `f + gamma / 2 sum_i |df/dz_i|^2` with `gamma = eta N`.
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
from mixjax.typing import Array, Bounds


def sensitivity(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat,
    attack: Callable[..., tuple[Array, Any]],
    *,
    penalty: float | Array | None = None,
    clean_weight: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    data_axis: str | None = None,
) -> Defense:
    """Sens: descends `f + penalty N / 2 sum_i |df/dz_i|^2` on the attack on the current classifier.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included.
      threat: the attacker's ball, in the units of the images.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)` on one example; the paper's is FGSM.
      penalty: `gamma / N`, at least 0, in squared units of the images, one number or one for each
        feature. The paper's is `eta` for pixels in [-1, 1]; if None it is the same in other
        bounds, `epsilon (high - low) / 2`.
      clean_weight: share in [0, 1) of the loss on clean inputs.
      bounds: lowest and highest value of an input.
      data_axis: mapped axis over which a batch is spread; `step` then gets this device's part.

    Returns:
      A `Defense` with `ClassifierState` and `ClassifierInfo`.

    Raises:
      ValueError: if a number is out of its range, the bounds are the wrong way round, the threat is
        no `Threat` or the attack no function.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018, eq. 7.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mixjax import attacks, defenses, models, threats
      >>> def fgsm(key, loss_fn, x, threat):
      ...     return attacks.fgsm(loss_fn, x, threat)
      >>> model = models.linear(2, input_shape=(2,))
      >>> defense = defenses.sensitivity(model, optax.sgd(0.1), threats.linf(0.1), fgsm)
      >>> state = defense.init(jax.random.key(0))
      >>> images, labels = jnp.array([[0.2, 0.8], [0.7, 0.4]]), jnp.array([0, 1])
      >>> state, info = jax.jit(defense.step)(state, images, labels)
      >>> int(state.step), bool(info.penalty > 0)
      (1, True)
    """
    checks.increasing(bounds=bounds)
    checks.fraction(clean_weight=clean_weight)
    checks.threat(threat=threat)
    checks.function("attacks.pgd", attack=attack)
    rate = threat.epsilon * (bounds[1] - bounds[0]) / 2 if penalty is None else penalty
    checks.non_negative(penalty=rate)

    def objective(variables, state, key, images, labels):
        attacked = attack_classifier(
            model, state.variables, attack, key, images, labels, threat, data_axis=data_axis
        )

        def f(attacked):
            return mean_loss(model, variables, attacked, labels, attacked_key)

        attacked_key, clean_key = jax.random.split(dropout_key(key, data_axis))
        (loss, new), gradient = jax.value_and_grad(f, has_aux=True)(attacked)
        squares = jax.vmap(lambda slope: jnp.sum(rate * slope**2))(gradient)
        cost = images.shape[0] / 2 * jnp.sum(squares)
        loss = _with_clean(model, variables, clean_key, images, labels, loss, clean_weight)
        return loss + cost, (new, ClassifierInfo(loss, cost))

    return train(model, optimizer, objective, data_axis=data_axis)


def learning_with_adversary(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat,
    attack: Callable[..., tuple[Array, Any]],
    *,
    clean_weight: float = 0.0,
    data_axis: str | None = None,
) -> Defense:
    """LWA: descends the loss on the attack on the current classifier, without a penalty.

    With `clean_weight=0.5` it is adversarial training on clean and attacked inputs, one to one.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included.
      threat: the attacker's ball, in the units of the images.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)` on one example; the paper's is FGSM.
      clean_weight: share in [0, 1) of the loss on clean inputs.
      data_axis: mapped axis over which a batch is spread; `step` then gets this device's part.

    Returns:
      A `Defense` with `ClassifierState` and `ClassifierInfo`.

    Raises:
      ValueError: if `clean_weight` is out of its range, the threat is no `Threat` or the attack no
        function.

    References:
      Huang et al., Learning with a strong adversary, 2015.
    """
    checks.fraction(clean_weight=clean_weight)
    checks.threat(threat=threat)
    checks.function("attacks.pgd", attack=attack)

    def objective(variables, state, key, images, labels):
        attacked = attack_classifier(
            model, state.variables, attack, key, images, labels, threat, data_axis=data_axis
        )
        attacked_key, clean_key = jax.random.split(dropout_key(key, data_axis))
        loss, new = mean_loss(model, variables, attacked, labels, attacked_key)
        loss = _with_clean(model, variables, clean_key, images, labels, loss, clean_weight)
        return loss, (new, ClassifierInfo(loss, jnp.zeros_like(loss)))

    return train(model, optimizer, objective, data_axis=data_axis)


def _with_clean(model, variables, key, images, labels, loss, weight):
    """The loss with its share on clean inputs, whose statistics no BatchNorm keeps."""
    if isinstance(weight, int | float) and weight == 0:
        return loss
    return (1 - weight) * loss + weight * mean_loss(model, variables, images, labels, key)[0]
