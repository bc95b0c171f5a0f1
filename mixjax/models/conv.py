"""A convolution that may be vmapped over its kernels: the member axis without grouped convolutions.

`jax.vmap` turns a convolution with mapped *kernels* into a grouped one, which is slow. Here the
convolution and its two derivatives are primitives of their own, three bilinear maps that are each
other's transposes:

    forward(x, w) -> y        input_gradient(y, w) -> x        kernel_gradient(x, y) -> w

Under `jax.vmap` an axis that the kernel does not carry is folded into the batch; any other is
looped over, one plain convolution per element. Which loop is the caller's choice: `unrolled`
(Python) or `scanned` (`lax.map`); `grouped` is JAX's own convolution, to compare with. `banded` is
`unrolled` with another product where rows are short, as those of digits are. All four take the
arguments of `lax.conv_general_dilated`, so that Flax takes them as
`nn.Conv(conv_general_dilated=unrolled)`. Forward and reverse mode work to any order. The lowering
decides how the maps are computed on a CPU: 3 x 3 kernels of many channels by `winograd`, or by
`winograd_strided` where they move by two; others that move by more than a pixel, narrow ones, and
kernel gradients of many channels by `im2col`; short rows, if asked for, by `bands`.
`benchmarks.convolutions` times each beside PyTorch's.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from mixjax.batch import cores
from mixjax.models import bands, chunks, im2col, winograd, winograd_strided
from mixjax.typing import Array

_LAYOUT = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO, NHWC
# What the convolutions of this file are worth: PGD-10 on a ResNet18 of width 64, batch 32, one
# member, two cores with AVX-512, took 11.0 images per second when `winograd` began at 256 channels,
# which is 257 GFLOP/s or 85 % of the rate of a plain matrix product there. With
# `lax.conv_general_dilated` inside the attack's loop it took 2.5, because XLA runs a convolution's
# gradient in a loop 5 to 25 times slower on a CPU; without Winograd's kernels 8.5; without the
# extra row of `_by_eigen` 7.9; without both 7.2. What it is today beside `torch.compile` is in
# results/attack_throughput-cpu.json, with `winograd` from 32 channels on, `winograd_strided`, and a
# whole batch at once: on one machine 4.1 seconds became 3.5 by the second, 3.1 by the third.
_LARGEST_UNROLLED = 16  # a longer axis holds examples, not members, and is always scanned
_FEWEST_FOR_EIGEN = 3 * 2**28  # multiplications; with fewer, YNNPACK on one core is as fast


class _Window(NamedTuple):
    """What a convolution is besides its two arrays; static and hashable."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    precision: Any
    loop: str


def _convolve(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    *,
    loop: str,
) -> Array:
    """As `lax.conv_general_dilated`, which does all but NHWC / HWIO without groups or dilation."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    # Only what our networks use has maps of its own; anything else, such as a dilated or a grouped
    # convolution of somebody's own network, is JAX's and stays correct.
    ours = (
        numbers == _LAYOUT
        and all(size == 1 for size in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
        and lhs.dtype == rhs.dtype
        and 0 not in (*lhs.shape, *rhs.shape)
    )
    if not ours:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    image, kernel = lhs.shape[1:3], rhs.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, kernel, window_strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    window = _Window(image, kernel, tuple(window_strides), padding, precision, loop)
    return _forward.bind(*_equally_varying(lhs, rhs), window=window)


unrolled = functools.partial(_convolve, loop="unrolled")
scanned = functools.partial(_convolve, loop="scanned")
# A choice of its own, since a training moves with the rounding of its convolutions: what was
# measured on digits was trained without.
banded = functools.partial(_convolve, loop="banded")
grouped = lax.conv_general_dilated


def _forward_formula(x, w, *, window):
    return lax.conv_general_dilated(
        x, w, window.strides, window.padding, None, None, _LAYOUT, precision=window.precision
    )


def _input_gradient_formula(y, w, *, window):
    """`y` spread out by the strides, convolved with the flipped kernel."""
    padding = [
        (size - 1 - low, image + low - 1 - (out - 1) * stride)
        for image, size, stride, (low, _), out in zip(
            window.image, window.kernel, window.strides, window.padding, y.shape[1:3], strict=True
        )
    ]
    # Written as a convolution in canonical form: as the transpose that JAX would derive, XLA's CPU
    # backend takes a slow path, and inside of a loop a very slow one.
    w = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    return lax.conv_general_dilated(
        y, w, (1, 1), padding, window.strides, None, _LAYOUT, precision=window.precision
    )


def _forward_on_cpu(x, w, *, window):
    if _by_bands(window, x) and min(side for pads in window.padding for side in pads) >= 0:
        return bands.convolve(x, w, window.strides, window.padding, window.precision)
    if not _is_counted(x):
        return _forward_formula(x, w, window=window)
    # The order matters: Winograd has fewer multiplications and wins wherever it applies.
    if _by_winograd(window, x, w.shape[3]):
        return winograd.convolve(x, w)
    if _by_winograd_strided(window, x, w.shape[3]):
        return winograd_strided.convolve(x, w, window.padding)
    if _by_im2col(window, x, w.shape[3], forward=True):
        return im2col.convolve(x, w, window.strides, window.padding, window.precision)
    if _by_eigen(window, x, w):
        (top, bottom), sides = window.padding
        # One more row of the result makes it larger than the image, which sends it to Eigen; the
        # row is cut off again. It costs `1 / height` more work and gains two cores instead of one.
        window = window._replace(padding=((top, bottom + 1), sides))
        return _forward_formula(x, w, window=window)[:, :-1]
    return _forward_formula(x, w, window=window)


def _input_gradient_on_cpu(y, w, *, window):
    if _by_bands(window, y):
        return bands.input_gradient(
            y, w, window.strides, window.padding, window.image, window.precision
        )
    if not _is_counted(y):
        return _input_gradient_formula(y, w, window=window)
    if _by_winograd(window, y, w.shape[2]):
        return winograd.convolve(y, w, transposed=True)
    if _by_winograd_strided(window, y, w.shape[2]):
        return winograd_strided.input_gradient(y, w, window.padding)
    if _by_eigen(window, y, w):
        height, width = window.image
        # The same trick for the gradient: it is asked for an image of one row more.
        window = window._replace(image=(height + 1, width))
        return _input_gradient_formula(y, w, window=window)[:, :-1]
    return _input_gradient_formula(y, w, window=window)


def _is_counted(images):
    """Whether their number is known, which it is not in a program that is exported for any."""
    return isinstance(images.shape[0], int)


def _by_bands(window, images):
    return (
        window.loop == "banded"
        and max(window.kernel) > 1  # of single pixels there is nothing to gain
        and images.dtype == jnp.float32
        and bands.suits(images.shape)
    )


def _by_winograd(window, images, features):
    return (
        window._replace(image=(), loop="")
        == _Window((), (3, 3), (1, 1), ((1, 1), (1, 1)), None, "")
        and images.dtype == jnp.float32
        and winograd.suits(images.shape, features)
    )


def _by_winograd_strided(window, images, features):
    """For images or results, of which there are as many at a time."""
    return (
        window.kernel == (3, 3)
        and window.strides == (2, 2)
        and window.precision is None
        and images.dtype == jnp.float32
        and winograd_strided.suits(
            (images.shape[0], *window.image, images.shape[3]), window.padding, features
        )
    )


def _by_im2col(window, images, features, *, forward=False):
    """Where neither Winograd nor XLA is as fast."""
    if window.strides != (1, 1):
        pays = im2col.suits(images.shape[3], features)
    else:
        pays = forward and im2col.is_narrow(window.kernel, images.shape, features)
    return (
        pays
        and images.dtype == jnp.float32
        and min(side for pads in window.padding for side in pads) >= 0
    )


def _by_copies_of_both(window, images, features):
    """For kernel gradients. Padding is at most what a pixel of the result can see."""
    return (
        window.strides == (1, 1)
        and min(window.kernel) > 1  # of single pixels the images themselves are the factors
        and im2col.suits(images.shape[3], features)
        and images.dtype == jnp.float32
        and all(
            0 <= side < size
            for pads, size in zip(window.padding, window.kernel, strict=True)
            for side in pads
        )
    )


def _by_eigen(window, images, w):
    """Whether one more row, which nobody reads, makes a convolution faster.

    XLA gives convolutions whose result is no larger than the image to YNNPACK, which leaves all
    cores but one idle on large images, and the others to Eigen, which takes all.
    """
    return (
        cores() > 1
        and window.strides == (1, 1)
        and sum(window.padding[0]) == window.kernel[0] - 1
        and images.dtype == jnp.float32
        # Below that many multiplications one core is as fast as two, and the row would only cost.
        and math.prod(images.shape[:3]) * w.size >= _FEWEST_FOR_EIGEN
    )


def _kernel_gradient_formula(x, y, *, window):
    """`x` convolved with `y`, the batch as the input channels."""
    padding = [
        (low, size - 1 - image - low + (out - 1) * stride + 1)
        for image, size, stride, (low, _), out in zip(
            window.image, window.kernel, window.strides, window.padding, y.shape[1:3], strict=True
        )
    ]
    w = lax.conv_general_dilated(
        # The batch takes the place of the input channels: sums over images become sums over
        # channels, and the kernel gradient is one more convolution in canonical form.
        x.transpose(3, 1, 2, 0),
        y.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        None,
        window.strides,
        _LAYOUT,
        precision=window.precision,
    )
    return w.transpose(1, 2, 0, 3)


def _kernel_gradient_on_cpu(x, y, *, window):
    formula = functools.partial(_kernel_gradient_formula, window=window)
    # Sixteen bits are too few to add up parts in.
    if jnp.finfo(x.dtype).bits < 32 or not _is_counted(x):
        return formula(x, y)
    if _by_winograd(window, x, y.shape[3]):
        return winograd.kernel_gradient(x, y)
    if _by_winograd_strided(window, x, y.shape[3]):
        return winograd_strided.kernel_gradient(x, y, window.padding)
    if _by_im2col(window, x, y.shape[3]):
        return im2col.kernel_gradient(
            x, y, window.kernel, window.strides, window.padding, window.precision
        )
    if _by_copies_of_both(window, x, y.shape[3]):
        return im2col.kernel_gradient_of_moves_by_one(
            x, y, window.kernel, window.padding, window.precision
        )
    # A whole batch of activations does not fit into the cache: the same sum over parts of it reads
    # them from there. Of few features XLA needs eight images at a time, its input channels here, to
    # be quick: 28 x 28 pixels, 8 channels and features took 22 milliseconds by two and 3 by eight.
    fewest = 8 if y.shape[3] <= 16 else 1
    chunk = chunks.images_in_cache(y.shape[0], math.prod(y.shape[1:3]), fewest=fewest)
    return chunks.total(formula, x, y, chunk)


def _primitive(name, formula, *, kernel, on_cpu=None):
    """A primitive for `formula`; argument number `kernel`, if any, is the one without a batch."""
    primitive = core.Primitive(f"mixjax_{name}")

    def batch(arguments, axes, *, window):
        arguments = [
            x if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arguments, axes, strict=True)
        ]
        mapped = [axis is not None for axis in axes]
        bind = functools.partial(primitive.bind, window=window)
        if kernel is None or mapped[kernel]:
            return _loop(bind, arguments, mapped, window.loop), 0
        images = arguments[1 - kernel]
        # Without an axis on the kernel the members' images are just more images: one larger
        # convolution keeps the cores busier than a loop over small ones.
        arguments[1 - kernel] = images.reshape(-1, *images.shape[2:])
        folded = bind(*arguments)
        return folded.reshape(*images.shape[:2], *folded.shape[1:]), 0

    @functools.lru_cache(1024)  # asked in every trace, and what it says never changes
    def abstract(*avals, window):
        return jax.make_jaxpr(functools.partial(formula, window=window))(*avals).out_avals[0]

    # Outside of `jit` a primitive is compiled by itself, once for each window.
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    # The formula is the lowering everywhere, a GPU's compiler sees a plain convolution; only the
    # CPU gets another one. Derivatives and batching are rules of the primitive, the same on both.
    mlir.register_lowering(primitive, mlir.lower_fun(formula, multiple_results=False))
    if on_cpu is not None:
        lowering = mlir.lower_fun(on_cpu, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform="cpu")
    return primitive


def _loop(bind, arguments, mapped, loop):
    """`bind` on each element of the mapped arguments, results stacked."""

    def one(elements):
        elements = iter(elements)
        return bind(*(next(elements) if m else x for x, m in zip(arguments, mapped, strict=True)))

    stacks = [x for x, m in zip(arguments, mapped, strict=True) if m]
    size = stacks[0].shape[0]
    # Unrolled, the convolutions of different members may overlap, and a handful is worth the longer
    # program. Sixty-four examples would be sixty-four copies of the network in it.
    if loop == "scanned" or size > _LARGEST_UNROLLED:
        return lax.map(one, stacks)
    return jnp.stack([one([stack[i] for stack in stacks]) for i in range(size)])


def _equally_varying(*arrays):
    """The arrays, each typed as varying over all axes of `shard_map` that any of them varies over.

    JAX's own primitives do this by themselves. The transpose of the cast is the sum over devices
    that the gradient of a shared kernel needs.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [tuple(frozenset().union(*varying) - own) for own in varying]
    return [lax.pcast(x, m, to="varying") if m else x for x, m in zip(arrays, missing, strict=True)]


_forward = _primitive("conv", _forward_formula, kernel=1, on_cpu=_forward_on_cpu)
_input_gradient = _primitive(
    "conv_input_gradient", _input_gradient_formula, kernel=1, on_cpu=_input_gradient_on_cpu
)
_kernel_gradient = _primitive(
    "conv_kernel_gradient",
    _kernel_gradient_formula,
    kernel=None,
    on_cpu=_kernel_gradient_on_cpu,
)

# Each map's transposes are the two others: so derivatives of any order, which Sens and the penalty
# of `games.minimax` need, stay within the three and never meet XLA's own transposed convolution.
ad.defbilinear(
    _forward,
    lambda y, _, w, *, window: _input_gradient.bind(y, w, window=window),
    lambda y, x, _, *, window: _kernel_gradient.bind(x, y, window=window),
)
ad.defbilinear(
    _input_gradient,
    lambda x, _, w, *, window: _forward.bind(x, w, window=window),
    lambda x, y, _, *, window: _kernel_gradient.bind(x, y, window=window),
)
ad.defbilinear(
    _kernel_gradient,
    lambda w, _, y, *, window: _input_gradient.bind(y, w, window=window),
    lambda w, x, _, *, window: _forward.bind(x, w, window=window),
)
