"""Attacks that climb a loss along its gradient inside a ball: FGSM and PGD.

They never know what the loss is: one network's cross-entropy, the expected loss of a mixture, its
mean probability or a TRADES divergence are all a `loss_fn`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from mixjax import checks
from mixjax.attacks._steps import (
    AttackInfo,
    as_input,
    is_zero,
    keep_better,
    move,
    nothing_visited,
    shapes_visited,
    value_and_grad,
    visit,
    visit_and_grad,
)
from mixjax.threats import Threat
from mixjax.typing import AccuracyFn, Array, Bounds, Key, LossFn


def fgsm(
    loss_fn: LossFn, x: Array, threat: Threat, *, bounds: Bounds = (0.0, 1.0)
) -> tuple[Array, AttackInfo]:
    r"""Fast gradient (sign) method: `x + epsilon * steepest(grad)`, one step to the boundary.

    Args:
      loss_fn: `[...] -> []`, what the attacker raises.
      x: `[...]` one input, inside `bounds`.
      threat: the allowed perturbations, in the units of `x`.
      bounds: lowest and highest value of an input, numbers or arrays per feature. With
        `(-inf, inf)` nothing is clipped: as the method is printed, by Goodfellow et al. and as
        equation 1 of Hamm.

    Returns:
      The `[...]` attacked input, within `bounds`, and an `AttackInfo`. The step is taken whether
      or not it raises the loss: that is the method.

    Raises:
      ValueError: if `x` is not of floating point or not inside `bounds`, the threat is no `Threat`
        or of several radii, or the loss is not one number. Values of traced inputs, as those under
        `jax.vmap` are, are not known and not checked.

    References:
      Goodfellow et al., Explaining and harnessing adversarial examples, 2015;
      Hamm, Machine vs machine, 2018, equation 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> x_adv, info = attacks.fgsm(
      ...     lambda x: x[0] - x[1], jnp.array([0.5, 0.5]), threats.linf(0.25)
      ... )
      >>> x_adv, float(info.first_loss), float(info.loss)
      (Array([0.75, 0.25], dtype=float32), 0.0, 0.5)
    """
    x, bounds = as_input(x, threat, bounds, loss_fn=loss_fn)
    first_loss, gradient = value_and_grad(loss_fn, x)
    x_adv = move(x, threat.epsilon * threat.steepest(gradient), threat, bounds)
    return x_adv, AttackInfo(loss_fn(x_adv), first_loss, is_zero(gradient))


def pgd(
    key: Key,
    loss_fn: LossFn,
    x: Array,
    threat: Threat,
    *,
    num_steps: int,
    step_size: float | Array,
    random_start: bool = True,
    start: Threat | None = None,
    accuracy_fn: AccuracyFn | None = None,
    iterate: Literal["best", "last"] = "best",
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AttackInfo]:
    r"""Projected gradient ascent: `delta <- P(delta + step_size * steepest(grad))`.

    With `threats.linf(eta)`, `step_size=eta`, `random_start=False`, `iterate="last"` and
    `bounds=(-1, 1)` it is the IFGSM of Hamm, equation 2: `z <- clip_{x, eta}(z + eta sign(grad))`
    on pixels in [-1, 1].

    Args:
      key: random key of the start; consumed.
      loss_fn: `[...] -> []`, what the attacker raises.
      x: `[...]` one input, inside `bounds`.
      threat: the allowed perturbations, in the units of `x`.
      num_steps: number of gradient steps, static.
      step_size: length of one step in the threat's norm, units of `x`.
      random_start: start at a random point instead of at `x`.
      start: ball in which the random start is uniform; that of `threat` if None. A divergence
        from the clean output has no gradient at `x`, and TRADES starts just beside it.
      iterate: "best", never a weaker attack, or "last", what the papers below return.
      accuracy_fn: `[...] -> []`, lower is better for the attacker: which of the points visited is
        the best, for example the exact expected accuracy of a mixture, of which no loss is more
        than a sign. It never steers the ascent. None: the loss alone decides.
      bounds: lowest and highest value of an input, numbers or arrays per feature; `(-inf, inf)`
        for none.

    Returns:
      The `[...]` input of lowest accuracy, then of highest loss, among the `num_steps + 1` points
      visited, or the last of them, within `bounds` and within the threat up to rounding, and an
      `AttackInfo`. It costs `num_steps` gradients and one further evaluation.

    Raises:
      ValueError: if `num_steps` or `step_size` is not positive, `iterate` is neither, `start` is no
        `Threat`, or as by `fgsm`.

    References:
      Madry et al., Towards deep learning models resistant to adversarial attacks, 2018;
      Hamm, Machine vs machine, 2018, equation 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> key, x = jax.random.key(0), jnp.array([0.5, 0.5])
      >>> x_adv, info = attacks.pgd(
      ...     key, lambda x: x[0] - x[1], x, threats.linf(0.25), num_steps=10, step_size=0.125
      ... )
      >>> x_adv
      Array([0.75, 0.25], dtype=float32)
    """
    checks.one_of(("best", "last"), iterate=iterate)
    checks.at_least(1, num_steps=num_steps)
    checks.positive(step_size=step_size)
    if random_start:
        checks.key(key=key)
    if start is not None:
        checks.threat(start=start)
    x, bounds = as_input(x, threat, bounds)
    shapes = shapes_visited(x, accuracy_fn, loss_fn=loss_fn)
    first = x
    if random_start:
        # Clipped to the bounds like every later point: a start outside would be no input at all.
        first = move(x, (start or threat).sample(key, x.shape), threat, bounds)

    def step(carry, is_first):
        point, best, num_zero_gradients = carry
        # The point before the step is scored with the pass that its gradient needs anyway: n steps
        # cost n forward and n backward passes, and one forward pass more for the last point.
        visited, gradient = visit_and_grad(loss_fn, accuracy_fn, point)
        best = keep_better(best, visited, is_first)
        # From `x` and not from the point: what is projected is the whole perturbation.
        delta = point - x + step_size * threat.steepest(gradient)
        point = move(x, delta, threat, bounds)
        return (point, best, num_zero_gradients + is_zero(gradient)), visited.loss

    carry = (first, nothing_visited(shapes), jnp.zeros((), jnp.int32))
    (last, best, num_zero_gradients), losses = jax.lax.scan(step, carry, jnp.arange(num_steps) == 0)
    end = visit(loss_fn, accuracy_fn, last)
    best = end if iterate == "last" else keep_better(best, end)
    return best.point, AttackInfo(best.loss, losses[0], num_zero_gradients, best.accuracy)
