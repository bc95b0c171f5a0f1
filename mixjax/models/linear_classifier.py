"""Linear classifier: the smallest model, and one whose best attack is known in closed form."""

import math

from flax import linen as nn

from mixjax import checks
from mixjax.models.initialization import Dense, he_normal
from mixjax.models.model import Model, from_linen


def linear(num_classes: int = 10, *, input_shape: tuple[int, ...] = (8, 8, 1)) -> Model:
    """`logits = x kernel + bias` on the flattened input, not normalised.

    Args:
      num_classes: number of classes `C`.
      input_shape: shape of one example, of any rank.

    Returns:
      The `Model`; its kernel is `[prod(input_shape), C]`.

    Raises:
      ValueError: if a size is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import models
      >>> model = models.linear(10, input_shape=(8, 8, 1))
      >>> variables = model.init(jax.random.key(0))
      >>> model.apply(variables, jnp.zeros((5, 8, 8, 1))).shape
      (5, 10)
    """
    checks.at_least(1, num_classes=num_classes)
    return from_linen(_Linear(num_classes, tuple(input_shape)), input_shape, draw=he_normal)


class _Linear(nn.Module):
    num_classes: int
    input_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        return Dense(self.num_classes)(x.reshape(-1, math.prod(self.input_shape)))
