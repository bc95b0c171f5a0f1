"""Carlini and Wagner's l2 attack: the nearest fooling point, not the worst one of a ball."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import checks
from mixjax.attacks.hyperplanes import nearest_lower
from mixjax.typing import Array, Bounds, LossFn

# arctanh of 1 is infinite: pixels at a bound start this far inside, at an argument of about 7, from
# where Adam still comes back.
_INSIDE = 0.999999  # of the way to the bounds: on them the tanh variables would be infinite
_PROGRESS = 0.9999  # of the loss at the check before: above it the search is over
_FEWEST_BETWEEN_CHECKS = 25  # Adam first overshoots and comes back: for so long a rise says nothing
_LARGEST_CONST = 1e10
# Adam squares what it is given; a larger one would be infinite, and its steps 0 from then on.
_LARGEST_GRADIENT = 1e18  # its square is still a number
_ROUNDING = 1 + 1e-5
_BEYOND = 1e-3  # of the margin at `x`: so far past the boundary the closing steps aim


class CarliniWagnerInfo(NamedTuple):
    """What the attack on one example saw.

    Attributes:
      found: `[]` whether any point fooled; `x` itself counts.
      norm: `[]` l2 norm of the returned perturbation, infinite if none was found: the share of
        norms above `epsilon` is the accuracy at that radius.
      const: `[]` smallest constant under which a point fooled, infinite if none was found.
    """

    found: Array
    norm: Array
    const: Array


class _Descent(NamedTuple):
    """Adam under one constant; `fooled` says whether any of its points did."""

    step: Array
    variables: Array
    optimizer_state: optax.OptState
    best: Array
    best_norm: Array
    fooled: Array
    checked_loss: Array
    stalled: Array


def carlini_wagner(
    margin_fn: LossFn,
    x: Array,
    *,
    fooled_fn: Callable[[Array], Array] | None = None,
    num_steps: int = 100,
    num_binary_search_steps: int = 9,
    num_closing_steps: int = 10,
    steps_between_checks: int | None = None,
    learning_rate: float | Array = 0.1,
    initial_const: float | Array = 1e-3,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, CarliniWagnerInfo]:
    r"""Minimises `|x' - x|^2 + const * max(margin(x'), 0)` by Adam, `x'` a tanh of the variables.

    The constant is multiplied by ten until a point fools, then bisected between the largest that
    failed and the smallest that succeeded. A search stops, and under `jax.vmap` its state stays as
    it is, when its loss has not fallen by a factor of .9999 from one check to the next.

    Adam walks in steps of the learning rate and along signs until the two terms balance, so that a
    boundary nearer than one step is overshot under every constant. The closing steps mend it:
    each goes from the best point to that of the box nearest to `x` where the margin, linearised
    there, falls just below 0, or, where the point reached does not fool or is no nearer, half as
    far. On a linear margin the norm is within 1 % of the least one, and the attack finds a point
    whenever there is one.

    The published program is `num_closing_steps=0, steps_between_checks=num_steps // 10`. Adam
    first overshoots and comes back, and a check so early takes that for the end: here there are
    25 steps at least between two.

    For a mixture there are several margins, of which none finds what the others do:
    `losses.mean_probability_margin`, `losses.expected_margin`, and `losses.accuracy_margin`, whose
    boundary is where the exact expected accuracy falls. Pinot et al. lower the expected loss and
    judge by the expected probabilities:

    ```
    attacks.carlini_wagner(
        lambda x: losses.expected_hinge(logits_fn(x), label, weights),
        x,
        fooled_fn=lambda x: losses.mean_probability_margin(logits_fn(x), label, weights) <= 0,
        num_closing_steps=0,
    )
    ```

    To score a radius, keep the natural example beyond it, as they do:
    `jnp.where(info.norm <= epsilon, x_adv, x)`.

    Args:
      margin_fn: `[...] -> []`, lowered until it is 0.
      x: `[...]` one input, inside `bounds`.
      fooled_fn: `[...] -> []`, whether a point fools. If None, it does where the margin is not
        positive, NaN included.
      num_steps: largest number of gradient steps under one constant, static.
      num_binary_search_steps: number of constants tried, static.
      num_closing_steps: number of closing steps after that, one gradient each, static.
      steps_between_checks: steps after which a search that makes no progress stops, static; a
        tenth of `num_steps`, 25 at least, if None.
      learning_rate: Adam's, in the tanh variables, whatever the bounds; in units of `x` for a
        feature that is not bounded on both sides, which stays as it is.
      initial_const: the first constant, squared units of `x` per unit of margin.
      bounds: lowest and highest value of an input, or of each feature.

    Returns:
      The `[...]` point of least l2 norm among all visited that fool, within `bounds`, or `x` where
      none does; and a `CarliniWagnerInfo`. It costs at most
      `num_binary_search_steps * num_steps + num_closing_steps + 1` gradients.

    Raises:
      ValueError: if a number is not positive (`num_closing_steps` may be 0), the bounds are the
        wrong way round, `x` is not inside them or not of floating point, or a function does not
        return one number. Values of traced inputs, as those under `jax.vmap` are, are not known and
        not checked.

    References:
      Carlini and Wagner, Towards evaluating the robustness of neural networks, 2017, section V;
      Pinot et al., Randomization matters, 2020, section 7 and supplement 2.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import attacks
      >>> x = jnp.array([0.5, 0.5])
      >>> x_adv, info = attacks.carlini_wagner(lambda x: x[0] - 0.25, x)  # fooled below .25
      >>> bool(info.found), round(float(info.norm), 2)
      (True, 0.25)
    """
    checks.at_least(1, num_steps=num_steps, num_binary_search_steps=num_binary_search_steps)
    checks.at_least(0, num_closing_steps=num_closing_steps)
    checks.positive(learning_rate=learning_rate, initial_const=initial_const)
    checks.inside(bounds, x=x)
    x = jnp.asarray(x)
    given = {"margin_fn": margin_fn, "fooled_fn": fooled_fn}
    checks.one_number(x, **{name: fn for name, fn in given.items() if fn is not None})
    if steps_between_checks is None:
        steps_between_checks = max(-(-num_steps // 10), _FEWEST_BETWEEN_CHECKS)
    checks.at_least(1, steps_between_checks=steps_between_checks)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    none = float(jnp.finfo(wide).max)  # instead of infinity, which `jax.debug_infs` refuses
    # In float32 at least: Adam's running squares underflow in sixteen bits.
    optimizer = optax.adam(jnp.asarray(learning_rate, wide))
    origin = x.astype(wide)
    box = _box(origin, bounds)
    first = _variables(origin, box)

    def visit(point):
        """Margin, whether it fools, and the margin's gradient, in the wide type."""

        def margin_and_fooled(point):
            margin = margin_fn(point)
            return margin, ~(margin > 0) if fooled_fn is None else fooled_fn(point)

        (margin, fooled), gradient = jax.value_and_grad(margin_and_fooled, has_aux=True)(point)
        return margin.astype(wide), fooled, jnp.nan_to_num(gradient.astype(wide))

    def keep_nearer(best, best_norm, point, fooled):
        norm = _norm(point.astype(wide) - origin)
        nearer = fooled & (norm < best_norm)
        return jnp.where(nearer, point, best), jnp.where(nearer, norm, best_norm)

    def step(const, descent):
        point, slope = _point_and_slope(descent.variables, box)
        # The network sees the dtype of the input; the distance is that of the variables, before
        # rounding.
        delta, point = point - origin, point.astype(x.dtype)
        margin, fooled, gradient = visit(point)
        loss = jnp.sum(delta**2) + const * jnp.maximum(margin, 0.0)
        # The gradient of loss and distance by hand: `visit` gives that of the margin alone, which
        # the closing steps need as well, and a margin below 0 is a `where` and no branch.
        gradient = slope * (2 * delta + jnp.where(margin > 0, const * gradient, 0.0))
        gradient = jnp.clip(jnp.nan_to_num(gradient), -_LARGEST_GRADIENT, _LARGEST_GRADIENT)
        updates, optimizer_state = optimizer.update(gradient, descent.optimizer_state)
        best, best_norm = keep_nearer(descent.best, descent.best_norm, point, fooled)
        # Under `vmap` a `while_loop` runs until the last example stops, and the state of those that
        # have stopped is kept: stopping saves time only when a whole batch has stalled, but never
        # harms.
        is_check = descent.step % steps_between_checks == 0
        return _Descent(
            step=descent.step + 1,
            variables=_keep_inside(descent.variables + updates, box),
            optimizer_state=optimizer_state,
            best=best,
            best_norm=best_norm,
            fooled=descent.fooled | fooled,
            checked_loss=jnp.where(is_check, loss, descent.checked_loss),
            stalled=is_check & (loss > _PROGRESS * descent.checked_loss),
        )

    def search(carry, _):
        best, best_norm, const, lower, upper = carry
        start = _Descent(
            step=jnp.zeros((), jnp.int32),
            variables=first,
            optimizer_state=optimizer.init(first),
            best=best,
            best_norm=best_norm,
            fooled=jnp.zeros((), bool),
            checked_loss=jnp.full((), none, wide),
            stalled=jnp.zeros((), bool),
        )
        end = jax.lax.while_loop(
            lambda descent: (descent.step < num_steps) & ~descent.stalled,
            lambda descent: step(const, descent),
            start,
        )
        # Bisection of the constant: the smallest with which a point fools weighs the distance most.
        lower = jnp.where(end.fooled, lower, const)
        upper = jnp.where(end.fooled, const, upper)
        const = jnp.where(
            # No success yet: ten times more, up to the published limit of 1e10.
            upper == none,
            jnp.minimum(10 * const, _LARGEST_CONST),
            (lower + upper) / 2,
        )
        return (end.best, end.best_norm, const, lower, upper), None

    def close_in(carry, _):
        anchor, aim, share, best, best_norm = carry
        point = (anchor + share * (aim - anchor)).astype(x.dtype)
        margin, fooled, gradient = visit(point)
        # As near as the best itself, up to rounding: that first point is the anchor to aim from.
        as_near = _norm(point.astype(wide) - origin) <= _ROUNDING * best_norm
        accepted = (best_norm == none) | (fooled & as_near)
        best, best_norm = keep_nearer(best, best_norm, point, fooled)
        # By how much the linearised margin at `origin` is too high. A thousandth more, because on
        # the boundary itself rounding decides whether a point fools.
        fall = margin + jnp.sum(gradient * (origin - point.astype(wide))) + _BEYOND * first_margin
        anchor = jnp.where(accepted, point.astype(wide), anchor)
        nearest = nearest_lower(origin, gradient, fall, (box.low, box.high))
        aim = jnp.where(accepted, nearest, aim)
        # Rejected: the margin bends away, and half as far is nearer to where it was linearised.
        share = jnp.where(accepted, 1.0, share / 2).astype(wide)
        return (anchor, aim, share, best, best_norm), None

    first_margin, fooled, _ = visit(x)
    largest = jnp.full((), none, wide)
    carry = (
        x,
        jnp.where(fooled, 0.0, largest),
        jnp.asarray(initial_const, wide),
        jnp.zeros((), wide),
        largest,
    )
    (best, norm, _, _, const), _ = jax.lax.scan(search, carry, length=num_binary_search_steps)
    anchor = best.astype(wide)
    carry = (anchor, anchor, jnp.ones((), wide), best, norm)
    (*_, best, norm), _ = jax.lax.scan(close_in, carry, length=num_closing_steps)
    norm, const = (jnp.where(value == none, jnp.inf, value) for value in (norm, const))
    return best, CarliniWagnerInfo(jnp.isfinite(norm), norm, const)


def _norm(delta):
    return jnp.sqrt(jnp.sum(delta**2))


class _Box(NamedTuple):
    """What the features may be; one bounded on both sides is a tanh of its variable."""

    low: Array
    high: Array
    bounded: Array  # on both sides
    middle: Array
    half: Array  # of the width


def _box(x, bounds):
    low, high = (jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape) for bound in bounds)
    bounded = jnp.isfinite(low) & jnp.isfinite(high)
    middle = jnp.where(bounded, low / 2 + high / 2, 0.0)
    return _Box(low, high, bounded, middle, jnp.where(bounded, high / 2 - low / 2, 1.0))


def _variables(x, box):
    inner = jnp.arctanh(_INSIDE * jnp.clip((x - box.middle) / box.half, -1.0, 1.0))
    return jnp.where(box.bounded, inner, x)


def _keep_inside(variables, box):
    """The variables, those that are features themselves no further than their one bound."""
    return jnp.where(box.bounded, variables, jnp.clip(variables, box.low, box.high))


def _point_and_slope(variables, box):
    """The point, and its derivative by the variables."""
    tanh = jnp.tanh(variables)
    # tanh rounds to 1 early; clipped, the point is inside whatever the rounding of the product.
    point = jnp.clip(box.middle + box.half * tanh, box.low, box.high)
    # Factored: `1 - tanh^2` loses all digits where tanh is near 1.
    slope = box.half * (1 - tanh) * (1 + tanh)
    return jnp.where(box.bounded, point, variables), jnp.where(box.bounded, slope, 1.0)
