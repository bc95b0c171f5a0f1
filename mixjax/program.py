"""A callable as a program and its constants: what it computes, apart from what it closes over.

`take_apart` takes large arrays out of a function, so that two classifiers of one architecture share
what is compiled; `identity` recognises a function in another process, by what it computes and with
which arrays, and not by its name. Both trace it, at the shapes of its arguments.
"""

import hashlib
import json
import re
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from mixjax import _fingerprint
from mixjax.typing import PyTree

_CALLS = ("jit", "pjit", "closed_call", "core_call", "core_closed_call")
_ON_THE_HOST = ("pure_callback", "io_callback")
_RANDOM_BITS = "jax_threefry_partitionable"  # which numbers a key stands for
_ADDRESS = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")


class Fingerprint(NamedTuple):
    """What a function computes and with what, as two sha256.

    Attributes:
      program: of its operations, those of its gradient, and the shapes of its arrays.
      constants: of the arrays that it closes over, in the order in which they are used.
    """

    program: str
    constants: str


class _Program:
    """`(constants, *args) -> result`; equal programs are one object, so they are compiled once.

    `jit` lets JAX keep what it has traced of it, which attacks batch and differentiate dozens of
    times.
    """

    def __init__(self, closed, structure):
        self._flat, self._structure = jax.jit(core.jaxpr_as_fun(closed)), structure

    def __call__(self, constants: Sequence[Any], *args: PyTree) -> PyTree:
        results = self._flat(*constants, *jax.tree.leaves(args))
        return jax.tree.unflatten(self._structure, results)


_PROGRAMS: weakref.WeakValueDictionary[str, _Program] = weakref.WeakValueDictionary()


def take_apart(function: Callable, *args: PyTree) -> tuple[Callable, tuple[Any, ...]]:
    """`(pure, constants)` with `pure(constants, *args) == function(*args)`.

    `pure` closes over no array, unless a body of a loop, a branch or a rule of its own compiles it
    in, and may be compiled, vmapped and differentiated as `function` may. Functions of equal
    programs have the same `pure`, whatever their constants: `jax.jit(pure)` compiles once for all
    classifiers of one architecture, and so does `jax.tree_util.Partial(pure, constants)` as an
    argument of a compiled function.

    Args:
      function: of arrays, pure as JAX understands it.
      *args: arguments, or `jax.ShapeDtypeStruct`s; `pure` is for these shapes and dtypes alone.

    Returns:
      `pure` and a tuple of the arrays that `function` closes over.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import program
      >>> kernels, x = (
      ...     (jnp.ones((2, 3)), jnp.zeros((2, 3))),
      ...     jax.ShapeDtypeStruct((2,), jnp.float32),
      ... )
      >>> (pure, constants), (again, _) = (program.take_apart(lambda x: x @ k, x) for k in kernels)
      >>> pure is again, [each.shape for each in constants]
      (True, [(2, 3)])
    """
    closed, constants, structure = _taken_apart(function, *args)
    # With its gradient: a rule of one's own (`custom_vjp`) may differ where the forward program is
    # equal.
    written = _Writer().with_gradient(closed, len(constants), ())
    text = _sha256([written[0], *written[1], str(structure), str(jax.tree.structure(args))])
    found = _PROGRAMS.setdefault(text, _Program(closed, structure))
    return found, constants


def fingerprint(function: Callable, *args: PyTree) -> Fingerprint:
    """What `function` computes, and its gradient, and with which arrays: as two sha256.

    Both are the same in every process, for every other function that computes the same, jitted or
    not, with arrays of equal content.

    Args:
      function: of arrays, pure as JAX understands it.
      *args: arguments, or `jax.ShapeDtypeStruct`s: their values do not matter.

    Raises:
      ValueError: if `function` calls back to Python, whose code nobody sees.
    """
    writer = _Writer()
    closed, constants, structure = _taken_apart(function, *args, same=writer.digest)
    text, arrays = writer.with_gradient(closed, len(constants), map(writer.digest, constants))
    writer.check_known(function)
    return Fingerprint(_sha256([text, str(structure)]), _sha256(arrays))


def fingerprint_of_jaxpr(closed: core.ClosedJaxpr) -> Fingerprint:
    """The `Fingerprint` of a program that is traced already, without that of its gradient.

    Args:
      closed: from `jax.make_jaxpr`.

    Raises:
      ValueError: if it calls back to Python, whose code nobody sees.
    """
    writer = _Writer()
    text, arrays = writer.write(closed)
    writer.check_known("the program")
    return Fingerprint(text, _sha256(arrays))


def identity(function: Callable, *args: PyTree) -> str:
    """One sha256 of a function: of its `fingerprint` and the `versions` that it was traced with.

    Args:
      function: of arrays, pure as JAX understands it.
      *args: arguments, or `jax.ShapeDtypeStruct`s: their values do not matter.

    Raises:
      ValueError: if `function` calls back to Python, whose code nobody sees.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import program
      >>> x = jax.ShapeDtypeStruct((2,), jnp.float32)
      >>> first, second = (program.identity(lambda x, s=s: x * s, x) for s in (2.0, 3.0))
      >>> first == program.identity(lambda y: y * 2.0, x), first == second
      (True, False)
    """
    return _sha256([*fingerprint(function, *args), json.dumps(versions(), sort_keys=True)])


def versions() -> dict[str, str]:
    """What the meaning of a program depends on besides its text."""
    return {
        "jax": jax.__version__,
        "mixjax": sys.modules["mixjax"].__version__,
        "threefry_partitionable": str(getattr(jax.config, _RANDOM_BITS)),
    }


def _taken_apart(function, *args, same=id):
    """The program without calls, whose first inputs are its constants; these; the result's tree.

    Of the arrays that are the `same` one is taken.
    """
    leaves, arguments = jax.tree.flatten(args)
    structures = []

    def flat(*leaves):
        results, structure = jax.tree.flatten(function(*jax.tree.unflatten(arguments, leaves)))
        structures.append(structure)
        return results

    # Traced at abstract values, where every array that is no input must be a constant of the
    # function.
    closed = jax.make_jaxpr(flat)(*leaves)
    # By identity: one array used twice stays one constant.
    found = {id(value): value for value in _arrays(closed)}

    def opened(values, *leaves):
        taken = dict(zip(constants, values, strict=True))
        return _evaluate(closed, leaves, lambda value: taken[names[id(value)]])

    inputs = [_shape(aval) for aval in closed.in_avals]
    names = {key: same(value) for key, value in found.items()}
    constants = {names[key]: value for key, value in found.items()}
    values = tuple(constants.values())
    return jax.make_jaxpr(opened)(values, *inputs), values, structures[-1]


def _arrays(closed):
    """The arrays of a program in the order in which `_evaluate` takes them."""
    jaxpr, constants = _parts(closed)
    yield from constants
    for equation in jaxpr.eqns:
        yield from _written_out(equation.invars)
        inner = _opened(equation)
        if inner is not None:
            yield from _arrays(inner)
    yield from _written_out(jaxpr.outvars)


def _written_out(atoms):
    return [each.val for each in atoms if isinstance(each, core.Literal) and np.ndim(each.val)]


def _evaluate(closed, arguments, take):
    """The results of a program; calls are opened, and `take` is called for each array in it."""
    jaxpr, constants = _parts(closed)
    values = dict(zip(jaxpr.constvars, map(take, constants), strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom):
        if isinstance(atom, core.Literal):
            return take(atom.val) if np.ndim(atom.val) else atom.val
        return values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        inner = _opened(equation)
        if inner is None:
            results = _one(jaxpr, equation)(*inputs)
        else:
            results = _evaluate(inner, inputs, take)
        values |= zip(equation.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _one(jaxpr, equation):
    """An operation as a function of all its inputs: JAX itself knows how to bind it."""
    invars = [
        jax.make_jaxpr(lambda x: x)(_shape(atom.aval)).jaxpr.invars[0]
        if isinstance(atom, core.Literal) and np.ndim(atom.val)
        else atom
        for atom in equation.invars
    ]
    places = [i for i, atom in enumerate(invars) if not isinstance(atom, core.Literal)]
    equation = equation.replace(invars=invars)
    results = [atom for atom in equation.outvars if not isinstance(atom, core.DropVar)]
    variables = list(dict.fromkeys(invars[i] for i in places))
    alone = jaxpr.replace(
        constvars=[], invars=variables, outvars=results, eqns=[equation], effects=equation.effects
    )
    function = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))

    def run(*inputs):
        given = {invars[i]: inputs[i] for i in places}
        found = iter(function(*(given[variable] for variable in variables)))
        return [
            None if isinstance(atom, core.DropVar) else next(found) for atom in equation.outvars
        ]

    return run


def _opened(equation):
    """The program that a call calls, or None."""
    if equation.primitive.name in _CALLS:
        for name in ("jaxpr", "call_jaxpr"):
            if name in equation.params:
                return equation.params[name]
    return None


def _parts(closed):
    """A program and its arrays; in newer versions of JAX every program holds its own."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


class _Writer:
    """Writes programs as text, arrays apart: `(sha256 of the text, digests of the arrays)`.

    Arrays are listed where they are used, so that it does not matter which are the same object.
    """

    def __init__(self):
        self._written: dict[int, Any] = {}  # holds the program: a freed one's `id` is given away
        self._digests: dict[int, Any] = {}
        self.calls_python = False

    def with_gradient(self, closed, num_constants, digests):
        """The same of a program and the pullback of its results to all but its constants."""
        digests = list(digests)
        text, arrays = self.write(closed, digests)
        for derived in _derived(closed, num_constants):
            try:
                traced = derived()
            # What has no gradient is identified by its forward program alone.
            except Exception:  # Whatever it is that cannot be differentiated or mapped.
                continue
            of_gradient, more = self.write(traced, digests)
            return _sha256([text, of_gradient]), arrays + more
        return text, arrays

    def write(self, closed, digests: Sequence[str] = ()):
        """Of a program of whose first inputs the arrays' digests are given."""
        if not digests and id(closed) in self._written:
            return self._written[id(closed)][1:]
        jaxpr, constants = _parts(closed)
        held = dict(zip(jaxpr.constvars, map(self.digest, constants), strict=True))
        held |= zip(jaxpr.invars, digests, strict=False)
        lines, arrays, numbers = [], [], {}

        def name(atom):
            if isinstance(atom, core.Literal):
                return f"{self._value(atom.val, arrays)}:{atom.aval}"
            if atom in held:
                arrays.append(held[atom])
                return f"array {atom.aval}"
            return f"{numbers.setdefault(atom, len(numbers))}:{atom.aval}"

        lines.append(" ".join(name(atom) for atom in jaxpr.invars if atom not in held))
        for equation in jaxpr.eqns:
            inner = _opened(equation)
            if inner is None:
                kind, params = equation.primitive.name, equation.params
                if kind in _ON_THE_HOST:
                    self.calls_python = True
                    params = params | {"callback": id(params.get("callback"))}
            else:
                kind, params = "call", {"": inner}
            inside = "; ".join(
                f"{key}={self._value(params[key], arrays)}" for key in sorted(params)
            )
            inputs, outputs = (
                " ".join(map(name, atoms)) for atoms in (equation.invars, equation.outvars)
            )
            lines.append(f"{outputs} = {kind}[{inside}] {inputs}")
        lines.append(" ".join(map(name, jaxpr.outvars)))
        found = _sha256(lines), arrays
        if not digests:
            self._written[id(closed)] = (closed, *found)
        return found

    def check_known(self, function):
        """Raises `ValueError` if something of what was written is unknown."""
        if self.calls_python:
            raise ValueError(
                f"{getattr(function, '__name__', function)} calls back to Python "
                "(jax.pure_callback): what it computes there cannot be known again"
            )

    def _value(self, value, arrays):
        """A parameter of an operation as text; what is not a value is its kind alone."""
        if hasattr(value, "eqns"):
            text, inside = self.write(value)
            arrays.extend(inside)
            return text
        if isinstance(value, np.generic):
            return f"{value.dtype} {value.tobytes().hex()}"
        if hasattr(value, "__array__") or isinstance(value, jax.Array):
            arrays.append(self.digest(value))
            return "array"
        if isinstance(value, dict):
            value = [(str(key), value[key]) for key in sorted(value, key=str)]
        if isinstance(value, tuple | list):
            return f"({', '.join(self._value(entry, arrays) for entry in value)})"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(self._value(entry, arrays) for entry in value))}}}"
        if isinstance(value, type):
            return value.__qualname__
        if callable(value) or hasattr(value, "call_wrapped"):  # a rule; the gradient shows it
            return "function"
        # Addresses in the text of a parameter differ from process to process and mean nothing.
        return _ADDRESS.sub("", repr(value))

    def digest(self, value):
        """Shape, dtype and sha256 of an array, as one sha256."""
        if id(value) not in self._digests:
            text = json.dumps(_fingerprint.fingerprints(value), sort_keys=True)
            self._digests[id(value)] = (value, _sha256([text]))
        return self._digests[id(value)][1]


def _derived(closed, num_constants):
    """Ways to trace what the rules of a program make of it, the most telling first."""
    avals, results = closed.in_avals, closed.out_avals
    moving = [i for i, aval in enumerate(avals) if i >= num_constants and _is_inexact(aval)]
    smooth = [i for i, aval in enumerate(results) if _is_inexact(aval)]
    function = core.jaxpr_as_fun(closed)

    def pullback(cotangents, *values):
        def of_moving(*moved):
            changed = list(values)
            for i, value in zip(moving, moved, strict=True):
                changed[i] = value
            found = function(*changed)
            return [found[i] for i in smooth]

        return jax.vjp(of_moving, *(values[i] for i in moving))[1](cotangents)

    axes = [None if i < num_constants else 0 for i in range(len(avals))]
    cotangents, inputs = [_shape(results[i]) for i in smooth], [_shape(aval) for aval in avals]
    several = [x if axis is None else _shape(x, (2,)) for x, axis in zip(inputs, axes, strict=True)]
    many = [_shape(x, (2,)) for x in cotangents]
    if moving and smooth:
        yield lambda: jax.make_jaxpr(jax.vmap(pullback, (0, *axes)))(many, *several)
        yield lambda: jax.make_jaxpr(pullback)(cotangents, *inputs)
    if num_constants < len(avals):
        yield lambda: jax.make_jaxpr(jax.vmap(function, axes))(*several)


def _is_inexact(aval):
    return jax.numpy.issubdtype(aval.dtype, np.inexact)


def _shape(aval, axes=()):
    return jax.ShapeDtypeStruct((*axes, *aval.shape), aval.dtype)


def _sha256(parts):
    return hashlib.sha256("\n".join([str(len(parts)), *parts]).encode()).hexdigest()
