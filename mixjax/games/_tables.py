"""What the games' files share: tables of losses, expectations over them, and their checks."""

import math
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from mixjax import _check

_LARGEST = sys.float_info.max
_TOLERANCE = 1e-4  # by how much the probabilities of one example may miss 1


def expected(losses, weights):
    """`[N, M, L], [L] -> [N, M]`: the mixture's loss at each candidate."""
    # Full precision: accelerators would round the factors of a product to a few digits.
    return jnp.matmul(losses, weights, precision="highest")


def mean_losses(attack, losses):
    """`[N, M], [N, M, ...] -> [...]`: mean losses under an attack."""
    flat = losses.reshape(attack.size, -1)
    mean = jnp.matmul(attack.reshape(-1), flat, precision="highest") / attack.shape[0]
    return mean.reshape(losses.shape[2:])


def mean_losses_at(candidates, losses):
    """`[N], [N, M, L] -> [L]`: mean losses if each example plays one candidate."""
    return jnp.mean(jnp.take_along_axis(losses, candidates[:, None, None], axis=1)[:, 0], axis=0)


def uniform(size, dtype):
    """`[size]` equal probabilities."""
    return jnp.full(size, 1.0 / size, dtype)


def tempered(weights, losses, temperature, mass):
    """`[N]` temperatures, and `[N, M]` logits `expected / temperature + log mass`."""
    check_game(weights, losses)
    _check.positive(temperature=temperature)
    if np.ndim(temperature):
        _check.shape(losses.shape[:1], temperature=temperature)
    temperature = jnp.broadcast_to(temperature, losses.shape[:1])
    scaled = expected(losses, weights) / temperature[:, None]
    if mass is None:
        return temperature, scaled - math.log(losses.shape[1])
    check_probabilities(losses.shape[:2], mass=mass)
    return temperature, scaled + jnp.log(mass)


def checked(losses, loss_bound=_LARGEST):
    """The losses as floating-point numbers of at least 32 bits, once they are known to be sound."""
    _check.positive(loss_bound=loss_bound)
    check_losses(losses, loss_bound)
    losses = jnp.asarray(losses)
    return losses.astype(jnp.promote_types(losses.dtype, jnp.float32))


def check_losses(losses, loss_bound=_LARGEST):
    """Raises `ValueError` unless `losses [N, M, L]` hold numbers from 0 to the bound."""
    _check.non_empty(3, losses=losses)
    _check.within(0.0, loss_bound, losses=losses)


def check_game(weights, losses):
    """Raises `ValueError` unless the losses are sound and the weights probabilities of members."""
    check_losses(losses)
    _check.shape(np.shape(losses)[2:], weights=weights)
    _check.simplex(weights=weights)


def check_probabilities(shape, **values):
    """Raises `ValueError` unless each value `[N, M]` holds probabilities for each example."""
    for name, value in values.items():
        _check.non_empty(2, **{name: value})
        _check.shape(shape, **{name: value})
        _check.within(0.0, 1.0 + _TOLERANCE, **{name: value})
        sums = value.sum(axis=1) if hasattr(value, "sum") else np.sum(value, axis=1)
        _check.within(1.0 - _TOLERANCE, 1.0 + _TOLERANCE, **{f"the sums of {name}": sums})


def are_host_arrays(*arrays: Any) -> bool:
    """Whether none of them is JAX's."""
    return all(isinstance(array, np.ndarray | np.generic | list | tuple) for array in arrays)
