"""Convolutions as one matrix product, against JAX's own, and where they take over on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.models import conv, im2col

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {  # shape, kernel, features, strides, padding
    "3x3, stride 2": ((6, 30, 32, 32), (3, 3), 40, (2, 2), ((0, 1), (0, 1))),
    "1x1, stride 2": ((4, 8, 6, 32), (1, 1), 33, (2, 2), ((0, 0), (0, 0))),
    "5x5": ((2, 7, 8, 32), (5, 5), 32, (1, 1), ((2, 2), (2, 2))),
    "4x3, uneven borders": ((6, 7, 8, 32), (4, 3), 34, (1, 1), ((1, 3), (0, 2))),
    "5x3, strides 1 and 3": ((3, 9, 10, 34), (5, 3), 32, (1, 3), ((1, 3), (0, 2))),
    "5x5 of one channel": ((6, 14, 14, 1), (5, 5), 16, (1, 1), ((2, 2), (2, 2))),
    "3x3 of three channels": ((16, 16, 20, 3), (3, 3), 8, (1, 1), ((1, 1), (1, 1))),
}
ELSEWHERE = {
    "few channels": {"shape": (6, 30, 32, 31)},
    "few features": {"features": 31},
    "cropped": {"padding": ((-1, 1), (0, 1))},
    "float16": {"dtype": jnp.float16},
}
WIDE_BORDERS = {
    "rows": {"padding": ((5, 2), (2, 2))},
    "columns": {"padding": ((2, 2), (2, 5))},
}
TOO_WIDE = {
    "channels": {"shape": (6, 14, 14, 2)},
    "features": {"features": 17},
    "small": {"shape": (6, 13, 14, 1)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_of_whole_numbers_it_is_exact(case):
    shape, kernel, features, strides, padding = case
    random = np.random.default_rng(0)

    def integers(*shape):
        return random.integers(-4, 5, shape).astype(np.float32)

    x, w = integers(*shape), integers(*kernel, shape[-1], features)

    def ours(x, w):
        return conv.unrolled(x, w, strides, padding, dimension_numbers=LAYOUT)

    def theirs(x, w):
        return conv.grouped(x, w, strides, padding, dimension_numbers=LAYOUT)

    @jax.jit
    def everything(x, w, y):
        found = im2col.convolve(x, w, strides, padding)
        kernels = im2col.kernel_gradient(x, y, kernel, strides, padding)
        want, pull_back = jax.vjp(theirs, x, w)
        return (found, kernels, ours(x, w), *jax.vjp(ours, x, w)[1](y)), (want, *pull_back(y))

    y = integers(*jax.eval_shape(theirs, x, w).shape)
    (found, kernels, *of_ours), (want, x_gradient, w_gradient) = everything(x, w, y)
    for each in (found, of_ours[0]):
        np.testing.assert_array_equal(each, want)
    for each in (kernels, of_ours[2]):
        np.testing.assert_array_equal(each, w_gradient)
    np.testing.assert_array_equal(of_ours[1], x_gradient)


def programs(shape, kernel, features, strides, padding, dtype=jnp.float32):
    """Whether the convolution and its kernel gradient are matrix products in a program."""
    x = jax.ShapeDtypeStruct(shape, dtype)
    w = jax.ShapeDtypeStruct((*kernel, shape[-1], features), dtype)

    def f(x, w):
        return conv.unrolled(x, w, strides, padding, dimension_numbers=LAYOUT)

    gradient = jax.jit(lambda x, w, y: jax.vjp(lambda w: f(x, w), w)[1](y)[0])
    lowered = jax.jit(f).lower(x, w), gradient.lower(x, w, jax.eval_shape(f, x, w))
    return ["stablehlo.convolution(" not in each.as_text() for each in lowered]


def test_it_takes_over_where_it_is_faster():
    names = "shape", "kernel", "features", "strides", "padding"
    strided, narrow = (
        dict(zip(names, CASES[name], strict=True))
        for name in ("3x3, stride 2", "5x5 of one channel")
    )
    assert programs(**strided) == [True, True]
    assert programs((6, 31, 32, 32), (3, 3), 40, (1, 1), ((1, 1), (1, 1))) == [False, True]
    for changed in ELSEWHERE.values():
        assert programs(**strided | changed) == [False, False]
    assert programs(**narrow) == [True, False]
    for changed in TOO_WIDE.values():
        assert programs(**narrow | changed) == [False, False]
    moves_by_one = dict(zip(names, CASES["5x5"], strict=True))
    assert programs(**moves_by_one) == [False, True]
    for changed in (ELSEWHERE | WIDE_BORDERS).values():
        assert programs(**moves_by_one | changed) == [False, False]
