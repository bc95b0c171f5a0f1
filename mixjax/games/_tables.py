"""What the games' files share: tables of losses, expectations over them, and their checks."""

import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixjax import checks
from mixjax.typing import Array

_LARGEST = sys.float_info.max
_TOLERANCE = 1e-4  # by how much the probabilities of one example may miss 1


class Table(NamedTuple):
    """A game with the same equilibria, on losses that float32 can tell apart.

    What an example costs in any case moves no player, but small differences would be lost beside
    it, and sums of large losses would overflow.

    Attributes:
      losses: `[N, M, L]` what is paid above the least loss of the example, in units of `unit`.
      sure: `[]` mean of these least losses, in the same units.
      unit: `[]` largest loss that there can be, or a number near it.
    """

    losses: Array
    sure: Array
    unit: Array | float

    def restored(self, risk):
        """A risk in this game as that of the game as it was given."""
        return self.unit * (risk + self.sure)


def project(values):
    """`[L] -> [L]`: the nearest point of the simplex, wherever the values are.

    What lies 1 or more below the highest value gets 0: so the values are first shifted to a maximum
    of 0 and cut at -1, since float32 has no digits left for a sum of 1 beside values of 1e7.
    """
    near = jnp.maximum(values - jnp.max(values), -1.0)
    # By sorting: `L log L`, exact, and differentiable almost everywhere.
    return optax.projections.projection_simplex(near)


def expected(losses, weights):
    """`[N, M, L], [L] -> [N, M]`: the mixture's loss at each candidate."""
    # Full precision: accelerators would round the factors of a product to a few digits.
    return jnp.matmul(losses, weights, precision="highest")


def mean_losses(attack, losses):
    """`[N, M], [N, M, ...] -> [...]`: mean losses under an attack."""
    flat = losses.reshape(attack.size, -1)
    mass = attack.reshape(-1) / attack.shape[0]  # before the sum, which would overflow
    return jnp.matmul(mass, flat, precision="highest").reshape(losses.shape[2:])


def mean_losses_at(candidates, losses):
    """`[N], [N, M, L] -> [L]`: mean losses if each example plays one candidate."""
    return mean(jnp.take_along_axis(losses, candidates[:, None, None], axis=1)[:, 0])


def mean(values):
    """`[N, ...] -> [...]`: the mean, which is finite where the values are."""
    return jnp.sum(values / values.shape[0], axis=0)


def uniform(size, dtype):
    """`[size]` equal probabilities."""
    return jnp.full(size, 1.0 / size, dtype)


def tempered(weights, losses, temperature, mass):
    """`[N]` temperatures, highest expected losses, and `[N, M]` logits below them.

    The logits are `(expected - highest) / temperature + log mass`: at low temperatures the quotient
    of the losses themselves could overflow.
    """
    check_table(weights, losses)
    checks.positive(temperature=temperature)
    if np.ndim(temperature):
        checks.shape(losses.shape[:1], temperature=temperature)
    temperature = jnp.broadcast_to(temperature, losses.shape[:1])
    values = expected(losses, weights)
    if mass is None:
        log_mass, there = -math.log(losses.shape[1]), values
    else:
        check_probabilities(losses.shape[:2], mass=mass)
        log_mass, there = jnp.log(mass), jnp.where(mass > 0, values, -jnp.inf)
    # Of the candidates that have any mass: an impossible one may be the worst of all.
    highest = jax.lax.stop_gradient(jnp.max(there, axis=1))
    return temperature, highest, (values - highest[:, None]) / temperature[:, None] + log_mass


def checked(losses, loss_bound=None):
    """The game as a `Table`, once its losses are known to be sound: at most `loss_bound`, if any.

    Its losses are floating-point numbers of at least 32 bits.
    """
    if loss_bound is not None:
        checks.positive(loss_bound=loss_bound)
    check_losses(losses, _LARGEST if loss_bound is None else loss_bound)
    dtype = check_dtype(losses=losses)
    if loss_bound is not None:
        checks.within(0.0, float(jnp.finfo(dtype).max), loss_bound=loss_bound)
    # On the host in double precision, before JAX rounds off what differs.
    losses = np.asarray(losses, np.float64) if are_host_arrays(losses) else losses.astype(dtype)
    least = losses.min(axis=(1, 2), keepdims=True)
    losses, least = jnp.asarray(losses - least, dtype), jnp.asarray(least[:, 0, 0], dtype)
    largest = jnp.maximum(jnp.max(losses), jnp.max(least))
    unit = jnp.asarray(largest if loss_bound is None else loss_bound, dtype)
    # A quotient may be computed as a product with the inverse, which must be a normal number.
    unit = jnp.minimum(jnp.where(unit > 0, unit, 1.0), float(jnp.finfo(dtype).max) / 32)
    return Table(losses / unit, mean(least / unit), unit)


def check_losses(losses, loss_bound=_LARGEST):
    """Raises `ValueError` unless `losses [N, M, L]` hold numbers from 0 to the bound."""
    checks.non_empty(3, losses=losses)
    checks.within(0.0, loss_bound, losses=losses)


def check_table(weights, losses):
    """`check_game`, and that JAX can hold the losses: what it cannot, it would make infinite."""
    check_game(weights, losses)
    check_dtype(losses=losses)


def check_dtype(**values):
    """The type in which JAX computes with a value; raises `ValueError` if it cannot hold it."""
    checks.native_order(**values)
    ((name, value),) = values.items()
    array = value if hasattr(value, "dtype") else np.asarray(value)
    dtype = jnp.result_type(jnp.float32, array)
    checks.within(0.0, float(jnp.finfo(dtype).max), **{name: value})
    return dtype


def check_game(weights, losses):
    """Raises `ValueError` unless the losses are sound and the weights probabilities of members."""
    check_losses(losses)
    checks.shape(np.shape(losses)[2:], weights=weights)
    checks.simplex(weights=weights)


def check_probabilities(shape, **values):
    """Raises `ValueError` unless each value `[N, M]` holds probabilities for each example."""
    for name, value in values.items():
        checks.non_empty(2, **{name: value})
        checks.shape(shape, **{name: value})
        checks.within(0.0, 1.0 + _TOLERANCE, **{name: value})
        sums = value.sum(axis=1) if hasattr(value, "sum") else np.sum(value, axis=1)
        checks.within(1.0 - _TOLERANCE, 1.0 + _TOLERANCE, **{f"the sums of {name}": sums})


def are_host_arrays(*arrays: Any) -> bool:
    """Whether none of them is JAX's."""
    return all(isinstance(array, np.ndarray | np.generic | list | tuple) for array in arrays)


def above_sure(losses):
    """`[N, M, L]` in double precision less the least loss of each example, and `[N]` these losses.

    A copy: what an example costs in any case would only round off what matters.
    """
    table = np.array(losses, np.float64)
    least = table.min(axis=(1, 2))
    table -= least[:, None, None]
    return table, least


def host_mean(values):
    """Mean of `[N]` numbers of at least 0, rounded once or twice, and finite where they are."""
    largest = float(np.max(values)) or 1.0
    # `fsum` rounds once, whatever the order of the examples.
    return largest * (math.fsum(values / largest) / len(values))


def upper_bound(weights, table):
    """Adversarial risk of weights, of the first members of a table of NumPy."""
    return host_mean((table[:, :, : len(weights)] @ weights).max(axis=1))


def lower_bounds(attack, table):
    """`[L]` mean losses of the members under an attack on the first points of a table of NumPy."""
    paid = (attack[:, None] @ table[:, : attack.shape[1]])[:, 0]
    return np.array([host_mean(member) for member in paid.T])


def certified_gap(upper, lower, table):
    """`upper - lower` of the two functions above, and what rounding may have hidden of it.

    A sum of `K` products of numbers of at least 0 is off by at most `K` roundings, relatively; the
    subtraction that made the table and the means take a few more.
    """
    _, num_candidates, num_members = table.shape
    # A certificate that rounding could break would be none: the gap is enlarged by what can be
    # hidden.
    rounding = np.finfo(np.float64).eps
    hidden = rounding * ((num_members + 4) * upper + (num_candidates + 4) * lower)
    return max(upper - lower, 0.0) + hidden
