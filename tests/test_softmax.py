"""Softmax and its kin where XLA computes the logits twice, and where they have no end."""

import ast
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explore
from experiments.hamm_2018 import mixtures
from mixjax import _softmax, attacks, threats

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAMS = [*(ROOT / "mixjax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
LOGITS = np.random.default_rng(0).uniform(size=(2, 400, 5)).astype(np.float32)


def scaled(scale, first, second):
    """Sums times a scale: with a multiplication added to a subtraction or without, two numbers."""
    return -scale * (first + second)


@pytest.mark.parametrize("scale", [1.0, 1e9, 1e12, 1e25])
def test_compiled_with_its_logits_it_is_finite_at_any_scale(scale):
    logits = scaled(np.float64(scale), *np.float64(LOGITS))
    highest = logits.max(axis=-1, keepdims=True)
    want = logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
    log_p = jax.jit(lambda *z: _softmax.log_softmax(scaled(scale, *z)))(*LOGITS)
    chex.assert_tree_all_finite(log_p)
    assert np.all(log_p <= 0)
    np.testing.assert_allclose(log_p, want, rtol=1e-4, atol=1e-6 * scale)
    p = jax.jit(lambda *z: _softmax.probabilities(scaled(scale, *z)))(*LOGITS)
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-5)
    sums = jax.jit(lambda *z: _softmax.logsumexp(scaled(scale, *z)))(*LOGITS)
    np.testing.assert_allclose(sums, (logits - want)[..., 0], rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("scale", [1.0, 1e12])
def test_the_derivative_is_that_of_the_formula_at_any_scale(scale):
    def first_of(first, second):
        return jnp.sum(_softmax.log_softmax(scaled(scale, first, second))[:, 0])

    first, second = LOGITS
    gradient = jax.jit(jax.grad(first_of))(first, second)
    chex.assert_tree_all_finite(gradient)
    p = np.exp(_softmax.log_softmax(scaled(scale, first, second)))
    want = -scale * ((np.arange(5) == 0) - p)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-6 * scale)


def test_second_derivatives_are_those_of_the_formula():
    logits = jnp.array([0.3, 2.0, 2.0, -jnp.inf])  # a tie for the highest, and a masked class
    p = jax.nn.softmax(logits)
    chex.assert_trees_all_close(jax.grad(_softmax.logsumexp)(logits), p, rtol=1e-6)
    hessian = jax.jacrev(jax.grad(_softmax.logsumexp))(logits)
    chex.assert_trees_all_close(hessian, jnp.diag(p) - jnp.outer(p, p), rtol=1e-5, atol=1e-7)


def test_without_a_finite_highest_there_is_no_probability_of_it():
    none = jnp.full(3, -jnp.inf)
    infinite = none.at[1].set(jnp.inf)
    assert _softmax.logsumexp(none) == -jnp.inf
    assert _softmax.logsumexp(infinite) == jnp.inf
    assert jnp.isnan(_softmax.log_softmax(infinite)[1])
    for row in (none, none.at[0].set(jnp.nan)):
        assert jnp.all(jnp.isnan(_softmax.log_softmax(row)))


def test_nobody_but_this_module_takes_a_softmax():
    names = ("softmax", "log_softmax", "logsumexp")
    for path in PROGRAMS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in names:
                assert ast.unparse(node.value) == "_softmax", f"{path}:{node.lineno}"


@pytest.mark.parametrize("scale", [1.0, 1e12])
def test_what_is_seen_of_sure_members_is_a_probability(scale):
    """The page of `experiments.explore`: a confidence of NaN is no number in its table."""
    slopes = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)

    def logits_fn(x):
        return scale * (jnp.einsum("d,ldc->lc", x.reshape(-1), slopes) + slopes[:, 0])

    points = jnp.asarray(LOGITS[0, :, :4]).reshape(-1, 2, 2, 1)
    weights = jnp.array([0.7, 0.3])
    seen = jax.jit(lambda points: explore.seen(threats.linf(0.1), logits_fn, weights, points, 1))
    found = seen(points)
    for name in ("confidences", "of_label"):
        assert np.all((found[name] >= 0) & (found[name] <= 1 + 1e-6)), name
    assert np.all(found["confidences"] >= 1 / 3 - 1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e12])
def test_the_log_of_the_expected_error_is_that_of_the_members_mean(scale):
    """What an attack network against a mixture raises; a member of weight 0 may answer NaN."""
    weights = jnp.array([0.7, 0.3, 0.0])

    @jax.jit
    @jax.vmap
    def log_error(first, second):
        second = second.at[0].set(-5.0)  # the right class is far ahead
        other = scaled(scale, second, first).at[0].add(5 * scale)
        logits = jnp.stack([scaled(scale, first, second), other, jnp.full(5, jnp.nan)])
        each = jax.vmap(attacks.log_error, in_axes=(0, None))(logits[:2], 0)
        return mixtures._log_expected_error(logits, 0, weights), each

    found, each = log_error(*LOGITS)
    want = np.logaddexp(*(np.float64(each) + np.log([0.7, 0.3])).T)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
