"""ARC: one member after the other is pushed over its nearest boundary, earlier gains kept.

Ascent on an expected loss stalls where the members' gradients cancel. ARC never adds their losses:
it linearises each member, walks along the edge of the ball from what fools the members so far
towards what fools the next one, and lets the exact expected accuracy decide.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixjax import checks, losses, mixture
from mixjax.attacks._steps import as_input
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn

# From exploring to refining within a run. With these the tests hold the attack to 97 % of the
# optimum on linear mixtures of two members, which a linear program gives.
_LONGEST, _SHORTEST = 2.0, 0.1  # first and last step in radii; two reach across the ball
_SLACK = 1e-3  # of a radius: how far past a boundary counts as past it
# Where the path first crosses a boundary has no closed form in a ball cut by a box; on a chord the
# linearised margins are straight lines, and a crossing is a division.
_NUM_CHORDS = 32  # the edge of the ball is walked in as many straight lines
_TINY = float(jnp.finfo(jnp.float32).tiny)


class MixtureAttackInfo(NamedTuple):
    """What an attack on the members of a mixture saw, on one example.

    Attributes:
      accuracy: `[]` exact expected accuracy at the returned point.
      first_accuracy: `[]` the same at `x`; never lower.
      num_zero_gradients: `[]` number of steps at which every gradient in use was exactly zero:
        where it equals the number of all steps, the attack never moved and its verdict is
        worthless.
    """

    accuracy: Array
    first_accuracy: Array
    num_zero_gradients: Array


def arc(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    x: Array,
    label: Array,
    threat: Threat,
    *,
    num_steps: int = 20,
    step_size: float | Array | None = None,
    num_boundaries: int = 4,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, MixtureAttackInfo]:
    r"""Attacks the members one by one, by decreasing weight.

    Each step linearises every member's nearest boundary, `m_k + n_k . d` with `n_k` of dual norm
    1. In turn, member `k` proposes a point on the path `steepest((1 - t) u + t n_k)`, `0 < t <= 1`,
    where `u` is the direction that fools the members before it: just far enough to fool `k` and,
    if possible, halfway to where the first of the others would recover; if `k` is out of reach, as
    far as they allow. It is accepted if the exact expected accuracy falls, or stays and the
    relaxed one, `sum_k weights_k sqrt(distance_k / 2 epsilon)` cut at 1, falls: each accepted
    point is strictly better than the last, none drifts.

    If half of the steps have gained nothing, the other half starts at a random point.

    For two linear members in an l2 ball away from `bounds` the path holds a point that fools both
    if there is any; for more members and for networks it is a greedy search.

    Args:
      key: random key of that point; consumed.
      logits_fn: `[...] -> [L, C]`, the members' logits.
      weights: `[L]` probabilities of the members.
      x: `[...]` one input, inside `bounds`.
      label: `[]` integer class.
      threat: the allowed perturbations, in the units of `x`.
      num_steps: number of steps, static.
      step_size: length of a step in the threat's norm, units of `x`; if None it falls
        geometrically from 2 radii to a tenth of one, in each half of the steps anew.
      num_boundaries: how many classes per member, those of highest logits, are searched for the
        nearest boundary, static.
      bounds: lowest and highest value of an input, numbers or arrays per feature.

    Returns:
      The `[...]` input of lowest expected accuracy among the points visited, within `bounds` and
      the threat up to rounding, never worse for the attacker than `x`; and a `MixtureAttackInfo`.
      It costs `num_steps * L * min(num_boundaries, C - 1)` gradients and about
      `num_steps * (L + 1)` further evaluations of `logits_fn`.

    Raises:
      ValueError: if `weights` is not on the simplex or not `[L]`, the logits are not `[L, C]`, the
        label is none of the classes, `x` is not of floating point or not inside `bounds`, the
        threat is no `Threat` or of several radii, or a number is not positive. Values of traced
        inputs, as those under `jax.vmap` are, are not known and not checked.

    References:
      Dbouk and Shanbhag, Adversarial vulnerability of randomized ensembles, 2022, algorithm 2.
      There every gradient is taken anew within a step, the path is `u + beta n_k` scaled back to
      the ball (in l2 the same), and ties are accepted.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> def logits_fn(x):  # two members, each fooled by a step along its own coordinate
      ...     return jnp.stack([x - 0.4, jnp.zeros(2)], axis=1)
      >>> key, x, weights = jax.random.key(0), jnp.array([0.5, 0.5]), jnp.array([0.5, 0.5])
      >>> x_adv, info = attacks.arc(key, logits_fn, weights, x, 0, threats.linf(0.2))
      >>> float(info.first_accuracy), float(info.accuracy)
      (1.0, 0.0)
    """
    checks.at_least(1, num_steps=num_steps, num_boundaries=num_boundaries)
    checks.key(key=key)
    checks.threat(threat=threat)
    if step_size is None:
        halves = (num_steps - num_steps // 2, num_steps // 2)
        radii = [jnp.geomspace(_LONGEST, _SHORTEST, half) for half in halves]
        step_sizes = threat.epsilon * jnp.concatenate(radii)
    else:
        checks.positive(step_size=step_size)
        step_sizes = jnp.full(num_steps, step_size)
    logits_fn, weights, x, bounds, dtype = widened(logits_fn, weights, x, label, threat, bounds)
    step_sizes = step_sizes.astype(x.dtype)
    # The heaviest member first: later ones may only add to what fools it.
    by_weight = jnp.argsort(-weights)
    slack = _SLACK * threat.epsilon

    def score(point, sizes):
        """Which members are correct, the expected accuracy and the relaxed one."""
        margins = margins_of(logits_fn(point), label)
        correct = margins > 0
        # A margin over the dual norm of its gradient is a distance, so that members whose logits
        # have other scales can be compared. The square root prefers one member nearly fooled and
        # another far from it to both half-way: what counts in the end is whole members.
        distances = (margins / sizes + slack) / jnp.maximum(2 * threat.epsilon, _TINY)
        relaxed = jnp.sum(weights * jnp.sqrt(jnp.clip(distances, 0.0, 1.0)))
        return correct, jnp.sum(weights * correct), relaxed

    def step(carry, inputs):
        center, gained, num_zero_gradients = carry
        step_size, halfway = inputs
        # Where half of the steps have gained nothing, `x` sits on a plateau or between boundaries;
        # a second start costs nothing more, since the other half of the steps has to be taken
        # anyway.
        center = jnp.where(halfway & ~gained, random, center)
        distances, normals, sizes = nearest_boundaries(
            logits_fn, center, label, threat, num_boundaries
        )

        # All of a step's gradients are taken at its centre, `L * num_boundaries` of them; in the
        # paper each turn takes its own. Turns then cost a forward pass each, and no backward one.
        def turn(i, carry):
            k = by_weight[i]
            point, (correct, accuracy, relaxed), direction = carry

            def corner(chord):
                share = chord / _NUM_CHORDS
                towards = (1 - share) * direction + share * normals[k]
                delta = center - x + step_size * threat.steepest(towards)
                return move_fully(x, delta, threat, bounds)

            def linearised(chord):
                moved = normals * (corner(chord) - center)[None]
                return distances + slack - jnp.sum(moved, axis=range(1, moved.ndim))

            # What would be left of each linearised margin at each corner: `[chords + 1, L]`.
            left = jax.lax.map(linearised, jnp.arange(_NUM_CHORDS + 1.0))
            # How near the first of the members that are fooled now is to being right again.
            recovery = jnp.max(jnp.where(correct, -jnp.inf, left), axis=1)
            fooled, recovered = _first_below(left[:, k]), _first_below(-recovery)
            # Half-way between both crossings: on the boundary itself rounding or curvature decides.
            reached = jnp.maximum(fooled, (fooled + recovered) / 2)
            # Out of reach in this step: as far towards it as the others allow, it may be in the
            # next one.
            chord = jnp.where(left[-1, k] < 0, reached, recovered)
            before = jnp.minimum(jnp.floor(chord), _NUM_CHORDS - 1)
            start, end = jax.vmap(corner)(before + jnp.arange(2))
            new = start + (chord - before) * (end - start)
            new_score = score(new, sizes)
            # Strictly better by the exact accuracy, or equal and by the relaxed one: with ties
            # accepted a run drifts, and may lose what it has.
            lower = new_score[1] < accuracy
            better = lower | ((new_score[1] == accuracy) & (new_score[2] < relaxed))
            # A member fooled before anything moved is to stay fooled.
            kept = better | (jnp.all(direction == 0) & ~correct[k])
            share = chord / _NUM_CHORDS
            turned = (1 - share) * direction + share * normals[k]
            point, scores = jax.tree.map(
                lambda a, b: jnp.where(better, a, b),
                (new, new_score),
                (point, (correct, accuracy, relaxed)),
            )
            return point, scores, jnp.where(kept, turned, direction)

        carry = (center, score(center, sizes), jnp.zeros_like(x))
        point, (_, accuracy, _), _ = jax.lax.fori_loop(0, len(weights), turn, carry)
        num_zero_gradients += jnp.all(normals == 0)
        return (point, accuracy < first_accuracy, num_zero_gradients), None

    def accuracy(point):
        return mixture.accuracy(logits_fn(point), label, weights)

    first_accuracy = accuracy(x)
    random = move_fully(x, threat.sample(key, x.shape), threat, bounds)
    # Never from a point that is worse for the attacker than `x`.
    random = jnp.where(accuracy(random) <= first_accuracy, random, x)
    halfway = jnp.arange(num_steps) == num_steps - num_steps // 2
    carry = (x, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    (point, _, num_zero_gradients), _ = jax.lax.scan(step, carry, (step_sizes, halfway))
    info = MixtureAttackInfo(accuracy(point), first_accuracy, num_zero_gradients)
    return point.astype(dtype), info


def widened(
    logits_fn: LogitsFn, weights: Array, x: Array, label: Array, threat: Threat, bounds: Bounds
) -> tuple[LogitsFn, Array, Array, Bounds, Any]:
    """The checked arguments and the logits in one dtype: float32 at least, and the widest of all.

    The members still see inputs of the dtype of `x`, so that what is scored is what is returned.
    """
    checks.simplex(weights=weights)
    x, bounds = as_input(x, threat, bounds)
    dtype = x.dtype
    logits = jax.eval_shape(logits_fn, x)
    checks.logits("L C", logits=logits)
    checks.label(logits.shape[1], label=label)
    checks.shape(logits.shape[:1], weights=weights)
    # Distances divide margins by norms of gradients: in sixteen bits both underflow, and the
    # nearest boundary would be any.
    wide = jnp.promote_types(jnp.promote_types(dtype, logits.dtype), jnp.float32)

    def wide_logits_fn(point):
        return logits_fn(point.astype(dtype)).astype(wide)

    return wide_logits_fn, jnp.asarray(weights, wide), x.astype(wide), bounds, dtype


def margins_of(logits: Array, label: Array) -> Array:
    """`[L, C], [] -> [L]` margins; -inf where a member answers NaN, which is wrong."""
    margins = jax.vmap(losses.margin, in_axes=(0, None))(logits, label)
    return jnp.where(jnp.isnan(margins), -jnp.inf, margins)


def move_fully(x: Array, delta: Array, threat: Threat, bounds: Bounds) -> Array:
    """`x + P(delta)` within `bounds`; what these cut off lengthens the rest.

    In the dtype of `x`. A step along the steepest direction of a linear loss ends where clipping
    alone would not: at its highest point in an l2 ball cut by `bounds`, or just short of it.
    """
    delta = threat.project(delta).astype(x.dtype)
    length = threat.norm(delta)
    for _ in range(3):
        # Each round gives the length that the bounds have cut off to the coordinates that are free,
        # some of which then meet their own bound: three rounds, and not one.
        cut = threat.norm(jnp.clip(x + delta, *bounds) - x)
        longer = jnp.where(cut > 1e-3 * length, length / jnp.maximum(cut, _TINY), 1.0)
        delta = (delta * longer).astype(x.dtype)
    return jnp.clip(x + delta, *bounds).astype(x.dtype)


def _first_below(values):
    """Where the line through `values` `[K]` first falls below 0, as an index; else the last."""
    below = values < 0
    after = jnp.maximum(jnp.argmax(below), 1)
    high, low = values[after - 1], values[after]
    # By linear interpolation between the last corner above 0 and the first below.
    crossing = after - 1 + jnp.clip(high / jnp.where(high == low, 1.0, high - low), 0.0, 1.0)
    return jnp.where(below[0], 0.0, jnp.where(jnp.any(below), crossing, len(values) - 1.0))


def nearest_boundaries(
    logits_fn: LogitsFn, point: Array, label: Array, threat: Threat, num_boundaries: int
) -> tuple[Array, Array, Array]:
    """Each member's nearest linearised boundary, among the classes of highest logits.

    Returns:
      `[L]` distances in the threat's norm, negative for members that are fooled; `[L, ...]`
      gradients of the margins divided by their dual norms; `[L]` these norms.
    """
    logits, pullback = jax.vjp(logits_fn, point)
    num_members, num_classes = logits.shape
    others = jnp.arange(num_classes - 1)
    others += others >= label  # a label at -inf would rank with masked classes
    # The nearest boundary is rarely that of a class of low logit: a few of highest logit stand for
    # all, at a fraction of the gradients.
    rivals, places = jax.lax.top_k(logits[:, others], min(num_boundaries, num_classes - 1))
    classes = others[places]

    def member(k):
        def boundary(rival):
            # One forward pass, and a pullback for each difference of two logits.
            cotangent = jnp.zeros_like(logits).at[k, rival].set(1.0).at[k, label].set(-1.0)
            gradient = jnp.nan_to_num(*pullback(cotangent))
            size = jnp.maximum(threat.dual_norm(gradient), _TINY).astype(point.dtype)
            return gradient / size, size

        normals, sizes = jax.vmap(boundary)(classes[k])
        distances = ((logits[k, label] - rivals[k]) / sizes).astype(point.dtype)
        distances = jnp.where(jnp.isnan(distances), -jnp.inf, distances)  # NaN is wrong
        nearest = jnp.argmin(distances)
        return distances[nearest], normals[nearest], sizes[nearest]

    # One member after the other: all pullbacks at once would hold all their activations.
    return jax.lax.map(member, jnp.arange(num_members))
