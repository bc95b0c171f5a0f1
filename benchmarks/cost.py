"""What the work costs in floating-point operations, and what the device could do in the time.

A multiply-add counts as two operations. Of a ResNet18 only the convolutions and the last matrix
product count: all else is less than one part in a hundred of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from benchmarks.timing import Case

# Size, and number of products in one call, so that starting it costs nothing in comparison.
_PRODUCTS = {"gpu": (8192, 20), "cpu": (2048, 4)}
FORMULA = (
    "2 M ((2 S + 1) + 3) L operations per image of a training step, 2 M (2 S + 1) L of an attack, "
    "M the multiply-adds of a forward pass: S steps of the attack are S forward passes and S input "
    "gradients, one more forward pass scores the last point; the update is a forward pass, an "
    "input gradient and a kernel gradient, without the stem's input gradient"
)


def multiply_adds(width: int, num_classes: int = 10, size: int = 32, channels: int = 3) -> int:
    """Multiply-adds of one forward pass of the ResNet18 on one image: 0.56e9 at width 64."""
    total = _stem(width, size, channels)
    fan_in = width
    for stage in range(4):
        features, pixels = width * 2**stage, (size // 2**stage) ** 2
        total += pixels * 9 * features * (fan_in + 3 * features)
        if fan_in != features:
            total += pixels * features * fan_in
        fan_in = features
    return total + fan_in * num_classes


def attack_operations(width: int, num_members: int, num_steps: int) -> int:
    """Operations of the attack on one image; see `FORMULA`."""
    return 2 * num_members * (2 * num_steps + 1) * multiply_adds(width)


def training_operations(width: int, num_members: int, num_steps: int) -> int:
    """Operations of a training step for one image; see `FORMULA`."""
    update = 2 * num_members * (3 * multiply_adds(width) - _stem(width, 32, 3))
    return attack_operations(width, num_members, num_steps) + update


def counted_operations(fn: Callable, *arguments) -> float:
    """Operations of any function of arrays, as XLA counts them.

    Counted in the program for a GPU, where each convolution is still one, whatever a CPU makes of
    it; without what nobody reads and without multiplications by padding.
    """
    closed = jax.make_jaxpr(fn)(*arguments)
    wanted = [True] * len(closed.jaxpr.outvars)
    read, _ = partial_eval.dce_jaxpr(closed.jaxpr, wanted, instantiate=True)
    program = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(read, closed.consts)))
    lowered = program.trace(*jax.tree.leaves(arguments)).lower(lowering_platforms=("cuda",))
    analysis = lowered.cost_analysis()
    if analysis is None:
        raise ValueError("XLA does not count the operations of this program")
    return analysis["flops"]


def matrix_case(dtype: str) -> Case:
    """Products of two large matrices: what the device does at its best."""
    size, number = _products()

    def prepare():
        x = jnp.full((size, size), 1.0 / size, dtype)

        @jax.jit
        def products(x):
            return jax.lax.fori_loop(0, number, lambda _, y: x @ y, x)

        compiled = products.lower(x).compile()

        def call():
            return float(compiled(x).block_until_ready()[0, 0])

        return call

    return Case("matrix products", 0, prepare)


def matrix_rate(seconds: float) -> float:
    """Operations per second of a `matrix_case` whose call took so long."""
    size, number = _products()
    return 2 * number * size**3 / seconds


def _products():
    return _PRODUCTS.get(jax.default_backend(), _PRODUCTS["cpu"])


def _stem(width, size, channels):
    return size**2 * 9 * channels * width
