"""Adversarial training of a mixture of classifiers: algorithm 2 of Meunier et al.

Model steps and weight steps take turns. Both attack the *mixture*: the attacker raises the
expected loss of all members, and the member that learns from the attacked batch is one of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import checks, ensemble, losses
from mixjax.defenses._mixture_steps import (
    Game,
    Learner,
    attack_mixture,
    learn,
    weigh_members,
    with_others,
)
from mixjax.defenses._mixture_steps import apply_in_training as apply_in_training
from mixjax.defenses._mixture_steps import moved_average as moved_average
from mixjax.defenses.adversarial import Objective, adversarial_training
from mixjax.defenses.weighing import Weighing
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, PyTree, Training

UPDATES = ("one", "all")
MEMBER_FIELDS = ("variables", "opt_state", "average")  # of the state: a leading axis of members


class Defense(Training):
    """The training of a classifier or of a mixture: `step(state, images, labels) -> (state, info)`.

    A mixture whose weights are found on several batches takes those beside the first one as a
    fourth argument of `step`, a function: see `mixture`.
    """


class MixtureState(NamedTuple):
    """Everything that the next step needs.

    Attributes:
      variables: the members' variables, leaves `[L, ...]`.
      opt_state: the members' optimiser states, leaves `[L, ...]`.
      average: exponential moving average of `variables`, for evaluation: those whose weights are
        found. Of what is no floating-point number, such as a random key, it has the newest.
      weights: `[L]` probabilities of the members.
      key: root of all randomness; step t uses `fold_in(key, t)`.
      step: `[]` number of steps taken.
    """

    variables: PyTree
    opt_state: PyTree
    average: PyTree
    weights: Array
    key: Key
    step: Array


class MixtureInfo(NamedTuple):
    """What a person wants to see of a step; the numbers of the other kind of step are 0.

    Attributes:
      loss: `[]` mean training loss of the updated members on the batch, of a model step.
      risk: `[]` risk of the mixture on the batches of a weight step.
      is_weight_step: `[]` whether the weights were updated.
    """

    loss: Array
    risk: Array
    is_weight_step: Array


def mixture(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat | Callable[[Array], Threat],
    attack: Callable[..., tuple[Array, Any]],
    *,
    num_members: int,
    objective: Objective | None = None,
    weighing: Weighing | None = None,
    weighing_loss: Callable[[Array, Array], Array] = losses.zero_one,
    num_model_steps: int = 100,
    num_weight_batches: int = 1,
    update: str = "one",
    average_decay: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    data_axis: str | None = None,
    member_axis: str | None = None,
) -> Defense:
    """Algorithm 2: adversarial training of `L` members and of their weights.

    Step t = 1, 2, .. is a weight step if `t mod (num_model_steps * L + 1) == 0`, else a model
    step: attack the batch against the mixture, draw one member, take one gradient step on it.
    One member alone needs no weights: then every step is plain adversarial training.

    The attacker of a model step sees the members as they are evaluated without dropout; the weights
    are those of the averaged members, which is what is evaluated in the end: with
    `average_decay=0`, as in the paper, the members themselves.

    Args:
      model: architecture of every member.
      optimizer: of each member's parameters, learning rate included. A schedule in it counts the
        updates of the member; `scale_by_step` follows the steps of the game.
      threat: ball of the attacker, or `step [] -> Threat` to let it grow.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)` on one example, as `attacks.pgd` with
        its numbers filled in.
      num_members: `L`, at least 1.
      objective: the losses of both players; adversarial training if None.
      weighing: the weight step; None keeps the weights uniform, without weight steps.
      weighing_loss: `(logits [C], label) -> []`, the loss whose risk the weights minimise.
      num_model_steps: `T_theta`, model steps per member between two weight steps.
      num_weight_batches: batches on which one weight step finds the weights, 1 in the paper. With
        more, a weight step of `step(state, images, labels, batches)` takes the others from
        `batches(k) -> (images, labels)`, `k = 1, .., num_weight_batches - 1`.
      update: "one" updates a member drawn uniformly, as in the paper; "all" updates all members
        on the same attacked batch, which costs less per update since they share the attack. Then
        one step in `num_model_steps + 1` is a weight step.
      average_decay: decay in [0, 1) of the average of the variables, per update of a member; early
        averages forget faster, `min(decay, (1 + t) / (10 + t))` at step t.
      bounds: lowest and highest value of an input.
      data_axis: mapped axis over which a batch is spread; `step` then gets this device's part.
      member_axis: mapped axis over which the members are spread.

    Returns:
      A `Defense` with `MixtureState` and `MixtureInfo`. `step` takes `images [B, H, W, C]` within
      `bounds` and `labels [B]`. The result does not depend on how examples and members are
      spread over devices, up to rounding; dropout does, since each device draws its own.

    Raises:
      ValueError: if a number is out of its range, the threat is none, the attack no function or
        `update` unknown; by `step` if there are to be several batches and no `batches`.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, algorithm 2.

    Example:
      >>> import functools, jax, jax.numpy as jnp, optax
      >>> from mixjax import attacks, defenses, models, threats
      >>> defense = defenses.mixture(
      ...     models.linear(2, input_shape=(3,)),
      ...     optax.sgd(0.1),
      ...     threats.linf(0.1),
      ...     functools.partial(attacks.pgd, num_steps=2, step_size=0.1),
      ...     num_members=2,
      ...     weighing=defenses.oracle_weighing(num_steps=2),
      ... )
      >>> state = defense.init(jax.random.key(0))
      >>> images, labels = jnp.array([[0.1, 0.9, 0.2], [0.8, 0.1, 0.3]]), jnp.array([0, 1])
      >>> state, info = jax.jit(defense.step)(state, images, labels)
      >>> int(state.step), state.weights
      (1, Array([0.5, 0.5], dtype=float32))
    """
    checks.at_least(1, num_members=num_members, num_model_steps=num_model_steps)
    checks.at_least(1, num_weight_batches=num_weight_batches)
    checks.one_of(UPDATES, update=update)
    checks.fraction(average_decay=average_decay)
    checks.threat_or_schedule(threat=threat)
    checks.function("attacks.pgd", attack=attack)
    period = num_model_steps * (num_members if update == "one" else 1) + 1
    game = Game(
        model=model,
        objective=adversarial_training() if objective is None else objective,
        threat=threat,
        attack=attack,
        bounds=bounds,
        data_axis=data_axis,
        member_axis=member_axis,
    )
    learner = Learner(optax.with_extra_args_support(optimizer), average_decay)

    def init(key):
        init_key, train_key = jax.random.split(key)
        variables = ensemble.init(model.init, init_key, num_members)
        return MixtureState(
            variables=variables,
            opt_state=jax.vmap(learner.optimizer.init)(variables["params"]),
            average=jax.tree.map(jnp.copy, variables),  # its own buffers: both are donated
            weights=jnp.full(num_members, 1.0 / num_members, jnp.float32),
            key=train_key,
            step=jnp.zeros((), jnp.int32),
        )

    def model_step(key, state, images, labels):
        attack_key, member_key = jax.random.split(key)
        attacked = attack_mixture(
            game, attack_key, state, state.variables, state.weights, images, labels
        )
        drawn = jax.random.randint(member_key, (), 0, num_members) if update == "one" else None
        state, loss = learn(game, learner, key, state, drawn, images, attacked, labels)
        return state, _info(state, loss=loss)

    def weight_step(weighing, batches, key, state, images, labels):
        examples = with_others(images, labels, batches, num_weight_batches)
        weights, risk = weigh_members(game, weighing, weighing_loss, key, state, *examples)
        state = state._replace(weights=weights.astype(state.weights.dtype))
        return state, _info(state, risk=risk, is_weight_step=True)

    def step(state, images, labels, batches=None):
        operands = (jax.random.fold_in(state.key, state.step), state, images, labels)
        if weighing is None or num_members == 1:
            state, info = model_step(*operands)
        else:
            is_weight_step = (state.step + 1) % period == 0
            weigh = functools.partial(weight_step, weighing, batches)
            state, info = jax.lax.cond(is_weight_step, weigh, model_step, *operands)
        return state._replace(step=state.step + 1), info

    return Defense(init, step)


def scale_by_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by `schedule(step)` at the step of the game, the same for all members.

    A schedule of optax counts the updates of one member, which of several are drawn at random:
    `optax.chain(optax.sgd(1.0), scale_by_step(schedule))` ends for all at once.

    Args:
      schedule: `step [] -> []`, of the steps that `mixture` has taken, weight steps included.

    Returns:
      The gradient transformation, without a state; `update` needs `step=`, which `mixture` gives.

    Raises:
      ValueError: by `update`, without `step`.
    """

    def update(updates, state, params=None, *, step: Any = None, **extra_args):
        del params, extra_args
        if step is None:
            raise ValueError("step must be that of the game, as `mixture` gives it, got None")
        return jax.tree.map(lambda leaf: schedule(step) * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _info(state, *, loss: Any = 0.0, risk: Any = 0.0, is_weight_step=False):
    # One dtype for both kinds of step: under 64-bit JAX the losses may have another one.
    dtype = state.weights.dtype
    numbers = jnp.asarray(loss, dtype), jnp.asarray(risk, dtype)
    return MixtureInfo(*numbers, jnp.asarray(is_weight_step))
