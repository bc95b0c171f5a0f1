"""The networks that normalise first, against formulas written out."""

import functools
import math

import chex
import jax
import numpy as np
import pytest

from mixjax import models

FLOOR = 1e-5  # of the variance, in BatchNorm
SHAPE = (8, 6, 2)
SETTINGS = dict(input_shape=SHAPE, mean=(0.4, 0.6), std=(0.2, 0.3))
WIDE = models.wide_resnet(5, 16, 2, dropout=0.3, negative_slope=0.1, **SETTINGS)
DROPPING = models.wide_resnet(3, 10, 1, dropout=0.3, input_shape=(4, 4, 1))
TRAIN = jax.jit(functools.partial(DROPPING.apply, train=True))


def drawn(model):
    """Variables all of which are random, so that none can be forgotten unseen."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return random.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.5, 1.5, leaf.shape)
        return random.uniform(-0.5, 0.5, leaf.shape)

    return jax.tree.map(np.float32, jax.tree.map_with_path(draw, shapes))


def reference(variables, x, widths, num_blocks, slope, final_norm=True):
    """A pre-activation network in NumPy: stem, stages, norm, mean, dense."""
    params, stats = (
        jax.tree.map(np.float64, variables[name]) for name in ("params", "batch_stats")
    )

    def convolved(x, kernel, stride):
        low = kernel.shape[0] // 2
        x = np.pad(x, ((0, 0), (low, low), (low, low), (0, 0)))
        height, width = ((x.shape[axis] - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2))
        y = np.zeros((x.shape[0], height, width, kernel.shape[-1]))
        for i in range(kernel.shape[0]):
            for j in range(kernel.shape[1]):
                rows = slice(i, i + stride * (height - 1) + 1, stride)
                columns = slice(j, j + stride * (width - 1) + 1, stride)
                y += x[:, rows, columns] @ kernel[i, j]
        return y

    def activated(x, params, stats):
        y = (x - stats["mean"]) / np.sqrt(stats["var"] + FLOOR) * params["scale"] + params["bias"]
        return np.maximum(y, 0) + slope * np.minimum(y, 0)

    x = (np.float64(x) - [0.4, 0.6]) / [0.2, 0.3]
    x = convolved(x, params["Conv_0"]["kernel"], 1)
    for index in range(len(widths) * num_blocks):
        stage, block = divmod(index, num_blocks)
        stride = 2 if stage > 0 and block == 0 else 1
        p, s = params[f"_Block_{index}"], stats[f"_Block_{index}"]
        first = activated(x, p["BatchNorm_0"], s["BatchNorm_0"])
        y = convolved(first, p["Conv_0"]["kernel"], stride)
        y = activated(y, p["BatchNorm_1"], s["BatchNorm_1"])
        y = convolved(y, p["Conv_1"]["kernel"], 1)
        x = y + (convolved(first, p["Conv_2"]["kernel"], stride) if "Conv_2" in p else x)
        assert x.shape[-1] == widths[stage]
    if final_norm:
        x = activated(x, params["BatchNorm_0"], stats["BatchNorm_0"])
    return x.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.mark.parametrize(
    ("model", "widths", "num_blocks", "slope", "final_norm"),
    [
        (WIDE, (32, 64, 128), 2, 0.1, True),
        (models.wide_resnet(5, 10, 1, **SETTINGS), (16, 32, 64), 1, 0.0, True),
        (models.preact_resnet18(5, 2, **SETTINGS), (2, 4, 8, 16), 2, 0.0, True),
        (models.preact_resnet18(5, 2, final_norm=False, **SETTINGS), (2, 4, 8, 16), 2, 0.0, False),
    ],
    ids=["wide", "narrow", "preact", "preact without final norm"],
)
def test_the_network_is_the_formula_written_out(model, widths, num_blocks, slope, final_norm):
    variables = drawn(model)
    x = np.random.default_rng(1).uniform(size=(3, *SHAPE)).astype(np.float32)
    expected = reference(variables, x, widths, num_blocks, slope, final_norm)
    logits = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (models.wide_resnet_28_10(), 36_479_194),
        (models.wide_resnet_28_10(100, dropout=0.3, negative_slope=0.1), 36_536_884),
        (models.wide_resnet(10, 34, 10), 46_160_474),
        (models.wide_resnet(10, 16, 4), 2_748_890),
        (models.preact_resnet18(), 11_172_170),
        (models.preact_resnet18(final_norm=False), 11_171_146),
    ],
    ids=["28-10", "28-10, 100 classes", "34-10", "16-4", "preact", "preact without final norm"],
)
def test_number_of_parameters(key, model, expected):
    shapes = jax.eval_shape(model.init, key)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == expected


def assert_same_program(function, *keys):
    """Whatever the key, it computes the same."""
    first, *others = (str(jax.make_jaxpr(functools.partial(function, k))()) for k in keys)
    assert all(other == first for other in others)


def test_dropout_acts_in_training_with_a_key_and_nowhere_else(key):
    variables = drawn(DROPPING)
    x = np.random.default_rng(1).uniform(size=(256, 4, 4, 1)).astype(np.float32)
    (plain, kept), (first, dropped), (second, _), (again, _) = (
        jax.device_get(TRAIN(variables, x, key=k)) for k in (None, *map(jax.random.key, (1, 2, 1)))
    )
    assert min(abs(first - second).max(), abs(first - plain).max()) > 1e-2
    chex.assert_trees_all_equal(first, again)
    chex.assert_trees_all_equal_shapes_and_dtypes(dropped, variables)
    assert_same_program(lambda k: DROPPING.apply(variables, x, key=k), None, key)

    # The mean of an activation survives dropout, and with it that of every linear function, as
    # the block's output is; its variance grows.
    kept, dropped = (v["batch_stats"]["_Block_1"]["BatchNorm_0"] for v in (kept, dropped))
    np.testing.assert_allclose(dropped["mean"], kept["mean"], atol=0.02)
    assert np.mean(dropped["var"] - kept["var"]) > 0.01


def test_no_key_is_needed_nor_heeded_without_dropout(key):
    model = models.small_resnet(3, 2, input_shape=SHAPE)
    variables, x = drawn(model), np.zeros((2, *SHAPE), np.float32)
    assert_same_program(lambda k: model.apply(variables, x, train=True, key=k)[0], None, key)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.wide_resnet(depth=27), "depth must be 6 n [+] 4 .* got 27"),
        (lambda: models.wide_resnet(depth=4), "depth must be 6 n [+] 4 .* got 4"),
        (lambda: models.wide_resnet(width=0), "width must be .* got 0"),
        (lambda: models.wide_resnet_28_10(0), "num_classes must be .* got 0"),
        (lambda: models.wide_resnet(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: models.wide_resnet(negative_slope=-0.1), "negative_slope must be .* got -0.1"),
        (lambda: models.wide_resnet(std=(0.5, 0.0)), "std must be positive, got 0.0"),
        (lambda: models.preact_resnet18(width=-1), "width must be .* got -1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
