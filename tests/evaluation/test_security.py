"""Accuracy against the radius: from thresholds that are known, and as figures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import evaluation, threats

WEIGHTS = np.array([0.25, 0.75])
THRESHOLDS = jnp.array([0.3, 0.6])
IMAGES = np.linspace(0.35, 0.95, 7, dtype=np.float32)[:, None]
LABELS = np.zeros(7, np.int32)
RADII = (0.1, 0.2, 0.4)


def logits_fn(x):
    """Member k is right above its threshold."""
    return jnp.stack([x[0] - THRESHOLDS, jnp.zeros(2)], axis=1)


def left_at(radius):
    """`[N]` accuracy where every image is moved down by `radius`."""
    return (IMAGES - radius > np.asarray(THRESHOLDS)) @ WEIGHTS


def down(run, x, threat):
    return x - jnp.where(run == 1, threat.epsilon, 0.0)


def near(x, threat):
    return jnp.where(threat.epsilon < 0.25, x - threat.epsilon / 2, x)


def by_chance(key, x, threat):
    return x - threat.epsilon * jax.random.uniform(key)


LINF = threats.linf(1.0)  # of any radius: the curves set their own
ATTACKS = (
    evaluation.Attack(("idle", "down", "down"), 1, down, LINF),
    evaluation.Attack(("near",), 1, near, LINF),
    evaluation.Attack(("by chance",), 1, by_chance, LINF),
)


curves_of = functools.partial(
    evaluation.security_curves, logits_fn=logits_fn, weights=WEIGHTS, images=IMAGES, labels=LABELS
)


def test_each_attack_leaves_what_the_thresholds_say_and_no_more_within_a_larger_radius(key):
    names = ("near", "down", "unheard of")
    found = curves_of(key, attacks=ATTACKS, radii=RADII, names=names)
    np.testing.assert_allclose(found.radii, [0.0, *RADII])
    assert [*found.accuracies] == ["near", "down", "worst"]
    down = np.stack([left_at(radius) for radius in found.radii])
    np.testing.assert_allclose(found.accuracies["down"], down, atol=1e-6)
    # Its attack does nothing within .4, but what it found within .2 is there as well.
    near = np.stack([left_at(radius) for radius in (0.0, 0.05, 0.1, 0.1)])
    np.testing.assert_allclose(found.accuracies["near"], near, atol=1e-6)
    np.testing.assert_allclose(found.accuracies["worst"], np.minimum(down, near), atol=1e-6)
    assert down[0].mean() > down[1].mean() > down[2].mean() > down[3].mean()
    np.testing.assert_allclose(found.points["down"][1], IMAGES - 0.2, atol=1e-6)
    assert found.points["near"].shape == (3, *IMAGES.shape)


def test_the_worst_is_that_of_each_example_and_not_of_the_means(key):
    def odd(x):
        return jnp.where(jnp.round(10 * x) % 2 == 0, x, 0.0)

    def even(x):
        return jnp.where(jnp.round(10 * x) % 2 == 0, 0.0, x)

    attacks = evaluation.Attack(("odd",), 1, odd), evaluation.Attack(("even",), 1, even)
    images = np.float32([[0.7], [0.8]])
    settings = dict(images=images, labels=LABELS[:2], names=("odd", "even"), radii=[0.5])
    report = curves_of(key, attacks=attacks, **settings).report()
    assert report["accuracy"] == {"odd": [1.0, 0.5], "even": [1.0, 0.5], "worst": [1.0, 0.0]}
    assert report["error_bar"]["odd"] == pytest.approx([0.0, 0.5 / np.sqrt(2)])
    ends = [evaluation.wilson_interval(mean, 2) for mean in (1.0, 0.5)]
    np.testing.assert_allclose(report["interval"]["odd"], ends)
    assert (report["radii"], report["num_examples"]) == ([0.0, 0.5], 2)


def test_the_batch_does_not_matter(key):
    settings = dict(attacks=ATTACKS, radii=[0.4], names=("by chance",))
    three, all_at_once = (curves_of(key, **settings, batch_size=size) for size in (3, 7))
    points = three.points["by chance"]
    np.testing.assert_allclose(points, all_at_once.points["by chance"], atol=1e-6)
    assert len(np.unique((IMAGES - points).round(4))) == 7


def test_by_default_it_is_one_run_of_pgd_auto_pgd_arc_and_the_climber(key):
    """What each does within a radius is in tests of its own."""

    def down(x, threat):
        return x - threat.epsilon

    budget = evaluation.Budget(2, 1, 2, 4, 1, 3, 1, 5)
    suite = evaluation.attack_suite(threats.l2(1.0), budget)
    attacks = [attack._replace(function=down) for attack in suite]
    found = curves_of(key, attacks=attacks, radii=[0.15])
    assert [*found.accuracies] == [
        "pgd_expected_loss",
        "apgd_expected_loss",
        "arc",
        "lattice_climber",
        "worst",
    ]
    np.testing.assert_allclose(found.accuracies["worst"][1], left_at(0.15), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": []}, "radii must have 1 axes, none empty"),
        ({"radii": [0.2, 0.1]}, r"radii must be increasing and above 0, got \[0.2, 0.1\]"),
        ({"radii": [0.0, 0.1]}, "radii must be increasing and above 0"),
        ({"radii": [np.nan]}, "radii must be increasing and above 0"),
        ({"names": ("other",)}, "names must be among those of the attacks, got other"),
        ({"weights": [0.5, 0.6]}, "weights must be"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"key": 3}, r"key must be a random key, such as jax.random.key\(3\), got 3$"),
    ],
)
def test_bad_input_is_refused(key, change, message):
    settings = dict(key=key, attacks=ATTACKS, radii=RADII, names=("down",))
    with pytest.raises(ValueError, match=message):
        curves_of(**(settings | change))
