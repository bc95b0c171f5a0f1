"""Training one classifier, alone or as the next member of a mixture: the frame, and two defences.

What a member learns from may depend on the members before it, its `Past`, which each step is given
beside the batch: variables of several networks are arguments of what is compiled, not constants.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import attacks, checks, ensemble, losses
from mixjax.batch import example_indices, example_keys
from mixjax.defenses.classifier import dropout_key
from mixjax.defenses.mixture_training import Defense, apply_in_training, moved_average
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, PyTree

_TINY = float(jnp.finfo(jnp.float32).tiny)


class Past(NamedTuple):
    """The members that a mixture has before the next one comes; the default: none.

    Attributes:
      members: `k` functions `x -> logits [C]`, pytrees of their variables such as
        `jax.tree_util.Partial(model.apply, variables)`; of any architectures.
      weights: `[k + 1]` their probabilities while the next one is trained, its own the last.
    """

    members: tuple[Callable[[Array], Array], ...] = ()
    weights: Any = (1.0,)


class MemberState(NamedTuple):
    """Everything that the next step needs.

    Attributes:
      variables: the classifier's variables.
      average: exponential moving average of `variables`, for evaluation.
      opt_state: the optimiser's state.
      key: root of all randomness; step t uses `fold_in(key, t)`.
      step: `[]` number of steps taken.
    """

    variables: PyTree
    average: PyTree
    opt_state: PyTree
    key: Key
    step: Array


class MemberInfo(NamedTuple):
    """What a person wants to see of a step.

    Attributes:
      loss: `[]` mean training loss on the batch; where weights are perturbed, there.
    """

    loss: Array


# `(key, own logits_fn, past, x, label, threat) -> x`, and `(own logits, past, x, label) -> []`.
_Attack = Callable[[Key, Callable, Past, Array, Array, Any], Array]
Loss = Callable[[Array, Past, Array, Array], Array]


def natural_member(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
) -> Defense:
    """Plain training: gradient steps on the cross-entropy of the images as they come.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included.
      label_smoothing: share in [0, 1) of the label's mass that is spread over all classes.
      average_decay: as by `adversarial_member`.

    Returns:
      A `Defense` with `MemberState` and `MemberInfo`.

    Raises:
      ValueError: if a number is out of its range.
    """
    return train_member(
        model, optimizer, None, smoothed_cross_entropy(label_smoothing), average_decay=average_decay
    )


def adversarial_member(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat | Callable[[Array], Threat],
    attack: Callable[..., Any],
    *,
    label_smoothing: float = 0.0,
    weight_perturbation: float = 0.0,
    average_decay: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
) -> Defense:
    """Adversarial training of one classifier, whatever members there are before it.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included.
      threat: the attacker's ball, or `step [] -> Threat` to let it grow.
      attack: what `attacks.on_mixture` runs, as `attacks.pgd` with its numbers filled in.
      label_smoothing: share in [0, 1) of the label's mass that is spread over all classes, in what
        is learned, not in what is attacked.
      weight_perturbation: AWP's `gamma`, at least 0: the gradient is taken where each kernel has
        moved along its own gradient by `gamma` times its norm. The paper's is .005; 0: none. It
        costs one more forward and one more backward pass.
      average_decay: decay in [0, 1) of the moving average of the variables; early averages forget
        faster, `min(decay, (1 + t) / (10 + t))` at step t. With 0 the average is the newest
        variables.
      bounds: lowest and highest value of an input.

    Returns:
      A `Defense` with `MemberState` and `MemberInfo`. `step(state, images, labels, past)` takes a
      past as the other trainings of a member do, and ignores it.

    Raises:
      ValueError: if a number is out of its range or the attack lacks one.

    References:
      Madry et al., Towards deep learning models resistant to adversarial attacks, 2018;
      Wu et al., Adversarial weight perturbation helps robust generalization, 2020, equation 9;
      Pang et al., Bag of tricks for adversarial training, 2021, on label smoothing.

    Example:
      >>> import functools, jax, jax.numpy as jnp, optax
      >>> from mixjax import attacks, defenses, models, threats
      >>> defense = defenses.adversarial_member(
      ...     models.linear(2, input_shape=(3,)),
      ...     optax.sgd(0.1),
      ...     threats.linf(0.1),
      ...     functools.partial(attacks.pgd, num_steps=2, step_size=0.1),
      ...     weight_perturbation=0.005,
      ... )
      >>> state = defense.init(jax.random.key(0))
      >>> images, labels = jnp.array([[0.1, 0.9, 0.2], [0.8, 0.1, 0.3]]), jnp.array([0, 1])
      >>> state, info = jax.jit(defense.step)(state, images, labels)
      >>> int(state.step)
      1
    """

    def attack_alone(key, own, past, x, label, threat):
        del past
        return attack_members(attack, key, (own,), jnp.ones(1), x, label, threat, bounds)

    attacks.check_numbers(attack)
    return train_member(
        model,
        optimizer,
        attack_alone,
        smoothed_cross_entropy(label_smoothing),
        threat=threat,
        weight_perturbation=weight_perturbation,
        average_decay=average_decay,
    )


def train_member(
    model: Model,
    optimizer: optax.GradientTransformation,
    attack: _Attack | None,
    loss: Loss,
    *,
    threat: Threat | Callable[[Array], Threat] | None = None,
    weight_perturbation: float = 0.0,
    average_decay: float = 0.0,
) -> Defense:
    """The frame: gradient steps on a loss at attacked inputs, both of which know the past.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included.
      attack: `(key, logits_fn, past, x, label, threat) -> x` on one example, `logits_fn` that of
        the classifier as in evaluation; None: the inputs stay as they are.
      loss: `(logits [C], past, x, label) -> []`, from the classifier's logits in training at `x`.
      threat: what the attack is given, or `step [] -> Threat`.
      weight_perturbation: as by `adversarial_member`.
      average_decay: as by `adversarial_member`.
    """
    checks.non_negative(weight_perturbation=weight_perturbation)
    checks.fraction(average_decay=average_decay)
    if attack is not None:
        checks.threat_or_schedule(threat=threat)

    def init(key):
        init_key, train_key = jax.random.split(key)
        variables = model.init(init_key)
        average = jax.tree.map(jnp.copy, variables)  # its own buffers: both are donated
        opt_state = optimizer.init(variables["params"])
        return MemberState(variables, average, opt_state, train_key, jnp.zeros((), jnp.int32))

    def attacked(attack, key, state, past, images, labels):
        own = jax.tree_util.Partial(model.apply, state.variables)
        now = threat(state.step) if callable(threat) and not isinstance(threat, Threat) else threat
        keys = example_keys(key, example_indices(images.shape[0]))
        return jax.vmap(lambda key, x, label: attack(key, own, past, x, label, now))(
            keys, images, labels
        )

    def step(state, images, labels, past=None):
        past = Past() if past is None else past
        key = jax.random.fold_in(state.key, state.step)
        if attack is not None:
            images = attacked(attack, key, state, past, images, labels)

        def objective(params):
            variables = {**state.variables, "params": params}
            logits, new = apply_in_training(model, variables, images, dropout_key(key))
            found = jax.vmap(lambda *each: loss(each[0], past, *each[1:]))(logits, images, labels)
            return jnp.mean(found), new

        params = state.variables["params"]
        learner = jax.value_and_grad(objective, has_aux=True)
        at = params
        if weight_perturbation:
            at = _perturbed(params, learner(params)[1], weight_perturbation)
        (value, new), gradient = learner(at)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {**new, "params": optax.apply_updates(params, updates)}
        decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
        average = moved_average(state.average, variables, decay)
        state = MemberState(variables, average, opt_state, state.key, state.step + 1)
        return state, MemberInfo(value)

    return Defense(init, step)


def attack_members(
    attack: Callable[..., Any],
    key: Key,
    members: tuple[Callable[[Array], Array], ...],
    weights: Array,
    x: Array,
    label: Array,
    threat: Threat | None,
    bounds: Bounds,
) -> Array:
    """The point `[...]` that an attack of `attacks.on_mixture` finds against some functions."""

    def logits_fn(x):
        return ensemble.apply_each(members, x)

    found = attacks.on_mixture(attack, key, logits_fn, weights, x, label, threat, bounds=bounds)
    return found[0]


def smoothed_cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy with the label smoothed: `(1 - s) CE(label) + s mean_c CE(c)`."""
    checks.fraction(label_smoothing=label_smoothing)

    def loss(logits, past, x, label):
        del past, x
        found = losses.cross_entropy(logits, label)
        if not label_smoothing:
            return found
        classes = jnp.arange(logits.shape[-1])
        of_all = jnp.mean(jax.vmap(losses.cross_entropy, in_axes=(None, 0))(logits, classes))
        return (1 - label_smoothing) * found + label_smoothing * of_all

    return loss


def _perturbed(params, gradient, size):
    """Each kernel moved by `size` of its norm along its gradient; biases and scales stay."""

    def moved(leaf, slope):
        if jnp.ndim(leaf) < 2:
            return leaf
        scale = jnp.sqrt(jnp.sum(leaf**2)) * jax.lax.rsqrt(jnp.maximum(jnp.sum(slope**2), _TINY))
        return leaf + size * scale * slope

    return jax.tree.map(moved, params, gradient)
