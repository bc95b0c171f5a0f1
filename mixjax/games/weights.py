"""The weights of a mixture against an attacker who picks one of `M` candidates per example.

Both algorithms minimise a convex risk over the simplex: `oracle` the adversarial risk itself, by
projected subgradient steps; `entropic` its smooth relaxation, by accelerated gradient steps.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax import _softmax, checks
from mixjax.batch import mean_over
from mixjax.games import _tables
from mixjax.typing import Array


def adversarial_risk(weights: Array, losses: Array) -> Array:
    """`mean_n max_m sum_k weights_k losses_nmk`, the risk under the best candidate per example.

    Args:
      weights: `[L]` probabilities of the members.
      losses: `[N, M, L]` losses of the members at the candidates.

    Returns:
      `[]` risk, in the units of the losses.

    Raises:
      ValueError: if `losses` is not `[N, M, L]` or holds what is negative or not finite, or
        `weights` is not `[L]` on the simplex.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> float(games.adversarial_risk(np.array([0.5, 0.5]), losses))
      0.5
    """
    _tables.check_table(weights, losses)
    return _tables.mean(jnp.max(_tables.expected(losses, weights), axis=1))


def entropic_risk(
    weights: Array, losses: Array, temperature: float | Array, *, mass: Array | None = None
) -> Array:
    """`mean_n alpha_n log sum_m mass_nm exp(sum_k weights_k losses_nmk / alpha_n)`.

    Per example it lies between `max_m - alpha log M` and `max_m` of the expected losses, if all
    candidates have the mass `1 / M`. Equal candidates may be merged into one of their total mass.

    Args:
      weights: `[L]` probabilities of the members.
      losses: `[N, M, L]` losses of the members at the candidates.
      temperature: `[]` or `[N]`, the `alpha` above, positive, in the units of the losses.
      mass: `[N, M]` probabilities of each example's candidates; all equal if None.

    Returns:
      `[]` risk, in the units of the losses: convex and smooth in `weights`.

    Raises:
      ValueError: as `adversarial_risk`, or if `temperature` is not `[]` or `[N]` and positive, or
        `mass` does not hold probabilities.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 4.2.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> weights = np.array([0.5, 0.5])
      >>> [round(float(games.entropic_risk(weights, losses, alpha)), 3) for alpha in (1.0, 0.01)]
      [0.383, 0.493]
    """
    alpha, highest, logits = _tables.tempered(weights, losses, temperature, mass)
    return _tables.mean(highest + alpha * _softmax.logsumexp(logits))


ITERATES = ("best", "last")


def oracle(
    losses: Array, *, num_steps: int, loss_bound: float = 1.0, iterate: str = "best"
) -> tuple[Array, Array]:
    """Algorithm 1: `weights <- P(weights - eta g)`, `g` the mean losses under the best response.

    From uniform weights with `eta = 2 / (loss_bound sqrt(L num_steps))`. The adversarial risk of
    the best weights visited, "best", is within `2 loss_bound sqrt(L) / sqrt(num_steps)` of the
    least one. The printed algorithm returns the weights after the last step, "last", of which
    nothing is promised.

    A step passes once over the table, 25 ms on one CPU core for 50 000 examples, 64 candidates and
    8 members; one array `[N, M]` is kept beside it.

    Args:
      losses: `[N, M, L]` losses of the members at the candidates, within [0, `loss_bound`].
      num_steps: number of best responses, static.
      loss_bound: largest possible loss. It sets the steps: what an example costs every member at
        least moves no weights, and may be subtracted from its losses for a smaller bound.
      iterate: "best": the weights of least risk, of those to which a best response was found;
        "last": those after the last step, whose own risk is not computed.

    Returns:
      The `[L]` weights, and the `[num_steps]` adversarial risks of those before each step, the
      first being that of uniform weights.

    Raises:
      ValueError: if `losses` is not `[N, M, L]` or leaves its bounds, a number is not positive or
        `iterate` is unknown.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, algorithm 1.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> weights, risks = games.oracle(losses, num_steps=200)
      >>> bool(1 / 3 <= risks.min() < 0.35)  # the game's value is 1/3
      True
    """
    table = _tables.checked(losses, loss_bound)

    def best_response(weights, _):
        worst = jnp.argmax(_tables.expected(table.losses, weights), axis=1)
        return _tables.mean_losses_at(worst, table.losses)

    weights, risks = projected_subgradient(
        best_response,
        _tables.uniform(table.losses.shape[2], table.losses.dtype),
        num_steps=num_steps,
        loss_bound=loss_bound / table.unit,
        iterate=iterate,
    )
    return weights, table.restored(risks)


def projected_subgradient(
    best_response: Callable[[Array, Array], Array],
    weights: Array,
    *,
    num_steps: int,
    loss_bound: float | Array = 1.0,
    iterate: str = "best",
) -> tuple[Array, Array]:
    """Algorithm 1 with the attacker as a function: what `oracle` does for a table of losses.

    The guarantee of `oracle` holds from uniform weights for the "best" ones, up to twice the gap
    between `best_response` and a best response.

    Args:
      best_response: `(weights [L], step []) -> [L]`, the members' mean losses under an attack on
        the mixture of these weights.
      weights: `[L]` weights to start from.
      num_steps: number of best responses, static.
      loss_bound: largest possible loss. It sets the steps: what an example costs every member at
        least moves no weights, and may be subtracted from its losses for a smaller bound.
      iterate: "best": the weights of least risk of those given to `best_response`, so that its
        last answer moves nothing and a single step returns `weights` themselves; "last": those
        after the last step, which is what the printed algorithm returns.

    Returns:
      The `[L]` weights, in the dtype of `weights`, and the `[num_steps]` risks found, each of the
      weights before its step.

    Raises:
      ValueError: if `num_steps` or `loss_bound` is not positive, `weights` is not on the simplex or
        `iterate` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import games
      >>> respond = lambda weights, step: jnp.array([1.0, 0.5])  # the second member is better
      >>> weights, risks = games.projected_subgradient(
      ...     respond, jnp.array([0.5, 0.5]), num_steps=8, iterate="last"
      ... )
      >>> weights, float(risks[0])
      (Array([0., 1.], dtype=float32), 0.75)
    """
    checks.at_least(1, num_steps=num_steps)
    checks.positive(loss_bound=loss_bound)
    checks.one_of(ITERATES, iterate=iterate)
    checks.simplex(weights=weights)
    # For losses in units of their bound, and fixed: the guarantee is of the best iterate, not of
    # the last.
    step_size = 2.0 / math.sqrt(weights.shape[0] * num_steps)

    def step(weights, index):
        # In the weights' own type: under 64-bit JAX the losses may have another one.
        subgradient = best_response(weights, index).astype(weights.dtype)
        # What all members pay alike moves nothing, and the rest would be rounded beside it.
        slope = (subgradient - jnp.min(subgradient)) / loss_bound
        new = _tables.project(weights - step_size * slope).astype(weights.dtype)
        return new, (weights, jnp.sum(weights * subgradient))

    last, (visited, risks) = jax.lax.scan(step, weights, jnp.arange(num_steps))
    return (last if iterate == "last" else visited[jnp.argmin(risks)]), risks


def entropic(
    losses: Array,
    temperature: float | Array,
    *,
    num_steps: int,
    loss_bound: float = 1.0,
    weights: Array | None = None,
    mass: Array | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Minimises `entropic_risk` over the simplex by accelerated projected gradient (FISTA).

    The gradient is Lipschitz with `beta = L loss_bound^2 / (4 temperature)` (`1 / temperature`
    averaged over examples); steps of `1 / beta` bring the risk of the returned weights within
    `2 beta |weights_0 - weights*|^2 / (num_steps + 1)^2` of the least one.

    A step passes three times over the table, 30 ms on one CPU core for 50 000 examples, 64
    candidates and 8 members; two arrays `[N, M]` are kept beside it.

    Args:
      losses: `[N, M, L]` losses of the members at the candidates, within [0, `loss_bound`].
      temperature: `[]` or `[N]`, positive, in the units of the losses.
      num_steps: number of gradient steps, static.
      loss_bound: as in `oracle`.
      weights: `[L]` weights to start from; uniform if None.
      mass: `[N, M]` probabilities of each example's candidates; all equal if None.
      axis_name: mapped axis over which the examples are spread; None: all are here.

    Returns:
      The `[L]` weights after the last step, and the `[num_steps]` entropic risks after each.

    Raises:
      ValueError: if `losses` is not `[N, M, L]` or leaves its bounds, a number is not positive,
        `temperature` is not `[]` or `[N]`, `weights` is not `[L]` on the simplex, or `mass` does
        not hold probabilities.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 4.2.
      Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, 2009.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> weights, risks = games.entropic(losses, 0.01, num_steps=200)
      >>> bool(games.adversarial_risk(weights, losses) < 0.35)  # the game's value is 1/3
      True
    """
    table = _tables.checked(losses, loss_bound)
    checks.at_least(1, num_steps=num_steps)
    checks.positive(temperature=temperature)
    num_members, dtype = table.losses.shape[2], table.losses.dtype
    start = _tables.uniform(num_members, dtype) if weights is None else jnp.asarray(weights, dtype)
    checks.shape((num_members,), weights=start)
    checks.simplex(weights=start if weights is None else weights)
    temperature = jnp.asarray(temperature, dtype) / table.unit

    average = functools.partial(mean_over, axis_name)

    # Lipschitz constant of the gradient, in units of the losses.
    bound = loss_bound / table.unit
    beta = num_members * bound**2 * average(jnp.mean(1.0 / temperature)) / 4

    def risk(weights):
        return average(entropic_risk(weights, table.losses, temperature, mass=mass))

    def step(carry, _):
        weights, look_ahead, momentum = carry
        # The average of the gradient of the average: right whether or not `shard_map` sums
        # gradients by itself (`check_vma`).
        # The gradient is taken ahead of the weights, which is what accelerates; projected is the
        # step.
        gradient = average(jax.grad(risk)(look_ahead))
        # What all members pay alike moves nothing; at high temperatures the step is long.
        slope = (gradient - jnp.min(gradient)) / beta
        new = _tables.project(look_ahead - slope).astype(start.dtype)
        # FISTA's sequence, which needs no constant of strong convexity.
        new_momentum = (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        look_ahead = new + (momentum - 1.0) / new_momentum * (new - weights)
        return (new, look_ahead, new_momentum), risk(new)

    (weights, _, _), risks = jax.lax.scan(
        step, (start, start, jnp.ones((), start.dtype)), length=num_steps
    )
    return weights, table._replace(sure=average(table.sure)).restored(risks)
