"""The member axis `L`: every leaf of an ensemble's variables is `[L, ...]`.

This module alone knows where that axis lies. On one device all members are there; with
`axis_name` each device of that mesh axis holds `L / size` of them, and `apply` still returns the
logits of all `L` on every device: the modules above need not know.

Where a member's gradient in the input is NaN it counts as 0, and those of the others stay as they
are. So a member that answers NaN hides nothing from an attack, not even one of weight 0, whose
weighted gradient would be 0 * NaN, which is NaN.
"""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp

from mixjax import checks, mixture
from mixjax.batch import mean_over
from mixjax.typing import Array, Key, PyTree

_LARGEST_SUMMED = 2**12  # numbers of a member's leaf; of larger ones reading all members would cost
_LARGE_MEMBER, _MOST_UNROLLED = 2**20, 4  # numbers of one; more members are a program too long


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

    Example:
      >>> import jax
      >>> from mixjax import ensemble
      >>> members = ensemble.init(lambda key: jax.random.normal(key, (4,)), jax.random.key(0), 3)
      >>> members.shape
      (3, 4)
    """
    checks.key(key=key)
    checks.at_least(1, num_members=num_members)
    # One after the other and stacked: `vmap` over an initialiser would compile every draw again,
    # with a leading axis, and draw other numbers with some generators.
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

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import ensemble
      >>> scales = jnp.array([1.0, 10.0])  # the variables of two members
      >>> ensemble.apply(lambda scale, x: scale * x, scales, jnp.array([1.0, 2.0]))
      Array([[ 1.,  2.],
             [10., 20.]], dtype=float32)
    """
    checks.native_order(x=x)
    x = jnp.asarray(x) if axis_name is None else _share(axis_name, jnp.asarray(x))
    num_members = jax.tree.leaves(variables)[0].shape[0]
    # Each member has its own copy of the input, for its gradient must be seen before it is added.
    copies = _known_gradient(jnp.broadcast_to(x[None], (num_members, *x.shape)))
    logits = jax.vmap(apply_fn)(variables, copies)
    return logits if axis_name is None else _collect(axis_name, logits)


def apply_each(functions: Sequence[Callable], x: Array) -> Array:
    """As `apply`, for members that share nothing but the number of classes.

    Args:
      functions: `x -> logits` of each member.
      x: `[..., H, W, C]` input that all members see.

    Returns:
      `[L, ..., C]` logits.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import ensemble
      >>> ensemble.apply_each([lambda x: x, lambda x: -x], jnp.array([1.0, 2.0]))
      Array([[ 1.,  2.],
             [-1., -2.]], dtype=float32)
    """
    checks.native_order(x=x)
    x = jnp.asarray(x)
    return jnp.stack([function(_known_gradient(x)) for function in functions])


def members(apply_fn: Callable, variables: PyTree) -> list[Callable]:
    """Stacked members as a list of functions, as `mixjax.evaluate` takes them.

    Args:
      apply_fn: `(variables, x) -> logits` of one member.
      variables: the members' variables, leaves `[L, ...]`.

    Returns:
      `L` functions `x -> logits`, each a pytree with its own variables.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import ensemble
      >>> first, second = ensemble.members(lambda scale, x: scale * x, jnp.array([1.0, 2.0]))
      >>> second(jnp.array([3.0, 4.0]))
      Array([6., 8.], dtype=float32)
    """
    num_members = jax.tree.leaves(variables)[0].shape[0]
    alone = [jax.tree.map(lambda leaf, k=k: leaf[k], variables) for k in range(num_members)]
    return [jax.tree_util.Partial(apply_fn, each) for each in alone]


def expectation(
    fn: Callable,
    members: PyTree,
    weights: Array,
    x: PyTree,
    *,
    axis_name: str | None = None,
) -> Array:
    """`sum_k weights_k fn(member_k, x)`, one member after another.

    The same number as by `apply`, but each member's gradient is taken right after its value: the
    activations of one member alone are in memory, and the program is as long as for one member. On
    a CPU it is longer for up to four members of a million numbers or more, differentiated in `x`.

    Args:
      fn: `(member, x) -> []`, for example a loss of one member. Nothing that it closes over may
        be differentiated: what is belongs to `members` or to `x`.
      members: what `fn` needs of all members, leaves `[L, ...]`; the local ones with `axis_name`.
      weights: `[L]` weights of all members.
      x: floating-point input that all members see, of any shape.
      axis_name: mapped mesh axis over which the members are spread; None: all are here.

    Returns:
      `[]` weighted sum, to be differentiated in `members`, `weights` and `x` by reverse mode, to
      any order. With `axis_name` as for `apply`. A member whose value is NaN is left out, as by
      `mixture.expected_loss`; where that is every member of positive weight, the sum is NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import ensemble
      >>> scales, weights = jnp.array([1.0, 10.0]), jnp.array([0.75, 0.25])
      >>> risk = lambda x: ensemble.expectation(lambda scale, x: scale * x, scales, weights, x)
      >>> float(risk(2.0)), float(jax.grad(risk)(2.0))
      (6.5, 3.25)
    """
    has_weight = jnp.any(weights != 0)
    if axis_name is None:
        total, num_answers = _one_by_one(fn)(members, weights, x)
    else:
        first, num_local = _local_range(members, axis_name)
        weights, x = _share(axis_name, (weights, x))
        weights = jax.lax.dynamic_slice_in_dim(weights, first, num_local)
        total, num_answers = _one_by_one(fn)(members, weights, x)
        total, num_answers = (cast(Array, _sum(axis_name, n)) for n in (total, num_answers))
    return jnp.where(has_weight & (num_answers == 0), jnp.nan, total)


def update(
    update_fn: Callable, members: PyTree, index: Array, *, axis_name: str | None = None
) -> tuple[PyTree, PyTree]:
    """Updates one member and leaves the others as they are.

    Args:
      update_fn: `member -> (member, info)`, leaves without the member axis.
      members: all that belongs to the members, leaves `[L, ...]`, or the local ones with
        `axis_name`.
      index: `[]` which of the `L` members.
      axis_name: mapped mesh axis over which the members are spread; None: all are here.

    Returns:
      The members with that one replaced, and its info on every device.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import ensemble
      >>> ensemble.update(lambda member: (member + 1.0, {}), jnp.array([1.0, 10.0]), 1)[0]
      Array([ 1., 11.], dtype=float32)
    """
    # All devices take the step, on a member of their own if the chosen one is elsewhere, and one
    # keeps it: a branch on the device would leave the others waiting in a collective.
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


def each(fn: Callable, members: PyTree, x: Array) -> PyTree:
    """`fn(member, x)` of every member: a stack, leaves `[L, ...]`.

    As `jax.vmap`, but a CPU takes a few large members one after the other: the activations of one
    are in memory.

    Args:
      fn: `(member, x) -> pytree`, the member's leaves without the member axis.
      members: what `fn` needs of each member, leaves `[L, ...]`.
      x: what all of them are given, of any shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import ensemble
      >>> ensemble.each(lambda scale, x: scale * x, jnp.array([1.0, 10.0]), jnp.array(2.0))
      Array([ 2., 20.], dtype=float32)
    """

    def side_by_side(members, x):
        return jax.vmap(fn, in_axes=(0, None))(members, x)

    def in_turn(members, x):
        results = []
        for k in range(num_members):
            if results:
                # One number of each array: all are computed before the next member begins.
                numbers = [leaf.ravel()[0] for leaf in jax.tree.leaves(results[-1]) if leaf.size]
                done = sum(each for each in numbers if jnp.issubdtype(each.dtype, jnp.floating))
                x = _after(done, x)
            member = jax.tree.map(lambda leaf, k=k: leaf[k], members)
            results.append(fn(_reread(members, member, k), x))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    num_members = len(jax.tree.leaves(members)[0])
    if num_members == 1 or not _are_few_and_large(members):
        return side_by_side(members, x)
    return jax.lax.platform_dependent(members, x, cpu=in_turn, default=side_by_side)


def indices(members: PyTree, *, axis_name: str | None = None) -> Array:
    """Which members are here: `[L]`, or `[L / size]` with `axis_name`.

    Args:
      members: everything of all members, leaves `[L, ...]`, or the local ones with `axis_name`.
      axis_name: mapped mesh axis over which the members are spread; None: all are here.
    """
    first, num_local = _local_range(members, axis_name)
    return first + jnp.arange(num_local)


def mean(values: Array, *, axis_name: str | None = None) -> Array:
    """Mean over members: `[L, ...] -> [...]`, those on other devices included."""
    return mean_over(axis_name, jnp.mean(values, axis=0))


def _locate(members, index, axis_name):
    """Local index of a member, clipped to those here, and whether it is here."""
    first, num_local = _local_range(members, axis_name)
    is_here = (index >= first) & (index < first + num_local)
    return jnp.clip(index - first, 0, num_local - 1), is_here


def _local_range(members, axis_name):
    """Index of the first member here, and how many are."""
    num_local = jax.tree.leaves(members)[0].shape[0]
    return (0 if axis_name is None else jax.lax.axis_index(axis_name) * num_local), num_local


def _known_gradient(x):
    """`x`, whose gradient is 0 where it would be NaN.

    As the solution of `y = x`: `custom_linear_solve` lets the backward pass be another function
    than the forward one, under `vmap`, in forward mode and to any order.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x

    def back(_, gradient):
        return jnp.where(jnp.isnan(gradient), jnp.zeros_like(gradient), gradient)

    return jax.lax.custom_linear_solve(lambda y: y, x, lambda _, x: x, back)


def _one_by_one(fn):
    """`sum_k weights_k fn(member_k, x)` over values that are not NaN, and how many of these weigh.

    Returns a function of `(members, weights, x)`, which takes the gradients on its way.
    """

    def of_known_gradient(member, x):
        return fn(member, jax.tree.map(_known_gradient, x))

    def sum_of_answers(values, weights):
        total = mixture.total_loss(values, weights.astype(values.dtype))
        return total, jnp.sum(~jnp.isnan(values) & (weights != 0)).astype(values.dtype)

    @jax.custom_vjp
    def total(members, weights, x):
        values = jax.lax.map(lambda member: of_known_gradient(member, x), members)
        return sum_of_answers(values, weights)

    def forward(members, weights, x):
        # Attacks differentiate in `x` alone: then the members' gradients, the larger part, are not
        # computed.
        in_members = any(leaf.perturbed for leaf in jax.tree.leaves(members))
        members, weights, x = jax.tree.map(lambda leaf: leaf.value, (members, weights, x))

        def turn(x, gradient, element):
            index, member, weight = element
            member = _reread(members, member, index)
            if in_members:
                # The pullback is used up before the next member begins: the activations of one are
                # in memory.
                value, pull_back = jax.vjp(of_known_gradient, member, x)
                in_member, in_x = pull_back(weight.astype(value.dtype))
            else:
                value, pull_back = jax.vjp(lambda x: of_known_gradient(member, x), x)
                in_member, (in_x,) = None, pull_back(weight.astype(value.dtype))
            return jax.tree.map(jnp.add, gradient, in_x), (value, in_member)

        def in_a_loop(zeros, elements):
            return jax.lax.scan(functools.partial(turn, x), zeros, elements)

        def written_out(zeros, elements):
            def in_order(gradient, element):
                return turn(jax.tree.map(_after, gradient, x), gradient, element)

            return jax.lax.scan(in_order, zeros, elements, unroll=True)

        arguments = jax.tree.map(jnp.zeros_like, x), (jnp.arange(len(weights)), members, weights)
        if in_members or not _are_few_and_large(members):
            in_x, (values, in_members) = in_a_loop(*arguments)
        else:
            in_x, (values, in_members) = jax.lax.platform_dependent(
                *arguments, cpu=written_out, default=in_a_loop
            )
        in_weights = jnp.where(jnp.isnan(values), 0.0, values).astype(weights.dtype)
        return sum_of_answers(values, weights), (in_members, in_weights, in_x)

    def backward(gradients, cotangents):
        # In the type of each: under 64-bit JAX the weights may have another one than the losses.
        cotangent, _ = cotangents  # a number of members has no derivative
        return jax.tree.map(lambda leaf: cotangent.astype(leaf.dtype) * leaf, gradients)

    total.defvjp(forward, backward, symbolic_zeros=True)
    return total


def _after(done, x):
    """`x`, once `done` is computed.

    The compiler would begin with all members at once, and all their activations would be in memory.
    No number is above infinity, which it does not ask.
    """
    return jnp.where(done > jnp.inf, jnp.asarray(done, x.dtype), x)


def _are_few_and_large(members):
    """Whether a CPU should have each member's turn written out.

    In an attack nothing but `x` varies: what depends on a member's weights alone, as the sums of
    its kernels for Winograd's method, is then computed once before the attack's loop; in a loop
    over members it is in every turn. The program compiles for longer and holds all these sums.
    """
    leaves = jax.tree.leaves(members)
    numbers = sum(leaf.size for leaf in leaves) / len(leaves[0])
    return numbers >= _LARGE_MEMBER and len(leaves[0]) <= _MOST_UNROLLED


def _reread(members, member, index):
    """`member`, which is number `index` of the members, with small leaves that are quick to use.

    On a CPU the compiler puts the slices that a loop's turn takes into every loop over pixels that
    uses them, as BatchNorm's do, and a place that is looked up for each pixel makes that three
    times as slow. A sum over the members, all zeros but one, stays outside. The numbers are the
    same, and PGD on two ResNet18s of width 64 takes about a tenth less time.
    """

    def read(whole, leaf):
        if leaf.size > _LARGEST_SUMMED or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        is_here = jnp.arange(len(whole)) == index
        return jnp.sum(whole, axis=0, where=jnp.expand_dims(is_here, range(1, whole.ndim)))

    return jax.lax.platform_dependent(
        cpu=lambda: jax.tree.map(read, members, member), default=lambda: member
    )


def _collect(axis_name, local):
    """All members' `[L, ...]` from each device's own."""
    first, num_local = _local_range(local, axis_name)
    # Each device writes its part into zeros, and the sum collects: its transpose is known, see
    # below.
    whole = jnp.zeros((num_local * jax.lax.axis_size(axis_name), *local.shape[1:]), local.dtype)
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
