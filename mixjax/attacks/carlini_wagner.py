"""Carlini and Wagner's l2 attack: the nearest fooling point, not the worst one of a ball."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import _check
from mixjax.attacks._steps import value_and_grad
from mixjax.typing import Array, Bounds, LossFn

_INSIDE = 0.999999  # of the way to the bounds: on them the tanh variables would be infinite
_PROGRESS = 0.9999  # of the loss at the check before: above it the search is over
_FEWEST_BETWEEN_CHECKS = 25  # Adam first overshoots and comes back: for so long a rise says nothing
_TINY = float(jnp.finfo(jnp.float32).tiny)
_LARGEST_CONST = 1e10
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
    num_steps: int = 100,
    num_binary_search_steps: int = 9,
    num_closing_steps: int = 10,
    learning_rate: float | Array = 0.1,
    initial_const: float | Array = 1e-3,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, CarliniWagnerInfo]:
    r"""Minimises `|x' - x|^2 + const * max(margin(x'), 0)` by Adam, `x'` a tanh of the variables.

    The constant is multiplied by ten until a point fools, then bisected between the largest that
    failed and the smallest that succeeded. A search stops, and under `jax.vmap` its state stays as
    it is, when its loss has not fallen by a factor of .9999 over a tenth of the steps, 25 at least.

    Adam walks in steps of the learning rate and along signs until the two terms balance, so that a
    boundary nearer than one step is overshot under every constant. The closing steps mend it:
    each goes from the best point to that of the box nearest to `x` where the margin, linearised
    there, falls just below 0, or, where that does not come nearer, half as far. On a linear margin
    the norm is within 1 % of the least one, and the attack finds a point whenever there is one.
    Without closing steps it is the paper's.

    For a mixture the margin may be that of the mean probability,
    `losses.margin(mixture.log_probs(logits_fn(x), weights), label)`, or the members' expected
    margin. To score a radius, keep the natural example beyond it, as Pinot et al. do:
    `jnp.where(info.norm <= epsilon, x_adv, x)`.

    Args:
      margin_fn: `[...] -> []`, positive where the point does not fool. NaN counts as fooled.
      x: `[...]` one input, inside `bounds`.
      num_steps: largest number of gradient steps under one constant, static.
      num_binary_search_steps: number of constants tried, static.
      num_closing_steps: gradient evaluations after that, static.
      learning_rate: Adam's, in the tanh variables, whatever the bounds.
      initial_const: the first constant, squared units of `x` per unit of margin.
      bounds: lowest and highest value of an input.

    Returns:
      The `[...]` point of least l2 norm among all visited that fool, within `bounds`, or `x` where
      none does; and a `CarliniWagnerInfo`.

    Raises:
      ValueError: if a number is not positive, or the bounds are the wrong way round.

    References:
      Carlini and Wagner, Towards evaluating the robustness of neural networks, 2017, section V;
      Pinot et al., Randomization matters, 2020, section 7.
    """
    _check.at_least(1, num_steps=num_steps, num_binary_search_steps=num_binary_search_steps)
    _check.at_least(0, num_closing_steps=num_closing_steps)
    _check.positive(learning_rate=learning_rate, initial_const=initial_const)
    _check.increasing(bounds=bounds)
    optimizer = optax.adam(learning_rate)
    steps_between_checks = max(-(-num_steps // 10), _FEWEST_BETWEEN_CHECKS)
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    first = jnp.arctanh(_INSIDE * jnp.clip((x.astype(jnp.float32) - middle) / half, -1.0, 1.0))

    def objective(variables, const):
        point = jnp.clip(middle + half * jnp.tanh(variables), *bounds).astype(x.dtype)
        squared_norm = jnp.sum((point - x).astype(jnp.float32) ** 2)
        margin = margin_fn(point)
        return squared_norm + const * jnp.maximum(margin, 0.0), (point, margin)

    def step(const, descent):
        (loss, (point, margin)), gradient = jax.value_and_grad(objective, has_aux=True)(
            descent.variables, const
        )
        gradient = jnp.clip(jnp.nan_to_num(gradient), -_LARGEST_GRADIENT, _LARGEST_GRADIENT)
        updates, optimizer_state = optimizer.update(gradient, descent.optimizer_state)
        best, best_norm = _keep_nearer(x, descent.best, descent.best_norm, point, margin)
        is_check = descent.step % steps_between_checks == 0
        return _Descent(
            step=descent.step + 1,
            variables=descent.variables + updates,
            optimizer_state=optimizer_state,
            best=best,
            best_norm=best_norm,
            fooled=descent.fooled | ~(margin > 0),
            checked_loss=jnp.where(is_check, loss, descent.checked_loss),
            stalled=is_check & ~(loss <= _PROGRESS * descent.checked_loss),
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
            checked_loss=jnp.full((), jnp.inf),
            stalled=jnp.zeros((), bool),
        )
        end = jax.lax.while_loop(
            lambda descent: (descent.step < num_steps) & ~descent.stalled,
            lambda descent: step(const, descent),
            start,
        )
        lower = jnp.where(end.fooled, lower, const)
        upper = jnp.where(end.fooled, const, upper)
        const = jnp.where(
            jnp.isinf(upper), jnp.minimum(10 * const, _LARGEST_CONST), (lower + upper) / 2
        )
        return (end.best, end.best_norm, const, lower, upper), None

    def close_in(carry, _):
        anchor, aim, share, best, best_norm = carry
        point = (anchor + share * (aim - anchor)).astype(x.dtype)
        margin, gradient = value_and_grad(margin_fn, point)
        as_near = _norm(point - x) <= _ROUNDING * best_norm  # as the first, the best itself, is
        accepted = jnp.isinf(best_norm) | (~(margin > 0) & as_near)
        best, best_norm = _keep_nearer(x, best, best_norm, point, margin)
        fall = margin + jnp.sum(gradient * (x - point)) + _BEYOND * first_margin
        lowered = _lower(x, gradient, fall, bounds).astype(x.dtype)
        anchor = jnp.where(accepted, point, anchor)
        aim = jnp.where(accepted, lowered, aim)
        share = jnp.where(accepted, 1.0, share / 2)
        return (anchor, aim, share, best, best_norm), None

    infinite = jnp.full((), jnp.inf)
    first_margin = margin_fn(x)
    norm = jnp.where(first_margin > 0, infinite, 0.0)
    carry = (x, norm, jnp.asarray(initial_const, jnp.float32), jnp.zeros(()), infinite)
    (best, norm, _, _, const), _ = jax.lax.scan(search, carry, length=num_binary_search_steps)
    carry = (best, best, jnp.ones(()), best, norm)
    (*_, best, norm), _ = jax.lax.scan(close_in, carry, length=num_closing_steps)
    return best, CarliniWagnerInfo(jnp.isfinite(norm), norm, const)


def _keep_nearer(x, best, best_norm, point, margin):
    norm = _norm(point - x)
    nearer = ~(margin > 0) & (norm < best_norm)
    return jnp.where(nearer, point, best), jnp.where(nearer, norm, best_norm)


def _norm(delta):
    return jnp.sqrt(jnp.sum(delta.astype(jnp.float32) ** 2))


def _lower(x, gradient, fall, bounds):
    """The point nearest to `x` within the bounds where a linear function is lower by `fall`.

    It is `clip(x - t gradient)`; each coordinate moves until its own `t` of `reach`. Where the
    function cannot fall so far, the corner where it is lowest.
    """
    x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    size = jnp.maximum(jnp.max(jnp.abs(gradient)), _TINY)
    gradient, fall = gradient / size, fall / size
    room = x - jnp.where(gradient > 0, *bounds)
    slope = (gradient**2).ravel()
    reach = jnp.where(slope > 0, (room / gradient).ravel(), 0.0)
    order = jnp.argsort(reach)
    reach, slope = reach[order], slope[order]
    moving = jnp.flip(jnp.cumsum(jnp.flip(slope)))  # slope of the fall just before each reach
    fallen = jnp.cumsum(reach * slope) - reach * slope
    enough = fallen + reach * moving >= fall
    last = jnp.argmax(enough)
    t = jnp.where(enough[last], (fall - fallen[last]) / moving[last], reach[-1])
    return jnp.clip(x - jnp.maximum(t, 0.0) * gradient, *bounds)
