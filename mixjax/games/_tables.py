"""What the games' files share: tables of losses, expectations over them, and their checks."""

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


def uniform(size, dtype):
    """`[size]` equal probabilities."""
    return jnp.full(size, 1.0 / size, dtype)


def checked(losses, loss_bound=_LARGEST):
    """The losses as floating-point numbers of at least 32 bits, once they are known to be sound."""
    _check.positive(loss_bound=loss_bound)
    _check.non_empty(3, losses=losses)
    _check.within(0.0, loss_bound, losses=losses)
    losses = jnp.asarray(losses)
    return losses.astype(jnp.promote_types(losses.dtype, jnp.float32))


def checked_doubles(losses) -> np.ndarray:
    """The losses in double precision, once they are known to be finite and not negative."""
    _check.non_empty(3, losses=losses)
    _check.within(0.0, _LARGEST, losses=losses)
    return np.asarray(losses, np.float64)


def are_host_arrays(*arrays: Any) -> bool:
    """Whether none of them is JAX's."""
    return all(isinstance(array, np.ndarray | np.generic | list | tuple) for array in arrays)


def check_attack(attack, num_examples=None, num_candidates=None):
    """Raises `ValueError` unless `attack [N, M]` holds probabilities for each example."""
    _check.non_empty(2, attack=attack)
    _check.shape((num_examples, num_candidates), attack=attack)
    _check.within(0.0, 1.0 + _TOLERANCE, attack=attack)
    sums = attack.sum(axis=1) if hasattr(attack, "sum") else np.sum(attack, axis=1)
    _check.within(1.0 - _TOLERANCE, 1.0 + _TOLERANCE, **{"the sums of attack": sums})
