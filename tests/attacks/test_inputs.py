"""Odd inputs, bounds, dtypes, logits of -inf and members that answer NaN, in every attack."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, ensemble, losses, mixture, models, threats

WEIGHTS = np.array([0.6, 0.4], np.float32)
WHOLE = np.ones(1, np.float32)


def members_loss(loss, logits, label, weights):
    return mixture.expected_loss(
        jax.vmap(loss, in_axes=(0, None))(logits, label), jnp.asarray(weights)
    )


def fgsm(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x):
        return members_loss(losses.cross_entropy, logits_fn(x), label, weights)

    return attacks.fgsm(loss_fn, x, threat, **settings)


def pgd(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x):
        return members_loss(losses.cross_entropy, logits_fn(x), label, weights)

    return attacks.pgd(key, loss_fn, x, threat, num_steps=9, step_size=0.1, **settings)


def apgd(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x):
        return members_loss(losses.dlr, logits_fn(x), label, weights)

    return attacks.apgd(key, loss_fn, x, threat, num_steps=9, **settings)


def apgd_targeted(key, logits_fn, weights, x, label, threat, **settings):
    def loss_fn(x, target):
        def towards(logits, label):
            return losses.targeted_dlr(logits, label, target)

        return members_loss(towards, logits_fn(x), label, weights)

    targets = jnp.array([1, 2, 3])
    return attacks.apgd_targeted(key, loss_fn, x, targets, threat, num_steps=9, **settings)


def square(key, logits_fn, weights, x, label, threat, **settings):
    def score_fn(x):
        return -losses.margin(mixture.log_probs(logits_fn(x), weights), label)

    return attacks.square(key, score_fn, x, threat, num_queries=100, **settings)


def arc(key, logits_fn, weights, x, label, threat, **settings):
    return attacks.arc(key, logits_fn, weights, x, label, threat, num_steps=4, **settings)


def lattice_climber(key, logits_fn, weights, x, label, threat, **settings):
    settings = {"num_orders": 2, "num_steps": 5} | settings
    return attacks.lattice_climber(key, logits_fn, weights, x, label, threat, **settings)


def fab(key, logits_fn, weights, x, label, threat, **settings):
    settings = {"num_steps": 6} | settings
    return attacks.fab(key, logits_fn, weights, x, label, threat, **settings)


def fab_targeted(key, logits_fn, weights, x, label, threat, **settings):
    settings = {"num_steps": 6} | settings
    targets = jnp.array([1, 2])
    return attacks.fab_targeted(key, logits_fn, weights, x, label, targets, threat, **settings)


ATTACKS = (fgsm, pgd, apgd, apgd_targeted, square, arc, lattice_climber, fab, fab_targeted)


def masked(x):
    """Four classes, the fourth masked; an error from a mean above .5 on."""
    ahead = 2.0 * (0.5 - jnp.mean(x))
    return jnp.stack([0.0 * ahead, -ahead, -1.0 + 0.0 * ahead, -jnp.inf + 0.0 * ahead])[None]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_masked_class_hides_no_error(attack, key):
    """From .2 everywhere errors begin .3 away, inside of the radius .4."""
    x = jnp.full((2, 2, 1), 0.2)
    assert mixture.correct(masked(x)[0], 0)
    x_adv, info = attack(key, masked, WHOLE, x, 0, threats.linf(0.4))
    chex.assert_tree_all_finite((x_adv, info))
    assert not mixture.correct(masked(x_adv)[0], 0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_masked_class_hides_no_error_of_a_class_that_is_right_from_a_mean_of_one_half_on(
    attack, key
):
    """At .8 everywhere; class 1 is the label, and errors begin .3 below."""

    def logits_fn(x):
        ahead = jnp.mean(x) - 0.5
        return jnp.stack([0.0 * ahead, ahead, -1.0 + 0.0 * ahead, -jnp.inf + 0.0 * ahead])[None]

    # As `targets` holds the classes 1 to 3 the label is the first, the others in their order.
    def from_label(x):
        return logits_fn(x)[:, jnp.array([1, 0, 2, 3])]

    x = jnp.full((2, 2, 1), 0.8)
    attacked = jax.jit(lambda radius: attack(key, from_label, WHOLE, x, 0, threats.linf(radius))[0])
    assert mixture.correct(from_label(x)[0], 0)
    assert not mixture.correct(from_label(attacked(0.4))[0], 0)
    assert mixture.correct(from_label(attacked(0.25))[0], 0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("make", [threats.linf, threats.l2])
def test_in_a_ball_of_radius_zero_there_is_the_input_alone(attack, make, key):
    x = jnp.full((2, 2, 1), 0.2)
    x_adv, info = attack(key, masked, WHOLE, x, 0, make(0.0))
    chex.assert_tree_all_finite(info)
    np.testing.assert_array_equal(x_adv, x)


@pytest.mark.parametrize("attack", [pgd, apgd, arc, lattice_climber, fab])
def test_a_member_that_answers_nan_does_not_hide_the_other(attack, key):
    """The first member answers NaN everywhere, the second errs from .3 on."""

    def logits_fn(x):
        return jnp.concatenate([jnp.full((1, 4), jnp.nan), masked(x)])

    x = jnp.full((2, 2, 1), 0.2)
    attacked = jax.jit(lambda each: attack(key, logits_fn, each, x, 0, threats.linf(0.4))[0])
    for weights in (jnp.array([0.5, 0.5]), jnp.array([0.0, 1.0])):
        x_adv = attacked(weights)
        assert np.all(np.isfinite(x_adv))
        assert mixture.accuracy(logits_fn(x_adv), 0, weights) == 0


def root_of_minus_one(x, broken):
    """NaN, and so is its gradient, 0 times which is NaN too; 1 where nothing is broken."""
    return jnp.sqrt(1.0 - broken * (2.0 + jnp.sum(x**2)))


def root_of_zero(x, broken):
    """0, whose gradient is infinity less infinity; 1 where nothing is broken."""
    return jnp.sqrt(1.0 - broken + broken * (jnp.sum(x) - jnp.sum(x)))


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, apgd_targeted, arc, lattice_climber])
@pytest.mark.parametrize("shift", [root_of_minus_one, root_of_zero])
def test_a_gradient_of_nan_does_not_hide_that_of_the_other_member(attack, shift, key):
    """The first member has no gradient, the second errs from .3 away on: found as if alone."""

    def member(broken, x):
        return masked(x)[0] + shift(x, broken)

    def logits_fn(x):
        return ensemble.apply(member, jnp.array([1.0, 0.0]), x)

    x = jnp.full((2, 2, 1), 0.2)
    attacked = jax.jit(lambda each: attack(key, logits_fn, each, x, 0, threats.linf(0.4))[0])
    for weights in ([0.5, 0.5], [0.0, 1.0]):
        x_adv = attacked(jnp.array(weights))
        assert np.all(np.isfinite(x_adv))
        assert not mixture.correct(masked(x_adv)[0], 0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_bounds_may_differ_between_features(attack, key):
    low, high = np.float32([-3.0, 0.0]), np.float32([-2.8, 10.0])
    x = jnp.broadcast_to(jnp.array([-2.9, 5.0]), (2, 1, 2))

    def logits_fn(x):
        total = jnp.sum(x)  # 4.2, and an error from 4.8 on
        return jnp.stack([4.8 + 0.0 * total, total, -total, total - 1.0])[None]

    x_adv, _ = attack(key, logits_fn, WHOLE, x, 0, threats.linf(0.4), bounds=(low, high))
    assert not mixture.correct(logits_fn(x_adv)[0], 0)
    x_adv = np.asarray(x_adv)
    assert np.all((x_adv >= low) & (x_adv <= high)) and np.abs(x_adv - x).max() <= 0.4 + 1e-6
    assert np.abs(x_adv - x)[..., 1].max() > 0.2


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

    batch, threat, message = jnp.zeros((3, 2, 2, 1)), threats.linf(0.1), "make the batch by jax.vm"
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
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_inputs_of_half_precision_are_attacked_and_come_back_so(attack, dtype, key):
    x = jnp.full((2, 2, 1), 0.25, dtype)
    x_adv, _ = attack(key, masked, WHOLE, x, 0, threats.l2(0.75))
    assert x_adv.dtype == dtype and not mixture.correct(masked(x_adv)[0], 0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("make", [threats.linf, threats.l2])
def test_a_traced_radius_of_single_precision_leaves_an_input_its_type(attack, make, key):
    x = jnp.full((2, 2, 1), 0.25, jnp.bfloat16)
    x_adv, _ = jax.eval_shape(
        lambda radius: attack(key, masked, WHOLE, x, 0, make(radius)), jnp.float32(0.75)
    )
    assert x_adv.dtype == jnp.bfloat16
    delta = jax.eval_shape(lambda radius: make(radius).project(x), jnp.float32(0.75))
    assert delta.dtype == jnp.bfloat16


@pytest.mark.parametrize("move", [attacks.follow, attacks.squash])
def test_bounds_of_single_precision_leave_a_moved_input_its_type(move):
    x = jnp.full((2, 2, 1), 0.25, jnp.bfloat16)
    moved = move(x, jnp.ones(x.shape), threats.linf(0.1), bounds=(jnp.zeros(()), jnp.ones(())))
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
    variables = network.init(key)
    with pytest.raises(ValueError, match="x must hold floating-point numbers, got uint8"):
        network.apply(variables, np.full(2, 200, np.uint8), 1)


def linear(x):
    """Two members that differ, three classes, all right at .2 and wrong above."""
    total = jnp.sum(x)
    return jnp.stack([jnp.stack([1.0 - total, total - 1.0, 0.2 * total - 1.0]) * k for k in (1, 2)])


def three_classes(attack):
    def targeted(key, logits_fn, weights, x, label, threat):
        def loss_fn(x, target):
            def towards(logits, label):
                return losses.targeted_dlr(logits, label, target)

            return members_loss(towards, logits_fn(x), label, weights)

        targets = attacks.likeliest_wrong(logits_fn(x)[0], label, 2)
        return attacks.apgd_targeted(key, loss_fn, x, targets, threat, num_steps=9)

    return targeted if attack is apgd_targeted else attack


def carlini_wagner(key, logits_fn, weights, x, label, threat):
    return attacks.carlini_wagner(
        lambda x: losses.mean_probability_margin(logits_fn(x), label, weights),
        x,
        num_steps=5,
        num_binary_search_steps=2,
    )


@pytest.mark.parametrize("attack", [*ATTACKS, carlini_wagner])
def test_what_refuses_nan_and_infinity_refuses_nothing_of_healthy_members(attack):
    """Under `jax.debug_nans`, `jax.debug_infs` and `jax.enable_checks`, with other keys."""
    attack = three_classes(attack)
    xs = jnp.linspace(0.1, 0.2, 8).reshape(2, 2, 2, 1)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)

    def one(key, x):
        return attack(key, linear, WEIGHTS, x, 0, threats.linf(0.3))[0]

    with jax.debug_nans(True), jax.debug_infs(True), jax.enable_checks(True):
        attacked = jax.jit(jax.vmap(one))(keys, xs)
        chex.assert_tree_all_finite(attacked)
    for x in attacked:
        assert mixture.accuracy(linear(x), 0, WEIGHTS) == 0


@pytest.mark.parametrize("attack", [pgd, apgd, arc, lattice_climber, fab])
def test_inputs_of_single_precision_are_attacked_where_double_is_the_default(attack, key):
    with jax.enable_x64(True):
        x = np.full((2, 2, 1), 0.2, np.float32)
        x_adv, _ = attack(key, masked, WHOLE, x, 0, threats.linf(0.4))
        assert x_adv.dtype == np.float32 and not mixture.correct(masked(x_adv)[0], 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_zero_gradient_has_no_direction_and_a_half_precision_one_a_unit_one(dtype):
    threat = threats.l2(2.0)
    chex.assert_trees_all_equal(threat.steepest(jnp.zeros(3, dtype)), jnp.zeros(3, dtype))
    large = threat.steepest(jnp.full(4, 3e4, dtype))
    assert large.dtype == dtype
    np.testing.assert_allclose(np.float32(large), 0.5, rtol=1e-2)
    np.testing.assert_allclose(threat.norm(jnp.full(4, 3e4, dtype)), 6e4, rtol=1e-2)
    np.testing.assert_allclose(np.float32(threat.project(jnp.full(4, 3e4, dtype))), 1, rtol=1e-2)
