"""Mixtures whose members come one after another, each trained to resist what fools those before.

A `Succession` says how the attack on the members so far is made, what the new member learns, and
how the weights follow. Boosted adversarial training and what came after it are four of them; who
calls them one after the other, and compiles them, is `mixjax.front.sequence`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixjax import attacks, checks, ensemble, games, losses
from mixjax.defenses.members import (
    MemberState,
    Past,
    adversarial_member,
    attack_members,
    natural_member,
    smoothed_cross_entropy,
    train_member,
)
from mixjax.defenses.mixture_training import Defense
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key

_LAST = 2**30  # a step at which a ball that grows is whole
# `weights [k + 1] -> errors [N, k + 1]`: all members under the attack on a mixture.
ErrorsFn = Callable[[np.ndarray], np.ndarray]


def _as_it_is(state: MemberState, past: Past) -> MemberState:
    del past
    return state


def _kept(weights: np.ndarray, errors_fn: ErrorsFn) -> np.ndarray:
    del errors_fn
    return weights


class Succession(NamedTuple):
    """How members follow one another; pure functions.

    Attributes:
      training: of a new member; its `step(state, images, labels, past)` knows those before it.
      propose: `weights [k] -> weights [k + 1]`, the mixture's while the new member is trained.
      attack: `(key, past, x, label) -> x` on one example, against the members of `past`, which here
        holds the weights of these members alone; None if nothing is to be attacked.
      sees_past: whether the training looks at the members before the new one.
      is_attacked: whether a new member is trained on inputs attacked once, against those before it.
      start: `(state, past) -> state`, where the training of a new member begins.
      settle: `(weights [k + 1], errors_fn) -> weights [k + 1]`, the mixture's when the new member
        is trained; `errors_fn: weights -> errors [N, k + 1]` attacks the mixture and says who errs.
    """

    training: Defense
    propose: Callable[[np.ndarray], np.ndarray]
    attack: Callable[[Key, Past, Array, Array], Array] | None = None
    sees_past: bool = True
    is_attacked: bool = False
    start: Callable[[MemberState, Past], MemberState] = _as_it_is
    settle: Callable[[np.ndarray, ErrorsFn], np.ndarray] = _kept


def boosted(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat,
    attack: Callable[..., Any],
    *,
    alpha: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
) -> Succession:
    """Boosted adversarial training: a new member learns the inputs that fool those before it.

    The data set is attacked once against the mixture so far, the new member `i` is trained on the
    attacked data without a further attack, and `q_k <- (1 - alpha) q_k, q_i <- alpha`. The first
    member is to be trained adversarially.

    Args:
      model: the new member.
      optimizer: of its parameters, learning rate included.
      threat: the attacker's ball.
      attack: what `attacks.on_mixture` runs. The paper's is PGD on the expected loss, 20 steps of
        a quarter of the radius; `attacks.arc` sees the members.
      alpha: weight of the new member, in (0, 1).
      label_smoothing: as by `natural_member`.
      average_decay: as by `natural_member`.
      bounds: lowest and highest value of an input.

    Returns:
      A `Succession`.

    Raises:
      ValueError: if a number is out of its range or the attack lacks one.

    References:
      Pinot et al., Randomization matters, 2020, algorithm 1.

    Example:
      >>> import functools, numpy as np, optax
      >>> from mixjax import attacks, defenses, models, threats
      >>> pgd = functools.partial(attacks.pgd, num_steps=20, step_size=0.025)
      >>> model = models.linear(2, input_shape=(3,))
      >>> succession = defenses.boosted(model, optax.sgd(0.1), threats.linf(0.1), pgd, alpha=0.25)
      >>> succession.propose(np.ones(1))  # weights of the first member and of the second
      array([0.75, 0.25])
    """
    checks.positive(alpha=alpha)
    checks.fraction(alpha=alpha)
    checks.threat(threat=threat)
    attacks.check_numbers(attack)

    training = natural_member(
        model, optimizer, label_smoothing=label_smoothing, average_decay=average_decay
    )
    return Succession(
        training,
        lambda weights: with_share(weights, alpha),
        _on_all(attack, threat, bounds),
        sees_past=False,
        is_attacked=True,
    )


def barre(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat | Callable[[Array], Threat],
    attack: Callable[..., Any],
    *,
    num_rounds: int = 10,
    weight_perturbation: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
) -> Succession:
    """BARRE: the new member starts from the last one and learns what fools it and those before it.

    Each batch is attacked against the mixture of all, the new member among them, at uniform
    weights. When it is trained the weights are solved for: rounds of an attack on the mixture and
    the equilibrium of the game on all points found so far, where the paper follows subgradients.

    Args:
      model: the architecture of every member, the first included.
      optimizer: of the parameters, learning rate included; its state begins anew.
      threat: the attacker's ball, or `step [] -> Threat`.
      attack: what `attacks.on_mixture` runs, such as `attacks.arc`, or `attacks.pgd` on the
        expected loss, with its numbers filled in.
      num_rounds: as by `solved_weights`.
      weight_perturbation: as by `adversarial_member`.
      label_smoothing: as by `adversarial_member`.
      average_decay: as by `adversarial_member`.
      bounds: lowest and highest value of an input.

    Returns:
      A `Succession`.

    Raises:
      ValueError: if a number is out of its range or the attack lacks one.

    References:
      Dbouk and Shanbhag, On the robustness of randomized ensembles to adversarial perturbations,
      2023, section 5; the weights there are found every ten epochs of the second half.
    """
    checks.at_least(1, num_rounds=num_rounds)
    attacks.check_numbers(attack)

    def attack_all(key, own, past, x, label, threat):
        weights = jnp.asarray(past.weights, jnp.float32)
        return attack_members(attack, key, (*past.members, own), weights, x, label, threat, bounds)

    def start(state, past):
        last = last_variables(past, state.variables)
        # Buffers of their own, for all three are donated or kept.
        variables, average = (jax.tree.map(jnp.copy, last) for _ in range(2))
        return state._replace(variables=variables, average=average)

    training = train_member(
        model,
        optimizer,
        attack_all,
        smoothed_cross_entropy(label_smoothing),
        threat=threat,
        weight_perturbation=weight_perturbation,
        average_decay=average_decay,
    )

    def settle(weights, errors_fn):
        return solved_weights(weights, errors_fn, num_rounds=num_rounds)

    whole = threat if isinstance(threat, Threat) else threat(jnp.asarray(_LAST))
    return Succession(training, uniform, _on_all(attack, whole, bounds), start=start, settle=settle)


def margin_boosted(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat | Callable[[Array], Threat],
    attack: Callable[..., Any],
    *,
    other_weight: float = 1.0,
    weight_perturbation: float = 0.0,
    average_decay: float = 0.0,
) -> Succession:
    r"""MRBoost as a mixture: the new member raises the margin of all members together.

    With the mean logits `F` of all members, the new one among them, the attack raises and the
    training lowers `CE(F) + other_weight MCE(F)`, where the second term, the mean of
    `-log softmax(-F)_c` over the wrong classes `c`, sees every wrong class. The paper predicts the
    class of highest `F`; here a member is drawn, each with the same probability.

    Args:
      model: the new member.
      optimizer: of its parameters, learning rate included.
      threat: the attacker's ball, or `step [] -> Threat`.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)`, as `attacks.pgd` with its numbers and
        bounds filled in.
      other_weight: of the wrong classes' term, at least 0.
      weight_perturbation: as by `adversarial_member`.
      average_decay: as by `adversarial_member`.

    Returns:
      A `Succession`.

    Raises:
      ValueError: if a number is out of its range.

    References:
      Zhang et al., Building robust ensembles via margin boosting, 2022, algorithm 2, with the loss
      of the whole ensemble.
    """
    checks.non_negative(other_weight=other_weight)
    checks.function("attacks.pgd", attack=attack)

    def loss(logits, past, x, label):
        if past.members:
            before = jax.lax.stop_gradient(ensemble.apply_each(past.members, x))
            logits = (logits + jnp.sum(before, axis=0)) / (len(past.members) + 1)
        return losses.cross_entropy(logits, label) + other_weight * wrong_classes(logits, label)

    def attack_mean(key, own, past, x, label, threat):
        members = (*past.members, own)

        def loss_fn(x):
            mean = jnp.mean(ensemble.apply_each(members, x), axis=0)
            return losses.cross_entropy(mean, label) + other_weight * wrong_classes(mean, label)

        return attack(key, loss_fn, x, threat)[0]

    training = train_member(
        model,
        optimizer,
        attack_mean,
        loss,
        threat=threat,
        weight_perturbation=weight_perturbation,
        average_decay=average_decay,
    )
    return Succession(training, uniform)


def independent(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat | Callable[[Array], Threat],
    attack: Callable[..., Any],
    **options: Any,
) -> Succession:
    """Members that know nothing of each other, each adversarially trained from a start of its own.

    Args:
      model: the new member.
      optimizer: of its parameters, learning rate included.
      threat: the attacker's ball, or `step [] -> Threat`.
      attack: what `attacks.on_mixture` runs.
      **options: those of `adversarial_member`.

    Returns:
      A `Succession` with uniform weights.

    Raises:
      ValueError: as `adversarial_member`.
    """
    training = adversarial_member(model, optimizer, threat, attack, **options)
    return Succession(training, uniform, sees_past=False)


def _on_all(attack, threat, bounds):
    """The attack on all members of a past at its weights."""

    def on_all(key, past, x, label):
        weights = jnp.asarray(past.weights, jnp.float32)
        return attack_members(attack, key, past.members, weights, x, label, threat, bounds)

    return on_all


def with_share(weights: Any, share: float) -> np.ndarray:
    """`((1 - share) weights, share)`: `[k] -> [k + 1]`.

    Example:
      >>> from mixjax import defenses
      >>> defenses.with_share([0.75, 0.25], 0.5)
      array([0.375, 0.125, 0.5  ])
    """
    return np.append((1.0 - share) * np.asarray(weights, np.float64), share)


def uniform(weights: Any) -> np.ndarray:
    """`1 / (k + 1)` for each: `[k] -> [k + 1]`."""
    number = len(weights) + 1
    return np.full(number, 1.0 / number)


def solved_weights(weights: Any, errors_fn: ErrorsFn, *, num_rounds: int) -> np.ndarray:
    """Weights of least risk under attacks that are made against them, one in each round.

    The first attack is on `weights`, and that of each round on the equilibrium of the game on all
    points found so far; of these equilibria, that of least risk under all points is returned.

    Args:
      weights: `[L]` the first ones.
      errors_fn: `weights [L] -> errors [N, L]` of all members under the attack on the mixture.
      num_rounds: number of attacks after the first one, at most; the bounds may meet before.

    Returns:
      `[L]` weights in double precision.

    Raises:
      ValueError: if `num_rounds` is below 1.
    """
    checks.at_least(1, num_rounds=num_rounds)
    weights = np.asarray(weights, np.float64)

    def attacker(tried, members, index):
        del members, index
        return np.asarray(errors_fn(tried), np.float64)

    found, _ = games.double_oracle(
        lambda member, errors: errors[:, member],
        attacker,
        range(len(weights)),
        [attacker(weights, (), 0)],
        num_rounds=num_rounds,
    )
    return found.weights


def last_variables(past: Past, like: Any) -> Any:
    """The variables of the newest member, which is a `jax.tree_util.Partial(apply, variables)`.

    Args:
      past: the members so far; with none, `like` itself is returned.
      like: variables of the architecture wanted.

    Raises:
      ValueError: if the newest member has another architecture.
    """
    if not past.members:
        return like
    variables = getattr(past.members[-1], "args", (None,))[0]
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (variables, like)]
    if shapes[0] != shapes[1]:
        raise ValueError("model must be that of the member before, from which a new one starts")
    return variables


def wrong_classes(logits: Array, label: Array) -> Array:
    """The mean of `-log softmax(-logits)_c` over all classes `c` but the label: `[C] -> []`.

    References:
      Zhang et al., Building robust ensembles via margin boosting, 2022, equation 7.
    """
    num_classes = logits.shape[-1]
    classes = jnp.arange(num_classes)
    found = jax.vmap(losses.cross_entropy, in_axes=(None, 0))(-logits, classes)
    return jnp.sum(jnp.where(classes == label, 0.0, found)) / (num_classes - 1)
