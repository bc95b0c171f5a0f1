"""What becomes of the convolution in programs: loops, devices, and what is computed at all."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from mixjax.models import conv

LAYOUT = ("NHWC", "HWIO", "NHWC")


def same(convolution, x, w):
    return convolution(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)


def close(actual, expected, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(abs(b).max()))


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(4, 5, 6, 3)).astype(np.float32)


@pytest.fixture
def kernels():
    """Three members' kernels `[L, 3, 3, 3, 3]`."""
    return (np.random.default_rng(2).normal(size=(3, 3, 3, 3, 3)) / 5).astype(np.float32)


def count(function, *arguments, text):
    return jax.jit(function).lower(*arguments).as_text().count(text)


def test_members_need_no_grouped_convolution(x, kernels):
    """Forward and both derivatives: one plain convolution for each member, or one in a loop."""

    def gradients(route, x, kernels):
        members = jax.vmap(partial(same, route))
        return jax.grad(lambda *xw: (members(*xw) ** 2).sum(), (0, 1))(x, kernels)

    x = np.stack([x, x + 1, x + 2])

    found = {
        name: [
            count(partial(gradients, route), x, kernels, text=text)
            for text in ("stablehlo.convolution(", "group_count = 3")
        ]
        for name, route in vars(conv).items()
        if name in ("unrolled", "scanned", "grouped")
    }
    assert found["unrolled"] == [9, 0]
    assert found["scanned"] == [3, 0]
    assert found["grouped"][1] > 0


def test_examples_are_folded_into_one_convolution(x, kernels):
    @chex.assert_max_traces(n=1)
    def one(x, w):
        return same(conv.unrolled, x[None], w)[0]

    assert count(jax.vmap(one, (0, None)), x, kernels[0], text="stablehlo.convolution(") == 1


def test_a_long_axis_of_kernels_is_scanned(x, kernels):
    many = np.concatenate([kernels] * 6)
    members = jax.vmap(partial(same, conv.unrolled), (None, 0))
    assert count(members, x, many, text="stablehlo.convolution(") == 1
    close(jax.jit(members)(x, many)[4], same(conv.grouped, x, kernels[1]))


def test_kernel_gradient_through_mapped_examples_is_that_of_the_batch(x, kernels):
    """Not one kernel gradient for each example, summed afterwards."""

    def loss(w, x):
        return jax.vmap(lambda x: (same(conv.unrolled, x[None], w) ** 3).sum())(x).sum()

    program = jax.make_jaxpr(jax.grad(loss))(kernels[0], x)
    assert str(program).count("mixjax_conv_kernel_gradient[") == 1
    found = jax.jit(jax.grad(loss))(kernels[0], x)
    close(found, jax.jit(jax.grad(lambda w: (same(conv.grouped, x, w) ** 3).sum()))(kernels[0]))


def test_input_gradient_alone_computes_no_kernel_gradient(x, kernels):
    program = jax.make_jaxpr(jax.grad(lambda x: (same(conv.unrolled, x, kernels[0]) ** 2).sum()))
    assert "kernel_gradient" not in str(program(x))


@pytest.mark.parametrize("route", [conv.unrolled, conv.scanned], ids=["unrolled", "scanned"])
def test_ascent_in_a_loop_over_members_and_examples(x, kernels, route):
    """Gradient steps in a `scan`, each example apart, on the mean over members."""

    def ascend(convolution):
        def loss(x):
            y = jax.vmap(lambda w: same(convolution, x[None], w))(kernels)
            return jnp.tanh(y).sum()

        def step(x, _):
            return x + 0.1 * jax.grad(loss)(x), None

        return jax.jit(jax.vmap(lambda x: lax.scan(step, x, length=3)[0]))(x)

    close(ascend(route), ascend(conv.grouped))


def test_forward_mode_and_hessian_vector_products(x, kernels):
    def products(convolution):
        def loss(w):
            return jnp.sin(same(convolution, x, w)).sum()

        direction = kernels[1]
        hessian = jax.jvp(jax.grad(loss), (kernels[0],), (direction,))[1]
        return jax.jvp(loss, (kernels[0],), (direction,)), hessian

    close(*jax.jit(lambda: (products(conv.unrolled), products(conv.grouped)))())


def test_recomputed_under_checkpoint(x, kernels):
    def loss(w):
        return jax.checkpoint(lambda w: jnp.sin(same(conv.unrolled, x, w)).sum())(w)

    def plain(w):
        return jnp.sin(same(conv.grouped, x, w)).sum()

    close(*jax.jit(lambda w: (jax.grad(loss)(w), jax.grad(plain)(w)))(kernels[0]))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradient_of_a_kernel_shared_by_devices_is_that_of_the_whole_batch(x, kernels, check_vma):
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )
    def loss(kernels, x):
        y = jax.vmap(lambda w: same(conv.unrolled, x, w))(kernels)
        return lax.pmean((y**3).mean(), "data")

    def whole(kernels):
        return (jax.vmap(lambda w: same(conv.grouped, x, w))(kernels) ** 3).mean()

    close(jax.jit(jax.grad(loss))(kernels, x), jax.jit(jax.grad(whole))(kernels))


def test_kernel_gradient_in_parts_on_every_device(key):
    """4 devices, 2 images of 48 x 48 each: a loop over the images inside `shard_map`."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    x = jax.random.normal(key, (8, 48, 48, 1))
    w = jax.random.normal(key, (3, 3, 1, 2))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}

    def loss(w, x):
        return lax.pmean((same(conv.unrolled, x, w) ** 3).mean(), "data")

    close(
        jax.jit(jax.grad(jax.shard_map(loss, mesh=mesh, **specs)))(w, x),
        jax.jit(jax.grad(lambda w: (same(conv.grouped, x, w) ** 3).mean()))(w),
    )


def test_under_pmap(x, kernels):
    def gradient(w, x):
        local = jax.grad(lambda w: (same(conv.unrolled, x[None], w) ** 3).mean())(w)
        return lax.pmean(local, "data")

    mapped = jax.pmap(gradient, "data", in_axes=(None, 0), out_axes=None)
    close(
        mapped(kernels[0], x),
        jax.jit(jax.grad(lambda w: (same(conv.grouped, x, w) ** 3).mean()))(kernels[0]),
    )
