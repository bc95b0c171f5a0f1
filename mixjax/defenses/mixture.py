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

from mixjax import _check, ensemble, losses
from mixjax.defenses.adversarial import Objective, adversarial_training
from mixjax.defenses.weighing import Weighing
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, PyTree

UPDATES = ("one", "all")


class Defense(NamedTuple):
    """A training method: `init(key) -> state`, `step(state, images, labels) -> (state, info)`."""

    init: Callable[[Key], Any]
    step: Callable[[Any, Array, Array], tuple[Any, Any]]


class MixtureState(NamedTuple):
    """Everything that the next step needs.

    Attributes:
      variables: the members' variables, leaves `[L, ...]`.
      opt_state: the members' optimiser states, leaves `[L, ...]`.
      average: exponential moving average of `variables`, for evaluation.
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
      risk: `[]` risk of the mixture on the batch, of a weight step.
      is_weight_step: `[]` whether the weights were updated.
    """

    loss: Array
    risk: Array
    is_weight_step: Array


def mixture(
    model: Model,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    threat: Threat | Callable[[Array], Threat],
    attack: Callable[..., tuple[Array, Any]],
    *,
    num_members: int,
    objective: Objective | None = None,
    weighing: Weighing | None = None,
    weighing_loss: Callable[[Array, Array], Array] = losses.zero_one,
    num_model_steps: int = 100,
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

    Args:
      model: architecture of every member.
      optimizer: gradient transformation at learning rate 1, momentum and weight decay included.
      learning_rate: `step [] -> []`, factor of the optimiser's updates at that step, from 0.
      threat: ball of the attacker, or `step [] -> Threat` to let it grow.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)` on one example, as `attacks.pgd` with
        its numbers filled in.
      num_members: `L`, at least 1.
      objective: the losses of both players; adversarial training if None.
      weighing: the weight step; None keeps the weights uniform, without weight steps.
      weighing_loss: `(logits [C], label) -> []`, the loss whose risk the weights minimise.
      num_model_steps: `T_theta`, model steps per member between two weight steps.
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
      spread over devices, up to rounding.

    Raises:
      ValueError: if a number is out of its range or `update` is unknown.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, algorithm 2.
    """
    _check.at_least(1, num_members=num_members, num_model_steps=num_model_steps)
    _check.one_of(UPDATES, update=update)
    _check.fraction(average_decay=average_decay)
    objective = adversarial_training() if objective is None else objective
    period = num_model_steps * (num_members if update == "one" else 1) + 1

    def init(key):
        init_key, train_key = jax.random.split(key)
        variables = ensemble.init(model.init, init_key, num_members)
        return MixtureState(
            variables=variables,
            opt_state=jax.vmap(optimizer.init)(variables["params"]),
            average=jax.tree.map(jnp.copy, variables),  # its own buffers: both are donated
            weights=jnp.full(num_members, 1.0 / num_members),
            key=train_key,
            step=jnp.zeros((), jnp.int32),
        )

    def threat_at(step):
        return threat if isinstance(threat, Threat) else threat(step)

    def logits_fn(variables, x):
        return ensemble.apply(model.apply, variables, x, axis_name=member_axis)

    def example_keys(key, images):
        first = 0 if data_axis is None else jax.lax.axis_index(data_axis) * images.shape[0]
        examples = first + jnp.arange(images.shape[0])
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, examples)

    def attack_batch(key, weights, state, images, labels):
        def attack_one(key, x, label):
            def attack_loss(member, x):
                variables, clean_logits = member
                return objective.attack_loss(clean_logits, model.apply(variables, x), label)

            members = (state.variables, ensemble.apply(model.apply, state.variables, x))

            def loss_fn(x):
                return ensemble.expectation(attack_loss, members, weights, x, axis_name=member_axis)

            return attack(key, loss_fn, x, threat_at(state.step))[0]

        return jax.vmap(attack_one)(example_keys(key, images), images, labels)

    def member_loss(params, variables, images, attacked, labels):
        variables, clean_logits = {**variables, "params": params}, None
        if objective.uses_clean:
            clean_logits, variables = model.apply(variables, images, train=True)
        logits, variables = model.apply(variables, attacked, train=True)
        clean_logits = logits if clean_logits is None else clean_logits
        return jnp.mean(jax.vmap(objective.train_loss)(clean_logits, logits, labels)), variables

    def update_member(member, step, images, attacked, labels):
        variables, opt_state, average = member
        loss_and_grad = jax.value_and_grad(member_loss, has_aux=True)
        (loss, new), grads = loss_and_grad(variables["params"], variables, images, attacked, labels)
        statistics = {name: value for name, value in new.items() if name != "params"}
        loss, statistics, grads = _mean_over(data_axis, (loss, statistics, grads))
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        updates = jax.tree.map(lambda leaf: learning_rate(step) * leaf, updates)
        variables = {**statistics, "params": optax.apply_updates(variables["params"], updates)}
        decay = jnp.minimum(average_decay, (1.0 + step) / (10.0 + step))
        return (
            variables,
            opt_state,
            optax.incremental_update(variables, average, 1.0 - decay),
        ), loss

    def model_step(key, state, images, labels):
        attack_key, member_key = jax.random.split(key)
        attacked = attack_batch(attack_key, state.weights, state, images, labels)
        members = (state.variables, state.opt_state, state.average)

        def update_one(member):
            return update_member(member, state.step, images, attacked, labels)

        if update == "all":
            members, loss = jax.vmap(update_one)(members)
            loss = ensemble.mean(loss, axis_name=member_axis)
        else:
            index = jax.random.randint(member_key, (), 0, num_members)
            members, loss = ensemble.update(update_one, members, index, axis_name=member_axis)
        variables, opt_state, average = members
        state = state._replace(variables=variables, opt_state=opt_state, average=average)
        return state, MixtureInfo(loss, jnp.zeros(()), jnp.zeros((), bool))

    def weight_step(weighing, key, state, images, labels):
        def losses_fn(points):
            logits = jax.vmap(lambda x: logits_fn(state.variables, x))(points)
            return jax.vmap(jax.vmap(weighing_loss, in_axes=(0, None)))(logits, labels)

        def attack_fn(key, weights):
            return attack_batch(key, weights, state, images, labels)

        def sample_fn(key):
            sample = threat_at(state.step).sample
            keys = example_keys(key, images)
            return jnp.clip(
                images + jax.vmap(lambda key: sample(key, images.shape[1:]))(keys), *bounds
            )

        weights, risk = weighing(key, state.weights, losses_fn, attack_fn, sample_fn, data_axis)
        return state._replace(weights=weights), MixtureInfo(jnp.zeros(()), risk, jnp.ones((), bool))

    def step(state, images, labels):
        key = jax.random.fold_in(state.key, state.step)
        operands = (key, state, images, labels)
        if weighing is None or num_members == 1:
            state, info = model_step(*operands)
        else:
            is_weight_step = (state.step + 1) % period == 0
            branches = functools.partial(weight_step, weighing), model_step
            state, info = jax.lax.cond(is_weight_step, *branches, *operands)
        return state._replace(step=state.step + 1), info

    return Defense(init, step)


def _mean_over(axis_name, tree):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
