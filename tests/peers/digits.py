"""One small network trained on digits, in JAX and in PyTorch: the same weights, the same logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn
from torch import nn as torch_nn

from mixjax import data, losses, models

NUM_STEPS = 150
BATCH_SIZE = 128


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


MODEL = models.from_linen(_Network(), (8, 8, 1))


@functools.cache
def trained(seed=0):
    """Variables after a few steps of Adam; 95 % of the test images are right."""
    train = data.load("digits").train
    images, labels = jnp.asarray(data.to_float(train.images)), jnp.asarray(train.labels)
    optimizer = optax.adam(3e-3)

    def loss(variables, images, labels):
        logits = MODEL.apply(variables, images)
        return jax.vmap(losses.cross_entropy)(logits, labels).mean()

    def step(carry, key):
        variables, state = carry
        batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(labels))
        gradient = jax.grad(loss)(variables, images[batch], labels[batch])
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(variables, updates), state), None

    @jax.jit
    def train_from(key):
        variables = MODEL.init(key)
        keys = jax.random.split(key, NUM_STEPS)
        return jax.lax.scan(step, (variables, optimizer.init(variables)), keys)[0][0]

    return train_from(jax.random.key(seed))


def in_torch(variables):
    """The same network in PyTorch, for inputs `[N, 1, 8, 8]`."""
    layers = [torch_nn.Flatten()]
    for index in range(3):
        dense = variables["params"][f"Dense_{index}"]
        kernel = np.array(dense["kernel"])
        layer = torch_nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
            layer.bias.copy_(torch.from_numpy(np.array(dense["bias"])))
        layers += [layer, torch_nn.ReLU()]
    return torch_nn.Sequential(*layers[:-1]).eval()


@functools.cache
def correct_examples(seed=0):
    """Test images `[N, 8, 8, 1]` that the network classifies correctly, and their labels."""
    test = data.load("digits").test
    images = data.to_float(test.images)
    right = np.asarray(MODEL.apply(trained(seed), images).argmax(-1)) == test.labels
    return np.asarray(images)[right], test.labels[right]
