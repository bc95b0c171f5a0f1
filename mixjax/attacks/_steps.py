"""What the attacks share: how a point moves, which one is kept, and what an attack reports."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mixjax import checks
from mixjax.threats import Threat
from mixjax.typing import AccuracyFn, Array, Bounds, LossFn


class AttackInfo(NamedTuple):
    """What an attack on one example saw.

    Attributes:
      loss: `[]` loss at the returned point.
      first_loss: `[]` loss at the starting point.
      num_zero_gradients: `[]` number of steps at which the gradient was exactly zero: where it
        equals the number of steps, the attack never moved and its verdict is worthless.
      accuracy: `[]` value of `accuracy_fn` at the returned point, NaN as 0; None without one.
    """

    loss: Array
    first_loss: Array
    num_zero_gradients: Array
    accuracy: Array | None = None


def as_input(
    x: ArrayLike, threat: Threat, bounds: Bounds, **functions: Callable | None
) -> tuple[Array, Bounds]:
    """`x` and the bounds as arrays of one dtype, everything checked that is known.

    Args:
      x: one input.
      threat: what may be done to it.
      bounds: numbers, or arrays per feature.
      **functions: the functions of `x` that must return one number, by their names.
    """
    checks.threat(threat=threat)
    checks.inside(bounds, x=x)
    x = jnp.asarray(x)
    given = {name: function for name, function in functions.items() if function is not None}
    checks.one_number(x, **given)
    low, high = (_bound(bound, x) for bound in bounds)
    return x, (low, high)


def _bound(bound, x):
    if np.ndim(bound) == 0:
        return bound
    return jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape)


class Visited(NamedTuple):
    """A point and what decides whether it is the one to return."""

    point: Array
    loss: Array
    accuracy: Array | None  # None: the loss alone decides


def visit(loss_fn: LossFn, accuracy_fn: AccuracyFn | None, point: Array) -> Visited:
    """The point as `Visited`."""
    accuracy = None if accuracy_fn is None else _errors_count(accuracy_fn(point))
    return Visited(point, loss_fn(point), accuracy)


def visit_and_grad(
    loss_fn: LossFn, accuracy_fn: AccuracyFn | None, point: Array
) -> tuple[Visited, Array]:
    """The point as `Visited`, and the gradient there, its NaNs replaced by 0.

    The accuracy is taken while the loss is differentiated, so that both see the same traced point,
    which `once` recognises.
    """
    if accuracy_fn is None:
        loss, gradient = value_and_grad(loss_fn, point)
        return Visited(point, loss, None), gradient
    # As an auxiliary output: outside of the differentiated function the accuracy would run the
    # network once more per step.
    (loss, accuracy), gradient = jax.value_and_grad(
        lambda point: (loss_fn(point), accuracy_fn(point)), has_aux=True
    )(point)
    # A member that answers NaN has NaN gradients; those of the others still lead upwards.
    return Visited(point, loss, _errors_count(accuracy)), jnp.nan_to_num(gradient)


def once(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """`fn`, which computes nothing if it is called again with the array of the last call.

    A loss and an accuracy that both call `once(logits_fn)` at the same point run the network once.
    XLA's own removal of equal computations may miss the second run: where it first moves different
    parts of the two out of a loop, a step would cost twice as much.

    Args:
      fn: pure function of an array, such as `logits_fn`.

    Returns:
      The same function. Inside of a transformation, such as a branch of `jax.lax.cond`, it must not
      be called with an array from outside of it.

    Example:
      >>> from mixjax import attacks
      >>> calls, point = [], object()
      >>> answer = attacks.once(lambda x: calls.append(x) or len(calls))
      >>> answer(point), answer(point)
      (1, 1)
    """
    last = []

    def asked_once(x):
        # By identity and not by value: a traced array has no value to compare.
        if not last or last[0] is not x:
            last[:] = x, fn(x)
        return last[1]

    return asked_once


def value_and_grad(loss_fn: LossFn, point: Array) -> tuple[Array, Array]:
    """`loss_fn` and its gradient at `point`, NaNs of the gradient replaced by 0.

    A step along NaN would leave the inputs altogether; such coordinates stay where they are.
    """
    loss, gradient = jax.value_and_grad(loss_fn)(point)
    return loss, jnp.nan_to_num(gradient)


def move(x: Array, delta: Array, threat: Threat, bounds: Bounds) -> Array:
    """`x + P(delta)` within `bounds`; clipping towards an `x` inside them stays in the ball.

    In the dtype of `x`, whatever that of the delta: rounded last, the point stays in both.
    """
    # Projected before it is clipped: the other order could leave the ball. In l2 the corner of ball
    # and box is then missed by a little, which `boundaries.move_fully` makes up for where it
    # matters.
    return jnp.clip(x + threat.project(delta), *bounds).astype(x.dtype)


def shapes_visited(x: Array, accuracy_fn: AccuracyFn | None, **loss_fn: LossFn) -> Visited:
    """The shapes and dtypes of what `visit` returns.

    Args:
      x: one input.
      accuracy_fn: as of the attack.
      **loss_fn: the loss, under the name that a message calls it by.

    Raises:
      ValueError: unless both return one number.
    """
    given: dict[str, Callable] = {**loss_fn}
    if accuracy_fn is not None:
        given["accuracy_fn"] = accuracy_fn
    # Of the check, without another trace of the network: that takes as long as all the rest.
    found = checks.one_number(x, **given)
    # By name: what JAX returns is in the order of the letters.
    accuracy = [found.pop("accuracy_fn")] if "accuracy_fn" in found else []
    (loss,) = found.values()

    def visited(point, loss, *accuracy):
        return Visited(point, loss, _errors_count(*accuracy) if accuracy else None)

    return jax.eval_shape(visited, x, loss, *accuracy)


def nothing_visited(shapes: Visited) -> Visited:
    """What a loop carries before its first point, which is kept whatever it is."""
    # Shapes alone, so that the first point costs no forward pass of its own.
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def keep_better(best: Visited, new: Visited, is_first: bool | Array = False) -> Visited:
    """The point that serves the attacker best: of lower accuracy, then of higher loss.

    Of equal points the first. Without accuracies a NaN loss counts as the highest: otherwise a
    broken network would be reported as robust. Beside an accuracy, in which a NaN answer is an
    error already, a NaN loss counts as the lowest: it may be the fault of the loss.
    """
    if new.accuracy is None or best.accuracy is None:
        better = (new.loss > best.loss) | (jnp.isnan(new.loss) & ~jnp.isnan(best.loss))
    else:
        # The exact accuracy decides and the loss only breaks ties: of a mixture no loss is more
        # than a sign of how many members err, and the point of highest loss is often not the one
        # that fools most.
        higher = is_higher(new.loss, best.loss)
        better = (new.accuracy < best.accuracy) | ((new.accuracy == best.accuracy) & higher)
    return jax.tree.map(lambda a, b: jnp.where(better | is_first, a, b), new, best)


def best_of(visited: Visited) -> Array:
    """Index of the best of several points, leaves `[R, ...]`; as `keep_better`."""
    if visited.accuracy is None:
        return jnp.argmax(visited.loss)  # a NaN counts as the highest
    # Sorted by accuracy, then by loss: the same order as in `keep_better`, over restarts.
    return jnp.lexsort((-visited.loss, visited.accuracy))[0]


def is_higher(new: Array, old: Array) -> Array:
    """Whether `new > old`; a NaN is below every number."""
    return (new > old) | (jnp.isnan(old) & ~jnp.isnan(new))


def is_zero(gradient: Array) -> Array:
    """1 for a gradient of zeros alone, else 0."""
    return jnp.all(gradient == 0).astype(jnp.int32)


def _errors_count(accuracy):
    """An accuracy of NaN says that nothing there is right."""
    return jnp.where(jnp.isnan(accuracy), 0, accuracy)
