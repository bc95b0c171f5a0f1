"""What the attacks share: how a point moves, which one is kept, and what an attack reports."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.typing import Array


class AttackInfo(NamedTuple):
    """What an attack on one example saw.

    Attributes:
      loss: `[]` loss at the returned point.
      first_loss: `[]` loss at the starting point.
      num_zero_gradients: `[]` number of steps at which the gradient was exactly zero: where it
        equals the number of steps, the attack never moved and its verdict is worthless.
    """

    loss: Array
    first_loss: Array
    num_zero_gradients: Array


def value_and_grad(loss_fn, point):
    """`loss_fn` and its gradient at `point`, NaNs of the gradient replaced by 0.

    A step along NaN would leave the inputs altogether; such coordinates stay where they are.
    """
    loss, gradient = jax.value_and_grad(loss_fn)(point)
    return loss, jnp.nan_to_num(gradient)


def move(x, delta, threat, bounds):
    """`x + P(delta)` within `bounds`; clipping towards an `x` inside them stays in the ball."""
    return jnp.clip(x + threat.project(delta), *bounds)


def keep_higher(best, best_loss, point, loss):
    """The pair of higher loss, the first where they tie.

    A NaN loss counts as the highest: hiding it would report a broken network as robust.
    """
    higher = (loss > best_loss) | jnp.isnan(loss)
    return jnp.where(higher, point, best), jnp.where(higher, loss, best_loss)


def is_zero(gradient):
    """1 for a gradient of zeros alone, else 0."""
    return jnp.all(gradient == 0).astype(jnp.int32)
