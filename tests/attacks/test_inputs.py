"""Every attack on random problems, on odd ones and on what is no input at all.

One compiled program for each attack and norm: logits of -inf, members that answer NaN, a radius of
0 and each feature's bounds are its data. A call attacks `BATCH` problems, all of them different.
"""

import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixjax import attacks, ensemble, losses, mixture, models, threats

BATCH = 160
NUM_EXAMPLES = 5
WEIGHTS = np.array([0.6, 0.4], np.float32)
WHOLE = np.ones(1, np.float32)


class Members(NamedTuple):
    """Two members of four classes, linear or bent; leaves `[2, ...]`."""

    kernel: np.ndarray  # [2, D, 4]
    shift: np.ndarray  # [2, 4]
    is_bent: np.ndarray  # [2], the tanh of what is linear
    below_zero: np.ndarray  # [2], 1 where the root of -1 is added
    at_zero: np.ndarray  # [2], 1 where the root of 0 is added


class Problem(NamedTuple):
    """What an attack takes, the bounds for each feature."""

    members: Members
    weights: np.ndarray  # [2]
    x: np.ndarray  # [H, W, C]
    label: np.ndarray  # []
    radius: np.ndarray  # []
    low: np.ndarray  # [H, W, C]
    high: np.ndarray  # [H, W, C]


def member(one, x):
    flat = x.astype(jnp.float32).reshape(-1)
    logits = jnp.sum(one.kernel * flat[:, None], axis=0) + one.shift
    logits = jnp.where(one.is_bent, jnp.tanh(logits), logits)
    return logits + root_of_minus_one(flat, one.below_zero) + root_of_zero(flat, one.at_zero)


def root_of_minus_one(x, broken):
    """NaN, and so is its gradient, 0 times which is NaN too; 1 where nothing is broken."""
    return jnp.sqrt(1.0 - broken * (2.0 + jnp.sum(x**2)))


def root_of_zero(x, broken):
    """0, whose gradient is infinity less infinity; 1 where nothing is broken."""
    return jnp.sqrt(1.0 - broken + broken * (jnp.sum(x) - jnp.sum(x)))


def members_loss(loss, logits, label, weights):
    return mixture.expected_loss(
        jax.vmap(loss, in_axes=(0, None))(logits, label), jnp.asarray(weights)
    )


def wrong_classes(label):
    return (label + jnp.arange(1, 4)) % 4


def margin(logits, label, weights):
    return losses.margin(mixture.log_probs(logits, weights), label)


# Each returns the point, the info and two numbers of which the first must not be below the second.


def fgsm(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x):
        return members_loss(losses.cross_entropy, logits_fn(x), label, weights)

    # It promises a step, not a gain.
    return *attacks.fgsm(loss_fn, x, threat, **settings), 0.0, 0.0


def pgd(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x):
        return members_loss(losses.cross_entropy, logits_fn(x), label, weights)

    # Not positive where the threat is none, which is what is to be refused.
    step_size = 0.4 * getattr(threat, "epsilon", 0.1) + 1e-3
    x_adv, info = attacks.pgd(key, loss_fn, x, threat, num_steps=9, step_size=step_size, **settings)
    return x_adv, info, info.loss, info.first_loss


def apgd(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x):
        return members_loss(losses.dlr, logits_fn(x), label, weights)

    x_adv, info = attacks.apgd(key, loss_fn, x, threat, num_steps=9, num_restarts=2, **settings)
    return x_adv, info, info.loss, info.first_loss


def apgd_targeted(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x, target):
        def towards(logits, label):
            return losses.targeted_dlr(logits, label, target)

        return members_loss(towards, logits_fn(x), label, weights)

    x_adv, info = attacks.apgd_targeted(
        key, loss_fn, x, wrong_classes(label), threat, num_steps=9, **settings
    )
    return x_adv, info, info.loss, info.first_loss


def square(key, logits_fn, weights, x, label, threat, **settings):
    def score_fn(x):
        return -margin(logits_fn(x), label, weights)

    x_adv, info = attacks.square(key, score_fn, x, threat, num_queries=100, **settings)
    return x_adv, info, info.loss, info.first_loss


def arc(key, logits_fn, weights, x, label, threat, **settings):
    x_adv, info = attacks.arc(key, logits_fn, weights, x, label, threat, num_steps=4, **settings)
    return x_adv, info, -info.accuracy, -info.first_accuracy


def lattice_climber(key, logits_fn, weights, x, label, threat, **settings):
    settings = {"num_orders": 2, "num_steps": 5} | settings
    x_adv, info = attacks.lattice_climber(key, logits_fn, weights, x, label, threat, **settings)
    return x_adv, info, -info.accuracy, -info.first_accuracy


def fab(key, logits_fn, weights, x, label, threat, **settings):
    settings = {"num_steps": 6, "num_restarts": 2} | settings
    x_adv, info = attacks.fab(key, logits_fn, weights, x, label, threat, **settings)
    return x_adv, info, -info.accuracy, -info.first_accuracy


def fab_targeted(key, logits_fn, weights, x, label, threat, **settings):
    settings = {"num_steps": 6} | settings
    targets = wrong_classes(label)
    x_adv, info = attacks.fab_targeted(
        key, logits_fn, weights, x, label, targets, threat, **settings
    )
    return x_adv, info, -info.accuracy, -info.first_accuracy


def carlini_wagner(key, logits_fn, weights, x, label, threat, **settings):
    def margin_fn(x):
        return margin(logits_fn(x), label, weights)

    x_adv, info = attacks.carlini_wagner(
        margin_fn, x, num_steps=3, num_binary_search_steps=2, num_closing_steps=3, **settings
    )
    kept = jnp.where(info.norm <= threat.epsilon, x_adv, x)
    # Where it has found nothing, the norm is infinite and `x` is right.
    gained, start = -margin_fn(x_adv), -margin_fn(x)
    return kept, (), jnp.where(info.found, gained, 0.0), jnp.where(info.found, 0.0, start)


ATTACKS = (fgsm, pgd, apgd, apgd_targeted, square, arc, lattice_climber, fab, fab_targeted)
SHAPES = {threats.linf: (3, 2, 2), threats.l2: (2, 4, 1)}
# Both norms where an attack has code for each or moves in its own way; what differs in how it
# chooses its targets alone shares its steps.
PROGRAMS = {
    threats.linf: (fgsm, pgd, apgd, square, arc, lattice_climber, fab_targeted),
    threats.l2: (pgd, apgd_targeted, square, arc, fab, carlini_wagner),
}
CASES = [
    pytest.param(attack, make, id=f"{attack.__name__}-{make.__name__}")
    for make, those in PROGRAMS.items()
    for attack in those
]
each_program = pytest.mark.parametrize(("attack", "make"), CASES)
# A search by scores alone finds no mean of all pixels by patches of norm epsilon in so few steps.
each_that_finds = pytest.mark.parametrize(
    ("attack", "make"), [case for case in CASES if case.id != "square-l2"]
)
each_of_gradients_of_losses = pytest.mark.parametrize(
    ("attack", "make"),
    [case for case in CASES if case.values[0] not in (square, fab, fab_targeted, carlini_wagner)],
)


def dtype_of(attack, make):
    return jnp.bfloat16 if (attack, make) == (pgd, threats.l2) else np.float32


@functools.cache
def run(attack, make):
    dtype = dtype_of(attack, make)

    @jax.jit
    @jax.vmap
    def call(key, problem):
        x = problem.x.astype(dtype)
        threat = make(problem.radius)
        x_adv, info, gained, start = attack(
            key,
            functools.partial(ensemble.apply, member, problem.members),
            problem.weights,
            x,
            problem.label,
            threat,
            bounds=(problem.low, problem.high),
        )
        norm = threat.norm(x_adv.astype(jnp.float32) - x.astype(jnp.float32))
        is_finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(info)]
        # As truth values: what a member that answers NaN makes of the loss is no number.
        is_gain = jnp.isfinite(start) & (gained >= start)
        return x_adv, norm, is_gain, jnp.all(jnp.array([True, *is_finite]))

    return call


def answers(attack, make, seed, problem):
    """Points, norms, whether the info gains and whether it is finite, `[BATCH, ...]`, in NumPy.

    In one norm with other keys and under what refuses NaN, infinity and badly typed programs.
    """
    strict = make is threats.linf
    keys = jax.random.split(jax.random.key(seed, impl="rbg" if strict else None), BATCH)
    with jax.debug_nans(strict), jax.debug_infs(strict), jax.enable_checks(strict):
        return jax.tree.map(np.asarray, run(attack, make)(keys, problem))


def at_random(make, seed, scale, radius, bounds):
    """A third of the coordinates lie on each bound."""
    generator = np.random.default_rng(seed)
    size, (low, high) = int(np.prod(SHAPES[make])), bounds
    share = np.clip(generator.uniform(-1.0, 2.0, (BATCH, *SHAPES[make])), 0.0, 1.0)
    zeros = np.zeros((BATCH, 2), np.float32)
    members = Members(
        kernel=np.float32(scale * generator.normal(size=(BATCH, 2, size, 4))),
        shift=np.float32(scale * generator.normal(size=(BATCH, 2, 4))),
        is_bent=zeros + np.float32([0.0, 1.0]) > 0,
        below_zero=zeros,
        at_zero=zeros,
    )
    return Problem(
        members=members,
        weights=zeros + WEIGHTS,
        x=np.float32(low + (high - low) * share),
        label=generator.integers(0, 4, BATCH),
        radius=np.float32(radius * (high - low) * generator.uniform(size=BATCH)),
        low=np.full_like(share, low, np.float32),
        high=np.full_like(share, high, np.float32),
    )


def test_the_calls_are_ten_thousand():
    assert len(CASES) * NUM_EXAMPLES * BATCH >= 10_000


@each_program
@hypothesis.settings(max_examples=NUM_EXAMPLES)
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1),
    scale=st.sampled_from([1.0, 30.0, 0.0, 1e-12, 1e12]),
    radius=st.sampled_from([0.1, 0.0, 1e-4, 0.5, 3.0]),
    bounds=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.0, 8.0)]),
)
@hypothesis.example(seed=0, scale=1e12, radius=0.1, bounds=(0.0, 1.0))  # was an infinite loss
def test_points_are_finite_within_ball_and_bounds_and_no_worse(
    attack, make, seed, scale, radius, bounds
):
    problem = at_random(make, seed, scale, radius, bounds)
    x_adv, norm, is_gain, _ = answers(attack, make, seed, problem)
    low, high = bounds
    dtype = dtype_of(attack, make)
    spacing = float(jnp.finfo(dtype).eps) * max(-low, high)
    assert x_adv.dtype == dtype and x_adv.shape == problem.x.shape
    assert np.all(np.isfinite(x_adv)), "not finite"
    assert np.all((x_adv >= low) & (x_adv <= high)), "outside of the bounds"
    assert np.all(norm <= problem.radius * (1 + 1e-5) + 4 * spacing), "outside of the ball"
    assert np.all(is_gain), "worse than before"


def masked(x):
    """Four classes, the fourth masked; an error from a mean above .5 on."""
    ahead = 2.0 * (0.5 - jnp.mean(x))
    return jnp.stack([0.0 * ahead, -ahead, -1.0 + 0.0 * ahead, -jnp.inf + 0.0 * ahead])[None]


def odd(make):
    """Problems by their names; from .2 everywhere errors begin .3 away, inside of the radius .4.

    Both members are `masked` but for what is said. In l2 the radius is that of as much everywhere.
    """
    shape = SHAPES[make]
    size = int(np.prod(shape))
    everywhere = np.float32(1.0 if make is threats.linf else size**0.5)
    kernel, none = np.zeros((2, size, 4), np.float32), np.zeros(2, np.float32)
    kernel[:, :, 1] = 2.0 / size
    shift = np.float32([[0.0, -1.0, -1.0, -np.inf]] * 2)
    far = Problem(
        members=Members(kernel, shift, none > 0, none, none),
        weights=WEIGHTS,
        x=np.full(shape, 0.2, np.float32),
        label=np.int64(0),
        radius=0.4 * everywhere,
        low=np.zeros(shape, np.float32),
        high=np.ones(shape, np.float32),
    )
    # Class 1 is right from a mean of .5 on.
    above = far._replace(x=np.full(shape, 0.8, np.float32), label=np.int64(1))
    problems = {
        "masked": far,
        "masked, from above": above,
        "masked, out of reach": above._replace(radius=0.25 * everywhere),
        "radius 0": far._replace(radius=0.0 * everywhere),
    }
    first = np.float32([1.0, 0.0])
    changes = {
        "NaN": {"shift": shift * np.float32([[np.nan], [1.0]])},
        "root of -1": {"below_zero": first},
        "root of 0": {"at_zero": first},
    }
    for name, change in changes.items():
        broken = far._replace(members=far.members._replace(**change))
        problems[f"{name}, of half the weight"] = broken._replace(
            weights=np.full(2, 0.5, np.float32)
        )
        problems[f"{name}, of no weight"] = broken._replace(weights=first[::-1])
    # Every second column has no more than 1/8 to go, the others 5; an error from .35 a pair on.
    is_narrow = np.broadcast_to(np.arange(shape[1])[:, None] % 2 == 0, shape)
    x = np.where(is_narrow, np.float32(-2.875), np.float32(5.0))
    slope = np.float32([0.0, 1.0, -1.0, 1.0])
    kernel = kernel * 0 + slope
    shift = np.float32([[x.sum() + 0.35 * size / 2, 0.0, 0.0, -1.0]] * 2)
    problems["bounds"] = far._replace(
        members=far.members._replace(kernel=kernel, shift=shift),
        x=x,
        low=np.where(is_narrow, np.float32(-3.0), np.float32(0.0)),
        high=np.where(is_narrow, np.float32(-2.75), np.float32(10.0)),
    )
    return problems


ODD = {make: odd(make) for make in SHAPES}


@functools.cache
def of_odd_ones(attack, make):
    """`name -> (x_adv, whether the second member is right there, whether the info is finite)`."""
    problems = list(ODD[make].values())
    stacked = jax.tree.map(
        lambda *leaves: np.resize(np.stack(leaves), (BATCH, *leaves[0].shape)), *problems
    )
    points, _, _, are_finite = answers(attack, make, 0, stacked)
    found = {}
    for (name, one), x_adv, is_finite in zip(ODD[make].items(), points, are_finite, strict=False):
        flat = np.float32(x_adv).reshape(-1)
        logits = flat @ one.members.kernel[1] + one.members.shift[1]
        is_right = logits[one.label] > np.delete(logits, one.label).max()
        found[name] = np.float32(x_adv), is_right, is_finite
    return found


@each_that_finds
def test_a_masked_class_hides_no_error(attack, make):
    _, is_right, is_finite = of_odd_ones(attack, make)["masked"]
    assert is_finite and not is_right


@each_that_finds
def test_a_masked_class_hides_no_error_of_a_class_that_is_right_from_a_mean_of_one_half_on(
    attack, make
):
    """At .8 everywhere; class 1 is the label, and errors begin .3 below."""
    _, is_right, _ = of_odd_ones(attack, make)["masked, from above"]
    assert not is_right
    _, is_right, _ = of_odd_ones(attack, make)["masked, out of reach"]
    assert is_right


@each_program
def test_in_a_ball_of_radius_zero_there_is_the_input_alone(attack, make):
    x_adv, _, is_finite = of_odd_ones(attack, make)["radius 0"]
    assert is_finite
    np.testing.assert_array_equal(x_adv, np.float32(dtype_of(attack, make)(0.2)))


@each_that_finds
@pytest.mark.parametrize("weight", ["half the weight", "no weight"])
def test_a_member_that_answers_nan_does_not_hide_the_other(attack, make, weight):
    """The first member answers NaN everywhere, the second errs from .3 on."""
    x_adv, is_right, _ = of_odd_ones(attack, make)[f"NaN, of {weight}"]
    assert np.all(np.isfinite(x_adv)) and not is_right


@each_of_gradients_of_losses
@pytest.mark.parametrize("weight", ["half the weight", "no weight"])
@pytest.mark.parametrize("root", ["root of -1", "root of 0"])
def test_a_gradient_of_nan_does_not_hide_that_of_the_other_member(attack, make, root, weight):
    """The first member has no gradient, the second errs from .3 away on: found as if alone."""
    x_adv, is_right, _ = of_odd_ones(attack, make)[f"{root}, of {weight}"]
    assert np.all(np.isfinite(x_adv)) and not is_right


@each_that_finds
def test_bounds_may_differ_between_features(attack, make):
    problem = ODD[make]["bounds"]
    x_adv, is_right, _ = of_odd_ones(attack, make)["bounds"]
    assert not is_right
    assert np.all((x_adv >= problem.low) & (x_adv <= problem.high))
    deltas = np.abs(x_adv - problem.x)
    norm = deltas.max() if make is threats.linf else np.linalg.norm(deltas)
    spacing = 10 * float(jnp.finfo(dtype_of(attack, make)).eps)
    assert norm <= problem.radius * (1 + 1e-5) + 4 * spacing and deltas[:, 1].max() > 0.2


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (np.full((2, 2, 1), 1.5), {}, r"x must lie in \[0, 1\], got values from 1.5 to 1.5"),
        (np.full((2, 2, 1), np.nan), {}, r"x must lie in \[0, 1\], got NaN"),
        (np.full((2, 2, 1), 200, np.uint8), {}, "x must hold floating-point numbers, got uint8"),
        (np.full((2, 2, 1), 0.5, ">f4"), {}, "x must be in native byte order, got >f4"),
        (np.full((2, 2, 1), 0.5), {"bounds": (0.0, np.ones(3))}, "bounds must broadcast"),
        (np.full((2, 2, 1), 0.5), {"bounds": (1.0, 0.0)}, "bounds must be a pair"),
        (np.full((2, 2, 1), 0.5), {"threat": 0.1}, r"threat must be a Threat, such as threats.lin"),
        (
            np.full((2, 2, 1), 0.5),
            {"threat": threats.linf(np.array([0.1, 0.2]))},
            "threat must have one radius for one example",
        ),
    ],
)
def test_an_input_that_is_none_is_refused_in_one_line(attack, x, settings, message, key):
    settings = {"threat": threats.linf(0.1)} | settings
    with pytest.raises(ValueError, match=message):
        attack(key, masked, WHOLE, x, 0, **settings)


def test_a_batch_without_vmap_is_refused_in_one_line(key):
    def loss_fn(x):
        return jnp.sum(x, axis=(1, 2, 3))

    batch, threat, message = (
        np.zeros((3, 2, 2, 1), np.float32),
        threats.linf(0.1),
        "make the batch by jax.vm",
    )
    with pytest.raises(ValueError, match=message):
        attacks.fgsm(loss_fn, batch, threat)
    with pytest.raises(ValueError, match=message):
        attacks.pgd(key, loss_fn, batch, threat, num_steps=2, step_size=0.1)
    with pytest.raises(ValueError, match=message):
        attacks.apgd(key, loss_fn, batch, threat)
    with pytest.raises(ValueError, match=message):
        attacks.square(key, loss_fn, batch, threat)
    with pytest.raises(ValueError, match="logits must be all members' on one example"):
        attacks.arc(key, lambda x: x, WEIGHTS, batch, 0, threat)
    with pytest.raises(ValueError, match="label must lie in"):
        attacks.lattice_climber(key, masked, WHOLE, batch[0], 4, threat)
    with pytest.raises(ValueError, match="logits must be all members' on one example"):
        attacks.fab(key, lambda x: x, WEIGHTS, batch, 0, threat)
    with pytest.raises(ValueError, match="label must be a whole number, got float32"):
        attacks.arc(key, masked, WHOLE, batch[0], jnp.float32(1.0), threat)


@pytest.mark.parametrize("attack", [pgd, apgd, arc, lattice_climber, fab])
def test_inputs_of_half_precision_are_attacked_and_come_back_so(attack, key):
    """Where double precision is the default."""
    with jax.enable_x64(True):
        x = np.full((2, 2, 1), 0.25, np.float16)

        @jax.jit
        def attacked():
            x_adv, *_ = attack(key, masked, WHOLE, x, 0, threats.l2(0.75))
            return x_adv, mixture.correct(masked(x_adv)[0], 0)

        x_adv, is_right = attacked()
        assert x_adv.dtype == np.float16 and not is_right


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float64])
@pytest.mark.parametrize("attack", [*ATTACKS, carlini_wagner])
def test_logits_of_another_precision_are_attacked(attack, dtype, key):
    x = np.full((2, 2, 1), 0.25, np.float32)

    @jax.jit
    def attacked():
        def logits_fn(x):
            return masked(x).astype(dtype)

        x_adv, *_ = attack(key, logits_fn, WHOLE, x, 0, threats.l2(0.75))
        return x_adv, mixture.correct(masked(x_adv)[0], 0)

    with jax.enable_x64(dtype is np.float64):
        x_adv, is_right = attacked()
    assert x_adv.dtype == np.float32 and not is_right


@pytest.mark.parametrize("attack", ATTACKS)
def test_inputs_of_single_precision_come_back_so_where_double_is_the_default(attack, key):
    with jax.enable_x64(True):
        x = np.full((2, 2, 1), 0.2, np.float32)
        x_adv, *_ = jax.eval_shape(lambda: attack(key, masked, WHOLE, x, 0, threats.linf(0.4)))
        assert x_adv.dtype == np.float32


@pytest.mark.parametrize(
    ("attack", "make"), [case for case in CASES if case.values[0] is not carlini_wagner]
)
def test_a_traced_radius_of_single_precision_leaves_an_input_its_type(attack, make, key):
    x = np.full((2, 2, 1), 0.25, jnp.bfloat16)

    def of_radius(radius):
        return attack(key, masked, WHOLE, x, 0, make(radius))[0], make(radius).project(x)

    x_adv, delta = jax.eval_shape(of_radius, jnp.float32(0.75))
    assert x_adv.dtype == delta.dtype == jnp.bfloat16


@pytest.mark.parametrize("move", [attacks.follow, attacks.squash])
def test_bounds_of_single_precision_leave_a_moved_input_its_type(move):
    x = np.full((2, 2, 1), 0.25, jnp.bfloat16)
    bounds = jnp.float32(0.0), jnp.float32(1.0)
    direction = np.ones(x.shape, np.float32)
    moved = jax.jit(lambda: move(x, direction, threats.linf(0.1), bounds=bounds))()
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(moved), 0.35, atol=3e-2)


@pytest.mark.parametrize("move", [attacks.follow, attacks.squash])
@pytest.mark.parametrize(
    ("x", "threat", "message"),
    [
        (
            np.full(3, 200, np.uint8),
            threats.linf(0.1),
            "x must hold floating-point numbers, got ui",
        ),
        (np.full(3, 1.5), threats.linf(0.1), r"x must lie in \[0, 1\], got values from 1.5 to 1.5"),
        (np.full(3, 0.5), 0.1, "threat must be a Threat"),
    ],
)
def test_a_network_s_move_refuses_an_input_that_is_none(move, x, threat, message):
    with pytest.raises(ValueError, match=message):
        move(x, np.ones(3, np.float32), threat)


def test_an_attack_network_refuses_integers(key):
    network = models.attack_network(3, input_shape=(2,), hidden=(4,))
    variables = jax.eval_shape(network.init, key)
    with pytest.raises(ValueError, match="x must hold floating-point numbers, got uint8"):
        network.apply(variables, np.full(2, 200, np.uint8), 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_zero_gradient_has_no_direction_and_a_half_precision_one_a_unit_one(dtype):
    threat, large = threats.l2(2.0), np.full(4, 3e4, dtype)

    @jax.jit
    def measured(zero, large):
        steepest = threat.steepest(zero), threat.steepest(large)
        return *steepest, threat.norm(large), threat.project(large)

    zero, unit, norm, projected = measured(np.zeros(4, dtype), large)
    assert zero.dtype == unit.dtype == dtype
    np.testing.assert_array_equal(zero, 0)
    np.testing.assert_allclose(np.float32(unit), 0.5, rtol=1e-2)
    np.testing.assert_allclose(norm, 6e4, rtol=1e-2)
    np.testing.assert_allclose(np.float32(projected), 1, rtol=1e-2)
