"""The classifiers of Hamm 2018: their layers written out, their pooling against JAX's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.models.plain_cnn import max_pool


def by_window(x, window):
    shape, stride = (1, window, window, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, stride, "SAME")


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 4), (5, 9)])
def test_pooling_by_slices_is_the_windowed_maximum_and_so_is_its_gradient(window, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)

    @jax.jit
    def pooled(x):
        def of(pool):
            y, pull = jax.vjp(lambda x: pool(x, window), x)
            return y, *pull(jnp.cos(y))

        return of(max_pool), of(by_window)

    (y, gradient), (want, slope) = pooled(x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


@pytest.mark.parametrize("window", [2, 3])
def test_relu_after_pooling_has_the_gradient_of_relu_before_it_equal_pixels_and_zeros_included(
    window,
):
    x = np.random.default_rng(0).integers(-2, 3, (4, 7, 8, 3)).astype(np.float32)

    @jax.jit
    def both(x):
        def of(network):
            y, pull = jax.vjp(network, x)
            return y, *pull(jnp.cos(y))

        return (
            of(lambda x: jax.nn.relu(max_pool(x, window))),
            of(lambda x: max_pool(jax.nn.relu(x), window)),
        )

    after, before = both(x)
    chex.assert_trees_all_equal(after, before)


def conv(x, layer):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    return jax.nn.relu(y + layer["bias"].reshape(1, 1, 1, -1))


@pytest.mark.parametrize(
    ("make", "shape", "window", "num_dense"),
    [(models.mnist_cnn, (7, 8, 1), 2, 2), (models.cifar_cnn, (8, 6, 3), 3, 3)],
)
def test_the_network_is_two_convolutions_and_dense_layers_on_pixels_in_minus_one_to_one(
    make, shape, window, num_dense, key
):
    model = make(4, 2, input_shape=shape)
    images = np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)

    @jax.jit
    def answers(key):
        variables = jax.tree.map(lambda leaf: leaf + 0.1, model.init(key))
        params = variables["params"]
        x = 2 * images - 1
        for i in range(2):
            x = by_window(conv(x, params[f"Conv_{i}"]), window)
        x = x.reshape(3, -1)
        for i in range(num_dense):
            layer = params[f"Dense_{i}"]
            x = x @ layer["kernel"] + layer["bias"][None]
            x = jax.nn.relu(x) if i < num_dense - 1 else x
        return x, model.apply(variables, images), model.apply(variables, images, train=True)

    want, logits, (in_training, new) = answers(key)
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(in_training, want, rtol=1e-4, atol=1e-5)
    assert set(new) == {"params"}


@pytest.mark.parametrize(
    ("model", "number"),
    # 5 x 5 convolutions and dense layers, biases included.
    [
        (models.mnist_cnn(), 832 + 51_264 + (7 * 7 * 64 + 1) * 512 + 513 * 10),
        (models.cifar_cnn(), 4_864 + 102_464 + (8 * 8 * 64 + 1) * 384 + 385 * 192 + 193 * 10),
    ],
)
def test_there_are_as_many_parameters_as_in_the_paper_s_networks(model, number):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == number


def test_sizes_below_one_are_refused():
    for make in (models.mnist_cnn, models.cifar_cnn):
        with pytest.raises(ValueError, match="width must be a whole number of at least 1, got 0"):
            make(10, 0)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, with_pmap=True)
    def test_compiled_for_one_device_or_all_an_image_has_the_logits_that_it_has_in_a_batch(self):
        model = models.cifar_cnn(4, 2, input_shape=(7, 8, 1))
        variables = jax.jit(model.init)(jax.random.key(0))
        images = np.random.default_rng(1).uniform(size=(3, 7, 8, 1)).astype(np.float32)
        logits = self.variant(model.apply)(variables, images)
        one = jax.jit(model.apply)
        one_by_one = np.stack([one(variables, image) for image in images])
        np.testing.assert_allclose(logits, one_by_one, rtol=1e-4, atol=1e-5)
