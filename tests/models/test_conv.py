"""The three bilinear maps against JAX's own convolution and its derivatives."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from mixjax.models import conv

LAYOUT = ("NHWC", "HWIO", "NHWC")
WINDOWS = {
    "3x3": ((3, 3), (1, 1), "SAME"),
    "3x3 stride 2": ((3, 3), (2, 2), "SAME"),
    "3x3 stride 2 padded as in a residual block": ((3, 3), (2, 2), ((1, 1), (1, 1))),
    "1x1 stride 2": ((1, 1), (2, 2), "SAME"),
    "2x5 strides 1, 3 valid": ((2, 5), (1, 3), "VALID"),
    "4x3 strides 3, 2 uneven padding": ((4, 3), (3, 2), ((2, 1), (0, 4))),
    "3x2 cropped by negative padding": ((3, 2), (2, 1), ((-1, 2), (1, -2))),
}
MAPS = ["convolution", "input gradient", "kernel gradient"]
MAPPED = [(0, None), (None, 0), (0, 0), (2, 1), (None, 3)]


def close(actual, expected, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(abs(b).max()))


def arrays(kernel=(3, 2), batch=2, image=(7, 9), features=(3, 4)):
    return drawn((batch, *image, features[0]), (*kernel, *features))


def drawn(*shapes):
    random = np.random.default_rng(0)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def bind(convolution, strides=(2, 1), padding=((1, 2), (0, 1))):
    return lambda x, w: convolution(x, w, strides, padding, dimension_numbers=LAYOUT)


def bilinear(name, convolution, x, w):
    """The map of that name as a function of two arrays, and shapes of the two."""
    f = bind(convolution)
    y = jax.eval_shape(f, x, w).shape
    return {
        "convolution": (f, (x.shape, w.shape)),
        "input gradient": (
            lambda y, w: jax.vjp(lambda x: f(x, w), jnp.ones(x.shape))[1](y)[0],
            (y, w.shape),
        ),
        "kernel gradient": (
            lambda x, y: jax.vjp(lambda w: f(x, w), jnp.ones(w.shape))[1](y)[0],
            (x.shape, y),
        ),
    }[name]


@pytest.mark.parametrize(("features", "num_images"), [(8, 8), (16, 8), (24, 2)])
def test_kernel_gradients_of_few_features_take_eight_images_at_a_time(features, num_images):
    x, y = jnp.ones((64, 28, 28, 8)), jnp.ones((64, 28, 28, features))
    w = jax.ShapeDtypeStruct((3, 3, 8, features), x.dtype)
    convolution = bind(conv.unrolled, (1, 1), "SAME")
    gradient = jax.linear_transpose(lambda w: convolution(x, w), w)
    text = jax.jit(gradient).lower(y).as_text()
    assert f"tensor<{64 // num_images - 1}x{num_images}x28x28x8x" in text


# On several cores only those of one pixel at a time are computed in another way.
@pytest.mark.parametrize(("window", "cores"), [*((name, 1) for name in WINDOWS), ("3x3", 2)])
def test_value_and_derivatives_of_three_orders_are_those_of_lax(window, cores, monkeypatch):
    monkeypatch.setattr(conv, "cores", lambda: cores)
    monkeypatch.setattr(conv, "_FEWEST_FOR_EIGEN", 0)
    kernel, strides, padding = WINDOWS[window]
    x, w = arrays(kernel)

    @jax.jit
    def everything(x, w):
        return [all_orders(bind(c, strides, padding), x, w) for c in (conv.unrolled, conv.grouped)]

    close(*everything(x, w))


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 2)), ((0, 3), (-1, 2))], ids=str)
def test_of_short_rows_products_with_bands_have_the_same_derivatives(padding, strides):
    x, w = arrays((3, 2))

    @jax.jit
    def both(x, w):
        return [all_orders(bind(c, strides, padding), x, w) for c in (conv.banded, conv.grouped)]

    close(*both(x, w))


@pytest.mark.parametrize(
    ("changed", "forward", "backward"),
    [
        ({}, 0, 0),
        ({"features": (1, 16)}, 0, 1),  # 128 numbers in a row of the result
        ({"features": (16, 1)}, 1, 0),
        ({"features": (16, 16)}, 1, 1),
        ({"strides": (1, 2)}, 0, 0),
        ({"strides": (2, 1)}, 0, 0),
        ({"kernel": (1, 1), "padding": ((0, 0), (0, 0))}, 1, 1),
        ({"padding": ((-1, 1), (1, 1))}, 1, 0),
        ({"dtype": jnp.bfloat16}, 1, 1),
        ({"convolution": conv.unrolled}, 1, 1),
    ],
    ids=range(10),  # the same in every process of the suite, as an address is not
)
def test_short_rows_alone_are_multiplied_by_bands(changed, forward, backward):
    settings = {"strides": (1, 1), "padding": ((1, 1), (1, 1))} | changed
    channels, features = settings.pop("features", (8, 8))
    dtype = settings.pop("dtype", jnp.float32)
    x = jax.ShapeDtypeStruct((4, 8, 8, channels), dtype)
    w = jax.ShapeDtypeStruct((*settings.pop("kernel", (3, 3)), channels, features), dtype)
    f = bind(settings.pop("convolution", conv.banded), **settings)
    y = jax.eval_shape(f, x, w)
    gradient = jax.jit(lambda w, y: jax.linear_transpose(lambda x: f(x, w), x)(y)[0])
    for lowered, expected in ((jax.jit(f).lower(x, w), forward), (gradient.lower(w, y), backward)):
        assert lowered.as_text().count("stablehlo.convolution") == expected


@pytest.mark.parametrize(
    ("cores", "changed", "rows"),
    [
        (2, {}, 8),
        (2, {"kernel": (4, 3), "padding": ((3, 0), (0, 0))}, 8),
        (2, {"batch": 14794}, 7),
        (1, {}, 7),
        (2, {"strides": (1, 2)}, 7),
        (2, {"padding": ((0, 1), (1, 1))}, 6),
        (2, {"dtype": jnp.bfloat16}, 7),
    ],
)
def test_on_several_cores_one_more_row_keeps_same_convolutions_from_ynnpack(
    cores, changed, rows, monkeypatch
):
    monkeypatch.setattr(conv, "cores", lambda: cores)
    settings = {"kernel": (3, 3), "strides": (1, 1), "padding": ((1, 1), (1, 1))} | changed
    batch, dtype = settings.pop("batch", 14980), settings.pop("dtype", jnp.float32)
    x = jax.ShapeDtypeStruct((batch, 7, 9, 24), dtype)
    w = jax.ShapeDtypeStruct((*settings.pop("kernel"), 24, 4), dtype)
    f = bind(conv.unrolled, **settings)
    y = jax.eval_shape(f, x, w)
    gradient = jax.jit(lambda x, w, y: jax.vjp(lambda x: f(x, w), x)[1](y)[0])
    for program, expected in (
        (jax.jit(f).lower(x, w), rows),
        (gradient.lower(x, w, y), 7 + (rows == 8)),
    ):
        (line,) = [each for each in program.as_text().split("\n") if "stablehlo.conv" in each]
        assert re.search(rf"-> tensor<{batch}x(\d+)x", line)[1] == str(expected)


def all_orders(f, x, w):
    """Value, first, second and third derivatives of a function that mixes all three maps."""

    def first(x, w):
        return jax.grad(lambda *xw: jnp.sin(f(*xw)).sum(), (0, 1))(x, w)

    def second(x, w):
        return jax.grad(lambda *xw: sum((g**2).sum() for g in first(*xw)), (0, 1))(x, w)

    third = jax.grad(lambda *xw: sum(jnp.cos(g / 10).sum() for g in second(*xw)), (0, 1))
    return f(x, w), first(x, w), second(x, w), third(x, w)


@pytest.mark.parametrize("axes", MAPPED, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_mapped_over_either_argument_or_both_it_equals_a_loop(name, axes):
    x, w = arrays()
    f, shapes = bilinear(name, conv.unrolled, x, w)
    reference, _ = bilinear(name, conv.grouped, x, w)
    size = 3
    arguments = drawn(
        *(
            shape if axis is None else (*shape[:axis], size, *shape[axis:])
            for shape, axis in zip(shapes, axes, strict=True)
        )
    )

    def element(i):
        return [
            a if axis is None else np.take(a, i, axis)
            for a, axis in zip(arguments, axes, strict=True)
        ]

    @jax.jit
    def both():
        loop = [reference(*element(i)) for i in range(size)]
        return jax.vmap(f, axes)(*arguments), jnp.stack(loop)

    close(*both())


ROUTES = {"unrolled": conv.unrolled, "scanned": conv.scanned, "banded": conv.banded}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("name", MAPS)
def test_examples_around_members_and_members_around_examples(name, route):
    """Three examples each of the first argument, two members each of both."""
    x, w = arrays()
    f, shapes = bilinear(name, route, x, w)
    reference, _ = bilinear(name, conv.grouped, x, w)
    first, second = drawn((3, 2, *shapes[0]), (2, *shapes[1]))
    members_inside = jax.vmap(jax.vmap(f), (0, None))
    members_outside = jax.vmap(jax.vmap(f, (0, None)), (1, 0), 1)

    @jax.jit
    def all_three(first, second):
        loop = [[reference(first[e, m], second[m]) for m in range(2)] for e in range(3)]
        loop = jnp.stack([jnp.stack(members) for members in loop])
        return members_inside(first, second), members_outside(first, second), loop

    inside, outside, loop = all_three(first, second)
    close(inside, loop)
    close(outside, loop)


@pytest.mark.parametrize("batch", [5, 6])
def test_kernel_gradient_of_a_batch_too_large_for_the_cache(batch):
    """32 x 32 pixels: parts of two examples, or of one where the batch is odd."""
    x, w = arrays((3, 3), batch, (32, 32), (2, 3))
    (y,) = drawn((batch, 32, 32, 3))

    def gradient(convolution):
        f = bind(convolution, (1, 1), "SAME")
        return jax.jit(lambda x, y: jax.vjp(lambda w: f(x, w), w)[1](y)[0])(x, y)

    close(gradient(conv.unrolled), gradient(conv.grouped))


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_group_count": 3},
        {"rhs_dilation": (2, 1)},
        {"lhs_dilation": (1, 2)},
        {"dimension_numbers": ("NWHC", "WHIO", "NWHC")},
        {"batch_group_count": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_everything_else_is_left_to_lax(settings):
    features = 1 if "feature_group_count" in settings else 3
    x, _ = arrays()
    (w,) = drawn((3, 2, features, 6))
    settings = {"dimension_numbers": LAYOUT, **settings}
    actual = conv.unrolled(x, w, (1, 2), ((1, 0), (2, 1)), **settings)
    expected = lax.conv_general_dilated(x, w, (1, 2), ((1, 0), (2, 1)), **settings)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_bfloat16_stays_bfloat16_in_all_three_maps():
    x, w = (a.astype(jnp.bfloat16) for a in arrays())

    def maps(x, w):
        y, pullback = jax.vjp(bind(conv.unrolled), x, w)
        return y, *pullback(y)

    assert {a.dtype for a in jax.jit(maps)(x, w)} == {jnp.dtype(jnp.bfloat16)}
    asked = conv.unrolled(
        x, w, (1, 1), "SAME", dimension_numbers=LAYOUT, preferred_element_type=jnp.float32
    )
    assert asked.dtype == jnp.float32


def test_flax_takes_it_as_its_convolution(key):
    x, _ = arrays()
    own = nn.Conv(4, (3, 2), (2, 1), conv_general_dilated=conv.unrolled)
    variables = jax.jit(own.init)(key, x)
    close(*jax.jit(lambda: [c.apply(variables, x) for c in (own, nn.Conv(4, (3, 2), (2, 1)))])())


def test_a_batch_without_examples_gives_none():
    _, w = arrays()
    assert bind(conv.unrolled)(jnp.zeros((0, 7, 9, 3)), w).shape == (0, 4, 9, 4)


@pytest.mark.parametrize("name", MAPS)
def test_the_slopes_of_each_map_are_those_of_finite_differences(name):
    """Of first and second order, forwards and backwards."""
    f, shapes = bilinear(name, conv.unrolled, *arrays(image=(4, 3), features=(2, 1)))
    chex.assert_numerical_grads(jax.jit(f), drawn(*shapes), order=2, rtol=0.01)


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_it_is_that_of_lax(self):
        x, w = arrays()
        actual = self.variant(bind(conv.unrolled))(x, w)
        close(actual, bind(conv.grouped)(x, w))
