"""A mixture as foolbox sees a model: to run its attacks on our members, or compare it with ours."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp

from mixjax import checks, mixture
from mixjax.typing import Array, Bounds, LogitsFn


def foolbox_model(logits_fn: LogitsFn, weights: Array, *, bounds: Bounds = (0.0, 1.0)) -> Any:
    """The mixture as a `foolbox.models.JAXModel`: `[N, ...]` to log mean probabilities `[N, C]`.

    foolbox has no notion of a drawn member: it attacks the averaged ensemble, which predicts the
    class of highest mean probability. Score its points with `mixture.accuracy`. It calls the
    function step by step: pass a compiled `logits_fn`. Needs foolbox:
    `pip install "mixjax[peers]"`.

    Args:
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      bounds: lowest and highest value of an input.

    Raises:
      ValueError: if `weights` is not on the simplex or the bounds are the wrong way round; when
        called, if there is not one weight for each member.
      ImportError: if foolbox is not installed.
    """
    checks.simplex(weights=weights)
    checks.increasing(bounds=bounds)
    weights = jnp.asarray(weights)

    def log_probs_of(x):
        logits = logits_fn(x)
        checks.shape((len(weights), None), logits=logits)
        return mixture.log_probs(logits, weights)

    log_probs = jax.vmap(log_probs_of)
    return importlib.import_module("foolbox").models.JAXModel(log_probs, bounds=bounds)
