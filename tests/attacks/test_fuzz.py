"""Random calls of every attack: finite, in the ball, within the bounds, never worse than no attack.

Each case is compiled once; a call attacks `BATCH` problems, all of them different.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixjax import attacks, losses, mixture, threats

BATCH = 128
NUM_EXAMPLES = 5
NUM_CLASSES = 3
WEIGHTS = np.array([0.6, 0.4], np.float32)
STEPS = 3


def members(problem, x):
    """`[2, 3]` logits: one member linear, one bent."""
    kernel, shift = problem
    flat = x.astype(jnp.float32).reshape(-1)
    logits = jnp.einsum("d,ldc->lc", flat, kernel) + shift
    return jnp.stack([logits[0], jnp.tanh(logits[1])])


def expected_loss(logits, label):
    return mixture.expected_loss(
        jax.vmap(losses.cross_entropy, in_axes=(0, None))(logits, label), WEIGHTS
    )


def margin(logits, label):
    return losses.margin(mixture.log_probs(logits, WEIGHTS), label)


# Each takes the key, `logits_fn`, the input, its label, the threat and the bounds, and returns the
# point with two numbers of which the first must not be below the second.


def fgsm(key, logits_fn, x, label, threat, bounds):
    x_adv, _ = attacks.fgsm(lambda x: expected_loss(logits_fn(x), label), x, threat, bounds=bounds)
    return x_adv, 0.0, 0.0  # promises a step, not a gain


def pgd(key, logits_fn, x, label, threat, bounds):
    x_adv, info = attacks.pgd(
        key,
        lambda x: expected_loss(logits_fn(x), label),
        x,
        threat,
        num_steps=STEPS,
        step_size=0.4 * threat.epsilon + 1e-3,
        bounds=bounds,
    )
    return x_adv, info.loss, info.first_loss


def ifgsm(key, logits_fn, x, label, threat, bounds):
    x_adv, info = attacks.pgd(
        key,
        lambda x: expected_loss(logits_fn(x), label),
        x,
        threat,
        num_steps=STEPS,
        step_size=0.1,
        random_start=False,
        bounds=bounds,
    )
    return x_adv, info.loss, info.first_loss


def apgd(key, logits_fn, x, label, threat, bounds):
    x_adv, info = attacks.apgd(
        key,
        lambda x: expected_loss(logits_fn(x), label),
        x,
        threat,
        num_steps=2 * STEPS,
        num_restarts=2,
        bounds=bounds,
    )
    return x_adv, info.loss, info.first_loss


def apgd_targeted(key, logits_fn, x, label, threat, bounds):
    targets = attacks.likeliest_wrong(mixture.log_probs(logits_fn(x), WEIGHTS), label, 2)

    def loss_fn(x, target):
        members = jax.vmap(losses.targeted_dlr, in_axes=(0, None, None))(
            logits_fn(x), label, target
        )
        return mixture.expected_loss(members, WEIGHTS)

    x_adv, info = attacks.apgd_targeted(
        key, loss_fn, x, targets, threat, num_steps=STEPS, bounds=bounds
    )
    return x_adv, info.loss, info.first_loss


def square(key, logits_fn, x, label, threat, bounds):
    def score_fn(x):
        return -margin(logits_fn(x), label)

    x_adv, info = attacks.square(key, score_fn, x, threat, num_queries=2 * STEPS, bounds=bounds)
    return x_adv, info.loss, info.first_loss


def carlini_wagner(key, logits_fn, x, label, threat, bounds):
    x_adv, info = attacks.carlini_wagner(
        lambda x: margin(logits_fn(x), label),
        x,
        num_steps=STEPS,
        num_binary_search_steps=2,
        num_closing_steps=STEPS,
        bounds=bounds,
    )
    kept = jnp.where(info.norm <= threat.epsilon, x_adv, x)
    before, after = (margin(logits_fn(point), label) for point in (x, x_adv))
    return kept, jnp.where(info.found, -after, 0.0), jnp.where(info.found, 0.0, -before)


def arc(key, logits_fn, x, label, threat, bounds):
    settings = dict(num_steps=STEPS, bounds=bounds)
    x_adv, info = attacks.arc(key, logits_fn, WEIGHTS, x, label, threat, **settings)
    return x_adv, -info.accuracy, -info.first_accuracy


def lattice_climber(key, logits_fn, x, label, threat, bounds):
    settings = dict(num_orders=2, num_steps=STEPS, bounds=bounds)
    x_adv, info = attacks.lattice_climber(key, logits_fn, WEIGHTS, x, label, threat, **settings)
    return x_adv, -info.accuracy, -info.first_accuracy


def fab(key, logits_fn, x, label, threat, bounds):
    settings = dict(num_steps=STEPS, num_restarts=2, bounds=bounds)
    x_adv, info = attacks.fab(key, logits_fn, WEIGHTS, x, label, threat, **settings)
    return x_adv, -info.accuracy, -info.first_accuracy


ATTACKS = (fgsm, pgd, ifgsm, apgd, apgd_targeted, square, arc, lattice_climber, carlini_wagner, fab)
SHAPES = {threats.linf: (3, 2, 2), threats.l2: (2, 4, 1)}

CASES = [
    pytest.param(attack, make, dtype, id=f"{attack.__name__}-{make.__name__}-{dtype.__name__}")
    for attack in ATTACKS
    for make, dtype in ((threats.linf, np.float32), (threats.l2, np.float32))
    if (attack, make) != (carlini_wagner, threats.linf)
]
CASES += [
    pytest.param(attack, threats.l2, jnp.bfloat16, id=f"{attack.__name__}-l2-bfloat16")
    for attack in (fgsm, pgd)
]


def test_the_calls_are_ten_thousand():
    assert len(CASES) * NUM_EXAMPLES * BATCH >= 10_000


@functools.cache
def run(attack, make, dtype):
    shape = SHAPES[make]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
    def call(key, scale, radius, low, high):
        keys = jax.random.split(key, 7)
        size = int(np.prod(shape))
        problem = (
            scale * jax.random.normal(keys[0], (2, size, NUM_CLASSES)),
            scale * jax.random.normal(keys[1], (2, NUM_CLASSES)),
        )
        # A third of the coordinates lie on each bound.
        share = jnp.clip(jax.random.uniform(keys[2], shape, minval=-1.0, maxval=2.0), 0.0, 1.0)
        x = jnp.clip(low + (high - low) * share, low, high).astype(dtype)
        label = jax.random.randint(keys[3], (), 0, NUM_CLASSES)
        epsilon = radius * (high - low) * jax.random.uniform(keys[4])
        threat = make(epsilon)
        logits_fn = functools.partial(members, problem)
        x_adv, gained, start = attack(keys[5], logits_fn, x, label, threat, (low, high))
        wide = x_adv.astype(jnp.float32)
        return x_adv, threat.norm(wide - x.astype(jnp.float32)), epsilon, gained, start

    return call


@pytest.mark.parametrize(("attack", "make", "dtype"), CASES)
@hypothesis.settings(max_examples=NUM_EXAMPLES)
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1),
    scale=st.sampled_from([1.0, 30.0, 0.0, 1e-12, 1e12]),
    radius=st.sampled_from([0.1, 0.0, 1e-4, 0.5, 3.0]),
    bounds=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.0, 8.0)]),
)
@hypothesis.example(seed=0, scale=1e12, radius=0.1, bounds=(0.0, 1.0))  # was an infinite loss
def test_points_are_finite_within_ball_and_bounds_and_no_worse(
    attack, make, dtype, seed, scale, radius, bounds
):
    keys = jax.random.split(jax.random.key(seed), BATCH)
    x_adv, norm, epsilon, gained, start = run(attack, make, dtype)(keys, scale, radius, *bounds)
    low, high = bounds
    spacing = float(jnp.finfo(dtype).eps) * max(-low, high)
    assert x_adv.shape == (BATCH, *SHAPES[make])
    assert np.all(np.isfinite(x_adv)), "not finite"
    assert np.all((x_adv >= low) & (x_adv <= high)), "outside of the bounds"
    assert np.all(norm <= epsilon * (1 + 1e-5) + 4 * spacing), "outside of the ball"
    assert np.all(np.isfinite(start)) and np.all(gained >= start), "worse than before"
