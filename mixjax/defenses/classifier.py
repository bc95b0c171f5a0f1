"""The frame of the defences that train one classifier: a loss on the batch and a gradient step.

An `attack` is `(key, loss_fn, x, threat) -> (x_adv, info)` on one example, as `attacks.pgd` with
its numbers filled in; `loss_fn` is the cross-entropy of the classifier attacked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import losses
from mixjax.batch import example_indices, example_keys, mean_over
from mixjax.defenses.mixture_training import Defense, apply_in_training
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Key, PyTree


class ClassifierState(NamedTuple):
    """Everything that the next step needs.

    Attributes:
      variables: the classifier's variables.
      opponent: what the attacks are made with: the variables of the classifier attacked if it is
        not the one trained, those of attack networks, or nothing.
      opt_state: the optimisers' states.
      key: root of all randomness; step t uses `fold_in(key, t)`.
      step: `[]` number of steps taken.
    """

    variables: PyTree
    opponent: PyTree
    opt_state: PyTree
    key: Key
    step: Array


class ClassifierInfo(NamedTuple):
    """What a person wants to see of a step, on the classifier before it.

    Attributes:
      loss: `[]` mean loss on what the classifier is trained on, without a penalty.
      penalty: `[]` the penalty's value, 0 without one.
    """

    loss: Array
    penalty: Array


def train(
    model: Model,
    optimizer: optax.GradientTransformation,
    objective: Callable[..., tuple[Array, tuple[PyTree, ClassifierInfo]]],
    opponent: Callable[[ClassifierState], PyTree] = lambda state: state.opponent,
    *,
    data_axis: str | None = None,
) -> Defense:
    """Gradient steps of one classifier on an objective that includes its attack.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included.
      objective: `(variables, state, key, images, labels) -> (loss [], (variables, info))`, to be
        differentiated in `variables["params"]`; `state` is as it was, its opponent up to date.
      opponent: the opponent of this step from the state before it.
      data_axis: mapped axis over which a batch is spread; `step` then gets this device's part, and
        the objective must be a mean over examples.
    """

    def init(key):
        init_key, train_key = jax.random.split(key)
        variables = model.init(init_key)
        opt_state = optimizer.init(variables["params"])
        state = ClassifierState(variables, (), opt_state, train_key, jnp.zeros((), jnp.int32))
        return state._replace(opponent=jax.tree.map(jnp.copy, opponent(state)))

    def step(state, images, labels):
        key = jax.random.fold_in(state.key, state.step)
        state = state._replace(opponent=opponent(state))
        params = state.variables["params"]

        def loss(params):
            return objective({**state.variables, "params": params}, state, key, images, labels)

        gradient, (variables, info) = jax.grad(loss, has_aux=True)(params)
        statistics = {name: value for name, value in variables.items() if name != "params"}
        gradient, statistics, info = mean_over(data_axis, (gradient, statistics, info))
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {**statistics, "params": optax.apply_updates(params, updates)}
        return state._replace(variables=variables, opt_state=opt_state, step=state.step + 1), info

    return Defense(init, step)


def attack_classifier(
    model: Model,
    variables: PyTree,
    attack: Callable[..., tuple[Array, Any]],
    key: Key,
    images: Array,
    labels: Array,
    threat: Threat,
    *,
    data_axis: str | None = None,
) -> Array:
    """The attack on each example of a batch `[B, ...]`, against the classifier as in evaluation.

    An example's random key depends on its place in the whole batch, of which `images` are this
    device's part if the batch is spread over `data_axis`.
    """

    def attack_one(key, x, label):
        def loss_fn(x):
            return losses.cross_entropy(model.apply(variables, x), label)

        return attack(key, loss_fn, x, threat)[0]

    keys = example_keys(key, example_indices(images.shape[0], data_axis))
    return jax.vmap(attack_one)(keys, images, labels)


def dropout_key(key: Key, data_axis: str | None = None) -> Key:
    """A key for dropout from that of a step, one of its own on each device.

    `attack_classifier` folds in the numbers of examples, and this the last number there is.
    """
    key = jax.random.fold_in(key, jnp.uint32(2**32 - 1))
    return key if data_axis is None else jax.random.fold_in(key, jax.lax.axis_index(data_axis))


def mean_loss(
    model: Model, variables: PyTree, images: Array, labels: Array, key: Key | None = None
) -> tuple[Array, PyTree]:
    """Mean cross-entropy in training, and the variables with their statistics updated.

    Dropout draws from the key; without one, nothing is dropped out.
    """
    logits, variables = apply_in_training(model, variables, images, key)
    return jnp.mean(jax.vmap(losses.cross_entropy)(logits, labels)), variables
