"""AutoPGD: ascent that chooses its own step size, against any label or towards chosen ones."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks
from mixjax.attacks._steps import (
    AttackInfo,
    Visited,
    as_input,
    best_of,
    is_higher,
    is_zero,
    keep_better,
    move,
    nothing_visited,
    shapes_visited,
    visit,
    visit_and_grad,
)
from mixjax.threats import Threat
from mixjax.typing import AccuracyFn, Array, Bounds, Key, LossFn

_MOMENTUM = 0.25  # share of the previous move; the paper's alpha is the rest
_ENOUGH_INCREASES = 0.75  # the paper's rho


def apgd(
    key: Key,
    loss_fn: LossFn,
    x: Array,
    threat: Threat,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    accuracy_fn: AccuracyFn | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AttackInfo]:
    r"""Projected gradient ascent with momentum that halves its own step size.

    `z = P(x_k + eta steepest(grad))`, `x_{k+1} = P(x_k + .75 (z - x_k) + .25 (x_k - x_{k-1}))`,
    from a random point. `eta` is 2 epsilon at first. At the checkpoints, which come closer and
    closer, it is halved and the ascent goes on from the point of highest loss so far if fewer than
    3/4 of the steps since the last checkpoint raised the loss, or if neither `eta` nor the highest
    loss has changed since then.

    Args:
      key: random key of the starts; consumed.
      loss_fn: `[...] -> []`, what the attacker raises.
      x: `[...]` one input, inside `bounds`.
      threat: the allowed perturbations, in the units of `x`.
      num_steps: number of gradient steps of one run, static.
      num_restarts: number of runs, one after the other, static.
      accuracy_fn: `[...] -> []`, lower is better for the attacker: which of the points visited is
        returned, for example the exact expected accuracy of a mixture, of which no loss is more
        than a sign. It never steers the ascent. None: the loss alone decides.
      bounds: lowest and highest value of an input, numbers or arrays per feature.

    Returns:
      The `[...]` input of lowest accuracy, then of highest loss, among the
      `num_restarts * (num_steps + 1)` points visited, within `bounds` and within the threat up to
      rounding, and the `AttackInfo` of its run, with the zero gradients of all runs.

    Raises:
      ValueError: if `num_steps` or `num_restarts` is not positive, `x` is not of floating point or
        not inside `bounds`, the threat is no `Threat` or of several radii, or the loss or the
        accuracy is not one number. Values of traced inputs, as those under `jax.vmap` are, are not
        known and not checked.

    References:
      Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, algorithm 1 and section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> key, x = jax.random.key(0), jnp.array([0.5, 0.5])
      >>> x_adv, info = attacks.apgd(
      ...     key, lambda x: x[0] - x[1], x, threats.linf(0.25), num_steps=10
      ... )
      >>> x_adv
      Array([0.75, 0.25], dtype=float32)
    """
    checks.at_least(1, num_steps=num_steps, num_restarts=num_restarts)
    checks.key(key=key)
    x, bounds = as_input(x, threat, bounds)
    shapes = shapes_visited(x, accuracy_fn, loss_fn=loss_fn)

    def run(key):
        return _run(key, loss_fn, accuracy_fn, x, shapes, threat, num_steps, bounds)

    return _best_run(run, jax.random.split(key, num_restarts))


def apgd_targeted(
    key: Key,
    targeted_loss_fn: Callable[[Array, Array], Array],
    x: Array,
    targets: Array,
    threat: Threat,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    accuracy_fn: AccuracyFn | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, AttackInfo]:
    r"""`apgd` towards each of several classes: `max_t max_x' targeted_loss_fn(x', t)`.

    APGD-T is the targeted difference of logits ratio towards the likeliest wrong classes:

    ```
    targets = attacks.likeliest_wrong(logits_fn(x), label, 9)
    attacks.apgd_targeted(
        key, lambda x, target: losses.targeted_dlr(logits_fn(x), label, target), x, targets, threat
    )
    ```

    Args:
      key: random key of the starts; consumed.
      targeted_loss_fn: `([...], []) -> []`, what the attacker raises, given an input and a target.
      x: `[...]` one input, inside `bounds`.
      targets: `[T]` classes, each attacked by `num_restarts` runs of its own.
      threat: the allowed perturbations, in the units of `x`.
      num_steps: number of gradient steps of one run, static.
      num_restarts: number of runs for one target, static.
      accuracy_fn: as in `apgd`; it does not depend on the target.
      bounds: lowest and highest value of an input, numbers or arrays per feature.

    Returns:
      As `apgd`, the best over all targets. The losses of two targets are compared as they are:
      without `accuracy_fn` the loss must be positive exactly where the input is misclassified, or
      mean the same for all.

    Raises:
      ValueError: if `targets` is empty or not of integers, or as by `apgd`.

    References:
      Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, section 4.2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, losses, threats
      >>> key, x, label = jax.random.key(0), jnp.array([0.5, 0.4, 0.1]), 0
      >>> targets = attacks.likeliest_wrong(x, label, 2)
      >>> x_adv, info = attacks.apgd_targeted(
      ...     key, lambda x, t: losses.targeted_dlr(x, label, t), x, targets, threats.linf(0.25)
      ... )
      >>> targets, bool(x_adv.argmax() != label)
      (Array([1, 2], dtype=int32), True)
    """
    checks.at_least(1, num_steps=num_steps, num_restarts=num_restarts)
    checks.key(key=key)
    checks.non_empty(1, targets=targets)
    checks.integers(targets=targets)
    checks.native_order(targets=targets)
    targets = jnp.asarray(targets)
    x, bounds = as_input(x, threat, bounds)
    shapes = shapes_visited(
        x, accuracy_fn, targeted_loss_fn=lambda x: targeted_loss_fn(x, targets[0])
    )
    num_runs = len(targets) * num_restarts

    def run(keys_and_target):
        key, target = keys_and_target

        def loss_fn(x):
            return targeted_loss_fn(x, target)

        return _run(key, loss_fn, accuracy_fn, x, shapes, threat, num_steps, bounds)

    return _best_run(run, (jax.random.split(key, num_runs), jnp.repeat(targets, num_restarts)))


def likeliest_wrong(logits: Array, label: Array, num_targets: int) -> Array:
    """The `num_targets` classes of highest logit, best first, `label` left out.

    Args:
      logits: `[C]` logits or log probabilities; of a mixture, `mixture.log_probs`.
      label: `[]` the true class.
      num_targets: number of classes, at most C - 1, static.

    Returns:
      `[num_targets]` classes. A class of logit -inf is never predicted, and a run towards it would
      be wasted: in its place, as in that of NaN, the others are repeated, the likeliest first.

    Raises:
      ValueError: if `num_targets` is below 1 or not below the number of classes, or the label is
        not one integer class.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import attacks
      >>> attacks.likeliest_wrong(jnp.array([0.1, 2.0, 1.0, 3.0]), 1, 2)
      Array([3, 2], dtype=int32)
    """
    checks.at_least(1, num_targets=num_targets)
    checks.logits("C", logits=logits)
    if num_targets >= logits.shape[-1]:
        raise ValueError(
            f"num_targets must be below the number of classes {logits.shape[-1]}, got {num_targets}"
        )
    checks.label(logits.shape[-1], label=label)
    logits = jnp.asarray(logits)
    is_label = jnp.arange(logits.shape[-1]) == label
    is_answer = ~is_label & (logits > -jnp.inf)
    classes = jnp.lexsort((-logits, ~is_answer, is_label))
    # The shape is static: runs that would be wasted start the likeliest again, from other points.
    # How many classes can be answered is known only when the attack runs, the number of targets
    # when it compiles.
    num_answers = jnp.sum(is_answer)
    return classes[jnp.arange(num_targets) % jnp.where(num_answers > 0, num_answers, num_targets)]


class _Climb(NamedTuple):
    """One run: where it is, the highest point so far, and what the next checkpoint needs."""

    point: Array
    previous: Array
    loss: Array  # at the point before
    step_size: Array
    highest: Array  # the point of highest loss, from which the ascent goes on
    highest_gradient: Array
    highest_loss: Array
    checked_loss: Array  # highest_loss at the last checkpoint
    was_halved: Array  # at the last checkpoint
    num_increases: Array  # since the last checkpoint
    num_zero_gradients: Array
    best: Visited  # to be returned


def _run(key, loss_fn, accuracy_fn, x, shapes, threat, num_steps, bounds):
    first = move(x, threat.sample(key, x.shape), threat, bounds)
    nothing = nothing_visited(shapes)
    climb = _Climb(
        point=first,
        previous=first,
        loss=nothing.loss,
        # Two radii reach across the ball: the first steps explore, the halvings come soon enough.
        step_size=jnp.asarray(2.0 * threat.epsilon, first.dtype),
        highest=first,
        highest_gradient=jnp.zeros_like(first),
        highest_loss=nothing.loss,
        checked_loss=nothing.loss,
        # Algorithm 1 compares with the last checkpoint, and before the first one there is none.
        was_halved=jnp.ones((), bool),  # nothing is stuck at the first point
        num_increases=jnp.zeros((), jnp.int32),
        num_zero_gradients=jnp.zeros((), jnp.int32),
        best=nothing,
    )

    def step(climb, schedule):
        is_first, is_checkpoint, enough_increases, momentum = schedule
        visited, gradient = visit_and_grad(loss_fn, accuracy_fn, climb.point)
        loss = visited.loss
        # The highest point's gradient is kept beside it: after a halving the ascent goes on from
        # there without another pass through the network.
        highest, highest_gradient, highest_loss = jax.tree.map(
            lambda a, b: jnp.where(is_first | is_higher(loss, climb.highest_loss), a, b),
            (climb.point, gradient, loss),
            (climb.highest, climb.highest_gradient, climb.highest_loss),
        )
        num_increases = climb.num_increases + (~is_first & (loss > climb.loss))
        num_zero_gradients = climb.num_zero_gradients + is_zero(gradient)

        # Condition 2 of the paper: neither the step size nor the highest loss has changed since
        # then.
        stuck = ~climb.was_halved & (highest_loss == climb.checked_loss)
        halve = is_checkpoint & ((num_increases < enough_increases) | stuck)
        step_size = jnp.where(halve, climb.step_size / 2.0, climb.step_size)
        # Halving by `where` instead of a branch: under `vmap` both sides of a branch run anyway.
        point = jnp.where(halve, highest, climb.point)
        gradient = jnp.where(halve, highest_gradient, gradient)

        ascent = move(x, point - x + step_size * threat.steepest(gradient), threat, bounds)
        # The momentum is of the moves that were made, after projection, as in the paper: that of
        # gradients would go on pushing against the edge of the ball.
        delta = (1.0 - momentum) * (ascent - point) + momentum * (point - climb.previous)
        return _Climb(
            point=move(x, point - x + delta, threat, bounds),
            previous=point,
            # The next step's increase is counted against the point from which it started.
            loss=jnp.where(halve, highest_loss, loss),
            step_size=step_size,
            highest=highest,
            highest_gradient=highest_gradient,
            highest_loss=highest_loss,
            checked_loss=jnp.where(is_checkpoint, highest_loss, climb.checked_loss),
            was_halved=jnp.where(is_checkpoint, halve, climb.was_halved),
            num_increases=jnp.where(is_checkpoint, 0, num_increases),
            num_zero_gradients=num_zero_gradients,
            best=keep_better(climb.best, visited, is_first),
        ), loss

    climb, losses = jax.lax.scan(step, climb, _schedule(num_steps))
    best = keep_better(climb.best, visit(loss_fn, accuracy_fn, climb.point))
    return best, (losses[0], climb.num_zero_gradients)


def _schedule(num_steps):
    """For each step: is it the first, a checkpoint, how many increases it wants, its momentum."""
    checkpoints = _checkpoints(num_steps)
    is_checkpoint, enough_increases = np.zeros(num_steps, bool), np.zeros(num_steps, np.float32)
    is_checkpoint[checkpoints] = True
    enough_increases[checkpoints[1:]] = _ENOUGH_INCREASES * np.diff(checkpoints)
    momentum = np.full(num_steps, _MOMENTUM, np.float32)
    momentum[0] = 0.0  # nothing moved yet: the first step has its full length
    return np.arange(num_steps) == 0, is_checkpoint, enough_increases, momentum


def _checkpoints(num_steps):
    """The steps before which the step size is reviewed, 0 the first.

    `ceil(p_j num_steps)`, `p_0 = 0`, `p_1 = .22`, `p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06)`,
    in whole percents: rounding must not move a checkpoint.
    """
    # In whole percents: .22 + .19 + .16 in floating point is not .57, and a checkpoint that moves
    # by one step makes another attack than the published one.
    percent, gap, checkpoints = 0, 22, []
    while percent < 100:
        checkpoints.append(-(-percent * num_steps // 100))
        percent, gap = percent + gap, max(gap - 3, 6)
    return sorted({step for step in checkpoints if step < num_steps})


def _best_run(run, inputs):
    """The best of the runs, one after the other: only one at a time needs the memory."""
    # One after the other and not `vmap`: restarts side by side would multiply the memory, and gain
    # nothing where a batch fills the device already.
    visited, (first_losses, num_zero_gradients) = jax.lax.map(run, inputs)
    index = best_of(visited)
    best, first_loss = jax.tree.map(lambda values: values[index], (visited, first_losses))
    info = AttackInfo(best.loss, first_loss, jnp.sum(num_zero_gradients), best.accuracy)
    return best.point, info
