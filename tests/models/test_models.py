"""The networks against formulas written out, and what every model promises."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mixjax import ensemble, models

FLOOR = 1e-5  # of the variance, in BatchNorm
SMALL = models.small_resnet(5, 4, input_shape=(8, 6, 2), mean=(0.4, 0.6), std=(0.2, 0.3))
APPLY = jax.jit(SMALL.apply, static_argnames="train")


def uniform(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


X = uniform(2, 3, 8, 6, 2)  # one shape, compiled once


def close(actual, expected, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(abs(b).max()))


def drawn(model, key):
    """Variables all of which are random, so that none can be forgotten unseen."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, key))
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    draw = np.asarray(jax.random.uniform(key, (sum(sizes),), minval=0.1, maxval=1.0))
    parts = np.split(draw - 0.45 * (draw < 0.5), np.cumsum(sizes)[:-1])
    variables = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    variables = jax.tree.unflatten(structure, variables)
    stats = jax.tree.map(lambda leaf: np.abs(leaf) + 0.1, variables.get("batch_stats", {}))
    kernels = jax.tree.map(
        lambda leaf: (
            (leaf - leaf.mean()) / np.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else leaf
        ),
        variables["params"],
    )
    return {"params": kernels, "batch_stats": stats}


def reference(variables, x, mean, std, strides):
    """A residual network written out: stem, blocks of those strides, mean, dense."""
    params, stats = variables["params"], variables["batch_stats"]

    def convolved(x, kernel, stride):
        low = kernel.shape[0] // 2
        pads = ((0, 0), (low, low), (low, low), (0, 0))
        x = np.pad(x, pads)
        height, width = ((x.shape[axis] - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2))
        y = np.zeros((x.shape[0], height, width, kernel.shape[-1]))
        for i in range(height):
            for j in range(width):
                rows = slice(i * stride, i * stride + kernel.shape[0])
                columns = slice(j * stride, j * stride + kernel.shape[1])
                y[:, i, j] = np.tensordot(x[:, rows, columns], kernel, 3)
        return y

    def normalized(x, params, stats):
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + FLOOR)
        return x * params["scale"] + params["bias"]

    def layer(x, index, params, stats, stride):
        y = convolved(x, params[f"Conv_{index}"]["kernel"], stride)
        return normalized(y, params[f"BatchNorm_{index}"], stats[f"BatchNorm_{index}"])

    x = (np.asarray(x, np.float64) - mean) / std
    x = np.maximum(layer(x, 0, params, stats, 1), 0)
    for block, stride in enumerate(strides):
        p, s = params[f"_Block_{block}"], stats[f"_Block_{block}"]
        y = np.maximum(layer(x, 0, p, s, stride), 0)
        y = layer(y, 1, p, s, 1)
        x = np.maximum(y + (layer(x, 2, p, s, stride) if "Conv_2" in p else x), 0)
    dense = params["Dense_0"]
    return x.mean((1, 2)) @ dense["kernel"] + dense["bias"]


def test_small_network_is_the_formula_written_out(key):
    variables = drawn(SMALL, key)
    expected = reference(variables, X.reshape(6, 8, 6, 2), (0.4, 0.6), (0.2, 0.3), (1, 2))
    close(APPLY(variables, X).reshape(6, 5), expected)


def test_resnet18_is_the_formula_written_out(key):
    model = models.resnet18(7, 2, input_shape=(16, 16, 3), mean=0.3, std=0.7)
    x = uniform(2, 16, 16, 3)
    variables = drawn(model, key)
    expected = reference(variables, x, 0.3, 0.7, (1, 1, 2, 1, 2, 1, 2, 1))
    close(jax.jit(model.apply)(variables, x), expected)


def test_linear_model_is_a_product_on_pixels_as_they_are(key):
    model = models.linear(4, input_shape=(3, 2, 2))
    variables = model.init(key)
    params = {**jax.device_get(variables["params"]["Dense_0"]), "bias": np.float32([0, 1, 2, 3])}
    x = uniform(5, 3, 2, 2)
    logits = model.apply({"params": {"Dense_0": params}}, x)
    close(logits, x.reshape(5, 12) @ params["kernel"] + params["bias"])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (models.resnet18(), 11_173_962),
        (models.resnet18(100, 16), 713_076),
        (models.small_resnet(), 19_706),
        (models.small_resnet(input_shape=(28, 28, 1)), 19_706),
        (models.linear(3, input_shape=(4, 5)), 63),
    ],
    ids=["resnet18", "resnet18 width 16", "small", "small 28 x 28", "linear"],
)
def test_number_of_parameters(key, model, expected):
    shapes = jax.eval_shape(model.init, key)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == expected


def test_leading_axes_are_any_number_of_examples(key):
    variables = drawn(SMALL, key)
    logits = np.asarray(APPLY(variables, X))
    assert logits.shape == (2, 3, 5)
    close(logits[1, 2], APPLY(variables, X[1, 2]))
    close(logits, jax.jit(jax.vmap(jax.vmap(SMALL.apply, (None, 0)), (None, 0)))(variables, X))
    assert jax.eval_shape(SMALL.apply, variables, X[:, :0]).shape == (2, 0, 5)


def test_mapped_over_examples_it_computes_what_the_batch_does(key):
    """The same number of multiplications, in the same number of convolutions."""
    variables = jax.eval_shape(SMALL.init, key)
    x = jax.ShapeDtypeStruct((6, 8, 6, 2), jnp.float32)

    def gradients(variables, x):
        return jax.grad(lambda x: SMALL.apply(variables, x).sum())(x)

    batched = jax.jit(gradients).lower(variables, x)
    mapped = jax.jit(jax.vmap(gradients, (None, 0))).lower(variables, x)
    for text in ("stablehlo.convolution(", "tensor<6x8x6x4xf32>"):
        assert batched.as_text().count(text) > 0
    assert mapped.as_text().count("stablehlo.convolution(") == batched.as_text().count(
        "stablehlo.convolution("
    )
    flops = [program.cost_analysis()["flops"] for program in (batched, mapped)]
    assert flops[1] == pytest.approx(flops[0], rel=0.02)


def test_evaluation_does_not_see_the_other_examples_and_training_does(key):
    variables = drawn(SMALL, key)
    other = np.zeros_like(X)
    other[0, 0] = X[0, 0]
    close(np.asarray(APPLY(variables, X))[0, 0], np.asarray(APPLY(variables, other))[0, 0])
    both = (APPLY(variables, batch, train=True)[0] for batch in (X, other))
    ours, theirs = (np.asarray(logits)[0, 0] for logits in both)
    assert float(abs(ours - theirs).max()) > 1e-2


def test_training_moves_the_statistics_a_tenth_of_the_way_to_the_batch(key):
    variables = drawn(SMALL, key)
    logits, updated = APPLY(variables, X, train=True)
    assert logits.shape == (2, 3, 5)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    updated = jax.device_get(updated)
    close(updated["params"], variables["params"])

    inputs = (X.reshape(6, 8, 6, 2) - np.float32([0.4, 0.6])) / np.float32([0.2, 0.3])
    stem = np.asarray(
        lax.conv_general_dilated(
            inputs,
            np.float32(variables["params"]["Conv_0"]["kernel"]),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )
    before, after = (v["batch_stats"]["BatchNorm_0"] for v in (variables, updated))
    close(after["mean"], 0.9 * before["mean"] + 0.1 * stem.mean((0, 1, 2)))
    close(after["var"], 0.9 * before["var"] + 0.1 * stem.var((0, 1, 2)))


def test_synchronized_statistics_are_those_of_the_large_batch(key):
    settings = dict(input_shape=(8, 6, 2))
    model = models.small_resnet(5, 4, **settings)
    synchronized = models.small_resnet(5, 4, axis_name="data", **settings)
    variables = drawn(model, key)
    x = uniform(6, 8, 6, 2) * np.arange(1.0, 7.0, dtype=np.float32).reshape(6, 1, 1, 1) / 6

    def loss(params, model, x):
        logits, updated = model.apply({**variables, "params": params}, x, train=True)
        return (logits**2).mean(), updated["batch_stats"]

    def shards(params):
        values, stats = jax.vmap(
            lambda x: loss(params, synchronized, x), axis_name="data", out_axes=(0, None)
        )(x.reshape(3, 2, 8, 6, 2))
        return values.mean(), stats

    whole = jax.grad(lambda params: loss(params, model, x), has_aux=True)
    close(
        jax.jit(jax.grad(shards, has_aux=True))(variables["params"]),
        jax.jit(whole)(variables["params"]),
        1e-3,
    )
    in_use = [str(jax.make_jaxpr(each.apply)(variables, x)) for each in (synchronized, model)]
    assert in_use[0] == in_use[1]


def test_bfloat16_computes_in_it_and_keeps_the_rest_in_float32(key):
    shape = (8, 8, 1)
    model = models.small_resnet(dtype=jnp.bfloat16)
    variables = drawn(model, key)
    x = uniform(4, *shape)
    logits, updated = jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, updated))} == {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(model.apply)(variables, x))
    assert "f32[4,8,8,16] = mixjax_conv" not in program
    assert program.count("] = mixjax_conv") == program.count("bf16[4,8,8,16] = mixjax_conv") + (
        program.count("bf16[4,4,4,32] = mixjax_conv")
    )
    exact, rounded = (jax.jit(m.apply)(variables, x) for m in (models.small_resnet(), model))
    close(rounded, exact, 0.05)
    assert float(abs(rounded - exact).max()) > 0


@functools.cache
def second_derivatives(route):
    """Of a penalty on the input gradient; members and examples mapped."""
    model = models.small_resnet(3, 2, input_shape=(8, 6, 2), conv=getattr(models.conv, route))

    def loss(variables, x):
        return jnp.sin(ensemble.apply(model.apply, variables, x)).sum()

    def penalty(variables, x):
        gradients = jax.vmap(jax.grad(loss, 1), (None, 0))(variables, x)
        return (gradients**2).sum()

    members = [drawn(model, k) for k in jax.random.split(jax.random.key(0))]
    variables = jax.tree.map(lambda *leaves: np.float32(leaves), *members)
    return jax.device_get(jax.jit(jax.grad(penalty, (0, 1)))(variables, uniform(2, 8, 6, 2)))


@pytest.mark.parametrize("route", ["unrolled", "scanned", "banded"])
def test_gradient_of_a_gradient_through_residual_blocks_is_that_with_jax_convolutions(route):
    close(second_derivatives(route), second_derivatives("grouped"), 1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.resnet18(0), "num_classes must be a whole number of at least 1, got 0"),
        (lambda: models.resnet18(width=-4), "width must be .* got -4"),
        (lambda: models.small_resnet(std=(0.5, 0.0)), "std must be positive, got 0.0"),
        (lambda: models.small_resnet(input_shape=(8, 0, 1)), "input_shape must be .* got 0"),
        (lambda: models.linear(0), "num_classes must be .* got 0"),
        (lambda: models.from_nnx(lambda rngs: rngs, (0,)), "input_shape must be .* got 0"),
        (
            lambda: SMALL.apply({}, jnp.zeros((3, 8, 8, 2))),
            r"x must have shape \[..., 8, 6, 2\], got \[3, 8, 8, 2\]",
        ),
        (lambda: SMALL.apply({}, jnp.zeros((6, 2))), r"x must have shape .* got \[6, 2\]"),
        (
            lambda: SMALL.apply({}, jnp.zeros((8, 6, 2)), train=True),
            r"x must have a batch axis in training, got \[8, 6, 2\]",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
