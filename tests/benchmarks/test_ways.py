"""The ways to compute a convolution, against XLA's and its derivatives."""

import jax
import numpy as np
import pytest

from benchmarks import convolutions, ways

LAYER = convolutions.Layer(2, 6, 3, 4, 5)
ARRAYS = convolutions.arrays_of(LAYER, 0)


@pytest.mark.parametrize("name", ways.WAYS)
def test_every_way_finds_the_convolution_and_both_gradients(name):
    x, w, y = ARRAYS
    result, back = jax.vjp(ways.by_xla, x, w)
    found = {key: np.asarray(call()) for key, call in ways.maps(ways.WAYS[name], ARRAYS).items()}
    for key, want in zip(ways.MAPS, (result, *back(y)), strict=True):
        got = found[key]
        if ways.WAYS[name] is ways.pixels_last:
            got = got.transpose((2, 3, 1, 0) if key == "kernel_gradient" else (0, 2, 3, 1))
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
