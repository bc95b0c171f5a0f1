"""The same accuracies in 64-bit JAX, from images of half precision and with JAX's own checks on."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mixjax import attacks, evaluation, threats

SLOPES = np.float32([[2.0, -1.0, 0.5, 0.0], [0.0, 1.0, 1.0, -2.0]])
WEIGHTS = [0.25, 0.75]
THREAT = threats.l2(0.125)
BUDGET = evaluation.Budget(1, 1, 2, 8, 1, 4, 1, 20, lines=("apgd_expected_loss",))
(AUTO_PGD,) = evaluation.attack_suite(THREAT, BUDGET)
FGSM = evaluation.Attack(("fgsm",), 1, attacks.fgsm, THREAT)


@jax.tree_util.Partial
def logits_fn(x):
    """Member k scores class 0 by `SLOPES[k] . (x - 1/2)` and class 1 by 0."""
    scores = jnp.sum(SLOPES * (x - 0.5)[None], axis=1)
    return jnp.stack([scores, jnp.zeros_like(scores)], axis=1)


def examples():
    """Inputs that bfloat16 holds exactly, no member's margin near 0 nor near what THREAT takes."""
    images = np.random.default_rng(0).integers(20, 108, (400, 4)).astype(np.float32) / 128
    margins = (images - 0.5) @ SLOPES.T
    left = np.abs(margins) - THREAT.epsilon * np.linalg.norm(SLOPES, axis=1)
    clear = (np.abs(margins) > 0.05).all(axis=1) & (np.abs(left) > 0.05).all(axis=1)
    images = images[clear][:6]
    return images, (margins[clear][:6].sum(axis=1) < 0).astype(np.int32)


def of_mixture(images, labels, logits_fn=logits_fn):
    found = evaluation.evaluate(
        jax.random.key(0), logits_fn, WEIGHTS, images, labels, (AUTO_PGD,), alone=False
    )
    return found.worst


def of_suite(images, labels, logits_fn=logits_fn):
    found = evaluation.evaluate(jax.random.key(0), logits_fn, WEIGHTS, images, labels, (FGSM,))
    return [found.worst, found.lower, *found.averaged.correct.T]


def of_findings(images, labels, logits_fn=logits_fn):
    found = evaluation.diagnose(logits_fn, WEIGHTS, images, labels, THREAT, num_steps=8)
    return [finding.value for finding in found]


def of_curves(images, labels, logits_fn=logits_fn):
    found = evaluation.security_curves(
        jax.random.key(0),
        logits_fn,
        WEIGHTS,
        images,
        labels,
        (FGSM,),
        [THREAT.epsilon],
        names=FGSM.names,
    )
    return [*found.accuracies.values()]


def of_validation(images, labels, logits_fn=logits_fn):
    validate = functools.partial(evaluation.validate, threat=THREAT, num_steps=8, step_size=0.05)
    return evaluation.over_batches(
        functools.partial(jax.jit(validate), jax.random.key(0), logits_fn, jnp.float32(WEIGHTS)),
        images,
        labels,
        batch_size=6,
    )


EVALUATIONS = (of_mixture, of_suite, of_findings, of_curves, of_validation)


@functools.cache
def usual(evaluate):
    return evaluate(*examples())


@contextlib.contextmanager
def all_checks():
    with jax.debug_infs(True), jax.debug_nans(True), jax.enable_checks(True):
        yield


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("mode", ["64 bit", "checks", "half precision"])
def test_the_answers_are_those_of_every_other_mode(evaluate, mode):
    expected, (images, labels) = usual(evaluate), examples()
    context = {"64 bit": functools.partial(jax.enable_x64, True), "checks": all_checks}
    if mode == "half precision":
        images = images.astype(ml_dtypes.bfloat16)
    with context.get(mode, contextlib.nullcontext)():
        found = evaluate(images, labels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)


def of_dtype(dtype):
    return jax.tree_util.Partial(lambda x: logits_fn(x).astype(dtype))


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_the_answers_are_those_of_logits_of_half_precision(evaluate):
    found = evaluate(*examples(), of_dtype(jnp.bfloat16))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=0.02), found, usual(evaluate))


def everything(classifier):
    budget = evaluation.Budget(1, 1, 2, 8, 1, 4, 1, 20, 1)
    suite = evaluation.attack_suite(THREAT, budget)
    images, labels = examples()
    return evaluation.evaluate(jax.random.key(0), classifier, WEIGHTS, images, labels, suite).worst


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_every_run_of_the_suite_takes_logits_of_every_precision(dtype):
    with jax.enable_x64(dtype is np.float64):
        found = everything(of_dtype(dtype))
    np.testing.assert_array_equal(found, everything(logits_fn))
