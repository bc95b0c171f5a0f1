"""FAB: along the decision boundary, linearised anew at every step, towards its nearest point."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax import checks, mixture
from mixjax.attacks._steps import is_zero
from mixjax.attacks.boundaries import widened
from mixjax.attacks.hyperplanes import nearest_lower
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn

_NORMS = "linf", "l2"  # whose nearest point of a hyperplane in a box is known
_TINY = float(jnp.finfo(jnp.float32).tiny)


class AdaptiveBoundaryInfo(NamedTuple):
    """What FAB saw on one example.

    Attributes:
      accuracy: `[]` exact expected accuracy at the returned point.
      first_accuracy: `[]` the same at `x`; never lower.
      found: `[]` whether any point, within the threat or not, fools the class of highest mean
        probability; `x` itself counts.
      norm: `[]` least norm of such a point, infinite if none was found: the share of examples with
        a norm above a radius is the accuracy at that radius of the class of highest mean
        probability.
      num_zero_gradients: `[]` number of steps at which the boundary had no direction: where it
        equals the number of all steps, the attack never moved and its verdict is worthless.
    """

    accuracy: Array
    first_accuracy: Array
    found: Array
    norm: Array
    num_zero_gradients: Array


class _Found(NamedTuple):
    """The best point so far and what it is worth; the nearest that fools the mean."""

    point: Array
    accuracy: Array
    norm: Array
    nearest: Array
    num_zero_gradients: Array


def fab(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    x: Array,
    label: Array,
    threat: Threat,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    random_start: bool | Array = False,
    largest_bias: float | Array = 0.1,
    overshoot: float | Array = 1.05,
    backward_step: float | Array = 0.9,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AdaptiveBoundaryInfo]:
    r"""Goes from boundary to boundary, and back towards `x` after each crossing: the nearest error.

    With `h_c = log p(label) - log p(c)` of the mean probabilities `p`, for one network the
    difference of its logits, each step linearises all `h_c` at the point `z`, takes the boundary
    `h_c = 0` that is nearest, and projects `z` and `x` on it within `bounds`: `d` and `d_x` are
    the ways there. The next point is

    `(1 - a) (z + overshoot d) + a (x + overshoot d_x)`, `a = min(|d| / (|d| + |d_x|),
    largest_bias)`,

    clipped to `bounds`; where the class of highest mean probability is wrong there, the run goes on
    from `x + backward_step (next - x)`, nearer to `x`. The threat gives the norm; its radius
    decides which points count, and bounds random starts.

    For a linear network the first step with an overshoot of 1 ends on the nearest point of the
    boundary.

    Args:
      key: random key of the random starts; consumed.
      logits_fn: `[...] -> [L, C]`, the members' logits.
      weights: `[L]` probabilities of the members.
      x: `[...]` one input, inside `bounds`.
      label: `[]` integer class.
      threat: the allowed perturbations, in the units of `x`, in the l-inf or the l2 norm.
      num_steps: number of steps of one run, static.
      num_restarts: number of runs, one after the other, static: the first from `x`, the others
        from random points in a ball of half the radius, or of half the least norm found so far if
        that is smaller.
      random_start: whether the first run starts at random as well.
      largest_bias: highest share of the way that leads along the boundary towards `x`, below 1.
      overshoot: how far a step goes, in units of the way to the linearised boundary; 1 ends on it.
      backward_step: share of the way from `x` to a point across the boundary at which the run goes
        on, positive, at most 1.
      bounds: lowest and highest value of an input, numbers or arrays per feature.

    Returns:
      The `[...]` input of lowest exact expected accuracy among the points visited within `bounds`
      and the threat, then the nearest, never worse for the attacker than `x`; and an
      `AdaptiveBoundaryInfo`. It costs `num_restarts * num_steps` times `C - 1` gradients and two
      evaluations of `logits_fn`.

    Raises:
      ValueError: if `weights` is not on the simplex or not `[L]`, the logits are not `[L, C]`, the
        label is none of the classes, `x` is not of floating point or not inside `bounds`, the
        threat is no `Threat`, of several radii or of another norm, or a number is out of its range.
        Values of traced inputs, as those under `jax.vmap` are, are not known and not checked.

    References:
      Croce and Hein, Minimally distorted adversarial examples with a fast adaptive boundary
      attack, 2020, algorithm 1, without its final search.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> def logits_fn(x):  # one member, wrong from a sum of 1 on: .15 away in each pixel
      ...     return jnp.stack([1.0 - x.sum(), 0.0])[None]
      >>> key, x, weights = jax.random.key(0), jnp.array([0.4, 0.3]), jnp.ones(1)
      >>> x_adv, info = attacks.fab(key, logits_fn, weights, x, 0, threats.linf(0.2))
      >>> float(info.accuracy), round(float(info.norm), 2)
      (0.0, 0.15)
    """
    _check(key, num_steps, num_restarts, largest_bias, overshoot, backward_step)
    members = _members(logits_fn, weights, x, label, threat, bounds)
    numbers = largest_bias, overshoot, backward_step

    def run(found, inputs):
        key, at_random = inputs
        return _run(found, key, at_random, members, None, num_steps, numbers), None

    inputs = jax.random.split(key, num_restarts), (jnp.arange(num_restarts) > 0) | random_start
    found, _ = jax.lax.scan(run, _nothing(members), inputs)
    return _answer(found, members)


def fab_targeted(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    x: Array,
    label: Array,
    targets: Array,
    threat: Threat,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    random_start: bool | Array = False,
    largest_bias: float | Array = 0.1,
    overshoot: float | Array = 1.05,
    backward_step: float | Array = 0.9,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AdaptiveBoundaryInfo]:
    """`fab` on the boundary of the label with each of several classes, one after the other.

    One gradient in each step instead of `C - 1`. A point counts as across when it is misclassified,
    whatever the class.

    Args:
      key: random key of the random starts; consumed.
      logits_fn: `[...] -> [L, C]`, the members' logits.
      weights: `[L]` probabilities of the members.
      x: `[...]` one input, inside `bounds`.
      label: `[]` integer class.
      targets: `[T]` classes, each attacked by `num_restarts` runs of its own; the likeliest wrong
        ones are `attacks.likeliest_wrong(mixture.log_probs(logits_fn(x), weights), label, T)`.
      threat: the allowed perturbations, as in `fab`.
      num_steps: number of steps of one run, static.
      num_restarts: number of runs for one target, static; the first from `x`.
      random_start: as in `fab`.
      largest_bias: as in `fab`.
      overshoot: as in `fab`.
      backward_step: as in `fab`.
      bounds: lowest and highest value of an input, numbers or arrays per feature.

    Returns:
      As `fab`, the best over all targets. It costs `T * num_restarts * num_steps` gradients and
      twice as many evaluations of `logits_fn`.

    Raises:
      ValueError: if `targets` is empty, or as by `fab`.

    References:
      Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, section 5: FAB-T.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> def logits_fn(x):  # wrong for class 1 from a first pixel of .6 on
      ...     return jnp.stack([0.6, x[0], 0.0 * x[0]])[None]
      >>> key, x, targets = jax.random.key(0), jnp.array([0.5, 0.5]), jnp.array([1, 2])
      >>> arguments = key, logits_fn, jnp.ones(1), x, 0, targets, threats.l2(0.2)
      >>> x_adv, info = attacks.fab_targeted(*arguments)
      >>> float(info.accuracy), round(float(info.norm), 2)
      (0.0, 0.1)
    """
    _check(key, num_steps, num_restarts, largest_bias, overshoot, backward_step)
    checks.non_empty(1, targets=targets)
    members = _members(logits_fn, weights, x, label, threat, bounds)
    numbers = largest_bias, overshoot, backward_step
    num_runs = len(targets) * num_restarts

    def run(found, inputs):
        key, at_random, target = inputs
        return _run(found, key, at_random, members, target, num_steps, numbers), None

    at_random = (jnp.arange(num_runs) % num_restarts > 0) | random_start
    each_target = jnp.repeat(jnp.asarray(targets), num_restarts)
    inputs = jax.random.split(key, num_runs), at_random, each_target
    found, _ = jax.lax.scan(run, _nothing(members), inputs)
    return _answer(found, members)


class _Members(NamedTuple):
    """Whom the attack is on, everything in float32 at least."""

    logits_fn: LogitsFn
    weights: Array
    x: Array
    label: Array
    threat: Threat
    bounds: Bounds
    dtype: jnp.dtype  # of the input given
    first_accuracy: Array  # at `x`
    first_fools: Array


def _check(key, num_steps, num_restarts, largest_bias, overshoot, backward_step):
    checks.key(key=key)
    checks.at_least(1, num_steps=num_steps, num_restarts=num_restarts)
    checks.fraction(largest_bias=largest_bias)
    checks.positive(overshoot=overshoot, backward_step=backward_step)
    checks.within(0.0, 1.0, backward_step=backward_step)


def _members(logits_fn, weights, x, label, threat, bounds):
    checks.threat(threat=threat)
    if threat.name not in _NORMS:
        raise ValueError(f"threat must be {' or '.join(_NORMS)} for FAB, got {threat!r}")
    logits_fn, weights, x, bounds, dtype = widened(logits_fn, weights, x, label, threat, bounds)
    logits = logits_fn(x)
    return _Members(
        logits_fn,
        weights,
        x,
        label,
        threat,
        bounds,
        dtype,
        first_accuracy=mixture.accuracy(logits, label, weights),
        first_fools=_fools(logits, label, weights),
    )


def _nothing(members):
    """Before the first step `x` itself is the best."""
    x = members.x
    none = jnp.finfo(x.dtype).max  # instead of infinity, which `jax.debug_infs` refuses
    return _Found(
        point=x,
        accuracy=members.first_accuracy,
        norm=jnp.zeros((), x.dtype),
        nearest=jnp.where(members.first_fools, 0.0, none).astype(x.dtype),
        num_zero_gradients=jnp.zeros((), jnp.int32),
    )


def _run(found, key, at_random, members, target, num_steps, numbers):
    """One run; `target` None: whichever boundary is nearest."""
    x, threat, bounds = members.x, members.threat, members.bounds
    largest_bias, overshoot, backward_step = numbers
    radius = jnp.minimum(found.nearest, threat.epsilon) / 2
    near = dataclasses.replace(threat, epsilon=radius)
    start = jnp.clip(x + near.sample(key, x.shape).astype(x.dtype), *bounds)

    def step(carry, _):
        point, found = carry
        value, gradient = _boundary(point, members, target)

        def onto(origin):
            """From `origin` to the linearised boundary, whichever side of it that is on."""
            height = value + jnp.sum(gradient * (origin - point))
            down = jnp.where(height < 0, -gradient, gradient)
            direction = threat.steepest(down)
            return nearest_lower(origin, down, jnp.abs(height), bounds, direction) - origin

        here, there = jax.vmap(onto)(jnp.stack([point, x]))
        lengths = threat.norm(here), threat.norm(there)
        bias = jnp.minimum(lengths[0] / jnp.maximum(sum(lengths), _TINY), largest_bias)
        new = (1 - bias) * (point + overshoot * here) + bias * (x + overshoot * there)
        new = jnp.clip(new, *bounds).astype(members.dtype).astype(x.dtype)
        logits = members.logits_fn(new)
        accuracy = mixture.accuracy(logits, members.label, members.weights)
        fools = _fools(logits, members.label, members.weights)
        norm = threat.norm(new - x).astype(x.dtype)
        nearer = (accuracy == found.accuracy) & (norm < found.norm)
        better = (norm <= threat.epsilon) & ((accuracy < found.accuracy) | nearer)
        found = _Found(
            point=jnp.where(better, new, found.point),
            accuracy=jnp.where(better, accuracy, found.accuracy),
            norm=jnp.where(better, norm, found.norm),
            nearest=jnp.where(fools & (norm < found.nearest), norm, found.nearest),
            num_zero_gradients=found.num_zero_gradients + is_zero(gradient),
        )
        back = x + backward_step * (new - x)
        return (jnp.where(fools, back, new).astype(x.dtype), found), None

    carry = jnp.where(at_random, start, x), found
    (_, found), _ = jax.lax.scan(step, carry, length=num_steps)
    return found


def _boundary(point, members, target):
    """`h_c` and its gradient at `point`, of the target or of the class that is nearest."""
    log_probs, pullback = jax.vjp(
        lambda point: mixture.log_probs(members.logits_fn(point), members.weights), point
    )
    num_classes = len(log_probs)

    def towards(c):
        cotangent = jnp.zeros_like(log_probs).at[members.label].set(1.0).at[c].add(-1.0)
        # Classes that no member gives any probability have no boundary to walk along.
        known = jnp.isfinite(log_probs[members.label]) & jnp.isfinite(log_probs[c])
        gradient = jnp.nan_to_num(*pullback(cotangent))
        difference = jnp.where(known, log_probs, 0.0)
        value = difference[members.label] - difference[c]
        return value.astype(point.dtype), jnp.where(known, gradient, 0.0)

    if target is not None:
        return towards(target)
    farthest = jnp.finfo(point.dtype).max

    def nearer(carry, c):
        nearest, boundary = carry
        value, gradient = towards(c)
        size = members.threat.dual_norm(gradient)
        distance = jnp.abs(value) / jnp.maximum(size, _TINY)
        distance = jnp.where(size > 0, jnp.minimum(distance, farthest / 2), farthest)
        boundary = jax.tree.map(
            lambda a, b: jnp.where(distance < nearest, a, b), (value, gradient), boundary
        )
        return (jnp.minimum(distance, nearest).astype(point.dtype), boundary), None

    nowhere = jnp.zeros((), point.dtype), jnp.zeros_like(point)
    carry = jnp.full((), farthest, point.dtype), nowhere
    others = jnp.arange(num_classes - 1)
    others += others >= members.label  # a gradient for each class but the label
    (_, boundary), _ = jax.lax.scan(nearer, carry, others)
    return boundary


def _fools(logits, label, weights):
    """Whether the class of highest mean probability is wrong."""
    return ~mixture.correct(mixture.log_probs(logits, weights), label)


def _answer(found, members):
    none = jnp.finfo(members.x.dtype).max
    info = AdaptiveBoundaryInfo(
        accuracy=found.accuracy,
        first_accuracy=members.first_accuracy,
        found=found.nearest < none,
        norm=jnp.where(found.nearest == none, jnp.inf, found.nearest),
        num_zero_gradients=found.num_zero_gradients,
    )
    return found.point.astype(members.dtype), info
