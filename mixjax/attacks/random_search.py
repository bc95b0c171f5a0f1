"""The Square attack: a random search that uses scores alone, never a gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks
from mixjax.attacks._steps import AttackInfo, as_input, is_higher, keep_better, move, once, visit
from mixjax.threats import Threat
from mixjax.typing import AccuracyFn, Array, Bounds, Key, LossFn

# The squares' share of the pixels is halved after each of these queries of 10 000.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_LENGTH = 10_000
_NUM_TILES = 5  # along each side of the first perturbation in l2


def square(
    key: Key,
    score_fn: LossFn,
    x: Array,
    threat: Threat,
    *,
    num_queries: int = 1000,
    first_share: float = 0.8,
    accuracy_fn: AccuracyFn | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AttackInfo]:
    """Random search over squares of pixels: a change stays where it raises the score.

    In a box (l-inf) every query sets the perturbation of one random square to `+-epsilon`, one
    sign for each channel, starting from vertical stripes. In any other ball, l2 or of a norm that
    treats all coordinates alike, a query empties a second square and moves its norm, and whatever
    norm is unused, into the first, as a pair of bumps of opposite signs, starting from tiles of
    such bumps. The squares shrink as the queries go on.

    No derivative is taken: a check on attacks that follow gradients, for instance on the exact
    expected error of a mixture, which has none, or on minus its expected margin.

    Args:
      key: random key; consumed.
      score_fn: `[...] -> []`, what the attacker raises; need not be differentiable.
      x: `[H, W, C]` one input, inside `bounds`. Any other shape counts as a row of pixels.
      threat: the allowed perturbations, in the units of `x`.
      num_queries: number of forward passes, static.
      first_share: share of the pixels in the first squares, at most 1.
      accuracy_fn: `[...] -> []`, lower is better for the attacker: which of the points visited is
        returned. It never steers the search. None: the score alone decides.
      bounds: lowest and highest value of an input, numbers or arrays per feature.

    Returns:
      The `[...]` input of lowest accuracy, then of highest score, among the `num_queries` points
      visited, within `bounds` and within the threat up to rounding, and an `AttackInfo` that
      counts no zero gradients.

    Raises:
      ValueError: if `num_queries` or `first_share` is not positive, `first_share` is above 1, `x`
        is not of floating point or not inside `bounds`, the threat is no `Threat` or of several
        radii, or the score or the accuracy is not one number. Values of traced inputs, as those
        under `jax.vmap` are, are not known and not checked.

    References:
      Andriushchenko et al., Square attack: a query-efficient black-box adversarial attack via
      random search, 2020, algorithms 1 to 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> key, x = jax.random.key(0), jnp.full((4, 4, 1), 0.5)
      >>> x_adv, info = attacks.square(key, jnp.mean, x, threats.linf(0.25), num_queries=50)
      >>> bool(0.5 < info.loss <= 0.75), bool(jnp.abs(x_adv - x).max() <= 0.25)
      (True, True)
    """
    checks.at_least(1, num_queries=num_queries)
    checks.key(key=key)
    checks.positive(first_share=first_share)
    checks.within(0.0, 1.0, first_share=first_share)
    x, bounds = as_input(x, threat, bounds, score_fn=score_fn, accuracy_fn=accuracy_fn)
    image = jnp.reshape(x, x.shape if x.ndim == 3 else (1, x.size, 1))
    low, high = (jnp.reshape(bound, image.shape) if jnp.ndim(bound) else bound for bound in bounds)
    start, change, smallest = _stripes, _recolor, 1
    if threat.name != "linf":
        start, change, smallest = _tiles, _regroup, 3
    sides = _sides(image.shape, num_queries - 1, first_share, smallest)

    unflatten = once(lambda image: jnp.reshape(image, x.shape))

    def of_image(fn):
        return lambda image: fn(unflatten(image))

    score = of_image(score_fn)
    accuracy = None if accuracy_fn is None else of_image(accuracy_fn)

    def ask(delta):
        return visit(score, accuracy, move(image, delta, threat, (low, high)))

    def query(carry, key_and_sides):
        (highest, best), (key, sides) = carry, key_and_sides
        new = ask(change(key, sides, highest.point - image, threat))
        higher = is_higher(new.loss, highest.loss)
        highest = jax.tree.map(lambda a, b: jnp.where(higher, a, b), new, highest)
        return (highest, keep_better(best, new)), None

    first_key, search_key = jax.random.split(key)
    first = ask(start(first_key, image.shape, threat))
    keys = jax.random.split(search_key, num_queries - 1)
    (_, best), _ = jax.lax.scan(query, (first, first), (keys, sides))
    info = AttackInfo(best.loss, first.loss, jnp.zeros((), jnp.int32), best.accuracy)
    return jnp.reshape(best.point, x.shape), info


def _sides(shape, num_changes, first_share, smallest):
    """`[num_changes, 2]` height and width of the window of each change."""
    # The schedule is that of 10 000 queries, run through faster: with 200 queries squares shrink as
    # they do in the paper's whole run.
    progress = np.arange(num_changes) * _SCHEDULE_LENGTH // max(num_changes, 1)
    # Known before anything compiles: sides are data of the loop, not branches of it.
    halvings = np.searchsorted(_HALVINGS, progress)
    area = first_share * 0.5**halvings * shape[0] * shape[1]
    side = np.maximum(np.round(np.sqrt(area)), smallest)
    short, long = sorted(shape[:2])
    # A square longer than the shorter side of the image keeps its area: it is cut there and grows
    # along the other side.
    long_side = np.where(side > short, np.maximum(np.round(area / short), smallest), side)
    sides = np.minimum(side, short), np.minimum(long_side, long)
    return np.stack(sides if shape[0] == short else sides[::-1], axis=1).astype(np.int32)


def _window(key, shape, sides):
    """A window at random inside the image: `[H, W, 1]` mask and each pixel's place in it."""
    top, left = jax.random.randint(key, (2,), 0, jnp.asarray(shape[:2]) - sides + 1)
    # A mask instead of a slice: the size of a slice would have to be static, and the loop body
    # would compile anew for each size.
    rows, columns = jnp.arange(shape[0])[:, None] - top, jnp.arange(shape[1])[None, :] - left
    inside = (rows >= 0) & (rows < sides[0]) & (columns >= 0) & (columns < sides[1])
    return inside[..., None], rows, columns


def _stripes(key, shape, threat):
    """Vertical stripes at the corners of a box."""
    # Stripes of one pixel are a pattern that convolutions answer to strongly, and corners of a box
    # are where a loss that is nearly linear is highest.
    return threat.epsilon * jax.random.rademacher(key, (1, *shape[1:]), jnp.float32)


def _recolor(key, sides, delta, threat):
    """One window of `delta` in one color out of the corners of a box."""
    window_key, sign_key = jax.random.split(key)
    inside, _, _ = _window(window_key, delta.shape, sides)
    signs = jax.random.rademacher(sign_key, (1, 1, delta.shape[2]), delta.dtype)
    return jnp.where(inside, threat.epsilon * signs, delta)


def _tiles(key, shape, threat):
    """The whole image in tiles of bumps of random signs, of norm epsilon."""
    height, width = (max(size // _NUM_TILES, 1) for size in shape[:2])
    row, column = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    bumps = _bumps(row % height, column % width, height, width)
    num_tiles = -(-shape[0] // height), -(-shape[1] // width)
    signs = jax.random.rademacher(key, (*num_tiles, shape[2]), jnp.float32)
    return threat.epsilon * threat.steepest(
        bumps[..., None] * signs[row // height, column // width]
    )


def _regroup(key, sides, delta, threat):
    """`delta` with the norm of one window, and what is left of epsilon, moved into another."""
    to_key, from_key, sign_key, axis_key = jax.random.split(key, 4)
    inside, rows, columns = _window(to_key, delta.shape, sides)
    emptied, _, _ = _window(from_key, delta.shape, sides)
    signs = jax.random.rademacher(sign_key, (1, 1, delta.shape[2]), delta.dtype)
    across = jnp.where(sides[0] == sides[1], jax.random.bernoulli(axis_key), sides[0] < sides[1])
    bumps = jnp.where(
        across,
        _bumps(columns, rows, sides[1], sides[0]),
        _bumps(rows, columns, sides[0], sides[1]),
    )
    bumps = threat.steepest(jnp.where(inside, bumps[..., None], 0.0))
    each_channel = functools.partial(jax.vmap, in_axes=-1, out_axes=-1)
    # What a window already holds is added in equal strength, as in algorithm 3: a good pattern is
    # strengthened and not wiped out.
    old = each_channel(threat.steepest)(jnp.where(inside, delta, 0.0))
    pattern = each_channel(threat.steepest)(bumps * signs + old)
    # What clipping at the bounds has left unused of the ball is spent as well.
    unused = jnp.maximum(threat.epsilon**2 - threat.norm(delta) ** 2, 0.0) / delta.shape[2]
    moved = each_channel(threat.norm)(jnp.where(inside | emptied, delta, 0.0)) ** 2
    pattern = pattern * jnp.sqrt(moved + unused)[None, None, :]
    changed = jnp.where(inside, pattern, jnp.where(emptied, 0.0, delta))
    # Back to the sphere: sums of windows may have lost a little of the norm.
    return threat.epsilon * threat.steepest(changed)


def _bumps(along, across, length, width):
    """A pair of bumps behind each other, one up and one down, at places in their window.

    `sum of 1 / (k + 1)^2` over the concentric rectangles k around the bump's centre that hold the
    place.
    """
    half = length // 2
    is_first = along < half
    size = jnp.where(is_first, half, length - half)
    center = jnp.where(is_first, size // 2, half + size // 2)
    ring = jnp.maximum(jnp.abs(along - center), jnp.abs(across - width // 2))
    num_rings = jnp.maximum(size, width) // 2 + 1
    # Tabulated sums, since the number of rings is known only inside of the loop.
    sums = np.cumsum(1.0 / np.arange(1, along.size + across.size + 1) ** 2)
    sums = jnp.concatenate([jnp.zeros(1), jnp.asarray(sums, jnp.float32)])
    height = sums[num_rings] - sums[jnp.minimum(ring, num_rings)]
    return jnp.where(is_first, height, -height)
