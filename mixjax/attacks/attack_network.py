"""Attacks by a network that was trained for it: `x, label -> x_adv` in one forward pass.

What the network gives is a direction, of which the length does not count: it is divided by its
root mean square, squashed and scaled to the ball. An output squashed as it is saturates within a
hundred steps of training, since a longer direction always pays, and has no gradient from there on.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import _check
from mixjax.attacks._steps import AttackInfo
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LossFn, PyTree

if TYPE_CHECKING:  # an attack by itself does without Flax
    from mixjax.models import Model

_GAIN = 2.0  # of the squashed direction: a typical coordinate moves by tanh(2) = 0.96 epsilon
_FINAL_GAIN = 4.0  # of a finished network: nothing has to be learned from what is squashed
_SMALLEST_SQUARE = 1e-12

DirectionFn = Callable[[Array, Array], Array]  # `(x [...], label []) -> [...]`


def follow(
    x: Array,
    direction: Array,
    threat: Threat,
    *,
    gain: float = _GAIN,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """`clip(x + P(epsilon tanh(gain h / rms(h))))`, `h` the direction.

    To be differentiated in the direction: the gradient passes the clip unchanged, for the many
    pixels at a bound would else teach nothing.

    Args:
      x: `[...]` one input, inside `bounds`.
      direction: `[...]`, what the network gives for `x` and its label.
      threat: the allowed perturbations, in the units of `x`.
      gain: how much is squashed, positive: the larger, the closer to the corners of the box and
        the less a coordinate's gradient.
      bounds: lowest and highest value of an input.

    Returns:
      The `[...]` attacked input, within `bounds` and within the threat up to rounding.

    Raises:
      ValueError: if `gain` is not positive, `bounds` are no interval or the direction does not
        have the shape of `x`.
    """
    _check.positive(gain=gain)
    _check.increasing(bounds=bounds)
    _check.shape(jnp.shape(x), direction=direction)
    direction *= jax.lax.rsqrt(jnp.mean(direction**2) + _SMALLEST_SQUARE)
    moved = x + threat.project(threat.epsilon * jnp.tanh(gain * direction))
    return moved + jax.lax.stop_gradient(jnp.clip(moved, *bounds) - moved)


def attack_network(
    direction_fn: DirectionFn,
    loss_fn: LossFn,
    x: Array,
    label: Array,
    threat: Threat,
    *,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AttackInfo]:
    """The attack of a trained network: one forward pass, whatever the classifier.

    Args:
      direction_fn: `(x [...], label []) -> [...]`, for example
        `functools.partial(network.apply, state.variables)`.
      loss_fn: `[...] -> []`, what the attacker raises; only for the info.
      x: `[...]` one input, inside `bounds`.
      label: `[]` its label.
      threat: the allowed perturbations, in the units of `x`.
      bounds: lowest and highest value of an input.

    Returns:
      The `[...]` attacked input, within `bounds` and the threat, and an `AttackInfo`.

    Raises:
      ValueError: as `follow`.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      section 4.1.
    """
    x_adv = follow(x, direction_fn(x, label), threat, gain=_FINAL_GAIN, bounds=bounds)
    return x_adv, AttackInfo(loss_fn(x_adv), loss_fn(x), jnp.zeros((), jnp.int32))


def attack_network_over_labels(
    direction_fn: DirectionFn,
    loss_fn: LossFn,
    x: Array,
    threat: Threat,
    *,
    num_classes: int,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AttackInfo]:
    """The network asked for every label, the input of highest loss kept: no label is needed.

    With a key in front it is an attack for `defenses.mixture`. Never weaker than `attack_network`.

    Args:
      direction_fn: `(x [...], label []) -> [...]`, an attack network with its variables filled in.
      loss_fn: `[...] -> []`, what the attacker raises.
      x: `[...]` one input, inside `bounds`.
      threat: the allowed perturbations, in the units of `x`.
      num_classes: number of labels `C`.
      bounds: lowest and highest value of an input.

    Returns:
      The `[...]` attacked input, within `bounds` and the threat, and an `AttackInfo`.

    Raises:
      ValueError: as `follow`, or if `num_classes` is below 1.
    """
    _check.at_least(1, num_classes=num_classes)

    def attack(label):
        return follow(x, direction_fn(x, label), threat, gain=_FINAL_GAIN, bounds=bounds)

    points = jax.vmap(attack)(jnp.arange(num_classes))
    losses = jax.vmap(loss_fn)(points)
    best = jnp.argmax(losses)
    return points[best], AttackInfo(losses[best], loss_fn(x), jnp.zeros((), jnp.int32))


def attack_batch(
    network: "Model",
    variables: PyTree,
    key: Key | None,
    images: Array,
    labels: Array,
    threat: Threat,
    *,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, PyTree]:
    """The network's attack on a batch as in training, dropout included: what `v` of a game does.

    Args:
      network: its architecture, of `models.attack_network` or the like.
      variables: its variables.
      key: random key of dropout, consumed; None drops nothing out.
      images: `[B, ...]` inputs inside `bounds`.
      labels: `[B]` their labels.
      threat: the allowed perturbations, in the units of the images.
      bounds: lowest and highest value of an input.

    Returns:
      The `[B, ...]` attacked inputs and the variables, as the network's `apply` does in training.
    """
    direction, variables = network.apply(variables, images, labels, train=True, key=key)

    def one(x, direction):
        return follow(x, direction, threat, bounds=bounds)

    return jax.vmap(one)(images, direction), variables


class AttackNetworkState(NamedTuple):
    """Everything that the next training step needs.

    Attributes:
      variables: the network's variables.
      opt_state: the optimiser's state.
      key: root of all randomness; step t uses `fold_in(key, t)`.
      step: `[]` number of steps taken.
    """

    variables: PyTree
    opt_state: PyTree
    key: Key
    step: Array


class AttackNetworkInfo(NamedTuple):
    """What a person wants to see of a training step.

    Attributes:
      loss: `[]` mean of the loss raised, on the batch attacked before the step.
      gradient_norm: `[]` Euclidean norm of its gradient.
    """

    loss: Array
    gradient_norm: Array


def log_error(logits: Array, label: Array) -> Array:
    """`log(1 - p(label))`: `[C], [] -> []`, what an attack network learns to raise best.

    Its slope is steepest where the classifier is sure and right, and vanishes where it is fooled
    already. The cross-entropy is the other way round: a network raises it without end on a few
    examples and learns nothing from the rest.
    """
    others = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, jax.nn.log_softmax(logits))
    return jax.nn.logsumexp(others)


class AttackTraining(NamedTuple):
    """`init(key) -> state`, `step(state, classifier, images, labels) -> (state, info)`."""

    init: Callable[[Key], AttackNetworkState]
    step: Callable[..., tuple[AttackNetworkState, AttackNetworkInfo]]


def attack_network_training(
    network: "Model",
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Any, Array, Array], Array],
    threat: Threat,
    *,
    bounds: Bounds = (0.0, 1.0),
) -> AttackTraining:
    """Training of an attack network against a classifier or a mixture that stays as it is.

    The defaults won comparisons against undefended classifiers of MNIST, within 0.15. One with
    the initial weights of TensorFlow's tutorial, as in the paper (clean error .05, under FGSM .97):
    200 steps of 64 examples lead to an error of .90; to .82 where the label enters with scale 1, to
    .89 where the direction is clipped and differentiated as if it were not. One with He's (.02, .63
    under FGSM): 400 steps of 128 lead to .35, and to .12 if the cross-entropy is raised instead of
    `log_error`; 600 steps lead to .36, and to .23 if the direction keeps its length.

    Args:
      network: its architecture, of `models.attack_network` or the like.
      optimizer: of its parameters, learning rate included; it descends `-loss`.
      loss_fn: `(classifier, x [...], label []) -> []`, what the network raises on one example;
        best `log_error` of the classifier's logits.
      threat: the allowed perturbations, in the units of the images.
      bounds: lowest and highest value of an input.

    Returns:
      The `AttackTraining`; `classifier` is any pytree that `loss_fn` knows, `images` are
      `[B, ...]` within `bounds`, `labels [B]`.

    Raises:
      ValueError: as `follow`.
    """

    def init(key):
        init_key, train_key = jax.random.split(key)
        variables = network.init(init_key)
        opt_state = optimizer.init(variables["params"])
        return AttackNetworkState(variables, opt_state, train_key, jnp.zeros((), jnp.int32))

    def step(state, classifier, images, labels):
        key = jax.random.fold_in(state.key, state.step)

        def objective(params):
            variables = {**state.variables, "params": params}
            attacked, variables = attack_batch(
                network, variables, key, images, labels, threat, bounds=bounds
            )
            losses = jax.vmap(loss_fn, in_axes=(None, 0, 0))(classifier, attacked, labels)
            return -jnp.mean(losses), variables

        (loss, variables), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.variables["params"]
        )
        params = state.variables["params"]
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {**variables, "params": optax.apply_updates(params, updates)}
        state = AttackNetworkState(variables, opt_state, state.key, state.step + 1)
        return state, AttackNetworkInfo(-loss, optax.tree.norm(gradient))

    return AttackTraining(init, step)
