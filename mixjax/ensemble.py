"""The member axis `L`: every leaf of an ensemble's variables is `[L, ...]`.

This module alone knows where that axis lies. On one device all members are there; with
`axis_name` each device of that mesh axis holds `L / size` of them, and `apply` still returns the
logits of all `L` on every device: what stands above never notices.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax import _check
from mixjax.typing import Array, Key, PyTree


def init(init_fn: Callable, key: Key, num_members: int) -> PyTree:
    """Initialises `num_members` members, each from a key of its own.

    Args:
      init_fn: `key -> variables` of one member.
      key: random key; consumed.
      num_members: number of members `L`, at least 1.

    Returns:
      The members' variables, every leaf `[L, ...]`.

    Raises:
      ValueError: if `num_members` is not a whole number of at least 1.
    """
    _check.at_least(1, num_members=num_members)
    members = [init_fn(member_key) for member_key in jax.random.split(key, num_members)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def apply(
    apply_fn: Callable, variables: PyTree, x: Array, *, axis_name: str | None = None
) -> Array:
    """Logits of every member on the same input.

    Args:
      apply_fn: `(variables, x) -> logits` of one member.
      variables: the members' variables, leaves `[L, ...]`, or `[L / size, ...]` with `axis_name`.
      x: `[..., H, W, C]` input that all members see.
      axis_name: mapped mesh axis over which the members are spread; None: all are here.

    Returns:
      `[L, ..., C]` logits. With `axis_name` they, and their derivatives of any order in `x` and in
      the local variables, are those of the whole ensemble on every device. `shard_map` needs
      `check_vma=False`: its checker has no notion of these derivatives and refuses them.
    """
    if axis_name is None:
        return jax.vmap(apply_fn, in_axes=(0, None))(variables, x)
    logits = jax.vmap(apply_fn, in_axes=(0, None))(variables, _share(axis_name, x))
    return _collect(axis_name, logits)


def update(
    update_fn: Callable, members: PyTree, index: Array, *, axis_name: str | None = None
) -> tuple[PyTree, PyTree]:
    """Updates one member and leaves the others as they are.

    Args:
      update_fn: `member -> (member, info)`, leaves without the member axis.
      members: everything of all members, leaves `[L, ...]`, or the local ones with `axis_name`.
      index: `[]` which of the `L` members.
      axis_name: mapped mesh axis over which the members are spread; None: all are here.

    Returns:
      The members with that one replaced, and its info on every device.
    """
    local, is_here = _locate(members, index, axis_name)
    new, info = update_fn(jax.tree.map(lambda leaf: leaf[local], members))
    members = jax.tree.map(
        lambda leaf, value: leaf.at[local].set(jnp.where(is_here, value, leaf[local])),
        members,
        new,
    )
    if axis_name is not None:
        here = jax.tree.map(lambda leaf: jnp.where(is_here, leaf, jnp.zeros_like(leaf)), info)
        info = jax.lax.psum(here, axis_name)
    return members, info


def mean(values: Array, *, axis_name: str | None = None) -> Array:
    """Mean over members: `[L, ...] -> [...]`, those on other devices included."""
    mean = jnp.mean(values, axis=0)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _locate(members, index, axis_name):
    """Local index of a member, clipped to those here, and whether it is here."""
    num_local = jax.tree.leaves(members)[0].shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_local
    is_here = (index >= first) & (index < first + num_local)
    return jnp.clip(index - first, 0, num_local - 1), is_here


def _collect(axis_name, local):
    """All members' `[L, ...]` from each device's own."""
    num_local = local.shape[0]
    whole = jnp.zeros((num_local * jax.lax.axis_size(axis_name), *local.shape[1:]), local.dtype)
    first = jax.lax.axis_index(axis_name) * num_local
    return _sum(axis_name, jax.lax.dynamic_update_slice_in_dim(whole, local, first, 0))


# The pair below is each other's transpose, to any order: what one device computes downstream of
# `_sum` is the same on all, so its cotangent must not be summed, while the cotangents of the
# shared input are each device's own part and must be. `psum` alone would sum both.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _share(axis_name, x):
    del axis_name
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(axis_name, parts):
    return jax.lax.psum(parts, axis_name)


# Each forward rule calls its own function again so that a second derivative finds this rule too.
_share.defvjp(
    lambda axis_name, x: (_share(axis_name, x), None),
    lambda axis_name, _, parts: (_sum(axis_name, parts),),
)
_sum.defvjp(
    lambda axis_name, parts: (_sum(axis_name, parts), None),
    lambda axis_name, _, cotangent: (_share(axis_name, cotangent),),
)
