"""Initial values from one draw, and models made of any Flax module."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from mixjax import ensemble, models


def kernels(variables):
    leaves, _ = jax.tree.flatten_with_path(variables["params"])
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in leaves
        if path[-1].key == "kernel"
    }


def test_every_kernel_is_normal_with_its_own_scale(key):
    """Within five standard errors of mean 0 and `sqrt(2 / fan_in)`, or `1 / sqrt(fan_in)`."""
    drawn = kernels(jax.jit(models.resnet18(10, 16).init)(key))
    assert len(drawn) == 21
    for name, kernel in drawn.items():
        gain = 1.0 if "Dense" in name else 2.0
        std = math.sqrt(gain / math.prod(kernel.shape[:-1]))
        assert abs(kernel.mean()) < 5 * std / math.sqrt(kernel.size), name
        assert abs(kernel.std() / std - 1) < 5 / math.sqrt(2 * kernel.size), name
        fourth = np.mean((kernel / std) ** 4)
        assert abs(fourth - 3) < 5 * math.sqrt(96 / kernel.size), name


def test_no_two_kernels_share_their_draw(key):
    variables = jax.jit(models.small_resnet(50).init)(key)
    flat = [k.ravel()[:50] for k in kernels(variables).values()]
    correlations = np.corrcoef(np.stack(flat))
    assert np.abs(correlations - np.eye(len(flat))).max() < 0.6


SMALL_INIT = jax.jit(models.small_resnet().init)


def test_norms_start_as_the_identity(key):
    variables = jax.device_get(SMALL_INIT(key))
    norm = variables["params"]["_Block_1"]["BatchNorm_2"]
    stats = variables["batch_stats"]["_Block_1"]["BatchNorm_2"]
    assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()
    assert (stats["mean"] == 0).all() and (stats["var"] == 1).all()
    assert (variables["params"]["Dense_0"]["bias"] == 0).all()


def test_keys_and_members_differ_and_the_same_key_repeats(key):
    one, again, two = (kernels(SMALL_INIT(k)) for k in (key, key, jax.random.key(1)))
    members = kernels(jax.jit(lambda key: ensemble.init(SMALL_INIT, key, 2))(key))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
        assert (one[name] != two[name]).mean() > 0.99
        assert (members[name][0] != members[name][1]).mean() > 0.99


@pytest.mark.parametrize("make", [models.resnet18, models.small_resnet, models.linear])
def test_all_kernels_come_from_one_draw(key, make):
    """Each draw of another shape costs a second of compilation on a CPU."""
    program = str(jax.make_jaxpr(make().init)(key))
    assert program.count("random_bits[") + program.count("threefry2x32") == 1


class Bare(nn.Module):
    """No `train` argument, no statistics, an initialiser of its own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, kernel_init=nn.initializers.constant(0.5))(x.reshape(len(x), -1))


def test_a_linen_module_keeps_its_own_initialisers(key):
    model = models.from_linen(Bare(), (4, 2))
    variables = model.init(key)
    np.testing.assert_allclose(model.apply(variables, jnp.ones((4, 2))), 4.0)
    logits, updated = model.apply(variables, jnp.ones((6, 4, 2)), train=True)
    assert logits.shape == (6, 3)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)


class Network(nnx.Module):
    """Convolution, BatchNorm, dropout, dense."""

    def __init__(self, rngs):
        """Takes the random streams."""
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        """Maps `[B, H, W, 1]` to `[B, 3]`."""
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.dense(self.dropout(x))


def test_an_nnx_module_gives_what_it_gives_itself(key):
    model = models.from_nnx(Network, (6, 5, 1))
    x = np.random.default_rng(0).uniform(size=(4, 6, 5, 1)).astype(np.float32)
    own = Network(nnx.Rngs(key))
    variables = jax.jit(model.init)(key)
    own.train()
    expected = own(x)
    logits, updated = jax.jit(lambda v: model.apply(v, x, train=True))(variables)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    own.eval()
    apply = jax.jit(model.apply)
    after, before = (np.asarray(apply(each, x)) for each in (updated, variables))
    np.testing.assert_allclose(after, own(x), atol=1e-5)
    assert abs(after - before).max() > 1e-3
    assert jax.tree.structure(updated) == jax.tree.structure(variables)


def test_members_of_an_nnx_module_are_mapped_like_any(key):
    model = models.from_nnx(Network, (6, 5, 1))
    x = np.random.default_rng(0).uniform(size=(6, 5, 1)).astype(np.float32)

    @jax.jit
    def together_and_alone(key):
        members = ensemble.init(model.init, key, 2)
        alone = [model.apply(model.init(k), x) for k in jax.random.split(key, 2)]
        return ensemble.apply(model.apply, members, x), jnp.stack(alone)

    logits, alone = jax.device_get(together_and_alone(key))
    np.testing.assert_allclose(logits, alone, atol=1e-5)
    assert abs(logits[0] - logits[1]).max() > 1e-3


class Switched(nn.Module):
    """BatchNorm and dropout behind a switch, which each kind below names differently."""

    def body(self, x, is_training):
        x = nn.BatchNorm(use_running_average=not is_training, momentum=0.5)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not is_training)(x))


class Training(Switched):
    @nn.compact
    def __call__(self, x, training=False):
        return self.body(x, training)


class IsTraining(Switched):
    @nn.compact
    def __call__(self, x, *, is_training=False):
        return self.body(x, is_training)


class Deterministic(Switched):
    @nn.compact
    def __call__(self, x, deterministic):
        return self.body(x, not deterministic)


class TwoSwitches(Switched):
    @nn.compact
    def __call__(self, x, use_running_average=True, train=False):
        return self.body(x, train and not use_running_average)


class Keywords(Switched):
    @nn.compact
    def __call__(self, x, **kwargs):
        return self.body(x, kwargs.get("train", False))


class Frozen(Switched):
    @nn.compact
    def __call__(self, x, frozen=True):
        return self.body(x, not frozen)


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        (Training(), None),
        (IsTraining(), None),
        (Deterministic(), None),
        (TwoSwitches(), None),
        (Keywords(), "train"),
        (Frozen(), "not frozen"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_switch_of_a_linen_module_is_found_or_named_and_training_moves_the_mean(
    key, module, argument
):
    """BatchNorm's mean after one step at momentum .5 is half of the batch's."""
    model = models.from_linen(module, (4,), train_argument=argument)
    variables = model.init(key)
    x = jnp.arange(24.0).reshape(6, 4) / 24
    logits, updated = model.apply(variables, x, train=True, key=key)
    mean = updated["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, x.mean(0) / 2, rtol=1e-6)
    again, _ = model.apply(variables, x, train=True, key=jax.random.key(7))
    assert (logits != again).any()  # dropout draws
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))


class DropoutAlone(nn.Module):
    @nn.compact
    def __call__(self, x, **kwargs):
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=not kwargs.get("train", False)))


class SecondSwitch(nn.Module):
    """One switch is named, and another one comes in what the call takes besides."""

    @nn.compact
    def __call__(self, x, deterministic=True, **kwargs):
        x = nn.BatchNorm(use_running_average=not kwargs.get("learning", False))(x)
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=deterministic))


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (Keywords(), "dropout and batch_stats"),
        (SecondSwitch(), "dropout and batch_stats"),
        (Frozen(), "dropout and batch_stats"),
        (DropoutAlone(), "dropout"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_linen_module_whose_switch_is_not_found_is_refused_saying_how_to_name_it(module, found):
    name = type(module).__name__
    message = f"train_argument must name what switches {name} to training: it has {found}, and"
    with pytest.raises(ValueError, match=message):
        models.from_linen(module, (4,))


def test_a_switch_that_the_call_does_not_take_is_refused():
    message = "train_argument must be an argument of Frozen.__call__, got training"
    with pytest.raises(ValueError, match=message):
        models.from_linen(Frozen(), (4,), train_argument="training")


@pytest.mark.parametrize("argument", ["learn", "not learn"])
def test_a_switch_among_any_others_that_switches_nothing_is_refused(argument):
    message = f"train_argument must name what switches .*: with {argument} its call does in"
    for module in (Keywords(), DropoutAlone()):
        with pytest.raises(ValueError, match=message):
            models.from_linen(module, (4,), train_argument=argument)
    with pytest.raises(ValueError, match=message):
        models.from_nnx(HiddenSwitch, (4,), train_argument=argument)


class OwnSwitch(nnx.Module):
    """Tells its layers in the call what to do: `train()` and `eval()` do not reach them."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x, training=False):
        return self.dense(self.norm(x, use_running_average=not training))


class HiddenSwitch(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)

    def __call__(self, x, **kwargs):
        return self.norm(x, use_running_average=not kwargs.get("learning", False))


class OwnStatistics(nnx.Module):
    """Keeps a mean of its own, which no layer's attribute switches."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(4))

    def __call__(self, x, learning=False):
        return self.dense(x - self.mean[...])


@pytest.mark.parametrize(("make", "argument"), [(OwnSwitch, None), (HiddenSwitch, "learning")])
def test_the_switch_of_an_nnx_call_is_found_or_named(key, make, argument):
    model = models.from_nnx(make, (4,), train_argument=argument)
    x = jnp.arange(24.0).reshape(6, 4) / 24
    _, updated = model.apply(model.init(key), x, train=True)
    mean = updated["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, x.mean(0) / 2, rtol=1e-6)


@pytest.mark.parametrize("make", [HiddenSwitch, OwnStatistics])
def test_an_nnx_module_whose_switch_is_not_found_is_refused(make):
    with pytest.raises(ValueError, match=f"train_argument must name what switches {make.__name__}"):
        models.from_nnx(make, (4,))


@pytest.mark.parametrize("make", [models.linear, models.small_resnet])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_images_of_integers_are_refused_naming_the_way_to_pixels(key, make, dtype):
    model = make(10, input_shape=(8, 8, 1))
    variables = jax.eval_shape(model.init, key)
    with pytest.raises(ValueError, match=f"x must be floating point .*{np.dtype(dtype)}.*to_float"):
        model.apply(variables, np.zeros((2, 8, 8, 1), dtype))


def test_images_of_another_byte_order_or_in_lists_are_as_good_as_any(key):
    model = models.linear(3, input_shape=(2, 2, 1))
    variables = model.init(key)
    x = np.random.default_rng(0).uniform(size=(5, 2, 2, 1)).astype(np.float32)
    expected = model.apply(variables, x)
    np.testing.assert_array_equal(model.apply(variables, x.astype(">f4")), expected)
    np.testing.assert_array_equal(model.apply(variables, x.tolist()), expected)
