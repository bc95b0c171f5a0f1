"""Winograd's products for kernels that move by two, against JAX's own convolution."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from mixjax.models import conv, winograd, winograd_strided

LAYOUT = ("NHWC", "HWIO", "NHWC")
PADDINGS = [((0, 1), (0, 1)), ((1, 1), (1, 1)), ((1, 0), (0, 1))]
HERE = {"shape": (4, 16, 16, 32), "features": 34, "padding": ((1, 1), (0, 1))}
ELSEWHERE = {
    "height": {"shape": (4, 18, 16, 32)},
    "width": {"shape": (4, 16, 18, 32)},
    "few channels": {"shape": (4, 16, 16, 31)},
    "few features": {"features": 31},
    "few pixels": {"shape": (3, 16, 16, 32)},
    "padding": {"padding": ((1, 2), (1, 1))},
    "no padding": {"padding": ((0, 0), (1, 1))},
    "5x3": {"kernel": (5, 3)},
    "strides": {"strides": (1, 2)},
    "bfloat16": {"dtype": jnp.bfloat16},
    "asked for a precision": {"precision": jax.lax.Precision.HIGHEST},
}


def strided(convolution, x, w, padding, strides=(2, 2), precision=None):
    return convolution(x, w, strides, padding, dimension_numbers=LAYOUT, precision=precision)


def integers(*shape):
    return np.random.default_rng(sum(shape)).integers(-8, 9, shape).astype(np.float32)


def maps(convolution, x, w, y, padding):
    """The convolution and its two gradients."""
    out, pull_back = jax.vjp(lambda x, w: strided(convolution, x, w, padding), x, w)
    return out, *pull_back(y)


@pytest.mark.parametrize("most", [2**21, 2 * 8 * 12 * 5], ids=["one part", "three parts"])
@pytest.mark.parametrize("padding", PADDINGS, ids=["behind", "around", "mixed"])
def test_of_whole_numbers_it_is_exact(padding, most, monkeypatch):
    """Nothing is rounded, so that every tile, its first and last ones too, is told apart."""
    monkeypatch.setattr(winograd, "_NUMBERS_OF_A_PART", most)
    x, w, y = integers(6, 8, 12, 5), integers(3, 3, 5, 7), integers(6, 4, 6, 7)

    @jax.jit
    def both(x, w, y):
        found = (
            winograd_strided.convolve(x, w, padding),
            winograd_strided.input_gradient(y, w, padding),
            winograd_strided.kernel_gradient(x, y, padding),
        )
        return found, maps(conv.grouped, x, w, y, padding)

    for found, want in zip(*both(x, w, y), strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("changed", [{}, *ELSEWHERE.values()], ids=["here", *ELSEWHERE])
def test_it_takes_over_where_it_is_faster(changed):
    settings = {"kernel": (3, 3), "dtype": jnp.float32, **HERE, **changed}
    dtype = settings.pop("dtype")
    x = jax.ShapeDtypeStruct(settings.pop("shape"), dtype)
    kernel = (*settings.pop("kernel"), x.shape[3], settings.pop("features"))
    w = jax.ShapeDtypeStruct(kernel, dtype)

    def f(x, w):
        return strided(conv.unrolled, x, w, **settings)

    y = jax.eval_shape(f, x, w)
    programs = [
        jax.jit(f).lower(x, w),
        *(jax.jit(lambda x, w, y, i=i: jax.vjp(f, x, w)[1](y)[i]).lower(x, w, y) for i in range(2)),
    ]
    # Nine products of the terms and one of the kernel's sums.
    assert [each.as_text().count("dot_general") == 10 for each in programs] == [not changed] * 3


def test_rounding_is_a_millionth_of_the_largest_value(key):
    x, w = jax.random.normal(key, (16, 8, 8, 256)), jax.random.normal(key, (3, 3, 256, 256))
    y, padding = jax.random.normal(key, (16, 4, 4, 256)), ((1, 1), (1, 1))
    found = jax.jit(lambda *args: [maps(f, *args, padding) for f in (conv.unrolled, conv.grouped)])
    for actual, want in zip(*found(x, w, y), strict=True):
        assert 0 < float(abs(actual - want).max() / abs(want).max()) < 3e-6


def test_a_loop_over_images_carries_the_sums_of_the_kernel_apart():
    """Or it would copy the parts of one array in each turn."""
    x, w, padding = jnp.ones((4, 16, 16, 32)), jnp.ones((3, 3, 32, 32)), ((1, 1), (1, 1))

    def loop(x, w):
        def turn(_, x):
            y, pull_back = jax.vjp(lambda x: strided(conv.unrolled, x, w, padding), x)
            return pull_back(y)[0]

        return jax.lax.fori_loop(0, 3, turn, x)

    compiled = jax.jit(loop).lower(x, w).compile().as_text()
    (carried,) = re.findall(r"= \((.*)\) while\(", compiled)
    assert "f32[4,32,32]" in carried
    assert "f32[25," not in carried


def test_derivatives_of_both_modes_and_of_second_order_are_those_of_lax(key):
    x, w = jax.random.normal(key, HERE["shape"]), jax.random.normal(key, (3, 3, 32, 34)) / 20

    @jax.jit
    def everything(x, w):
        def of(convolution):
            f = lambda x, w: strided(convolution, x, w, HERE["padding"])  # noqa: E731

            def penalty(x, w):
                return (jax.grad(lambda x: jnp.sin(f(x, w)).sum())(x) ** 2).sum()

            return jax.jvp(f, (x, w), (jnp.cos(x), jnp.cos(w))), jax.grad(penalty, (0, 1))(x, w)

        return of(conv.unrolled), of(conv.grouped)

    for actual, want in zip(*map(jax.tree.leaves, everything(x, w)), strict=True):
        np.testing.assert_allclose(actual, want, rtol=0, atol=1e-5 * float(abs(want).max()))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=["stride 1", "stride 2"])
def test_a_program_for_any_number_of_images_is_left_to_lax(strides):
    """There are no parts of an unknown number of images."""
    w = integers(3, 3, 32, 32)

    def f(x):
        return jax.vjp(lambda x, w: strided(conv.unrolled, x, w, PADDINGS[1], strides), x, w)

    def all_maps(x):
        out, pull_back = f(x)
        return out, *pull_back(out)

    (size,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((size, 8, 8, 32), jnp.float32)
    program = export.export(jax.jit(all_maps), platforms=["cpu"])(shape)
    x = integers(16, 8, 8, 32)
    for found, want in zip(program.call(x), jax.jit(all_maps)(x), strict=True):
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * float(abs(want).max()))


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_it_is_exact(self):
        x, w = integers(2, 4, 8, 5), integers(3, 3, 5, 7)
        convolve = self.variant(winograd_strided.convolve, static_argnums=2)
        want = jax.jit(lambda x, w: strided(conv.grouped, x, w, PADDINGS[1]))(x, w)
        np.testing.assert_array_equal(convolve(x, w, PADDINGS[1]), want)
