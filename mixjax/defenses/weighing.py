"""The weight step of Algorithm 2: the weights of a mixture on one batch, its members fixed.

A `Weighing` sees the batch through three functions, so it knows neither models nor images:
`attack_fn: (key, weights [L]) -> points`, the batch attacked against a mixture of these weights,
`sample_fn: key -> points`, a uniform point of each example's ball, and
`losses_fn: points -> [B, L]`, the members' losses there. The examples may be those of one batch,
as in the paper, or of several.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax import checks, games
from mixjax.batch import mean_over
from mixjax.typing import Array

Weighing = Callable[..., tuple[Array, Array]]


def oracle_weighing(*, num_steps: int, loss_bound: float = 1.0, iterate: str = "last") -> Weighing:
    """Algorithm 1 with the attack itself as best response: one attack for each of its steps.

    The printed algorithm returns the weights after the last step, so that every attack moves them.
    Its guarantee holds for the best weights visited, which `iterate="best"` returns, from uniform
    ones on; then the last attack only measures a risk, and with one step nothing ever moves.

    Args:
      num_steps: `T_lambda`, number of attacks and weight steps on a batch.
      loss_bound: largest value of the loss that `losses_fn` gives.
      iterate: "last" or "best", as in `games.projected_subgradient`.

    Returns:
      `(key, losses_fn, attack_fn, sample_fn, weights, axis_name) -> (weights [L], risk [])`: the
      weights, and the least risk of those that were attacked, the given ones first; the risk of
      the last weights themselves would take another attack.

    Raises:
      ValueError: if a number is not positive or `iterate` is unknown.
    """
    checks.at_least(1, num_steps=num_steps)
    checks.positive(loss_bound=loss_bound)
    checks.one_of(games.ITERATES, iterate=iterate)

    def weigh(key, losses_fn, attack_fn, sample_fn, weights, axis_name=None):
        del sample_fn

        def best_response(weights, index):
            # A new key for each attack: a random start that fails once must not fail in every step.
            attacked = attack_fn(jax.random.fold_in(key, index), weights)
            return mean_over(axis_name, jnp.mean(losses_fn(attacked), axis=0))

        weights, risks = games.projected_subgradient(
            best_response, weights, num_steps=num_steps, loss_bound=loss_bound, iterate=iterate
        )
        return weights, jnp.min(risks)

    return weigh


def entropic_weighing(
    *,
    temperature: float,
    num_samples: int,
    num_steps: int | None = None,
    tolerance: float = 1e-3,
    loss_bound: float = 1.0,
) -> Weighing:
    """The entropic algorithm on uniform points of each ball and the attacked point.

    In 3072 dimensions uniform points alone come nowhere near the worst one, so the attack on the
    current mixture is one more candidate.

    A step costs almost nothing beside the one attack, and a few steps hardly move the weights: the
    default is the number after which the guarantee of `games.entropic` puts the risk within
    `tolerance` of the least one, from any weights: `loss_bound sqrt(L / (temperature tolerance))`
    rounded up, 448 for two members at temperature .01.

    Args:
      temperature: the relaxation's `alpha`, in the units of the loss.
      num_samples: number of uniform points per example, at least 0.
      num_steps: `T_lambda`, number of accelerated gradient steps; by the tolerance if None.
      tolerance: of the entropic risk, positive, in the units of the loss.
      loss_bound: largest value of the loss that `losses_fn` gives.

    Returns:
      `(key, losses_fn, attack_fn, sample_fn, weights, axis_name) -> (weights [L], risk [])`: the
      weights after the last step and their entropic risk.

    Raises:
      ValueError: if a number is out of its range.
    """
    if num_steps is not None:
        checks.at_least(1, num_steps=num_steps)
    checks.at_least(0, num_samples=num_samples)
    checks.positive(temperature=temperature, tolerance=tolerance, loss_bound=loss_bound)

    def weigh(key, losses_fn, attack_fn, sample_fn, weights, axis_name=None):
        attack_key, sample_key = jax.random.split(key)
        candidates = losses_fn(attack_fn(attack_key, weights))[None]
        if num_samples:
            sample_keys = jax.random.split(sample_key, num_samples)
            # One point of each ball at a time: all at once would be a batch `num_samples` times as
            # large.
            sampled = jax.lax.map(lambda key: losses_fn(sample_fn(key)), sample_keys)
            candidates = jnp.concatenate([candidates, sampled])
        # No two weights are further apart than sqrt(2).
        enough = loss_bound * math.sqrt(weights.shape[0] / (temperature * tolerance))
        weights, risks = games.entropic(
            jnp.swapaxes(candidates, 0, 1),
            temperature,
            num_steps=math.ceil(enough) if num_steps is None else num_steps,
            loss_bound=loss_bound,
            weights=weights,
            axis_name=axis_name,
        )
        return weights, risks[-1]

    return weigh
