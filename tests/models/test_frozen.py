"""Variables whose BatchNorms are folded into the convolutions, against those that have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, models, threats
from mixjax.models.resnet import relu_of_output

SHAPE = (8, 6, 2)


def network(dtype):
    return models.small_resnet(
        5, 4, input_shape=SHAPE, mean=(0.4, 0.6), std=(0.2, 0.3), dtype=dtype
    )


def noisy(variables):
    """Statistics and scales as after a training: none is 0 or 1."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + np.asarray(random.uniform(0.1, 0.5, leaf.shape), leaf.dtype), variables
    )


def logits_and_gradients(model, variables, x):
    def one(x):
        return model.apply(variables, x)

    return jax.jit(jax.vmap(lambda x: (one(x), jax.jacobian(one)(x))))(x)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("bfloat16", 0.05)])
def test_logits_and_gradients_are_the_same_up_to_rounding(dtype, tolerance, key):
    """Logits are float32 whatever the dtype of the convolutions, so that doubles agree to 1e-6."""
    with jax.enable_x64(dtype == "float64"):
        model = network(jnp.dtype(dtype))
        variables = noisy(model.init(key))
        frozen = jax.jit(model.freeze)(variables)
        assert "batch_stats" not in frozen and "BatchNorm_0" not in frozen["params"]
        assert frozen["params"]["Conv_0"]["kernel"].dtype == dtype
        x = jax.random.uniform(key, (3, *SHAPE))
        both = (logits_and_gradients(model, each, x) for each in (variables, frozen))
        for found, want in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(found, want, atol=tolerance * float(jnp.abs(want).max()))


def test_members_are_frozen_one_by_one(key):
    model = network(jnp.bfloat16)
    variables = jax.vmap(model.init)(jax.random.split(key, 2))
    together = jax.vmap(model.freeze)(variables)
    for k in range(2):
        alone, member = (
            jax.tree.map(lambda leaf, k=k: leaf[k], variables),
            jax.tree.map(lambda leaf, k=k: leaf[k], together),
        )
        jax.tree.map(np.testing.assert_array_equal, member, model.freeze(alone))


def test_nothing_is_done_in_float32_and_frozen_variables_do_not_train(key):
    model = network(jnp.float32)
    variables = model.init(key)
    assert model.freeze(variables) is variables
    model = network(jnp.bfloat16)
    frozen = model.freeze(model.init(key))
    with pytest.raises(ValueError, match=r"^variables must not be frozen in training$"):
        model.apply(frozen, jnp.zeros((2, *SHAPE)), train=True)


def test_the_relu_that_reads_its_output_has_the_same_derivatives():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
    np.testing.assert_array_equal(relu_of_output(x), jax.nn.relu(x))
    for relu in (relu_of_output, jax.nn.relu):
        np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(x), [0, 0, 0, 1, 1])
        np.testing.assert_array_equal(jax.vmap(jax.grad(jax.grad(relu)))(x), np.zeros(5))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_attack_in_training_computes_no_batchnorm_at_every_step(dtype, key):
    attack = functools.partial(attacks.pgd, num_steps=3, step_size=0.1)
    defense = defenses.mixture(
        network(dtype), optax.sgd(0.1), threats.linf(0.2), attack, num_members=2, update="all"
    )
    images, labels = jnp.full((4, *SHAPE), 0.5), jnp.zeros(4, jnp.int32)
    state = jax.eval_shape(defense.init, key)
    program = jax.make_jaxpr(defense.step)(state, images, labels)
    loops = [each for each in equations(program.jaxpr) if each.primitive.name == "scan"]
    inside = {each.primitive.name for loop in loops for each in equations(loop.params["jaxpr"])}
    assert loops and ("rsqrt" in inside) == (dtype == jnp.float32)


def equations(jaxpr):
    """All equations, those of inner programs too."""
    for each in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield each
        for value in each.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)
