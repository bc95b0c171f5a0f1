"""Attack networks: formulas written out, every shape, dropout under a key."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models

SHAPE = (3, 2, 1)
DENSE = models.attack_network(4, input_shape=SHAPE, hidden=(7, 5), dropout=0.5)
INIT = jax.jit(DENSE.init)
X = np.random.default_rng(1).uniform(size=(2, *SHAPE)).astype(np.float32)
LABEL = np.int32([3, 1])


@pytest.mark.parametrize("label_scale", [None, 5.0])
def test_the_dense_network_is_layers_of_relu_on_pixels_and_label(label_scale, key):
    model = models.attack_network(4, input_shape=SHAPE, hidden=(7, 5), label_scale=label_scale)
    variables = jax.device_get(jax.jit(model.init)(key))
    directions = jax.jit(model.apply)(variables, X, LABEL)
    layers = [variables["params"][f"Dense_{i}"] for i in range(3)]
    assert [layer["kernel"].shape for layer in layers] == [(10, 7), (7, 5), (5, 6)]
    for example in range(2):
        one_hot = (label_scale or 6**0.5) * np.eye(4)[LABEL[example]]
        hidden = np.concatenate([2 * np.ravel(X[example]) - 1, one_hot])
        for layer in layers[:-1]:
            hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
        expected = hidden @ layers[-1]["kernel"] + layers[-1]["bias"]
        found = np.ravel(directions[example])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_paper_s_network_has_three_layers_of_300_units(key):
    variables = jax.eval_shape(models.attack_network().init, key)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == (
        (784 + 10) * 300 + 300 + 2 * (300 * 300 + 300) + 300 * 784 + 784
    )


def test_leading_axes_are_free_and_every_label_has_its_own_direction(key):
    apply = jax.jit(functools.partial(DENSE.apply, INIT(key)))
    x = np.random.default_rng(1).uniform(size=(2, 3, *SHAPE)).astype(np.float32)
    label = np.int32([[0, 1, 2], [2, 0, 1]])
    direction = np.asarray(apply(x, label))
    chex.assert_equal_shape([direction, x])
    np.testing.assert_allclose(apply(x[1, 2], label[1, 2]), direction[1, 2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(x[1], label[1]), direction[1], rtol=1e-4, atol=1e-5)
    same = np.asarray(apply(np.broadcast_to(x[0, 0], (3, *SHAPE)), np.arange(3, dtype=np.int32)))
    assert np.abs(same[0] - same[1]).max() > 1e-3 < np.abs(same[1] - same[2]).max()


def test_dropout_acts_in_training_with_a_key_alone(key):
    variables = INIT(key)
    plain = jax.jit(DENSE.apply)(variables, X, LABEL)
    train = jax.jit(functools.partial(DENSE.apply, variables, X, LABEL, train=True))
    without, same = train()
    np.testing.assert_allclose(without, plain, rtol=1e-6)
    chex.assert_trees_all_equal(same, variables)
    first, second = (np.asarray(train(key=jax.random.key(seed))[0]) for seed in (2, 3))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, train(key=jax.random.key(2))[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.attack_network(0), "num_classes must be a whole number of at least 1"),
        (lambda: models.attack_network(hidden=(3, 0)), "hidden must be a whole number"),
        (lambda: models.attack_network(dropout=1.0), "dropout must be in [0, 1), got 1.0"),
        (lambda: models.attack_network(label_scale=0.0), "label_scale must be positive, got 0.0"),
        (
            lambda: DENSE.apply({}, jnp.ones((2, 2, 3, 1)), jnp.ones(2, int)),
            "x must have shape [2, 3, 2, 1], got [2, 2, 3, 1]",
        ),
        (
            lambda: DENSE.apply({}, jnp.ones((2, 1)), jnp.ones(2, int)),
            "x must have shape [3, 2, 1]",
        ),
        (
            lambda: DENSE.apply({}, jnp.ones((2, *SHAPE)), jnp.array(1)),
            "label must have shape [2], got []",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_compiled_or_not_on_any_device_a_key_drops_the_same_units(self):
        key, variables = jax.random.key(2), INIT(jax.random.key(0))

        def train(variables, x, label, key):
            return DENSE.apply(variables, x, label, train=True, key=key)[0]

        found = self.variant(train)(variables, X, LABEL, key)
        want = jax.jit(train)(variables, X, LABEL, key)
        chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-6)
