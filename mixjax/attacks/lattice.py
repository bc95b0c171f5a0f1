"""Lattice climber: the set of members that are fooled together grows by one member at a time.

The sets that some point of the ball fools are closed under taking subsets. A strongest attack is a
heaviest of them; the climb from the empty set ends at one that no further member can join.
"""

import jax
import jax.numpy as jnp

from mixjax import checks, mixture
from mixjax.attacks.boundaries import (
    MixtureAttackInfo,
    margins_of,
    move_fully,
    nearest_boundaries,
    widened,
)
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn

# The steps end at a fiftieth of the radius: where only a thinner sliver of the ball fools a set,
# the descent misses it.
_LONGEST, _SHORTEST = 2.0, 0.02  # first and last step in radii; two reach across the ball
_MOMENTUM = 0.25
# Points that only just fool lie on the wrong side after rounding; and the next member has to be
# added without losing them.
_SLACK = 1e-2  # of a radius: how far past its boundary a member should be


def lattice_climber(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    x: Array,
    label: Array,
    threat: Threat,
    *,
    num_orders: int = 5,
    num_steps: int = 20,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, MixtureAttackInfo]:
    r"""Fools as many members together as it can, trying to add one after the other.

    For every member `k` in an order, `sum_j max(0, margin_j / |grad margin_j(x)|_dual + slack)`
    over `k` and the members fooled so far is descended inside the ball, in `num_steps` steepest
    steps that shrink from 2 radii to a fiftieth, with momentum. If a point fools them all, `k`
    belongs to them and the climb goes on from there; else it is left out. The first order begins
    at `x` with the members that `x` fools, then goes by decreasing weight; the other orders are
    random and begin at random points.

    For linear members and two classes the hinge is convex, and as far as the descent finds a point
    that fools a set whenever there is one, the attack is

    - effective: where one more member can be fooled together with those that `x` fools, and so
      where any can and `x` fools none, the expected accuracy falls;
    - maximal: nothing contains each order's set strictly and can be fooled together, because what
      cannot join a set cannot join a larger one.

    The descent misses sets that only a sliver of the ball fools, about a fiftieth of the radius
    wide. With more classes the hinge of the runner-up is not convex, and for networks neither
    property is guaranteed. Which maximal set is heaviest is left to the orders.

    Args:
      key: random key of orders and starts; consumed.
      logits_fn: `[...] -> [L, C]`, the members' logits.
      weights: `[L]` probabilities of the members.
      x: `[...]` one input, inside `bounds`.
      label: `[]` integer class.
      threat: the allowed perturbations, in the units of `x`.
      num_orders: number of orders in which members are added, static.
      num_steps: number of gradient steps per added member, static.
      bounds: lowest and highest value of an input, numbers or arrays per feature.

    Returns:
      The `[...]` input of lowest expected accuracy among all points visited, `x` included, within
      `bounds` and the threat up to rounding; and a `MixtureAttackInfo`. It costs
      `num_orders * L * (num_steps + 1) + L` gradients.

    Raises:
      ValueError: as by `arc`.

    References:
      Gnecco Heredia et al., Lattice climber attack: adversarial attacks for randomized mixtures of
      classifiers, 2025: the two properties and the climb; the descent here is our own.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> def logits_fn(x):  # two members, each fooled by a step along its own coordinate
      ...     return jnp.stack([x - 0.4, jnp.zeros(2)], axis=1)
      >>> key, x, weights = jax.random.key(0), jnp.array([0.5, 0.5]), jnp.array([0.5, 0.5])
      >>> x_adv, info = attacks.lattice_climber(key, logits_fn, weights, x, 0, threats.linf(0.2))
      >>> float(info.first_accuracy), float(info.accuracy)
      (1.0, 0.0)
    """
    checks.at_least(1, num_orders=num_orders, num_steps=num_steps)
    checks.key(key=key)
    logits_fn, weights, x, bounds, dtype = widened(logits_fn, weights, x, label, threat, bounds)
    # The scale of each member's margin, once at `x`: taken anew at each point it would move the
    # goal while the descent goes on.
    _, _, sizes = nearest_boundaries(logits_fn, x, label, threat, 1)
    first_correct = mixture.correct(logits_fn(x), label)
    first_accuracy = jnp.sum(weights * first_correct)
    step_sizes = threat.epsilon * jnp.geomspace(_LONGEST, _SHORTEST, num_steps)
    # The first step stands still, to score the start: one loop body, one compiled network.
    step_sizes = jnp.concatenate([jnp.zeros(1), step_sizes]).astype(x.dtype)

    def hinge(point, members):
        margins = margins_of(logits_fn(point), label)
        # A hinge: members that are fooled by enough pull no longer, so that the rest decide the
        # direction. It is convex where the margins are linear, which is what the guarantees rest
        # on.
        missing = jax.nn.relu(margins / sizes + _SLACK * threat.epsilon)
        return jnp.sum(missing * members), margins > 0

    def add(carry, k):
        best, start, members, num_zero_gradients = carry
        members = members.at[k].set(True)

        def step(carry, step_size):
            best, deepest, point, before, gradient, num_zero_gradients = carry
            delta = point - x + _MOMENTUM * (point - before)
            delta -= step_size * threat.steepest(gradient)
            before, point = point, move_fully(x, delta, threat, bounds)
            (loss, correct), gradient = jax.value_and_grad(hinge, has_aux=True)(point, members)
            gradient = jnp.nan_to_num(gradient)
            # Every point visited is scored by the exact accuracy, also those of a set that fails as
            # a whole.
            best = _lower((point, jnp.sum(weights * correct)), best)
            fooled = ~jnp.any(correct & members)
            # Of the points that fool the whole set the one with most room is where the next member
            # starts.
            deepest = _lower((point, jnp.where(fooled, loss, jnp.inf)), deepest)
            num_zero_gradients += (loss > 0) & jnp.all(gradient == 0)
            return (best, deepest, point, before, gradient, num_zero_gradients), None

        nowhere = (start, jnp.full((), jnp.inf, x.dtype))
        carry = (best, nowhere, start, start, jnp.zeros_like(x), num_zero_gradients)
        (best, (point, loss), *_, num_zero_gradients), _ = jax.lax.scan(step, carry, step_sizes)
        # What cannot join a set cannot join a larger one: a member left out stays out in this
        # order.
        members = members.at[k].set(loss < jnp.inf)
        return (best, point, members, num_zero_gradients), None

    def climb(carry, inputs):
        best, num_zero_gradients = carry
        start, order = inputs
        carry = (best, start, jnp.zeros(len(weights), bool), num_zero_gradients)
        (best, _, _, num_zero_gradients), _ = jax.lax.scan(add, carry, order)
        return (best, num_zero_gradients), None

    order_key, start_key = jax.random.split(key)
    orders = jnp.argsort(jax.random.uniform(order_key, (num_orders, len(weights))))
    # The first order is greedy, from what is fooled already and by weight; maximal sets that it
    # cannot reach are left to the random ones.
    orders = orders.at[0].set(jnp.lexsort((-weights, first_correct)))
    starts = jax.vmap(lambda key: move_fully(x, threat.sample(key, x.shape), threat, bounds))(
        jax.random.split(start_key, num_orders - 1)
    )
    starts = jnp.concatenate([x[None], starts])
    carry = ((x, first_accuracy), jnp.zeros((), jnp.int32))
    ((point, accuracy), num_zero_gradients), _ = jax.lax.scan(climb, carry, (starts, orders))
    return point.astype(dtype), MixtureAttackInfo(accuracy, first_accuracy, num_zero_gradients)


def _lower(new, old):
    """The pair of point and value whose value is lower."""
    return jax.tree.map(lambda a, b: jnp.where(new[1] < old[1], a, b), new, old)
