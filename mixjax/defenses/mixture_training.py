"""Adversarial training of a mixture of classifiers: algorithm 2 of Meunier et al.

Model steps and weight steps take turns. Both attack the *mixture*: the attacker raises the
expected loss of all members, and the member that learns from the attacked batch is one of them.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import checks, ensemble, losses
from mixjax.batch import example_indices, example_keys, mean_over
from mixjax.defenses.adversarial import Objective, adversarial_training
from mixjax.defenses.weighing import Weighing
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, PyTree

UPDATES = ("one", "all")


class Defense(NamedTuple):
    """A training method: `init(key) -> state`, `step(state, images, labels) -> (state, info)`.

    A mixture whose weights are found on several batches takes those beside the first one as a
    fourth argument of `step`, a function: see `mixture`.
    """

    init: Callable[[Key], Any]
    step: Callable[..., tuple[Any, Any]]


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
      risk: `[]` risk of the mixture on the batch, of a weight step.
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
        updates of the member; one of the steps of the game is `scale_by_step`.
      threat: ball of the attacker, or `step [] -> Threat` to let it grow.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)` on one example, as `attacks.pgd` with
        its numbers filled in.
      num_members: `L`, at least 1.
      objective: the losses of both players; adversarial training if None.
      weighing: the weight step; None keeps the weights uniform, without weight steps.
      weighing_loss: `(logits [C], label) -> []`, the loss whose risk the weights minimise.
      num_model_steps: `T_theta`, model steps per member between two weight steps.
      num_weight_batches: batches on which one weight step finds the weights, 1 in the paper. With
        more, `step(state, images, labels, batches)` asks `batches(k) -> (images, labels)` for batch
        `k = 1, .., num_weight_batches - 1` in a weight step.
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
      ValueError: if a number is out of its range or `update` is unknown.

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
    objective = adversarial_training() if objective is None else objective
    optimizer = optax.with_extra_args_support(optimizer)
    period = num_model_steps * (num_members if update == "one" else 1) + 1

    def init(key):
        init_key, train_key = jax.random.split(key)
        variables = ensemble.init(model.init, init_key, num_members)
        return MixtureState(
            variables=variables,
            opt_state=jax.vmap(optimizer.init)(variables["params"]),
            average=jax.tree.map(jnp.copy, variables),  # its own buffers: both are donated
            weights=jnp.full(num_members, 1.0 / num_members, jnp.float32),
            key=train_key,
            step=jnp.zeros((), jnp.int32),
        )

    def threat_at(step):
        return threat if isinstance(threat, Threat) else threat(step)

    def logits_fn(variables, x):
        return ensemble.apply(model.apply, variables, x, axis_name=member_axis)

    def keys_of(key, images, batch=0):
        here = example_indices(images.shape[0], data_axis)
        num_devices = 1 if data_axis is None else jax.lax.axis_size(data_axis)
        return example_keys(key, batch * num_devices * images.shape[0] + here)

    def attack_mixture(keys, weights, variables, threat, images, labels):
        def attack_one(key, x, label):
            def attack_loss(member, x):
                variables, clean_logits = member
                return objective.attack_loss(clean_logits, model.apply(variables, x), label)

            members = (variables, ensemble.apply(model.apply, variables, x))

            def loss_fn(x):
                return ensemble.expectation(attack_loss, members, weights, x, axis_name=member_axis)

            return attack(key, loss_fn, x, threat)[0]

        return jax.vmap(attack_one)(keys, images, labels)

    def member_loss(params, variables, key, images, attacked, labels):
        variables, clean_logits = {**variables, "params": params}, None
        clean_key, key = jax.random.split(key)
        if objective.uses_clean:
            clean_logits, variables = apply_in_training(model, variables, images, clean_key)
        logits, variables = apply_in_training(model, variables, attacked, key)
        clean_logits = logits if clean_logits is None else clean_logits
        return jnp.mean(jax.vmap(objective.train_loss)(clean_logits, logits, labels)), variables

    def update_member(member, index, key, step, images, attacked, labels):
        variables, opt_state, average = member
        key = jax.random.fold_in(key, index)
        loss_and_grad = jax.value_and_grad(member_loss, has_aux=True)
        (loss, new), grads = loss_and_grad(
            variables["params"], variables, key, images, attacked, labels
        )
        statistics = {name: value for name, value in new.items() if name != "params"}
        loss, statistics, grads = mean_over(data_axis, (loss, statistics, grads))
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"], step=step)
        variables = {**statistics, "params": optax.apply_updates(variables["params"], updates)}
        decay = jnp.minimum(average_decay, (1.0 + step) / (10.0 + step))
        return (variables, opt_state, moved_average(average, variables, decay)), loss

    def model_step(key, state, images, labels):
        attack_key, member_key = jax.random.split(key)
        device = 0 if data_axis is None else jax.lax.axis_index(data_axis)
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, 2), device)
        keys, threat = keys_of(attack_key, images), threat_at(state.step)
        attacked = attack_mixture(keys, state.weights, state.variables, threat, images, labels)
        members = (state.variables, state.opt_state, state.average)

        def update_one(member, index):
            return update_member(member, index, dropout_key, state.step, images, attacked, labels)

        if update == "all":
            indices = ensemble.indices(members, axis_name=member_axis)
            members, loss = jax.vmap(update_one)(members, indices)
            loss = ensemble.mean(loss, axis_name=member_axis)
        else:
            index = jax.random.randint(member_key, (), 0, num_members)
            members, loss = ensemble.update(
                lambda member: update_one(member, index), members, index, axis_name=member_axis
            )
        variables, opt_state, average = members
        state = state._replace(variables=variables, opt_state=opt_state, average=average)
        return state, info_of(state, loss=loss)

    def weight_step(weighing, batches, key, state, images, labels):
        threat = threat_at(state.step)
        numbers, images, labels = _with_others(images, labels, batches, num_weight_batches)

        def losses_fn(points):
            def losses_of(points, labels):
                logits = jax.vmap(lambda x: logits_fn(state.average, x))(points)
                return jax.vmap(jax.vmap(weighing_loss, in_axes=(0, None)))(logits, labels)

            found = _one_by_one(losses_of, points, labels)
            return found.reshape(-1, found.shape[-1])

        def attack_fn(key, weights):
            def attacked(batch, images, labels):
                keys = keys_of(key, images, batch)
                return attack_mixture(keys, weights, state.average, threat, images, labels)

            return _one_by_one(attacked, numbers, images, labels)

        def sample_fn(key):
            def sampled(batch, images):
                keys = keys_of(key, images, batch)
                delta = jax.vmap(lambda key: threat.sample(key, images.shape[1:]))(keys)
                return jnp.clip(images + delta.astype(images.dtype), *bounds)

            return _one_by_one(sampled, numbers, images)

        weights, risk = weighing(key, losses_fn, attack_fn, sample_fn, state.weights, data_axis)
        state = state._replace(weights=weights.astype(state.weights.dtype))
        return state, info_of(state, risk=risk, is_weight_step=True)

    def info_of(state, *, loss: Any = 0.0, risk: Any = 0.0, is_weight_step=False):
        # One dtype for both kinds of step: under 64-bit JAX the losses may have another one.
        dtype = state.weights.dtype
        numbers = jnp.asarray(loss, dtype), jnp.asarray(risk, dtype)
        return MixtureInfo(*numbers, jnp.asarray(is_weight_step))

    def step(state, images, labels, batches=None):
        key = jax.random.fold_in(state.key, state.step)
        operands = (key, state, images, labels)
        if weighing is None or num_members == 1:
            state, info = model_step(*operands)
        else:
            is_weight_step = (state.step + 1) % period == 0
            branches = functools.partial(weight_step, weighing, batches), model_step
            state, info = jax.lax.cond(is_weight_step, *branches, *operands)
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
    """

    def update(updates, state, params=None, *, step: Any = None, **extra_args):
        del params, extra_args
        if step is None:
            raise ValueError("step must be that of the game, as `mixture` gives it, got None")
        return jax.tree.map(lambda leaf: schedule(step) * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def apply_in_training(
    model: Model, variables: PyTree, x: Array, key: Key | None
) -> tuple[Array, PyTree]:
    """Logits and the variables with their statistics updated; dropout draws from the key.

    A model whose `apply` takes no key, having no dropout or random streams of its own, gets none.
    """
    parameters = inspect.signature(model.apply).parameters.values()
    takes_key = any(each.name == "key" or each.kind == each.VAR_KEYWORD for each in parameters)
    return model.apply(variables, x, train=True, **({"key": key} if takes_key else {}))


def _with_others(images, labels, batches, num_batches):
    """Numbers `[K]`, images `[K, B, ...]` and labels `[K, B]` of the batches of a weight step."""
    if num_batches > 1 and batches is None:
        raise ValueError(
            f"batches must be a function of the numbers 1 to {num_batches - 1}, got None"
        )
    numbers, images, labels = jnp.arange(num_batches), images[None], labels[None]
    if num_batches > 1:
        others = jax.lax.map(batches, numbers[1:])
        images, labels = jax.tree.map(
            lambda first, rest: jnp.concatenate([first, rest]), (images, labels), others
        )
    return numbers, images, labels


def _one_by_one(fn, *stacked):
    """`fn` of each batch, without a loop in the program where there is but one."""
    if len(stacked[0]) == 1:
        return fn(*(batches[0] for batches in stacked))[None]
    return jax.lax.map(lambda batch: fn(*batch), stacked)


def moved_average(average: PyTree, new: PyTree, decay: Array) -> PyTree:
    """The moving average of floating-point leaves; random keys and counters are the newest."""

    def moved(new, old):
        return optax.incremental_update(new, old, 1.0 - decay) if _is_real(new) else new

    return jax.tree.map(moved, new, average)


def _is_real(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
