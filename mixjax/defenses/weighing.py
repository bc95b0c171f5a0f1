"""The weight step of Algorithm 2: the weights of a mixture on one batch, its members fixed.

A `Weighing` sees the batch through three functions, so it knows neither models nor images:
`attack_fn: (key, weights [L]) -> points`, the batch attacked against a mixture of these weights,
`sample_fn: key -> points`, a uniform point of each example's ball, and
`losses_fn: points -> [B, L]`, the members' losses there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax import _check, games
from mixjax.typing import Array

Weighing = Callable[..., tuple[Array, Array]]


def oracle(*, num_steps: int, loss_bound: float = 1.0) -> Weighing:
    """Algorithm 1 with the attack itself as best response: one attack for each of its steps.

    Args:
      num_steps: `T_lambda`, number of attacks and weight steps on a batch.
      loss_bound: largest value of the loss that `losses_fn` gives.

    Returns:
      `(key, weights, losses_fn, attack_fn, sample_fn, axis_name) -> (weights [L], risk [])`: the
      weights of least risk among those attacked, the given ones first, and that risk.

    Raises:
      ValueError: if a number is not positive.
    """
    _check.at_least(1, num_steps=num_steps)
    _check.positive(loss_bound=loss_bound)

    def weigh(key, weights, losses_fn, attack_fn, sample_fn, axis_name=None):
        del sample_fn

        def best_response(weights, index):
            attacked = attack_fn(jax.random.fold_in(key, index), weights)
            return _mean(losses_fn(attacked), axis_name)

        weights, risks = games.projected_subgradient(
            best_response, weights, num_steps=num_steps, loss_bound=loss_bound
        )
        return weights, jnp.min(risks)

    return weigh


def entropic(
    *, num_steps: int, temperature: float, num_samples: int, loss_bound: float = 1.0
) -> Weighing:
    """The entropic algorithm on uniform points of each ball and the attacked point.

    In 3072 dimensions uniform points alone come nowhere near the worst one, so the attack on the
    current mixture is one more candidate.

    Args:
      num_steps: `T_lambda`, number of accelerated gradient steps.
      temperature: the relaxation's `alpha`, in the units of the loss.
      num_samples: number of uniform points per example, at least 0.
      loss_bound: largest value of the loss that `losses_fn` gives.

    Returns:
      `(key, weights, losses_fn, attack_fn, sample_fn, axis_name) -> (weights [L], risk [])`: the
      weights after the last step and their entropic risk.

    Raises:
      ValueError: if a number is out of its range.
    """
    _check.at_least(1, num_steps=num_steps)
    _check.at_least(0, num_samples=num_samples)
    _check.positive(temperature=temperature, loss_bound=loss_bound)

    def weigh(key, weights, losses_fn, attack_fn, sample_fn, axis_name=None):
        attack_key, sample_key = jax.random.split(key)
        candidates = losses_fn(attack_fn(attack_key, weights))[None]
        if num_samples:
            sample_keys = jax.random.split(sample_key, num_samples)
            sampled = jax.lax.map(lambda key: losses_fn(sample_fn(key)), sample_keys)
            candidates = jnp.concatenate([candidates, sampled])
        weights, risks = games.entropic(
            jnp.swapaxes(candidates, 0, 1),
            temperature,
            num_steps=num_steps,
            loss_bound=loss_bound,
            weights=weights,
            axis_name=axis_name,
        )
        return weights, risks[-1]

    return weigh


def _mean(losses, axis_name):
    mean = jnp.mean(losses, axis=0)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)
