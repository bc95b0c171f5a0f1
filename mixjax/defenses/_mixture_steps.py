"""The parts of Algorithm 2: attack a batch against the mixture, step a member, weigh them all."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import ensemble
from mixjax.batch import example_indices, example_keys, mean_over
from mixjax.defenses.adversarial import Objective
from mixjax.defenses.weighing import Weighing
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, PyTree


class Game(NamedTuple):
    """What is played: the members' architecture, both players' losses, the attacker, and where."""

    model: Model
    objective: Objective
    threat: Threat | Callable[[Array], Threat]
    attack: Callable[..., tuple[Array, Any]]
    bounds: Bounds
    data_axis: str | None
    member_axis: str | None

    def threat_at(self, step: Array) -> Threat:
        """The attacker's ball at a step."""
        return self.threat if isinstance(self.threat, Threat) else self.threat(step)

    def keys(self, key: Key, images: Array, batch: int | Array = 0) -> Key:
        """One key for each example `[B, ...]` of a batch, whatever device it lies on."""
        here = example_indices(images.shape[0], self.data_axis)
        num_devices = 1 if self.data_axis is None else jax.lax.axis_size(self.data_axis)
        return example_keys(key, batch * num_devices * images.shape[0] + here)


class Learner(NamedTuple):
    """How a member moves: its optimiser, and the decay of the average of its variables."""

    optimizer: optax.GradientTransformationExtraArgs
    average_decay: float


def attack_mixture(
    game: Game,
    key: Key,
    state: Any,
    variables: PyTree,
    weights: Array,
    images: Array,
    labels: Array,
    batch: int | Array = 0,
) -> Array:
    """A batch attacked against the mixture of these variables and weights: `[B, ...]`."""
    keys, threat = game.keys(key, images, batch), game.threat_at(state.step)
    variables = jax.vmap(game.model.freeze)(variables)

    def attack_one(key, x, label):
        loss_fn = _expected_loss(game, variables, weights, x, label)
        return game.attack(key, loss_fn, x, threat)[0]

    return jax.vmap(attack_one)(keys, images, labels)


def _expected_loss(game, variables, weights, clean, label):
    """`x -> []`: what the attacker of the mixture raises, of an example that was `clean`."""
    apply = game.model.apply
    members = (variables, ensemble.apply(apply, variables, clean))

    def attack_loss(member, x):
        variables, clean_logits = member
        return game.objective.attack_loss(clean_logits, apply(variables, x), label)

    return lambda x: ensemble.expectation(
        attack_loss, members, weights, x, axis_name=game.member_axis
    )


def learn(
    game: Game,
    learner: Learner,
    key: Key,
    state: Any,
    drawn: Array | None,
    images: Array,
    attacked: Array,
    labels: Array,
) -> tuple[Any, Array]:
    """The state after one gradient step of the member drawn, or of all of them, and their loss."""
    device = 0 if game.data_axis is None else jax.lax.axis_index(game.data_axis)
    dropout_key = jax.random.fold_in(jax.random.fold_in(key, 2), device)
    members, axis_name = (state.variables, state.opt_state, state.average), game.member_axis

    def gradient(variables_and_index, attacked):
        variables, index = variables_and_index
        key = jax.random.fold_in(dropout_key, index)
        return _gradient(game, variables, key, images, attacked, labels)

    moved = functools.partial(_moved, learner, state.step)
    if drawn is None:
        indices = ensemble.indices(members, axis_name=axis_name)
        loss, *found = ensemble.each(gradient, (state.variables, indices), attacked)
        members = jax.vmap(moved)(members, *found)
        loss = ensemble.mean(loss, axis_name=axis_name)
    else:

        def update(member):
            loss, *found = gradient((member[0], drawn), attacked)
            return moved(member, *found), loss

        members, loss = ensemble.update(update, members, drawn, axis_name=axis_name)
    variables, opt_state, average = members
    return state._replace(variables=variables, opt_state=opt_state, average=average), loss


def _gradient(game, variables, key, images, attacked, labels):
    """One member's loss, its statistics after the batch, and its gradient."""
    loss_and_grad = jax.value_and_grad(functools.partial(_train_loss, game), has_aux=True)
    (loss, new), grads = loss_and_grad(
        variables["params"], variables, key, images, attacked, labels
    )
    statistics = {name: value for name, value in new.items() if name != "params"}
    return mean_over(game.data_axis, (loss, statistics, grads))


def _moved(learner, step, member, statistics, grads):
    """One member's variables, optimiser state and average after a gradient step."""
    variables, opt_state, average = member
    updates, opt_state = learner.optimizer.update(grads, opt_state, variables["params"], step=step)
    variables = {**statistics, "params": optax.apply_updates(variables["params"], updates)}
    decay = jnp.minimum(learner.average_decay, (1.0 + step) / (10.0 + step))
    return variables, opt_state, moved_average(average, variables, decay)


def _train_loss(game, params, variables, key, images, attacked, labels):
    """What a member lowers, the batch's mean, and its variables with the statistics updated."""
    variables, clean_logits = {**variables, "params": params}, None
    clean_key, key = jax.random.split(key)
    if game.objective.uses_clean:
        clean_logits, variables = apply_in_training(game.model, variables, images, clean_key)
    logits, variables = apply_in_training(game.model, variables, attacked, key)
    clean_logits = logits if clean_logits is None else clean_logits
    return jnp.mean(jax.vmap(game.objective.train_loss)(clean_logits, logits, labels)), variables


def weigh_members(
    game: Game,
    weighing: Weighing,
    loss: Callable[[Array, Array], Array],
    key: Key,
    state: Any,
    numbers: Array,
    images: Array,
    labels: Array,
) -> tuple[Array, Array]:
    """Weights `[L]` of the averaged members on batches `[K, B, ...]`, and the mixture's risk."""

    def losses_of(points, labels):
        members = functools.partial(ensemble.apply, game.model.apply, state.average)
        logits = jax.vmap(functools.partial(members, axis_name=game.member_axis))(points)
        return jax.vmap(jax.vmap(loss, in_axes=(0, None)))(logits, labels)

    def losses_fn(points):
        found = _one_by_one(losses_of, points, labels)
        return found.reshape(-1, found.shape[-1])

    def attack_fn(key, weights):
        attacked = functools.partial(attack_mixture, game, key, state, state.average, weights)
        return _one_by_one(
            lambda batch, images, labels: attacked(images, labels, batch), numbers, images, labels
        )

    def sample_fn(key):
        sampled = functools.partial(_sample, game, key, state)
        return _one_by_one(sampled, numbers, images)

    return weighing(key, losses_fn, attack_fn, sample_fn, state.weights, game.data_axis)


def _sample(game, key, state, batch, images):
    """A uniform point of the ball of each example of a batch."""
    keys, threat = game.keys(key, images, batch), game.threat_at(state.step)
    delta = jax.vmap(lambda key: threat.sample(key, images.shape[1:]))(keys)
    return jnp.clip(images + delta.astype(images.dtype), *game.bounds)


def apply_in_training(
    model: Model, variables: PyTree, x: Array, key: Key | None
) -> tuple[Array, PyTree]:
    """Logits and the variables with their statistics updated; dropout draws from the key.

    A model whose `apply` takes no key, because it has no dropout or keeps random streams of its
    own, gets none.
    """
    parameters = inspect.signature(model.apply).parameters.values()
    takes_key = any(each.name == "key" or each.kind == each.VAR_KEYWORD for each in parameters)
    return model.apply(variables, x, train=True, **({"key": key} if takes_key else {}))


def with_others(
    images: Array, labels: Array, batches: Callable | None, num_batches: int
) -> tuple[Array, Array, Array]:
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
