"""The paper's two attacks on a mixture: PGD on the expected loss, and a rejecting C&W."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import attacks, evaluation, losses, mixture
from mixjax.batch import example_keys, to_float
from mixjax.threats import Threat

STEP = 0.25  # of a radius: .008 at .031 in the paper, in training and in evaluation
NORMS = (0.4, 0.6, 0.8)  # of images of 3072 values
_VALUES = 3072


def pgd(num_steps: int) -> Callable[..., Any]:
    """PGD on the expected loss as the paper's, its step a quarter of the radius."""
    return partial(_pgd, num_steps=num_steps)


def _pgd(key, loss_fn, x, threat, *, num_steps, bounds=(0.0, 1.0)):
    step_size = STEP * threat.epsilon
    return attacks.pgd(
        key, loss_fn, x, threat, num_steps=num_steps, step_size=step_size, bounds=bounds
    )


def score(values: Any) -> dict[str, Any]:
    """`accuracy`, `error_bar` and `interval` of a mean."""
    mean, error_bar = evaluation.mean_and_error_bar(values)
    interval = list(evaluation.wilson_interval(mean, np.size(values)))
    return {"accuracy": mean, "error_bar": error_bar, "interval": interval}


def norms_for(num_values: int) -> list[float]:
    """The paper's norms for images of another size: of equal mean square per value."""
    return [norm * math.sqrt(num_values / _VALUES) for norm in NORMS]


def pgd_scores(
    key: Any,
    logits_fn: Any,
    weights: Any,
    images: Any,
    labels: Any,
    threat: Threat,
    *,
    num_steps: int,
    batch_size: int,
) -> dict[str, Any]:
    """Scores `natural` and `pgd` of a mixture: PGD with steps of a quarter of the radius."""
    batch_fn = partial(
        _accuracies, num_steps, key, logits_fn, jnp.asarray(weights, jnp.float32), threat
    )
    clean, attacked = evaluation.over_batches(batch_fn, images, labels, batch_size=batch_size)
    return {"natural": score(clean), "pgd": score(np.minimum(clean, attacked))}


def rejected_scores(
    logits_fn: Any,
    weights: Any,
    images: Any,
    labels: Any,
    *,
    num_steps: int = 100,
    num_searches: int = 9,
    batch_size: int,
) -> list[dict[str, Any]]:
    """What Carlini and Wagner's attack leaves where it is rejected beyond each of three norms.

    It goes down the expected loss and is judged by the expected probabilities; an attacked example
    beyond the norm is discarded and the natural one kept.

    Args:
      logits_fn: `x -> [L, C]`, a pytree.
      weights: `[L]`.
      images: `[N, ...]` floats in [0, 1] or uint8.
      labels: `[N]`.
      num_steps: steps of Adam under one constant.
      num_searches: constants tried.
      batch_size: images attacked at once.

    Returns:
      One score for each norm, with the `norm` itself and `norm_of_paper`.

    References:
      Pinot et al., Randomization matters, 2020, section 7 and supplement 2.2.
    """
    limits = norms_for(math.prod(np.shape(images)[1:]))
    weights = jnp.asarray(weights, jnp.float32)
    batch_fn = partial(_carlini_wagner, num_steps, num_searches, logits_fn, weights)
    clean, attacked, norm = evaluation.over_batches(batch_fn, images, labels, batch_size=batch_size)
    return [
        {**score(np.where(norm <= limit, attacked, clean)), "norm": limit, "norm_of_paper": paper}
        for limit, paper in zip(limits, NORMS, strict=True)
    ]


@partial(jax.jit, static_argnums=0)
def _accuracies(num_steps, key, logits_fn, weights, threat, images, labels, indices):
    """Expected accuracies `[B]`, natural and attacked."""

    def one(key, x, label):
        x_adv, _ = attacks.on_mixture(pgd(num_steps), key, logits_fn, weights, x, label, threat)
        return tuple(mixture.accuracy(logits_fn(each), label, weights) for each in (x, x_adv))

    return jax.vmap(one)(example_keys(key, indices), to_float(images), labels)


@partial(jax.jit, static_argnums=(0, 1))
def _carlini_wagner(num_steps, num_searches, logits_fn, weights, images, labels, indices):
    """Expected accuracies `[B]`, natural and attacked, and the l2 norms of the attack."""
    del indices

    def one(x, label):
        x_adv, info = attacks.carlini_wagner(
            lambda x: losses.expected_hinge(logits_fn(x), label, weights),
            x,
            fooled_fn=lambda x: losses.mean_probability_margin(logits_fn(x), label, weights) <= 0,
            num_steps=num_steps,
            num_binary_search_steps=num_searches,
            num_closing_steps=0,
            steps_between_checks=max(1, num_steps // 10),
        )
        found = [mixture.accuracy(logits_fn(each), label, weights) for each in (x, x_adv)]
        return *found, info.norm

    return jax.vmap(one)(to_float(images), labels)
