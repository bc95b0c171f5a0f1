"""The member axis against a Python loop over the members, on one device and on several."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import ensemble, models

P = jax.sharding.PartitionSpec
NUM_CLASSES = 3


def small_net():
    """A network without layers of a library, and smooth: `[..., 5] -> [..., 3]`."""

    def init(key):
        first, second = jax.random.split(key)
        return {"w": jax.random.normal(first, (5, 6)), "u": jax.random.normal(second, (6, 3))}

    def apply(variables, x):
        return jnp.tanh(x @ variables["w"]) @ variables["u"]

    return models.Model(init, apply), (5,), 4


def convolutional_net():
    """One convolution of the library and a linear layer: `[..., 4, 4, 1] -> [..., 3]`."""

    def init(key):
        first, second = jax.random.split(key)
        return {"w": jax.random.normal(first, (3, 3, 1, 2)), "u": jax.random.normal(second, (2, 3))}

    def apply(variables, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = models.conv.unrolled(x[None], variables["w"], (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.mean(jnp.tanh(y[0]), axis=(0, 1)) @ variables["u"]

    return models.Model(init, apply), (4, 4, 1), 3


NETS = [small_net, convolutional_net]


@functools.cache
def members_and_input(make):
    model, shape, num_members = make()
    variables = jax.jit(lambda key: ensemble.init(model.init, key, num_members))(jax.random.key(1))
    return model, variables, jax.random.uniform(jax.random.key(2), shape)


def looped_apply(apply_fn, variables, x):
    num_members = jax.tree.leaves(variables)[0].shape[0]
    members = [jax.tree.map(lambda leaf, k=k: leaf[k], variables) for k in range(num_members)]
    return jnp.stack([apply_fn(member, x) for member in members])


def everything(apply_all, variables, x):
    """Logits, a scalar's gradients in the parameters and the input, and those of a penalty.

    The scalar weighs every logit of every member differently.

    The penalty is the squared norm of the input gradient: a gradient of a gradient.
    """

    def scalar(variables, x):
        logits = apply_all(variables, x)
        return jnp.sum(jnp.sin(logits) * jnp.arange(1.0, logits.size + 1).reshape(logits.shape))

    def penalty(variables, x):
        return jnp.sum(jax.grad(scalar, argnums=1)(variables, x) ** 2)

    return {
        "logits": apply_all(variables, x),
        "gradients": jax.grad(scalar, argnums=(0, 1))(variables, x),
        "second": jax.grad(penalty, argnums=(0, 1))(variables, x),
    }


@functools.cache
def everything_of_a_loop(make):
    """What the members are to give, on however many devices."""
    model, variables, x = members_and_input(make)
    looped = functools.partial(looped_apply, model.apply)
    return jax.device_get(jax.jit(functools.partial(everything, looped))(variables, x))


def assert_close(got, want, rtol=1e-4):
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (1e-6 + np.max(np.abs(b))))


@pytest.mark.parametrize("make", NETS)
def test_the_members_together_are_a_loop_over_the_members(make):
    """In value, input gradient, parameter gradient and gradient of a gradient."""
    model, variables, x = members_and_input(make)
    together = functools.partial(ensemble.apply, model.apply)
    got = jax.jit(functools.partial(everything, together))(variables, x)
    want = everything_of_a_loop(make)
    assert_close(got, want)
    # The comparison could tell one member from another.
    rows = np.asarray(want["logits"])
    assert min(np.max(np.abs(rows[i] - rows[i - 1])) for i in range(len(rows))) > 1e-2
    assert all(np.max(np.abs(leaf)) > 0 for leaf in jax.tree.leaves(want["second"][1]))


def member_score(variables, x):
    return jnp.sum(jnp.sin(small_net()[0].apply(variables, x)) * jnp.array([1.0, 2.0, 4.0]))


def expectation_and_derivatives(expectation_fn, variables, weights, x):
    """The value, its gradients, and those of the squared norm of the input gradient."""

    def penalty(variables, weights, x):
        return jnp.sum(jax.grad(expectation_fn, argnums=2)(variables, weights, x) ** 2)

    return {
        "value": expectation_fn(variables, weights, x),
        "input gradient": jax.grad(expectation_fn, argnums=2)(variables, weights, x),
        "gradients": jax.grad(expectation_fn, argnums=(0, 1, 2))(variables, weights, x),
        "second": jax.grad(penalty, argnums=(0, 1, 2))(variables, weights, x),
    }


def looped_expectation(variables, weights, x):
    members = [jax.tree.map(lambda leaf, k=k: leaf[k], variables) for k in range(len(weights))]
    return sum(weights[k] * member_score(member, x) for k, member in enumerate(members))


FOUR_WEIGHTS = np.float32([0.1, 0.2, 0.3, 0.4])


@functools.cache
def expectation_of_a_loop():
    _, variables, x = members_and_input(small_net)
    want = jax.jit(functools.partial(expectation_and_derivatives, looped_expectation))
    return jax.device_get(want(variables, FOUR_WEIGHTS, x))


@pytest.mark.parametrize("are_large", [False, True])
def test_an_expectation_taken_member_by_member_is_the_weighted_sum(are_large, monkeypatch):
    """In value, in the gradient of every argument and in the gradient of a gradient."""
    _, variables, x = members_and_input(small_net)
    monkeypatch.setattr(ensemble, "_LARGE_MEMBER", 48 if are_large else 49)

    def expectation_fn(variables, weights, x):
        return ensemble.expectation(member_score, variables, weights, x)

    got = jax.jit(functools.partial(expectation_and_derivatives, expectation_fn))
    assert_close(got(variables, FOUR_WEIGHTS, x), expectation_of_a_loop())


@pytest.mark.parametrize(("num_members", "loops"), [(4, 1), (5, 2)])
def test_what_depends_on_large_members_alone_is_computed_before_an_attacks_loop(
    num_members, loops, monkeypatch
):
    """Few large members have no loop of their own on a CPU, and another device keeps it."""
    monkeypatch.setattr(ensemble, "_LARGE_MEMBER", 48)
    model = small_net()[0]
    variables = jax.vmap(model.init)(jax.random.split(jax.random.key(0), num_members))

    def attack(x):
        risk = functools.partial(
            ensemble.expectation, member_score, variables, jnp.ones(5)[:num_members]
        )
        return jax.lax.fori_loop(0, 3, lambda _, x: x + jax.grad(risk)(x), x)

    lowered = jax.jit(attack).trace(jnp.ones(5))
    for platform, number in (("cpu", loops), ("cuda", 2)):
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.while") == number


def test_an_expectation_reads_leaves_of_any_size_and_type_of_the_member_in_turn():
    """Also where another member's are NaN: that member counts as 0, the others as they are."""
    large = ensemble._LARGEST_SUMMED + 1
    members = {
        "small": jnp.array([2.0, jnp.nan, -0.5]),
        "large": jnp.stack([jnp.full(large, value) for value in (3.0, 5.0, 7.0)]),
        "whole": jnp.array([1, 2, 3]),
        "key": jax.random.split(jax.random.key(0), 3),
    }

    def value(member, x):
        return member["small"] * member["large"][-1] * member["whole"] * x

    def risk(x):
        return ensemble.expectation(value, members, jnp.array([0.5, 0.25, 0.25]), x)

    # .5 * 2 * 3 * 1 of the first member, nothing of the second, -.25 * .5 * 7 * 3 of the third
    got = jax.jit(jax.value_and_grad(risk))(2.0)
    np.testing.assert_allclose(got, (2 * 0.375, 0.375), rtol=1e-6)


@pytest.mark.parametrize("are_large", [False, True])
def test_an_attack_on_an_expectation_keeps_the_activations_of_one_member(are_large, monkeypatch):
    monkeypatch.setattr(ensemble, "_LARGE_MEMBER", 64 if are_large else 65)
    monkeypatch.setattr(ensemble, "_MOST_UNROLLED", 8)

    def memory(num_members):
        variables = {"w": jnp.ones((num_members, 8, 8))}

        def member_loss(member, x):
            for _ in range(8):
                x = jnp.tanh(x @ member["w"])
            return jnp.sum(x)

        def gradient(variables, x):
            weights = jnp.ones(num_members)
            return jax.grad(ensemble.expectation, argnums=3)(member_loss, variables, weights, x)

        compiled = jax.jit(gradient).lower(variables, jnp.ones((1024, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(8) < 1.5 * memory(2)


@pytest.mark.parametrize("are_large", [False, True])
def test_what_each_member_gives_is_that_of_vmap(are_large, monkeypatch):
    """Also where members have whole numbers and random keys, and give arrays without a number."""
    monkeypatch.setattr(ensemble, "_LARGE_MEMBER", 1 if are_large else 100)
    members = {
        "scale": jnp.array([2.0, jnp.inf, -0.5]),
        "whole": jnp.array([1, 2, 3]),
        "key": jax.random.split(jax.random.key(0), 3),
    }

    def fn(member, x):
        drawn = jax.random.normal(member["key"], x.shape)
        return member["scale"] * x, drawn, member["whole"], jnp.zeros((2, 0)), member["key"]

    x = jnp.arange(1.0, 5.0)
    got = jax.jit(functools.partial(ensemble.each, fn))(members, x)
    want = jax.vmap(fn, in_axes=(0, None))(members, x)
    for found, expected in zip(got[:4], want[:4], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(*(jax.random.key_data(keys[4]) for keys in (got, want)))


def test_the_gradients_of_large_members_keep_the_activations_of_one(monkeypatch):
    monkeypatch.setattr(ensemble, "_LARGE_MEMBER", 64)

    def memory(num_members):
        def loss(w, x):
            for _ in range(8):
                x = jnp.tanh(x @ w)
            return jnp.sum(x)

        def gradients(members, x):
            return ensemble.each(jax.value_and_grad(loss), members, x)

        members = jnp.ones((num_members, 8, 8))
        compiled = jax.jit(gradients).lower(members, jnp.ones((1024, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(4) < 1.5 * memory(1)


def test_the_members_take_any_leading_axes():
    model, variables, _ = members_and_input(small_net)
    x = np.random.default_rng(4).uniform(size=(2, 7, 5)).astype(np.float32)
    got = jax.jit(functools.partial(ensemble.apply, model.apply))(variables, x)
    chex.assert_shape(got, (4, 2, 7, NUM_CLASSES))
    want = jax.jit(functools.partial(looped_apply, model.apply))(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_every_member_starts_from_a_key_of_its_own(key):
    model, *_ = small_net()

    @jax.jit
    def together_and_alone(key):
        alone = [model.init(each) for each in jax.random.split(key, 3)]
        return ensemble.init(model.init, key, 3), alone

    variables, alone = jax.device_get(together_and_alone(key))
    for k, member in enumerate(alone):
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], variables), member, rtol=1e-7)
    weights = variables["w"]
    assert min(np.max(np.abs(weights[i] - weights[j])) for i in range(3) for j in range(i)) > 0.1


def test_one_member_still_has_its_axis(key):
    model, *_ = small_net()
    variables = jax.eval_shape(lambda key: ensemble.init(model.init, key, 1), key)
    assert variables["w"].shape == (1, 5, 6)
    logits = jax.eval_shape(lambda v: ensemble.apply(model.apply, v, jnp.ones(5)), variables)
    assert logits.shape == (1, 3)


@pytest.mark.parametrize("num_members", [0, -1, 1.5])
def test_a_number_of_members_below_one_is_refused(num_members, key):
    message = f"num_members must be a whole number of at least 1, got {num_members}"
    with pytest.raises(ValueError, match=message):
        ensemble.init(small_net()[0].init, key, num_members)


def test_an_update_replaces_one_member_and_leaves_the_others():
    members = {"w": jnp.arange(8.0).reshape(4, 2), "step": jnp.arange(4)}

    def update_one(member):
        new = {"w": -member["w"], "step": member["step"] + 10}
        return new, jnp.sum(member["w"])

    update = jax.jit(lambda k: ensemble.update(update_one, members, k))
    for index in range(4):
        new, info = update(index)
        want = np.arange(8.0).reshape(4, 2)
        want[index] *= -1
        step = np.arange(4) + 10 * (np.arange(4) == index)
        chex.assert_trees_all_equal(new, {"w": want, "step": step})
        assert info == abs(want[index].sum())


def test_the_mean_over_members_keeps_the_other_axes():
    values = jnp.array([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    np.testing.assert_allclose(ensemble.mean(values), [3.0, 30.0])


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_the_members_are_a_loop_over_the_members(self):
        model, variables, x = members_and_input(small_net)
        got = self.variant(functools.partial(ensemble.apply, model.apply))(variables, x)
        want = looped_apply(model.apply, variables, x)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_members", [1, 5])
def test_however_many_members_their_network_is_traced_once(num_members, key):
    model, *_ = small_net()
    apply_fn = chex.assert_max_traces(model.apply, n=1)
    apply_all = jax.jit(functools.partial(ensemble.apply, apply_fn))
    variables = jax.jit(lambda key: ensemble.init(model.init, key, num_members))(key)
    for value in (1.0, 2.0):
        chex.assert_shape(
            apply_all(variables, np.full(5, value, np.float32)), (num_members, NUM_CLASSES)
        )


# A member without a gradient: `sqrt(-1)` is NaN, and so is `0 * NaN` on the way back.


def with_a_broken_member(apply_fn, variables):
    """The first member's logits are NaN, and so is their gradient, even times 0."""
    num_members = jax.tree.leaves(variables)[0].shape[0]
    shift = jnp.zeros(num_members).at[0].set(-100.0)

    def broken(member, x):
        variables, shift = member
        # The root of 1 for the others.
        return apply_fn(variables, x) * jnp.sqrt(1.0 + shift * (1.0 + jnp.sum(x**2)))

    return broken, (variables, shift)


@pytest.mark.parametrize("make", NETS)
def test_a_member_without_a_gradient_leaves_that_of_the_others(make):
    """In `apply`, of first and second order, compiled and under `vmap`."""
    model, variables, x = members_and_input(make)
    apply_fn, members = with_a_broken_member(model.apply, variables)

    def score(logits_of_others):
        return jnp.sum(jnp.sin(logits_of_others) * jnp.arange(1.0, 1 + NUM_CLASSES)[None])

    def together(x):
        logits = ensemble.apply(apply_fn, members, x)
        return score(logits[1:]) + 0.0 * jnp.sum(jnp.nan_to_num(logits[0]))

    def alone(x):
        others = jax.tree.map(lambda leaf: leaf[1:], variables)
        return score(looped_apply(model.apply, others, x))

    def derivatives(fn):
        def penalty(x):
            return jnp.sum(jax.grad(fn)(x) ** 2)

        return jax.vmap(lambda x: (fn(x), jax.grad(fn)(x), jax.grad(penalty)(x)))

    @jax.jit
    def compiled(x):
        logits = ensemble.apply(apply_fn, members, x[0])
        return logits, derivatives(together)(x), derivatives(alone)(x)

    logits, found, want = compiled(x[None])
    assert np.all(np.isnan(logits[0])) and np.all(np.isfinite(logits[1:]))
    assert_close(found, want)


def test_a_member_without_a_gradient_is_left_out_of_an_expectation():
    """Whether it has weight or none."""
    _, variables, x = members_and_input(small_net)
    broken, members = with_a_broken_member(small_net()[0].apply, variables)

    def score(member, x):
        return jnp.sum(jnp.sin(broken(member, x)) * jnp.array([1.0, 2.0, 4.0]))

    def derivatives(members, weights, x):
        gradient = jax.grad(ensemble.expectation, argnums=3)

        def penalty(x):
            return jnp.sum(gradient(score, members, weights, x) ** 2)

        value = ensemble.expectation(score, members, weights, x)
        return value, gradient(score, members, weights, x), jax.grad(penalty)(x)

    @jax.jit
    def compiled(members, weights, x):
        others = jax.tree.map(lambda leaf: leaf[1:], (members, weights))
        in_weights = jax.grad(ensemble.expectation, argnums=2)(score, members, weights, x)
        return derivatives(members, weights, x), derivatives(*others, x), in_weights

    for weights in ((0.0, 0.2, 0.3, 0.5), (0.4, 0.1, 0.2, 0.3)):
        found, want, in_weights = compiled(members, np.float32(weights), x)
        assert_close(found, want)
        assert in_weights[0] == 0 and np.all(np.isfinite(in_weights))


def test_an_expectation_of_which_no_member_of_weight_answers_is_no_number():
    _, variables, x = members_and_input(small_net)
    broken, members = with_a_broken_member(small_net()[0].apply, variables)
    weights = np.float32([1.0, 0.0, 0.0, 0.0])
    expectation = functools.partial(ensemble.expectation, lambda m, x: jnp.sum(broken(m, x)))
    assert np.isnan(jax.jit(expectation)(members, weights, x))


def test_the_members_are_differentiated_in_forward_mode_too():
    model, variables, x = members_and_input(small_net)
    tangent = np.arange(5.0, dtype=np.float32)

    def derivative(apply_all):
        def scalar(x):
            return jnp.sum(jnp.sin(apply_all(model.apply, variables, x)))

        return jax.jit(lambda x: jax.jvp(jax.grad(scalar), (x,), (tangent,)))(x)

    assert_close(derivative(ensemble.apply), derivative(looped_apply))


# Members spread over devices: `[L, ...]` leaves in, the same numbers out.


def over_shards(num_devices, function, num_arguments):
    """`shard_map`: each device holds `L / num_devices` members."""
    spread = jax.shard_map(
        function,
        mesh=jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), ("member",)),
        in_specs=(P("member"), *[P()] * num_arguments),
        out_specs=P("member"),
        check_vma=False,
    )
    return jax.jit(spread)


def over_axis(transform, num_devices, function, num_arguments):
    """`pmap`, or `vmap` with a named axis: a leading axis of devices instead."""
    spread = transform(function, axis_name="member", in_axes=(0, *[None] * num_arguments))

    def run(variables, *args):
        local = jax.tree.map(
            lambda leaf: leaf.reshape(num_devices, -1, *leaf.shape[1:]), jax.device_get(variables)
        )
        out = jax.device_get(spread(local, *args))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)

    return run


def jitted_vmap(function, **settings):
    return jax.jit(jax.vmap(function, **settings))


SPREADS = {
    "shard_map over 2": functools.partial(over_shards, 2),
    "pmap over 4": functools.partial(over_axis, jax.pmap, 4),
    "vmap over 2": functools.partial(over_axis, jitted_vmap, 2),
}


@pytest.fixture(params=SPREADS, ids=lambda name: name.replace(" ", "-"))
def spread(request):
    return SPREADS[request.param]


def replicated(tree):
    """Each device's own copy of what is the same on all, so that all come back and are compared."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def test_members_on_several_devices_are_those_of_one(spread):
    """Logits and input gradient on every device, parameter gradients where the member lies."""
    model, variables, x = members_and_input(small_net)

    def on_device(variables, x):
        apply_all = functools.partial(ensemble.apply, model.apply, axis_name="member")
        out = everything(apply_all, variables, x)
        (first, first_x), (second, second_x) = out["gradients"], out["second"]
        return first, second, replicated((out["logits"], first_x, second_x))

    first, second, same = jax.device_get(spread(on_device, 1)(variables, x))
    want = everything_of_a_loop(small_net)
    assert_close(first, want["gradients"][0])
    assert_close(second, want["second"][0])
    wanted = want["logits"], want["gradients"][1], want["second"][1]
    for got, one in zip(same, wanted, strict=True):
        for copy in got:  # one per device
            assert_close(copy, one)


def test_a_batch_on_several_devices_is_that_of_one(spread):
    """Per-example input gradients inside of a vmap, as an attack takes them."""
    model, variables, _ = members_and_input(small_net)
    xs = np.random.default_rng(5).uniform(size=(6, 5)).astype(np.float32)

    def scalar(apply_all, variables, x):
        return jnp.array([0.1, 0.2, 0.3, 0.4]) @ jnp.sin(apply_all(variables, x))[:, 1]

    def on_device(variables, xs):
        apply_all = functools.partial(ensemble.apply, model.apply, axis_name="member")
        gradient = jax.grad(scalar, argnums=2)
        return replicated(jax.vmap(lambda x: gradient(apply_all, variables, x))(xs))

    looped = functools.partial(looped_apply, model.apply)
    want = jax.jit(jax.vmap(lambda x: jax.grad(scalar, argnums=2)(looped, variables, x)))(xs)
    for copy in np.asarray(spread(on_device, 1)(variables, xs)):
        assert_close(copy, want)


def test_an_expectation_over_several_devices_is_that_of_one(spread):
    _, variables, x = members_and_input(small_net)

    def on_device(variables, weights, x):
        fn = functools.partial(ensemble.expectation, member_score, axis_name="member")
        out = expectation_and_derivatives(fn, variables, weights, x)
        (first, *rest), (second, *others) = out["gradients"], out["second"]
        return first, second, replicated((out["value"], rest, others))

    spread_out = spread(on_device, 2)(variables, FOUR_WEIGHTS, x)
    first, second, same = jax.device_get(spread_out)
    want = expectation_of_a_loop()
    assert_close(first, want["gradients"][0])
    assert_close(second, want["second"][0])
    wanted = want["value"], list(want["gradients"][1:]), list(want["second"][1:])
    for device in range(jax.tree.leaves(same)[0].shape[0]):
        assert_close(jax.tree.map(lambda leaf, d=device: leaf[d], same), wanted)


def test_an_update_finds_its_member_on_whatever_device(spread):
    members = {"w": np.arange(8.0, dtype=np.float32).reshape(4, 2)}

    def update_one(member):
        return {"w": -member["w"]}, {"loss": jnp.sum(member["w"])}

    def on_device(members, index):
        new, info = ensemble.update(update_one, members, index, axis_name="member")
        mean = ensemble.mean(jnp.sum(members["w"], axis=1), axis_name="member")
        return new, replicated((info, mean))

    update = spread(on_device, 1)
    for index in (0, 2, 3):
        new, (info, mean) = update(members, np.int32(index))
        want = np.arange(8.0).reshape(4, 2)
        want[index] *= -1
        np.testing.assert_array_equal(new["w"], want)
        np.testing.assert_allclose(info["loss"], abs(want[index].sum()))
        np.testing.assert_allclose(mean, 7.0)


def test_the_checker_of_shard_map_refuses_gradients_that_it_would_get_wrong():
    model, variables, x = members_and_input(small_net)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("member",))

    def gradient(variables, x):
        logits = functools.partial(ensemble.apply, model.apply, variables, axis_name="member")
        return jax.grad(lambda x: jnp.sum(logits(x)))(x)

    spread = jax.shard_map(gradient, mesh=mesh, in_specs=(P("member"), P()), out_specs=P())
    with pytest.raises(ValueError, match="manual axis types"):
        jax.jit(spread)(variables, x)


def test_an_infinite_loss_counts_by_its_weight_and_of_weight_zero_not_at_all():
    def expectation(losses, weights):
        return ensemble.expectation(lambda loss, x: loss + 0 * x, losses, weights, jnp.float32(1))

    found = jax.jit(jax.value_and_grad(expectation, argnums=1))
    value, _ = found(jnp.array([jnp.inf, 2.0]), jnp.array([0.0, 1.0]))
    assert value == 2.0
    assert found(jnp.array([jnp.inf, 2.0]), jnp.array([0.5, 0.5]))[0] == jnp.inf
    opposed, _ = found(jnp.array([jnp.inf, -jnp.inf]), jnp.array([0.75, 0.25]))
    assert np.isfinite(opposed) and opposed > 0
