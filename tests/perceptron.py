"""Networks that are traced and compiled fast, where a test needs any network and no convolution.

Flax takes most of the time that it takes to trace a small network: it is there where it matters.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixjax import models

# Of all short experiments of Hamm's: what is the same in two of them is compiled once.
SHORT = (
    "--width 32 --batch-size 64 --learning-rate 0.005 --network-width 64 --apgd-steps 3 "
    "--ifgsm-steps 2 --test-examples 200 --test-batch-size 200"
).split()


class _Normalized(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


def normalized(num_classes, *, input_shape):
    """One hidden layer with BatchNorm."""
    return models.from_linen(_Normalized(num_classes), input_shape)


def plain(input_shape, *sizes):
    """Layers of these sizes, the last one of logits, with ReLU between them."""
    sizes = math.prod(input_shape), *sizes

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        layers = zip(keys, sizes, sizes[1:], strict=False)
        params = {
            f"layer_{k}": {
                "bias": jnp.zeros(after),
                "kernel": jax.random.normal(key, (before, after)) * math.sqrt(2 / before),
            }
            for k, (key, before, after) in enumerate(layers)
        }
        return {"params": params}

    def apply(variables, x, *, train=False, key=None):
        axes = x.shape[: x.ndim - len(input_shape)]
        x = 2 * x.reshape(*axes, -1) - 1
        for k, (_, layer) in enumerate(sorted(variables["params"].items())):
            x = jnp.maximum(x, 0) if k else x
            x = x @ layer["kernel"]
            x += jnp.broadcast_to(layer["bias"], x.shape)
        return (x, variables) if train else x

    return models.Model(init, apply)


def perceptron(num_classes, width, *, input_shape):
    """One hidden layer, in the place of `models.mnist_cnn` with He's initial weights."""
    return plain(input_shape, width, num_classes)
