"""A small network on the digits, trained against attacks, and its weights in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from mixjax import attacks, data, losses
from mixjax.typing import Array, PyTree


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1797 images, `[N, 8, 8, 1]` in [0, 1], and their labels."""
    dataset = data.load("digits")
    splits = dataset.train, dataset.validation, dataset.test
    images = np.concatenate([split.images for split in splits])
    return np.float32(images) / 255, np.concatenate([split.labels for split in splits])


def apply(params: PyTree, x: Array) -> Array:
    """Two convolutions of stride 2, two dense layers: `[8, 8, 1] -> [10]` logits."""
    x = x[None]
    for kernel, bias in params[:2]:
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout
        )
        x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
    (hidden, hidden_bias), (head, head_bias) = params[2:]
    return jax.nn.relu(x.reshape(-1) @ hidden + hidden_bias) @ head + head_bias


def train(threat, *, num_steps=500, batch_size=128) -> PyTree:
    """Weights after adversarial training on all digits with five steps of PGD."""
    images, labels = map(jnp.asarray, digits())
    optimizer = optax.adam(3e-3)

    def loss_fn(params, x, label):
        return losses.cross_entropy(apply(params, x), label)

    def attack(key, params, x, label):
        settings = dict(num_steps=5, step_size=threat.epsilon / 2)
        return attacks.pgd(key, lambda x: loss_fn(params, x, label), x, threat, **settings)[0]

    def step(state, key):
        params, opt_state = state
        batch_key, attack_key = jax.random.split(key)
        batch = jax.random.randint(batch_key, (batch_size,), 0, len(labels))
        attack_keys = jax.random.split(attack_key, batch_size)
        x = jax.vmap(attack, (0, None, 0, 0))(attack_keys, params, images[batch], labels[batch])
        each = jax.vmap(loss_fn, (None, 0, 0))
        gradient = jax.grad(lambda params: jnp.mean(each(params, x, labels[batch])))(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def layer(key, *shape):
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        return scale * jax.random.normal(key, shape), jnp.zeros(shape[-1])

    def run(key):
        keys = jax.random.split(key, 5)
        shapes = (3, 3, 1, 16), (3, 3, 16, 32), (128, 64), (64, 10)
        params = [layer(key, *shape) for key, shape in zip(keys, shapes, strict=False)]
        state = params, optimizer.init(params)
        return jax.lax.scan(step, state, jax.random.split(keys[4], num_steps))[0][0]

    return jax.jit(run)(jax.random.key(0))


class TorchNetwork(torch.nn.Module):
    """The same function of `[B, 1, 8, 8]`."""

    def __init__(self, params):
        super().__init__()
        layers = [(torch.tensor(np.asarray(w)), torch.tensor(np.asarray(b))) for w, b in params]
        self.layers = torch.nn.ParameterList(
            [torch.nn.Parameter(p) for pair in layers for p in pair]
        )

    def forward(self, x):
        kernels = iter(self.layers)
        for _ in range(2):
            kernel, bias = next(kernels), next(kernels)
            kernel = kernel.permute(3, 2, 0, 1)
            x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, stride=2, padding=1))
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = torch.relu(x @ next(kernels) + next(kernels))
        return x @ next(kernels) + next(kernels)
