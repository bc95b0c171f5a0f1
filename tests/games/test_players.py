"""Two-player gradient methods: closed forms, numerical gradients, games whose solution is known."""

import functools
import re

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import games, models

DOWN, UP = 0.2, 0.3  # learning rates of u and v


def bilinear(u, v):
    return u * v


def two_worlds(u, v):
    """`min_u max_v` is 1 at (0, 0) and (pi, pi), `max_v min_u` is -1 at (pi, 0) and (0, pi).

    At each the other player's answer is a maximum or minimum of `sqrt(cos^2 + 9 sin^2)`; there is
    no saddle point at all.
    """
    return jnp.cos(u) * jnp.cos(v) + 3 * jnp.sin(u) * jnp.sin(v)


def play(method, u, v, num_updates, *args):
    """The last state and the infos of all updates, stacked."""

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda state, _: method.update(state, *args), state, length=num_updates)

    return run(method.init(u, v))


def once(method, u, v, *args):
    """What one update with learning rate 1 adds to u and to v, and its info."""
    state, info = jax.jit(method.update)(method.init(u, v), *args)
    changes = jax.tree.map(np.subtract, *jax.device_get(((state.u, state.v), (u, v))))
    return changes, info


METHODS = {
    "minimax": functools.partial(games.minimax, penalty=0.7),
    "maximin": functools.partial(games.maximin, penalty=0.7),
    "minimax at the new v": functools.partial(games.minimax, penalty=0.7, order="alternating"),
    "maximin at the new u": functools.partial(games.maximin, penalty=0.7, order="alternating"),
    "alternating": games.alternating,
    "simultaneous": games.simultaneous,
    "extragradient": games.extragradient,
    "unrolled": functools.partial(games.unrolled, num_unrolled_steps=2),
}
EVERY_METHOD = pytest.mark.parametrize("name", METHODS)

V_FIRST = np.array([[1, 0], [UP, 1]])  # (u, v) -> (u, v + UP u)
U_FIRST = np.array([[1, -DOWN], [0, 1]])  # (u, v) -> (u - DOWN v, v)
BOTH = np.array([[1, -DOWN], [UP, 1]])
STEPS_ON_U_V = {
    "minimax": np.array([[1 - DOWN * 0.7, -DOWN], [UP, 1]]),
    "maximin": np.array([[1, -DOWN], [UP, 1 - UP * 0.7]]),
    "minimax at the new v": np.array([[1 - DOWN * 0.7, -DOWN], [0, 1]]) @ V_FIRST,
    "maximin at the new u": np.array([[1, 0], [UP, 1 - UP * 0.7]]) @ U_FIRST,
    "alternating": U_FIRST @ V_FIRST,
    "simultaneous": BOTH,
    "extragradient": np.eye(2) + np.array([[0, -DOWN], [UP, 0]]) @ BOTH,
    # f(u, v + 2 UP u) has the derivative v + 4 UP u.
    "unrolled": np.array([[1 - 4 * UP * DOWN, -DOWN], [UP, 1]]),
}


@EVERY_METHOD
def test_on_u_times_v_every_method_is_the_linear_map_written_out(name):
    method = METHODS[name](bilinear, optax.sgd(DOWN), optax.sgd(UP))
    state, _ = play(method, 0.5, -0.8, 3)
    expected = np.linalg.matrix_power(STEPS_ON_U_V[name], 3) @ [0.5, -0.8]
    np.testing.assert_allclose([state.u, state.v], expected, rtol=1e-5)
    assert state.step == 3


def test_minimax_as_printed_takes_both_gradients_at_the_old_point():
    """Hamm's algorithm 1 on `f = u v`: `u1 = u0 - lambda (v0 + gamma u0)`, `v1 = v0 + sigma u0`."""
    u, v, gamma = 0.5, -0.8, 0.7
    method = games.minimax(bilinear, optax.sgd(DOWN), optax.sgd(UP), penalty=gamma)
    state, info = jax.jit(method.update)(method.init(u, v))
    chex.assert_trees_all_close(
        (state.u, state.v), (u - DOWN * (v + gamma * u), v + UP * u), rtol=1e-6
    )
    assert float(info.f) == pytest.approx(u * v)
    assert float(info.penalty) == pytest.approx(gamma / 2 * u**2)
    method = games.maximin(bilinear, optax.sgd(DOWN), optax.sgd(UP), penalty=gamma)
    state, info = jax.jit(method.update)(method.init(u, v))
    chex.assert_trees_all_close(
        (state.u, state.v), (u - DOWN * v, v + UP * (u - gamma * v)), rtol=1e-6
    )
    assert float(info.f) == pytest.approx(u * v)


def test_as_printed_a_penalty_below_sigma_leaves_u_times_v_and_at_the_new_v_none_circles():
    """The map's determinant is `1 - lambda gamma + lambda sigma` and `1 - lambda gamma`."""
    rates = optax.sgd(DOWN), optax.sgd(UP)
    leaves = games.minimax(bilinear, *rates, penalty=0.5 * UP)
    assert distances(leaves)[-1] > 10
    assert distances(games.minimax(bilinear, *rates, penalty=1.5 * UP))[-1] < 0.1
    variant = games.minimax(bilinear, *rates, penalty=0.5 * UP, order="alternating")
    assert distances(variant)[-1] < 0.1


def test_without_a_penalty_the_two_orders_are_simultaneous_and_alternating():
    rates = optax.adam(DOWN), optax.adam(UP)
    for order, method in (
        ("simultaneous", games.simultaneous),
        ("alternating", games.alternating),
    ):
        found, _ = play(games.minimax(two_worlds, *rates, penalty=0.0, order=order), 0.4, -0.3, 5)
        expected, _ = play(method(two_worlds, *rates), 0.4, -0.3, 5)
        chex.assert_trees_all_close(found, expected, rtol=1e-5)


def distances(method, num_updates=400):
    """Distances from the solution of `u v`, before each update, measured by both gradients."""
    _, info = play(method, 0.5, -0.8, num_updates)
    return np.asarray(info.residual)


def test_on_u_times_v_alternating_circles_simultaneous_leaves_and_minimax_arrives():
    rates = optax.sgd(0.1), optax.sgd(0.1)
    assert distances(games.minimax(bilinear, *rates))[-1] < 1e-6
    assert distances(games.maximin(bilinear, *rates))[-1] < 1e-6
    circle = distances(games.alternating(bilinear, *rates))
    assert 0.8 < circle.min() and circle.max() < 1.1
    assert distances(games.simultaneous(bilinear, *rates))[-1] > 5
    assert distances(games.unrolled(bilinear, *rates))[-1] < 1e-6
    assert distances(games.extragradient(bilinear, *rates))[-1] < 0.2


def test_simultaneous_steps_of_optax_s_optimistic_gradient_arrive_on_u_times_v():
    optimistic = optax.optimistic_gradient_descent(0.3)
    assert distances(games.simultaneous(bilinear, optimistic, optimistic))[-1] < 1e-4


def quadratic():
    """`u'Au/2 + u'Bv - v'Cv/2 + a'u + c'v` and its saddle point; `u` has 3 entries, `v` 2."""
    random = np.random.default_rng(0)
    a_root, c_root = random.normal(size=(3, 3)) / 2, random.normal(size=(2, 2)) / 2
    A, C = a_root @ a_root.T + 0.5 * np.eye(3), c_root @ c_root.T + 0.5 * np.eye(2)
    B, a, c = random.normal(size=(3, 2)), random.normal(size=3), random.normal(size=2)
    solution = np.linalg.solve(np.block([[A, B], [B.T, -C]]), -np.concatenate([a, c]))

    def f(u, v, shift):
        # A pytree of two for u; the argument shifts the solution's u.
        u = jnp.concatenate([u["head"][None], u["tail"]]) - shift
        return u @ A @ u / 2 + u @ B @ v - v @ C @ v / 2 + a @ u + c @ v

    return f, solution[:3], solution[3:]


@EVERY_METHOD
def test_every_method_finds_the_saddle_point_of_a_quadratic(name):
    f, u, v = quadratic()
    method = METHODS[name](f, optax.sgd(0.05), optax.sgd(0.08))
    start = {"head": jnp.array(1.0), "tail": jnp.array([-1.0, 2.0])}
    state, info = play(method, start, jnp.array([0.5, 0.0]), 1500, 0.25)
    found = np.concatenate([state.u["head"][None], state.u["tail"]])
    np.testing.assert_allclose(found, u + 0.25, atol=1e-4)
    np.testing.assert_allclose(state.v, v, atol=1e-4)
    assert info.residual[-1] < 1e-4 < info.residual[0]


@pytest.mark.parametrize("start", [(0.4, -0.3), (2.0, 1.2), (3.0, 1.0)])
def test_without_a_saddle_point_minimax_and_maximin_find_each_their_own_solution(start):
    slow, fast = optax.sgd(0.005), optax.sgd(0.1)  # the one who answers is the faster
    for method, value in (
        (games.minimax(two_worlds, slow, fast), 1.0),
        (games.maximin(two_worlds, fast, slow), -1.0),
    ):
        state, info = play(method, *start, 4000)
        assert info.residual[-1] < 1e-4
        assert float(info.f[-1]) == pytest.approx(value, abs=1e-4)
        # (0, 0) and (pi, pi) for the one, (pi, 0) and (0, pi) for the other.
        assert float(jnp.cos(state.u) * jnp.cos(state.v)) == pytest.approx(value, abs=1e-4)


def test_adam_and_a_schedule_play_too():
    schedule = optax.exponential_decay(0.1, 100, 0.5)
    method = games.minimax(bilinear, optax.adam(schedule), optax.adamw(schedule))
    _, info = play(method, 0.5, -0.8, 1000)
    assert info.residual[-1] < 0.1 < 0.5 < info.residual[0]


def cnn(u, v, images):
    """Two strided convolutions of a classifier on images that the other player's filter changed."""

    def conv(x, kernel, stride):
        return models.conv.unrolled(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    attacked = images + 0.3 * jnp.tanh(conv(images, v["kernel"], 1) + v["bias"])
    hidden = jnp.tanh(conv(attacked, u["layers"][0], 2))
    return jnp.mean(jnp.sin(conv(hidden, u["layers"][1], 2)) ** 2 + hidden[:, ::2, ::2, :1])


def cnn_players():
    random = np.random.default_rng(0)
    u = {"layers": [random.normal(size=(3, 3, 1, 2)), random.normal(size=(3, 3, 2, 1))]}
    v = {"kernel": random.normal(size=(3, 3, 1, 1)), "bias": random.normal(size=(1, 1, 1, 1))}
    return u, v, random.uniform(size=(2, 6, 5, 1))


def numerical_gradient(f, tree, step=1e-5):
    """Central differences, one coordinate at a time."""
    flat, unflatten = jax.flatten_util.ravel_pytree(tree)
    flat, steps = np.asarray(flat), step * np.eye(flat.size)
    values = jax.jit(jax.vmap(lambda point: f(unflatten(point))))
    ahead, behind = (np.asarray(values(flat + sign * steps)) for sign in (1, -1))
    return unflatten((ahead - behind) / (2 * step))


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def assert_close(tree, expected, rtol=1e-4):
    for leaf, want in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize(("leader", "order"), [("u", "simultaneous"), ("v", "alternating")])
def test_with_convolutions_each_step_is_the_numerical_gradient_of_its_objective(leader, order):
    gamma, rate = 10.0, optax.sgd(1.0)
    with jax.enable_x64(True):
        u, v, images = cnn_players()
        make = games.minimax if leader == "u" else games.maximin
        (du, dv), info = once(make(cnn, rate, rate, penalty=gamma, order=order), u, v, images)

        @jax.jit
        def f(u, v):
            return cnn(u, v, images)

        if leader == "u":  # v moved first, or both at once
            new = jax.tree.map(np.add, v, dv) if order == "alternating" else v
            assert_close(dv, numerical_gradient(lambda v: f(u, v), v))

            @jax.jit
            def objective(u):
                norm = optax.tree.norm(jax.grad(f, 1)(u, new), squared=True)
                return f(u, new) + gamma / 2 * norm

            assert_close(du, jax.tree.map(np.negative, numerical_gradient(objective, u)))
            plain = jax.jit(jax.grad(f))(u, new)
            assert float(info.penalty) == pytest.approx(float(objective(u) - f(u, new)))
            assert float(info.f) == pytest.approx(float(f(u, new)))
        else:
            new = jax.tree.map(np.add, u, du) if order == "alternating" else u
            assert_close(du, jax.tree.map(np.negative, numerical_gradient(lambda u: f(u, v), u)))

            @jax.jit
            def objective(v):
                norm = optax.tree.norm(jax.grad(f)(new, v), squared=True)
                return f(new, v) - gamma / 2 * norm

            assert_close(dv, numerical_gradient(objective, v))
            plain = jax.jit(jax.grad(f, 1))(new, v)
            assert float(info.penalty) == pytest.approx(float(f(new, v) - objective(v)))
            assert float(info.f) == pytest.approx(float(f(new, v)))
        # The penalty is no small part of it.
        moved = du if leader == "u" else jax.tree.map(np.negative, dv)
        excess = jax.tree.map(lambda a, b: np.abs(np.abs(a) - np.abs(b)).max(), moved, plain)
        assert max(jax.tree.leaves(excess)) > 0.05 * float(norm(plain))
        assert float(info.u_gradient_norm) == pytest.approx(float(norm(du)))
        assert float(info.v_gradient_norm) == pytest.approx(float(norm(dv)))
        both = float(norm((du, dv)))
        assert float(info.residual) == pytest.approx(both)


def test_several_inner_steps_are_steps_of_that_player_alone():
    rates = optax.sgd(DOWN), optax.sgd(UP)
    variant = functools.partial(games.minimax, order="alternating")
    (du, dv), _ = once(variant(bilinear, *rates, penalty=0.9, num_ascent_steps=3), 0.5, -0.8)
    v = -0.8 + 3 * UP * 0.5
    np.testing.assert_allclose([du, dv], [-DOWN * (v + 0.9 * 0.5), 3 * UP * 0.5], rtol=1e-5)
    (du, dv), _ = once(games.alternating(bilinear, *rates, num_ascent_steps=3), 0.5, -0.8)
    np.testing.assert_allclose([du, dv], [-DOWN * v, 3 * UP * 0.5], rtol=1e-5)
    variant = functools.partial(games.maximin, order="alternating")
    (du, dv), _ = once(variant(bilinear, *rates, penalty=0.7, num_descent_steps=2), 0.5, -0.8)
    u = 0.5 + 2 * DOWN * 0.8
    np.testing.assert_allclose([du, dv], [2 * DOWN * 0.8, UP * (u + 0.7 * 0.8)], rtol=1e-5)
    # As printed the leader answers the follower before all of its steps.
    (du, dv), _ = once(games.minimax(bilinear, *rates, penalty=0.9, num_ascent_steps=3), 0.5, -0.8)
    np.testing.assert_allclose([du, dv], [-DOWN * (-0.8 + 0.9 * 0.5), 3 * UP * 0.5], rtol=1e-5)


def test_a_penalty_schedule_is_asked_at_each_step():
    method = games.minimax(
        bilinear, optax.sgd(0.0), optax.sgd(0.0), penalty=lambda step: 2.0 * (step + 1)
    )
    _, info = play(method, 0.5, -0.8, 3)
    np.testing.assert_allclose(info.penalty, np.array([2, 4, 6]) / 2 * 0.5**2, rtol=1e-6)
    np.testing.assert_allclose(info.u_gradient_norm, np.abs(-0.8 + np.array([2, 4, 6]) * 0.5))


def test_one_unrolled_step_is_a_penalty_at_the_old_point_up_to_second_order():
    """`f(u, v + s f_v) = f + s |f_v|^2 + O(s^2)`: the penalty `2 s`."""
    s, u, v = 1e-3, 0.7, 0.4
    (du, dv), info = once(
        games.unrolled(two_worlds, optax.sgd(1.0), optax.sgd(s), num_unrolled_steps=1), u, v
    )

    def penalized(u):
        return two_worlds(u, v) + s * jax.grad(two_worlds, 1)(u, v) ** 2

    assert float(du) == pytest.approx(-float(jax.grad(penalized)(u)), abs=2e-5)
    assert float(dv) == pytest.approx(s * float(jax.grad(two_worlds, 1)(u, v)), rel=1e-3)
    assert float(info.f) == pytest.approx(float(two_worlds(u, v + float(dv))), rel=1e-5)


def test_many_games_are_played_side_by_side_under_vmap():
    method = games.minimax(bilinear, optax.sgd(DOWN), optax.adam(UP))
    u, v = np.float32([0.5, -0.2]), np.float32([-0.8, 0.3])

    def play(u, v):
        return method.update(method.init(u, v))[0]

    states, one = jax.jit(jax.vmap(play))(u, v), jax.jit(play)
    for game in range(2):
        state = one(u[game], v[game])
        # One ends near 0, where the rounding of the step that leads there is all that is left.
        found, want = (states.u[game], states.v[game]), (state.u, state.v)
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7)


RATES = optax.sgd(0.1), optax.sgd(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: games.minimax(bilinear, *RATES, penalty=-0.5),
            "penalty must be at least 0, got -0.5",
        ),
        (
            lambda: games.maximin(bilinear, *RATES, penalty=np.nan),
            "penalty must be at least 0, got nan",
        ),
        (lambda: games.minimax(bilinear, *RATES, num_ascent_steps=0), "num_ascent_steps must be"),
        (
            lambda: games.minimax(bilinear, *RATES, order="printed"),
            "order must be one of simultaneous, alternating, got printed",
        ),
        (
            lambda: games.maximin(bilinear, *RATES, order="printed"),
            "order must be one of simultaneous, alternating, got printed",
        ),
        (
            lambda: games.alternating(bilinear, *RATES, num_ascent_steps=0),
            "num_ascent_steps must be",
        ),
        (
            lambda: games.maximin(bilinear, *RATES, num_descent_steps=1.5),
            "num_descent_steps must be",
        ),
        (lambda: games.unrolled(bilinear, *RATES, num_unrolled_steps=0), "num_unrolled_steps must"),
    ],
)
def test_numbers_out_of_their_range_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("name", "f", "got"),
    [
        *[(name, lambda u, v: u * v, "float32[3]") for name in METHODS],
        ("minimax", lambda u, v: (jnp.sum(u * v), u), "float32[], float32[3]"),
        ("extragradient", lambda u, v: jnp.sum(u > v), "int32[]"),
        ("unrolled", lambda u, v: None, "nothing"),
    ],
)
def test_an_f_that_is_no_real_scalar_is_refused(name, f, got):
    method = METHODS[name](f, *RATES)
    state = method.init(np.ones(3, np.float32), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=re.escape(f"f must return one real scalar, got {got}")):
        method.update(state)


@EVERY_METHOD
def test_parameters_that_are_no_finite_numbers_are_refused(name):
    method = METHODS[name](bilinear, *RATES)
    with pytest.raises(ValueError, match="u must lie in"):
        method.init(jnp.array([0.5, jnp.nan]), 1.0)
    with pytest.raises(ValueError, match="v must hold real floating-point arrays, got 1"):
        method.init(1.0, {"a": 1})
    state = method.init(0.5, 0.5)._replace(v=jnp.array(jnp.inf) - jnp.inf)
    with pytest.raises(ValueError, match="v must lie in"):
        method.update(state)


@EVERY_METHOD
def test_a_player_that_does_not_fit_its_optimiser_is_refused(name):
    method = METHODS[name](lambda u, v: jnp.sum(u["a"]) * v, optax.adam(0.1), optax.sgd(0.1))
    three, four = np.ones(3, np.float32), np.ones(4, np.float32)
    state = method.init({"a": three}, 0.5)
    jax.eval_shape(method.update, state)
    for u in ({"a": four}, {"a": three, "b": three}):
        with pytest.raises(ValueError, match="u_opt_state must be the optimiser's state for u"):
            method.update(state._replace(u=u))
