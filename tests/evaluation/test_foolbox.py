"""The adapter without foolbox; with it, see `tests/peers`."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import evaluation

KERNELS = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
WEIGHTS = np.array([0.8, 0.2], np.float32)


def logits_fn(x):
    return jnp.einsum("d,ldc->lc", x.reshape(-1), KERNELS)


def recorded(monkeypatch):
    """A stand-in for foolbox that keeps what it is given."""
    models = types.SimpleNamespace(JAXModel=lambda model, bounds: (model, bounds))
    monkeypatch.setitem(sys.modules, "foolbox", types.SimpleNamespace(models=models))


def test_foolbox_is_given_the_log_of_the_mean_probability_of_a_batch(monkeypatch, key):
    recorded(monkeypatch)
    model, bounds = evaluation.foolbox_model(logits_fn, WEIGHTS, bounds=(-1.0, 2.0))
    x = jax.random.uniform(key, (5, 2, 2, 1))
    probs = jax.nn.softmax(jnp.einsum("nd,ldc->lnc", x.reshape(5, 4), KERNELS))
    want = np.log(0.8 * probs[0] + 0.2 * probs[1])
    np.testing.assert_allclose(model(x), want, rtol=1e-5)
    assert bounds == (-1.0, 2.0)


@pytest.mark.parametrize(
    ("weights", "bounds", "message"),
    [([0.8, 0.3], (0.0, 1.0), "weights must be on the simplex"), (WEIGHTS, (1, 0), "bounds must")],
)
def test_bad_arguments_are_named(weights, bounds, message, monkeypatch):
    recorded(monkeypatch)
    with pytest.raises(ValueError, match=message):
        evaluation.foolbox_model(logits_fn, np.asarray(weights), bounds=bounds)


def test_without_foolbox_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ImportError, match="foolbox"):
        evaluation.foolbox_model(logits_fn, WEIGHTS)


def test_one_weight_for_each_member_or_none_answers(monkeypatch):
    """Three weights of two members would broadcast where there is one class, or one member."""
    recorded(monkeypatch)
    x = jnp.ones((5, 2, 2, 1))
    for weights, message in (
        (np.full(3, 1 / 3, np.float32), r"logits must have shape \[3, any\], got \[2, 3\]"),
        (np.ones(1, np.float32), r"logits must have shape \[1, any\], got \[2, 3\]"),
    ):
        model, _ = evaluation.foolbox_model(logits_fn, weights)
        with pytest.raises(ValueError, match=message):
            model(x)
    with pytest.raises(ValueError, match="weights must be on the simplex"):
        evaluation.foolbox_model(logits_fn, np.float32(1.0))
