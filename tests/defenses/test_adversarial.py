import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, defenses, threats

CLEAN, ATTACKED = jnp.array([2.0, 0.5, -1.0]), jnp.array([0.3, 1.0, 0.2])
P, Q = (np.exp(logits) / np.exp(logits).sum() for logits in (CLEAN, ATTACKED))
DIVERGENCE = (P * np.log(P / Q)).sum()


def test_adversarial_training_pays_cross_entropy_on_the_attacked_input_alone():
    objective = defenses.adversarial_training()
    for loss in (objective.attack_loss, objective.train_loss):
        np.testing.assert_allclose(loss(CLEAN, ATTACKED, 1), -np.log(Q[1]), rtol=1e-6)
        assert not jax.grad(loss)(CLEAN, ATTACKED, 1).any()
    assert not objective.uses_clean


def test_trades_pays_cross_entropy_on_the_clean_input_and_beta_times_the_divergence():
    objective = defenses.trades(4.0)
    np.testing.assert_allclose(objective.attack_loss(CLEAN, ATTACKED, 1), DIVERGENCE, rtol=1e-5)
    loss = objective.train_loss(CLEAN, ATTACKED, 1)
    np.testing.assert_allclose(loss, -np.log(P[1]) + 4.0 * DIVERGENCE, rtol=1e-5)
    assert objective.uses_clean


def test_the_gradient_of_trades_reaches_both_inputs():
    """`dKL/dq-logits = q - p` and `dKL/dp-logits = p (log p / q - KL)`."""
    of_clean, of_attacked = jax.grad(defenses.trades(4.0).train_loss, (0, 1))(CLEAN, ATTACKED, 1)
    np.testing.assert_allclose(of_attacked, 4.0 * (Q - P), atol=1e-6)
    expected = P - np.eye(3)[1] + 4.0 * P * (np.log(P / Q) - DIVERGENCE)
    np.testing.assert_allclose(of_clean, expected, atol=1e-5)


def test_trades_has_the_weight_of_its_paper_by_default():
    loss = defenses.trades().train_loss(CLEAN, ATTACKED, 1)
    np.testing.assert_allclose(loss, -np.log(P[1]) + 6.0 * DIVERGENCE, rtol=1e-5)


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_trades_pays_for_both_inputs(self):
        loss = self.variant(defenses.trades(4.0).train_loss)(CLEAN, ATTACKED, 1)
        chex.assert_trees_all_close(loss, np.float32(-np.log(P[1]) + 4.0 * DIVERGENCE), rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trades_starts_a_thousandth_away_in_each_coordinate(norm, key):
    """`x + .001 * randn`, whatever the norm; a ball of radius .001 would be 28 times as small."""
    threat = threats.BY_NAME[norm](0.5)
    start = defenses.trades_start(threat)
    moves = np.asarray(start.sample(key, (28, 28, 1)))
    np.testing.assert_allclose(moves.std(), 1e-3, rtol=0.1)
    assert np.abs(moves).max() > 2.5e-3
    assert start.epsilon == 0.5 and start.name == norm
    assert start == defenses.trades_start(threat) != threat
    assert start != defenses.trades_start(threat, deviation=2e-3)
    x = jnp.full((28, 28, 1), 0.5)
    found, _ = attacks.pgd(
        key, lambda x: 0.0 * x.sum(), x, threat, num_steps=1, step_size=1e-9, start=start
    )
    np.testing.assert_allclose(found - x, moves, atol=1e-6)


def test_a_start_without_a_spread_is_refused():
    with pytest.raises(ValueError, match="deviation must be positive, got 0.0"):
        defenses.trades_start(threats.l2(0.5), deviation=0.0)
