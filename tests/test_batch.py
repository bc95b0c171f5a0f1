"""What a batch must not change: an example's key, a mean over parts on several devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mixjax import batch, data


def on_two_devices(fn, *args):
    """Each device's part of the answer, one after the other."""
    mesh, spec = jax.sharding.Mesh(jax.devices()[:2], ("data",)), P("data")
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(
        *args
    )


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_key_hangs_on_the_number_of_its_example_alone(impl):
    key = jax.random.key(5, impl=impl)
    whole = batch.example_keys(key, jnp.arange(4))
    parts = [batch.example_keys(key, jnp.array(part)) for part in ([3, 1], [0, 2])]
    draw = jax.vmap(lambda key: jax.random.normal(key, (3,)))
    together = np.concatenate([draw(part) for part in parts])
    np.testing.assert_array_equal(together, draw(whole)[np.array([3, 1, 0, 2])])
    assert len(np.unique(together)) == 12


def test_old_keys_are_keys_and_several_keys_are_none():
    indices = jnp.array([2])
    old, new = (
        batch.example_keys(make(5), indices) for make in (jax.random.PRNGKey, jax.random.key)
    )
    assert old == new
    with pytest.raises(ValueError, match="key must be one random key"):
        batch.example_keys(jax.random.split(jax.random.key(0)), indices)


def test_the_examples_of_each_device_are_numbered_on():
    np.testing.assert_array_equal(batch.example_indices(3), [0, 1, 2])
    numbers = on_two_devices(lambda x: batch.example_indices(len(x), "data"), jnp.zeros(6))
    np.testing.assert_array_equal(numbers, np.arange(6))


def test_the_mean_over_devices_is_of_real_numbers_alone():
    values = jnp.array([1.0, 4.0])
    keys = jax.random.split(jax.random.key(0))

    def mean(values, counts, keys):
        tree = {"value": values, "count": counts, "key": keys}
        return batch.mean_over("data", tree)

    found = on_two_devices(mean, values, jnp.array([3, 5]), keys)
    chex.assert_trees_all_equal(found["value"], jnp.array([2.5, 2.5]))
    chex.assert_trees_all_equal(found["count"], jnp.array([3, 5]))
    assert jnp.all(found["key"] == keys)


def test_where_no_axis_is_mapped_everything_is_its_own_mean():
    tree = {"value": jnp.array([1.0, 4.0]), "name": "any"}
    assert batch.mean_over(None, tree) is tree


def test_pixels_of_numpy_stay_in_numpy_and_are_those_of_jax():
    """But for one rounding: compiled, a division by a number is a product with its inverse."""
    pixels = np.arange(256, dtype=np.uint8)
    found = batch.to_float(pixels)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, jax.jit(batch.to_float)(pixels), rtol=1.2e-7)
    assert data.to_float is batch.to_float
