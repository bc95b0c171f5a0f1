"""Which visited point an attack returns: that of lowest accuracy, then that of highest loss."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, losses, mixture, threats

WIDE = (-10.0, 10.0)


def from_x(threat):
    geometry = dataclasses.replace(threat.geometry, sample=lambda key, shape, _: jnp.zeros(shape))
    return dataclasses.replace(threat, geometry=geometry)


def pgd(key, loss_fn, x, threat, **settings):
    return attacks.pgd(key, loss_fn, x, threat, num_steps=8, step_size=0.1, bounds=WIDE, **settings)


def apgd(key, loss_fn, x, threat, **settings):
    return attacks.apgd(key, loss_fn, x, threat, num_steps=8, bounds=WIDE, **settings)


def apgd_targeted(key, loss_fn, x, threat, **settings):
    return attacks.apgd_targeted(
        key,
        lambda x, target: loss_fn(x) + 0.0 * target,
        x,
        jnp.array([1, 2]),
        threat,
        num_steps=8,
        bounds=WIDE,
        **settings,
    )


def square(key, loss_fn, x, threat, **settings):
    return attacks.square(key, loss_fn, x, threat, num_queries=9, bounds=WIDE, **settings)


ITERATIVE = (pgd, apgd, apgd_targeted, square)


def compiled(attack, key, loss_fn, x, threat, **settings):
    """What the attack returns as one program, in NumPy."""
    program = jax.jit(lambda: attack(key, loss_fn, x, threat, **settings))
    return jax.tree.map(np.asarray, program())


def visited_points(attack, key, loss_fn, x, threat, **settings):
    """What the attack returned, and every point at which it asked for the loss."""
    points = []

    def recording(point):
        jax.debug.callback(lambda point: points.append(np.array(point)), point, ordered=True)
        return loss_fn(point)

    x_adv, info = compiled(attack, key, recording, x, threat, **settings)
    jax.effects_barrier()
    return x_adv, info, np.stack(points)


def hilly(x):
    return jnp.sum(jnp.sin(9.0 * x) + x)


@pytest.mark.parametrize("attack", ITERATIVE)
def test_of_all_points_visited_the_one_of_lowest_accuracy_then_of_highest_loss_is_returned(
    attack, key
):
    x = np.float32([0.1, -0.2])

    def accuracy_fn(point):  # a quarter of the plane each; the highest loss is not in the lowest
        return jnp.where(point[0] > 0.3, 0.75, 0.25) + jnp.where(point[1] > -0.2, 0.25, 0.0)

    x_adv, info, points = visited_points(
        attack, key, hilly, x, threats.linf(0.5), accuracy_fn=accuracy_fn
    )
    judge = jax.jit(jax.vmap(lambda point: (accuracy_fn(point), hilly(point))))
    # Of as many points whatever the attack: one program.
    accuracies, heights = map(np.asarray, judge(np.resize([x_adv, *points], (40, 2))))
    lowest = accuracies[1:].min()
    highest = heights[1:][accuracies[1:] == lowest].max()
    assert info.accuracy == lowest == accuracies[0]
    np.testing.assert_allclose(heights[0], highest, rtol=1e-5)
    np.testing.assert_allclose(info.loss, highest, rtol=1e-5)


@pytest.mark.parametrize("attack", ITERATIVE)
def test_the_path_is_the_same_whatever_the_accuracy_says(attack, key):
    x, threat = np.float32([0.1, -0.2]), threats.linf(0.5)
    by_loss, without, path = visited_points(attack, key, hilly, x, threat)
    by_accuracy, info, same = visited_points(
        attack, key, hilly, x, threat, accuracy_fn=lambda point: jnp.sum(point)
    )
    chex.assert_trees_all_close(path, same)
    assert without.accuracy is None
    assert info.accuracy == by_accuracy.sum() <= by_loss.sum()


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_a_constant_accuracy_changes_nothing(attack, key):
    x, threat = np.float32([0.1, -0.2]), threats.l2(0.5)
    by_loss, _ = compiled(attack, key, hilly, x, threat)
    with_accuracy, _ = compiled(
        attack, key, hilly, x, threat, accuracy_fn=lambda _: jnp.float32(0.5)
    )
    chex.assert_trees_all_equal(by_loss, with_accuracy)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_a_misclassified_point_on_the_path_is_kept_where_the_loss_is_higher_elsewhere(attack, key):
    """Three classes along a line: past .3 the loss still rises and the error is gone."""

    def logits_fn(x):
        error = 0.6 - 8.0 * jnp.abs(x[0] - 0.2)
        return jnp.stack([0.0 * x[0], error, -jnp.exp(-3.0 * x[0])])

    def loss_fn(x):
        return x[0]

    x, threat = np.zeros(1, np.float32), from_x(threats.linf(0.6))
    settings = {"accuracy_fn": lambda x: mixture.correct(logits_fn(x), 0).astype(jnp.float32)}
    if attack is pgd:
        settings["random_start"] = False
    plain = {name: value for name, value in settings.items() if name != "accuracy_fn"}
    is_right = jax.jit(lambda x: mixture.correct(logits_fn(x), 0))
    by_loss, _ = compiled(attack, key, loss_fn, x, threat, **plain)
    assert is_right(by_loss)
    if attack is apgd:  # its steps are 1.2 long: let it come past the error
        threat = from_x(threats.linf(0.2))
    x_adv, info = compiled(attack, key, loss_fn, x, threat, **settings)
    assert info.accuracy == 0 and not is_right(x_adv)


def test_the_best_of_restarts_and_targets_is_that_of_lowest_accuracy(key):
    """On a flat slope a run stays where it began: the lowest of six starts is returned."""

    def attack(key):
        return attacks.apgd_targeted(
            key,
            lambda x, target: jax.lax.stop_gradient(x[0]) + target,
            jnp.zeros(1),
            jnp.arange(3),
            threats.linf(1.0),
            num_steps=1,
            num_restarts=2,
            accuracy_fn=lambda x: x[0],
            bounds=WIDE,
        )

    points, info = jax.jit(jax.vmap(attack))(jax.random.split(key, 1000))
    assert abs(np.mean(points) + 5 / 7) < 0.04
    np.testing.assert_array_equal(info.accuracy, points[:, 0])


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_beside_an_accuracy_a_loss_of_nan_never_wins_and_an_accuracy_of_nan_is_an_error(
    attack, key
):
    x, threat = np.zeros(1, np.float32), from_x(threats.linf(0.5))

    def loss_fn(x):
        return jnp.where(x[0] > 0.2, jnp.nan, x[0])

    x_adv, info = compiled(attack, key, loss_fn, x, threat, accuracy_fn=lambda x: 0.0 * x[0])
    assert x_adv <= 0.2 and info.loss == x_adv[0]

    def nan_beyond(x):
        return jnp.where(x[0] > 0.2, jnp.nan, 0.5)

    x_adv, info = compiled(attack, key, lambda x: x[0], x, threat, accuracy_fn=nan_beyond)
    assert x_adv > 0.2 and info.accuracy == 0


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_the_network_runs_once_for_loss_and_accuracy(attack, key):
    """Convolutions of the compiled program, with and without an accuracy."""
    kernels, scales = np.ones((3, 3, 3, 2, 2), np.float32), np.ones(3, np.float32)

    def count(judged):
        def one(kernels, scales, key, x):
            def network(x):
                for kernel, scale in zip(kernels, scales, strict=True):
                    dimensions = ("NHWC", "HWIO", "NHWC")
                    x = jax.lax.conv_general_dilated(
                        x, kernel, (1, 1), "SAME", None, None, dimensions
                    )
                    # Loop-invariant, as in BatchNorm: XLA moves it out of the loop.
                    x = jax.nn.relu(x * jax.lax.rsqrt(scale + 1e-3))
                return jnp.sum(x, (0, 1, 2))

            logits_fn = attacks.once(lambda x: network(x[None]))
            accuracy_fn = (lambda x: 1.0 * mixture.correct(logits_fn(x), 0)) if judged else None
            return attack(
                key,
                lambda x: losses.cross_entropy(logits_fn(x), 0),
                x,
                threats.linf(0.1),
                accuracy_fn=accuracy_fn,
            )[0]

        program = jax.jit(one).lower(kernels, scales, key, np.zeros((5, 5, 2), np.float32))
        return len(re.findall(r"stablehlo.convolution", program.as_text()))

    assert count(judged=True) == count(judged=False) > 0


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.apgd])
def test_the_network_is_traced_once_for_each_thing_that_is_done_with_it(attack, key):
    """To be checked, in the loop over the steps, and at the last point: a deep one takes long."""
    asked = []

    def logits_fn(x):
        asked.append(x.shape)
        return jnp.stack([x, -x])

    numbers = {"num_steps": 5, **({"step_size": 0.1} if attack is attacks.pgd else {})}
    mixed = logits_fn, np.float32([0.25, 0.75]), np.float32([0.5, 0.4]), 0, threats.linf(0.1)
    jax.eval_shape(lambda key: attacks.on_mixture(attack, key, *mixed, **numbers)[0], key)
    assert len(asked) == 3
