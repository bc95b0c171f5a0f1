"""Winograd's convolution against JAX's own, and where it takes over on a CPU."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mixjax.models import conv, winograd

LAYOUT = ("NHWC", "HWIO", "NHWC")
SAME = {"shape": (8, 4, 8, 32), "kernel": (3, 3), "features": 34, "strides": (1, 1)}
ELSEWHERE = {
    "odd height": {"shape": (8, 5, 8, 32)},
    "odd width": {"shape": (8, 4, 9, 32)},
    "few channels": {"shape": (8, 4, 8, 31)},
    "few features": {"features": 31},
    "few pixels": {"shape": (7, 4, 8, 32)},
    "few pixels at a time": {"shape": (337, 14, 14, 32)},
    "5x3": {"kernel": (5, 3)},
    "stride 2": {"strides": (1, 2)},
    "padding": {"padding": ((1, 1), (0, 2))},
    "bfloat16": {"dtype": jnp.bfloat16},
    "asked for a precision": {"precision": lax.Precision.HIGHEST},
}


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    monkeypatch.setattr(conv, "cores", lambda: 1)


def same(convolution, x, w):
    return convolution(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)


def integers(key, shape):
    return jax.random.randint(key, shape, -8, 9).astype(jnp.float32)


def arrays(key, shape=SAME["shape"], features=SAME["features"], draw=jax.random.normal):
    return draw(key, shape), draw(jax.random.fold_in(key, 1), (3, 3, shape[-1], features))


def input_gradient(convolution, x, w, y):
    return jax.vjp(lambda x: same(convolution, x, w), x)[1](y)[0]


def kernel_gradient(convolution, x, w, y):
    return jax.vjp(lambda w: same(convolution, x, w), w)[1](y)[0]


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (6, 32, 32, 3)], ids=["one part", "three parts"])
def test_of_whole_numbers_it_is_exact(key, shape):
    """Halves and quarters of small whole numbers are float32 numbers: nothing is rounded."""
    random = np.random.default_rng(0)
    sizes = shape, (3, 3, shape[-1], 7), (*shape[:-1], 7)
    x, w, y = (random.integers(-8, 9, size).astype(np.float32) for size in sizes)

    @jax.jit
    def both(x, w, y):
        found = winograd.convolve(x, w), winograd.convolve(y, w, transposed=True)
        found += (winograd.kernel_gradient(x, y),)
        gradients = jax.vjp(lambda *args: same(conv.grouped, *args), x, w)[1](y)
        return found, (same(conv.grouped, x, w), *gradients)

    for found, want in zip(*both(x, w, y), strict=True):
        np.testing.assert_array_equal(found, want)


def test_rounding_is_a_millionth_of_the_largest_value(key):
    x, w = arrays(key, (16, 4, 4, 512), 512)
    for actual, expected in (
        (same(conv.unrolled, x, w), same(conv.grouped, x, w)),
        (input_gradient(conv.unrolled, x, w, x), input_gradient(conv.grouped, x, w, x)),
        (kernel_gradient(conv.unrolled, x, w, x), kernel_gradient(conv.grouped, x, w, x)),
    ):
        error = float(abs(actual - expected).max() / abs(expected).max())
        assert 0 < error < 3e-6


@pytest.mark.parametrize("changed", [{}, *ELSEWHERE.values()], ids=["here", *ELSEWHERE])
def test_it_takes_over_where_it_is_faster(changed):
    settings = {**SAME, "padding": ((1, 1), (1, 1)), "dtype": jnp.float32, **changed}
    shape, kernel, features, strides, padding, dtype = map(settings.pop, [*settings][:6])
    x = jax.ShapeDtypeStruct(shape, dtype)
    w = jax.ShapeDtypeStruct((*kernel, shape[-1], features), dtype)

    def f(x, w):
        return conv.unrolled(x, w, strides, padding, dimension_numbers=LAYOUT, **settings)

    assert by_winograd(f, x, w) == [not changed] * 3


def by_winograd(f, x, w):
    """Whether the convolution, its input gradient and its kernel gradient go by Winograd."""
    y = jax.eval_shape(f, x, w)
    gradients = [
        jax.jit(lambda x, w, y, place=place: jax.vjp(f, x, w)[1](y)[place]) for place in range(2)
    ]
    programs = jax.jit(f).lower(x, w), *(each.lower(x, w, y) for each in gradients)
    texts = [program.as_text() for program in programs]  # sixteen products, or one of sixteen
    return ["batching_dims" in text or text.count("dot_general") >= 16 for text in texts]


def test_a_convolution_and_its_gradient_share_the_sums_of_the_kernel(key):
    """Three matrix products: the kernel's sums once, the convolution and the input gradient."""
    x, w = arrays(key)

    def value_and_gradient(x, w):
        y, pull_back = jax.vjp(lambda x: same(conv.unrolled, x, w), x)
        return y, pull_back(y)

    compiled = jax.jit(value_and_gradient).lower(x, w).compile().as_text()
    assert compiled.count(" dot(") == 3


def test_a_loop_over_images_reads_each_sum_of_the_kernel_and_copies_none(key):
    """The loop carries sixteen arrays in place of one, whose parts it would copy each turn."""
    x, w = arrays(key, (8, 32, 32, 32), 32)

    def loop(x, w):
        return lax.fori_loop(0, 3, lambda _, x: same(conv.unrolled, x, w), x)

    compiled = jax.jit(loop).lower(x, w).compile().as_text()
    (carried,) = re.findall(r"= \((.*)\) while\(", compiled)
    assert carried.count("f32[32,32]") == 16
    assert "f32[16,32,32]" not in carried


def test_sums_that_are_not_finite_stay_what_they_are():
    sums = jnp.array([jnp.inf, -jnp.inf, jnp.nan, -0.0])
    chex.assert_trees_all_equal(jnp.stack(winograd.apart(sums)), sums)
    assert jnp.signbit(winograd.apart(sums)[3])


def test_derivatives_of_both_modes_and_of_second_order_are_those_of_lax(key):
    x, w = arrays(key)
    w = w / 30

    @jax.jit
    def everything(x, w):
        def of(convolution):
            def penalty(x, w):
                slope = jax.grad(lambda x: jnp.sin(same(convolution, x, w)).sum())(x)
                return (slope**2).sum()

            value = jax.jvp(lambda *xw: same(convolution, *xw), (x, w), (jnp.cos(x), jnp.cos(w)))
            return value, jax.grad(penalty, (0, 1))(x, w)

        return of(conv.unrolled), of(conv.grouped)

    for actual, expected in zip(*map(jax.tree.leaves, everything(x, w)), strict=True):
        tolerance = 1e-5 * float(abs(expected).max())
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("route", [conv.unrolled, conv.scanned], ids=["unrolled", "scanned"])
def test_members_and_examples_are_those_of_a_loop(key, route):
    """Two members on the same 8 images, one image at a time."""
    x, w = arrays(key, draw=integers)
    w = jnp.stack([w, w[::-1] + 1])
    members = jax.vmap(lambda x, w: same(route, x[None], w)[0], (None, 0))
    actual = jax.jit(jax.vmap(members, (0, None)))(x, w)
    for k in range(2):
        np.testing.assert_array_equal(actual[:, k], same(conv.grouped, x, w[k]))


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_it_is_exact(self):
        random = np.random.default_rng(0)
        sizes = (2, 4, 6, 5), (3, 3, 5, 7)
        x, w = (random.integers(-8, 9, size).astype(np.float32) for size in sizes)
        actual = self.variant(winograd.convolve)(x, w)
        want = jax.jit(lambda x, w: same(conv.grouped, x, w))(x, w)
        np.testing.assert_array_equal(actual, want)
