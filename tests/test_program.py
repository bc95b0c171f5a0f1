"""A callable taken apart: known again by what it computes and with which arrays."""

import functools
import os
import sys
import textwrap

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixjax import attacks, ensemble, losses, models, program, threats

X = jnp.linspace(0.0, 1.0, 4)
W = jnp.arange(12.0).reshape(4, 3) / 7


def line(w, x):
    return jnp.tanh(x @ w)


def closure(w):
    return lambda x: jnp.tanh(x @ w)


def jitted(w):
    """An inner `jit` hides what it closes over."""
    inner = jax.jit(lambda x: x @ w)
    return jax.jit(lambda x: jnp.tanh(inner(x)))


def loop(w):
    def body(x, _):
        return jnp.tanh(jax.jit(lambda x: x @ w)(x) @ w.T), None

    return lambda x: jax.lax.scan(body, x, length=2)[0]


def branch(w):
    return lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ -w)


def turns(w):
    return lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + (x @ w).sum(), x)


def half(w):
    return lambda x: (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)) * jnp.bfloat16(0.3)


def ruled(w, scale=1.0):
    """With a backward rule of its own, which nothing but the gradient shows."""

    @jax.custom_vjp
    def function(x):
        return x @ w

    function.defvjp(lambda x: (function(x), None), lambda _, cotangent: (scale * w @ cotangent,))
    return function


def mapped(w, scale=1.0):
    """With a rule for batches of its own, which nothing but `vmap` shows."""

    @jax.custom_batching.custom_vmap
    def function(x):
        return x @ w

    @function.def_vmap
    def rule(axis_size, in_batched, x):
        return scale * (x @ w), True

    return function


def linen(w):
    module = nn.Dense(3, use_bias=False)
    return lambda x: module.apply({"params": {"kernel": w}}, x)


def module(w):
    layer = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel = nnx.Param(w)
    return layer


def split_module(w):
    graph, state = nnx.split(module(w))
    return nnx.jit(lambda x: nnx.merge(graph, state)(x))


KINDS = {
    "closure": closure,
    "jitted": jitted,
    "functools partial": lambda w: functools.partial(line, w),
    "Partial": lambda w: jax.tree_util.Partial(line, w),
    "NumPy": lambda w: closure(np.asarray(w)),
    "scan": loop,
    "cond": branch,
    "while": turns,
    "checkpoint": lambda w: jax.checkpoint(jitted(w)),
    "bfloat16": half,
    "custom_vjp": ruled,
    "custom_vmap": mapped,
    "Linen": linen,
    "NNX": module,
    "NNX in nnx.jit": split_module,
}


@functools.cache
def identity_of(kind):
    return program.identity(KINDS[kind](W), X)


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_computes_the_same_with_equal_arrays_has_one_identity_and_no_other(kind):
    make = KINDS[kind]
    identity = identity_of(kind)
    assert len(identity) == 64
    assert identity == program.identity(make(W + 0.0), X)
    assert identity != program.identity(make(W.at[1, 2].add(1e-3)), X)
    assert identity != program.identity(make(W), X[None])
    assert identity == program.identity(make(W), jax.ShapeDtypeStruct(X.shape, X.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_of_its_constants_computes_the_same_and_its_gradient(kind):
    make = KINDS[kind]
    pure, constants = program.take_apart(make(W), X)

    def values_and_slopes(function, batch):
        values = function(batch[0]), jax.vmap(function)(batch)
        if kind in ("while", "custom_vmap"):  # which JAX cannot differentiate
            return values
        slope = jax.grad(lambda x: function(x).sum().astype(jnp.float32))
        return *values, jax.vmap(slope)(batch)

    @jax.jit
    def both(constants, batch):
        functions = functools.partial(pure, constants), make(W)
        return [values_and_slopes(function, batch) for function in functions]

    found, want = both(constants, np.stack([X, -X, 2 * X]))
    chex.assert_trees_all_close(found, want, rtol=1e-6)


def test_jitted_or_not_a_function_is_the_same():
    assert program.identity(closure(W), X) == program.identity(jitted(W), X)
    assert program.identity(closure(W), X) == program.identity(jax.tree_util.Partial(line, W), X)


def test_it_does_not_matter_which_equal_arrays_are_the_same_object():
    copy = jnp.array(np.asarray(W))
    one, two = (lambda x, v=v: (x @ W) * (x @ v) for v in (W, copy))
    assert program.identity(one, X) == program.identity(two, X)


@pytest.mark.parametrize("make", [ruled, mapped])
def test_another_rule_behind_the_same_program_is_another_function(make):
    assert program.identity(make(W), X) != program.identity(make(W, scale=0.5), X)
    assert program.identity(make(W), X) != program.identity(closure(W), X)
    first, second = (program.take_apart(make(W, scale), X)[0] for scale in (1.0, 0.5))
    assert first is not second


def test_arrays_that_stay_inside_a_rule_or_a_loop_belong_to_the_program():
    """They are compiled in, so that another array asks for another program."""

    def scaled(v):
        def body(x, _):
            return jax.jit(lambda x: x * v)(x), None

        return lambda x: jax.lax.scan(body, x, length=3)[0]

    first, second = (program.take_apart(scaled(v), X) for v in (X, X + 1))
    chex.assert_trees_all_close(first[0](first[1], X), X**4, rtol=1e-6)
    chex.assert_trees_all_close(second[0](second[1], X), X * (X + 1) ** 3, rtol=1e-6)


def test_program_and_constants_differ_each_for_itself():
    first = program.fingerprint(closure(W), X)
    assert first.program == program.fingerprint(closure(2 * W), X).program
    assert first.constants != program.fingerprint(closure(2 * W), X).constants
    other = program.fingerprint(lambda x: jnp.sin(x @ W), X)
    assert first.program != other.program


def test_numbers_that_print_alike_are_told_apart():
    for one, other in ((0.0, -0.0), (0.1, 0.1 + 1e-8), (1.0, 2.0)):
        found = {
            program.identity(functools.partial(jnp.add, np.float32(c)), X) for c in (one, other)
        }
        assert len(found) == 2


def test_classifiers_of_one_architecture_are_compiled_once_without_their_weights():
    model = models.mnist_cnn(3, 1, input_shape=(8, 8, 1))
    x = jnp.linspace(0.0, 1.0, 64).reshape(8, 8, 1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(function, x):
        return jax.grad(lambda x: function(x).sum())(x)

    slope, init = jax.jit(jax.grad(lambda x, v: model.apply(v, x).sum())), jax.jit(model.init)
    for seed in range(2):
        variables = init(jax.random.key(seed))
        classify = jax.jit(functools.partial(model.apply, variables))
        pure, constants = program.take_apart(classify, x)
        sizes = sum(np.size(leaf) for leaf in jax.tree.leaves(variables))
        assert sum(map(np.size, constants)) >= sizes
        found = gradient(jax.tree_util.Partial(pure, constants), x)
        chex.assert_trees_all_close(found, slope(x, variables), rtol=1e-4, atol=1e-6)


def test_members_with_our_convolutions_are_known_by_weights_and_by_code():
    x = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)

    def members(seed, width):
        model = models.mnist_cnn(3, width, input_shape=x.shape)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        random = np.random.default_rng(seed)
        variables = jax.tree.map(lambda leaf: random.normal(size=(2, *leaf.shape)), shapes)
        variables = jax.tree.map(np.float32, variables)
        return functools.partial(ensemble.apply, model.apply, variables)

    first, again, other, wider = (members(*each) for each in ((0, 1), (0, 1), (1, 1), (0, 2)))
    prints = [program.fingerprint(each, x) for each in (first, again, other, wider)]
    assert prints[0] == prints[1]
    assert prints[0].program == prints[2].program != prints[3].program
    assert prints[0].constants != prints[2].constants


ARGUMENTS = jax.random.key(0), X, np.int32(1)


def attacked(threat, attack=attacks.pgd, *, weight=2.0, **settings):
    settings = {"num_steps": 3, "step_size": 0.05} | settings

    def run(key, x, label):
        def loss_fn(x):
            return losses.cross_entropy(weight * x, label)

        return attack(key, loss_fn, x, threat, **settings)[0]

    return run


def identity_of_attack(function, key=ARGUMENTS[0]):
    """As evaluations know it again: what an attack does to gradients is in its program."""
    closed = jax.make_jaxpr(function)(key, *ARGUMENTS[1:])
    return "-".join(program.fingerprint_of_jaxpr(closed))


def test_an_attack_is_known_by_all_that_decides_its_answer():
    same, *others = (
        identity_of_attack(function)
        for function in (
            attacked(threats.linf(0.1)),
            attacked(threats.linf(0.4)),
            attacked(threats.l2(0.1)),
            attacked(threats.linf(0.1), step_size=0.06),
            attacked(threats.linf(0.1), num_steps=4),
            attacked(threats.linf(0.1), bounds=(-1.0, 1.0)),
            attacked(threats.linf(0.1), weight=2.5),
            lambda key, x, label: x,
        )
    )
    assert len({same, *others}) == 8
    assert same == identity_of_attack(attacked(threats.linf(0.1)))
    other_key = jax.random.key(0, impl="rbg")
    assert same != identity_of_attack(attacked(threats.linf(0.1)), other_key)


def test_what_calls_back_to_python_cannot_be_known_again_and_is_never_shared():
    def callback(scale):
        def function(x):
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return jax.pure_callback(
                lambda x: scale * np.asarray(x), shape, x, vmap_method="sequential"
            )

        return function

    with pytest.raises(ValueError, match="function calls back to Python"):
        program.identity(callback(2.0), X)
    for scale in (2.0, 3.0):
        pure, constants = program.take_apart(callback(scale), X)
        chex.assert_trees_all_close(pure(constants, X), scale * X)


def test_arguments_and_results_may_be_trees_and_keys():
    key = jax.random.key(7)

    def function(inputs, number):
        noise = jax.random.normal(key, inputs["x"].shape)
        return {"sum": inputs["x"] + noise, "number": number + 1}

    pure, constants = program.take_apart(function, {"x": X}, 3)
    found = jax.jit(pure)(constants, {"x": X}, 4)
    chex.assert_trees_all_close(found, function({"x": X}, 4))
    other = jax.random.key(8)
    assert program.identity(lambda x: jax.random.normal(key, x.shape), X) != program.identity(
        lambda x: jax.random.normal(other, x.shape), X
    )


def test_a_version_of_the_libraries_is_part_of_the_identity(monkeypatch):
    before = program.identity(closure(W), X)
    monkeypatch.setattr(jax, "__version__", "9.9.9")
    assert program.identity(closure(W), X) != before


def test_another_process_with_another_hash_seed_finds_the_same_identities(children):
    text = textwrap.dedent(
        """
        from tests import test_program as here
        from mixjax import threats
        attack = here.identity_of_attack(here.attacked(threats.l2(0.1)))
        print(*map(here.identity_of, here.KINDS), attack)
        """
    )
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # as here
    other = {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    ended = children.run([sys.executable, "-c", text], env=os.environ | settings | other)
    attack = identity_of_attack(attacked(threats.l2(0.1)))
    assert ended.stdout.split() == [*map(identity_of, KINDS), attack], ended.stderr
