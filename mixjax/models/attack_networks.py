"""Networks that attack: from an input and its label to the direction in which to move it.

The direction is not bounded; `attacks.follow` and `attacks.squash` make an attacked input of it.
Inputs are in [0, 1] and rescaled to [-1, 1] here; the label comes as a one-hot vector, scaled so
that it counts beside hundreds of pixels.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixjax import checks
from mixjax.models.initialization import Dense, he_normal
from mixjax.models.model import Model, from_linen


def attack_network(
    num_classes: int = 10,
    *,
    input_shape: tuple[int, ...] = (28, 28, 1),
    hidden: Sequence[int] = (300, 300, 300),
    dropout: float = 0.0,
    label_scale: float | None = None,
) -> Model:
    """Dense layers with ReLU on the flattened input and its label.

    Hamm's network is `dropout=0.5, label_scale=1.0`.

    Args:
      num_classes: number of classes `C`.
      input_shape: shape of one example.
      hidden: units of each hidden layer.
      dropout: probability of dropping a hidden unit in training; needs a key.
      label_scale: the label's entry of the one-hot vector, positive; None: `sqrt(size)` for the
        `size` numbers of an example, the Euclidean norm of an input of entries -1 and 1.

    Returns:
      The `Model`, whose `apply` is `(variables, x [..., *input_shape], label [...], train=False,
      key=None) -> direction [..., *input_shape]`, and in training a pair as for any `Model`.

    Raises:
      ValueError: if a size is below 1, `dropout` not in [0, 1) or `label_scale` not positive; by
        `apply` if a shape does not fit or `x` is not of floating point.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      section 4.1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import models
      >>> network = models.attack_network(2, input_shape=(2, 2, 1), hidden=(8,))
      >>> variables = jax.eval_shape(network.init, jax.random.key(0))
      >>> x, label = jax.ShapeDtypeStruct((5, 2, 2, 1), jnp.float32), jnp.zeros(5, int)
      >>> jax.eval_shape(network.apply, variables, x, label).shape
      (5, 2, 2, 1)
    """
    checks.at_least(1, num_classes=num_classes)
    for units in hidden:
        checks.at_least(1, hidden=units)
    checks.fraction(dropout=dropout)
    size = math.prod(input_shape)
    if label_scale is None:
        label_scale = math.sqrt(size)
    checks.positive(label_scale=label_scale)
    module = _Dense((*hidden, size), dropout)
    inner = from_linen(module, (size + num_classes,), draw=he_normal)

    input_shape = tuple(input_shape)

    def apply(variables, x, label, *, train=False, key=None):
        checks.floating(x=x)
        leading = x.shape[: max(x.ndim - len(input_shape), 0)]
        checks.shape((*leading, *input_shape), x=x)
        checks.shape(leading, label=label)
        centred = 2.0 * x.reshape(math.prod(leading), size) - 1.0
        label = jnp.reshape(label, centred.shape[0])
        one_hot = label_scale * jax.nn.one_hot(label, num_classes, dtype=centred.dtype)
        joined = jnp.concatenate([centred, one_hot], axis=-1)
        if not train:
            return inner.apply(variables, joined).reshape(x.shape)
        direction, variables = inner.apply(variables, joined, train=True, key=key)
        return direction.reshape(x.shape), variables

    return Model(inner.init, apply)


class _Dense(nn.Module):
    sizes: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x, train=False):
        drop = nn.Dropout(self.dropout, deterministic=not (train and self.has_rng("dropout")))
        for units in self.sizes[:-1]:
            x = drop(nn.relu(Dense(units)(x)))
        return Dense(self.sizes[-1])(x)
