"""Pure functions of a batch, the programs that are compiled of them, and loops over batches.

An example's randomness depends on its number in the data set alone, so its outcome depends neither
on the batch it is in nor on the order of the batches. Radius, weights and all arrays of members and
attacks are arguments of the compiled programs: one compilation serves all of their values.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from mixjax import attacks, checks, mixture
from mixjax.batch import cores, example_keys, to_float
from mixjax.evaluation import inputs, passes
from mixjax.evaluation.inputs import UNIT
from mixjax.evaluation.suite import Attack
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn

# Examples attacked at once. A CPU takes hardly longer for each of 64 than for each of 300 (Square
# on a small ResNet: 13.7 and 12.2 microseconds a query), and small batches are filled up with less
# once most examples are lost; an accelerator needs more to be busy.
_USUAL, _USUAL_ON_CPU = 256, 64
_HALVINGS = 3  # of a batch to which few examples are left
_MOST_AT_ONCE = 8  # batches, whose activations are in memory together
_FEWEST = 64  # examples of a batch: for fewer a program of their own saves less than it takes

# Up to how many floating-point operations in all which level of optimisation ends first. Level 0
# compiles four times as fast and runs small ResNets two to five times slower; level 1 saves a third
# and runs as fast. A core makes about 1e11 operations a second; a suite compiles for 10 to 40 s.
_LEVELS = ((2e11, 0), (1e13, 1))


class Answers(NamedTuple):
    """Who is right at the `B` points of a batch.

    Attributes:
      correct: `[B, L]` whether each member is right.
      averaged: `[B]` whether the class of highest mean probability is right.
      is_nan: `[B, L]` whether each member answers NaN, which is never right.
    """

    correct: Array | np.ndarray
    averaged: Array | np.ndarray
    is_nan: Array | np.ndarray


class Validation(NamedTuple):
    """Exact expected accuracies per example, `[N]` each; their means are the scores.

    Attributes:
      clean: at the example itself.
      robust: the lower one of the example and its attacked version.
    """

    clean: Array
    robust: Array


def attack_batches(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    attack: Attack,
    run: int,
    given: Iterable[Sequence[Any]],
    transform: Callable = jax.jit,
) -> Iterator[Array]:
    """The points `[B, ...]` that a run finds on each `images [B, ...], labels [B], indices [B]`."""
    return _each(_points, _before_batch(key, logits_fn, weights, attack, run), given, transform)


def compile_attack(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    attack: Attack,
    batch: Sequence[Any],
    transform: Callable = jax.jit,
) -> futures.Future | None:
    """Has a thread compile what `attack_batches` runs on batches like `images, labels, indices`.

    None where no core is to spare: what runs meanwhile leaves some of them idle on a CPU alone.
    """
    if cores() == 1 or not _is_for_cpu(transform):
        return None
    run: Any = compiled(_points, transform)
    arguments = *_before_batch(key, logits_fn, weights, attack, 0), *batch
    # Traced in the caller's thread, whose settings count, as in `_each`.
    return _compiler().submit(run.lower(*jax.device_put(arguments)).compile)


@functools.cache
def _compiler():
    return futures.ThreadPoolExecutor(1, "mixjax-compiler")


def _before_batch(key, logits_fn, weights, attack, run):
    numbers = np.array([attack.number, run], np.int32)
    return key, numbers, inputs.as_argument(attack), logits_fn, single(weights)


def trace_attack(
    key: Key, logits_fn: LogitsFn, weights: Any, attack: Attack, shape: Sequence[int]
) -> tuple[core.ClosedJaxpr, passes.Passes]:
    """What `attack_batches` runs on images of this shape `[B, ...]`, and its passes per example."""
    arguments = _before_batch(key, logits_fn, weights, attack, 0)
    return trace(_points, arguments, logits_fn, shape, attack.num_steps)


def trace(
    function: Callable,
    arguments: Sequence[Any],
    logits_fn: LogitsFn,
    shape: Sequence[int],
    num_turns: int = 1,
) -> tuple[core.ClosedJaxpr, passes.Passes]:
    """The program of `function(*arguments, images, labels, indices)`, and its passes.

    JAX keeps what it has traced: once compiled, the function is not traced again.

    Args:
      function: that calls the networks through `passes.named`.
      arguments: all but the batch.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      shape: `[B, ...]` of the images.
      num_turns: of each `while_loop`.
    """
    number = jax.ShapeDtypeStruct(tuple(shape[:1]), jnp.int32)
    images = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    closed = jax.jit(function).trace(*arguments, images, number, number).jaxpr
    logits = shape_of(logits_fn, jax.ShapeDtypeStruct(images.shape[1:], jnp.float32))
    return closed, passes.read(closed.jaxpr, num_turns, (*number.shape, *logits.shape))


def judge_batch(
    logits_fn: LogitsFn, weights: Any, *batch: Any, transform: Callable = jax.jit
) -> Answers:
    """The `Answers` of all members at `points [B, ...], labels [B], indices [B]`."""
    return compiled(_answers, transform)(logits_fn, single(weights), *batch)


def single(weights: Any) -> np.ndarray:
    """In the precision of the networks."""
    return np.asarray(weights, np.float32)


def _each(
    function: Callable, arguments: Sequence[Any], given: Iterable, transform: Callable | None
) -> Iterator:
    """`function(*arguments, *batch)` of each of the batches that are given, in their order.

    On a CPU several are computed at the same time: with one alone, cores wait for each other at
    every operation of a small network. On two cores two batches of 8 x 8 digits at once take little
    longer than one.
    """
    run: Any = compiled(function, transform) if transform else function
    number = _at_once() if _is_for_cpu(transform) else 1
    if number == 1:
        yield from (run(*arguments, *batch) for batch in given)
        return
    # JAX's settings, such as the precision of products or 64 bits, are those of a thread. What
    # depends on them, tracing and the types of the arguments, is done in the caller's.
    arguments = jax.device_put(tuple(arguments))
    with futures.ThreadPoolExecutor(number) as pool:
        running = collections.deque()
        try:
            for batch in given:
                taken = *arguments, *jax.device_put(tuple(batch))
                running.append(pool.submit(_finished, run.lower(*taken).compile(), *taken))
                if len(running) > number:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:  # nobody waits for the others after an error or Ctrl-C
                future.cancel()


def _finished(program, *arguments):
    # Waited for in the thread that calls: a call returns before its work is done, and JAX computes
    # what one thread has called one after the other.
    return jax.block_until_ready(program(*arguments))


@functools.lru_cache(maxsize=64)
def compiled(function: Callable, transform: Callable = jax.jit) -> Callable:
    """`transform` of a function; once for the same one."""
    return transform(function)


def _points(key, numbers, argument, logits_fn, weights, images, labels, indices):
    def one(key, x, label):
        return inputs.run(argument, key, run, passes.named(logits_fn), weights, x, label)

    number, run = numbers
    return jax.vmap(one)(_run_keys(key, number, run, indices), images, labels)


def _answers(logits_fn, weights, points, labels, indices):
    del indices  # for a `transform`, which splits the last three

    def one(x, label):
        logits = logits_fn(x)
        is_nan = jnp.any(jnp.isnan(logits), axis=-1)
        # The attacks leave such members out of the mean; an average over all of them is NaN.
        averages = ~jnp.any(is_nan & (weights > 0))
        mean = mixture.correct(mixture.log_probs(logits, weights), label)
        return Answers(mixture.correct(logits, label), averages & mean, is_nan)

    return jax.vmap(one)(points, labels)


def _run_keys(key, number, run, indices):
    """The random key `[B]` of each example in one run of attack `number`."""

    def one(key):
        return jax.random.fold_in(jax.random.fold_in(key, number), run)

    return jax.vmap(one)(example_keys(key, indices))


def split(
    rows: np.ndarray, batch_size: int, *, shrink: bool = False
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """`(part, filled)` of each batch; `filled` ends in copies of its last row.

    All are of `batch_size`; with `shrink` the last is of the smallest of a few sizes that holds it:
    a half, a quarter or an eighth. So what is left of a data set costs little more than itself,
    and four programs serve all the numbers that may be left.
    """
    halves = [-(-batch_size // 2**times) for times in range(_HALVINGS + 1)] if shrink else []
    sizes = [batch_size, *(size for size in halves if size >= _FEWEST)]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size].astype(np.int32)
        size = min(size for size in sizes if size >= len(part))
        yield part, part[np.minimum(np.arange(size), len(part) - 1)]


def may_shrink(transform: Callable) -> bool:
    """Whether compiling once more for fewer examples can pay: not where `for_work` saw little work.

    On 120 digits AutoPGD took longer to compile than all of its ten runs took.
    """
    return transform not in [_at_level(level) for _, level in _LEVELS]


def _is_for_cpu(transform):
    levels = (None, *(level for _, level in _LEVELS))
    is_ours = transform in [_at_level(level) for level in levels]
    settings: Any = jax.config
    return is_ours and jax.default_backend() == "cpu" and not settings.jax_disable_jit


def equal_batches(num_examples: int, batch_size: int | None) -> int:
    """The size of as many batches as `batch_size` needs, the last one hardly smaller.

    Raises:
      ValueError: if `batch_size` is neither None, the usual number, nor at least 1.
    """
    at_once = 1
    if batch_size is None:
        is_cpu = jax.default_backend() == "cpu"
        batch_size = _USUAL_ON_CPU if is_cpu else _USUAL
        at_once = _at_once() if is_cpu and num_examples > batch_size else 1
    checks.at_least(1, batch_size=batch_size)
    # As many as are computed at once, or twice as many: the last ones leave no core idle.
    rounds = -(-num_examples // (batch_size * at_once))
    return -(-num_examples // (rounds * at_once))


def _at_once():
    return min(cores(), _MOST_AT_ONCE)


def over_batches(
    batch_fn: Callable,
    images: Any,
    labels: Any,
    *,
    arguments: Sequence[Any] = (),
    transform: Callable | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] = lambda num_done, num_all: None,
    bounds: Bounds = UNIT,
) -> Any:
    """Calls a compiled function on batches of one size and joins what it returns.

    The last batch is filled up with copies of the last example, whose results are dropped.

    Args:
      batch_fn: `(images [B, ...], labels [B], indices [B]) -> pytree of [B, ...]`.
      images: `[N, ...]` inputs, floats within `bounds` or uint8.
      labels: `[N]` integer classes.
      arguments: what `batch_fn` takes before the batch.
      transform: what compiles `batch_fn`, such as `jax.jit`, with which a CPU computes several
        batches at the same time; None: it is called as it is.
      batch_size: number of examples `B` in every call, at most; None: 64 on a CPU, 256 elsewhere.
      progress: called at the beginning and after each batch with the number of examples that are
        done, and of all.
      bounds: lowest and highest value of an input.

    Returns:
      The same pytree of NumPy arrays `[N, ...]`, in the order of the examples.

    Raises:
      ValueError: if `batch_size` is not at least 1, or images or labels are not what they should
        be.

    Example:
      >>> import numpy as np
      >>> from mixjax import evaluation
      >>> images, labels = np.array([[0.0, 0.2], [0.4, 0.6], [0.8, 1.0]]), np.zeros(3, int)
      >>> mean = lambda images, labels, indices: images.mean(axis=1)  # compiled, as a rule
      >>> evaluation.over_batches(mean, images, labels, batch_size=2).round(1)
      array([0.1, 0.5, 0.9])
    """
    images, labels = inputs.checked(images, labels, bounds)
    number = len(images)
    batch_size = equal_batches(number, batch_size)
    found = []
    progress(0, number)
    parts = list(split(np.arange(number), batch_size))
    given = ((images[filled], labels[filled], filled) for _, filled in parts)
    each = _each(batch_fn, arguments, given, transform)
    for (rows, _), answer in zip(parts, each, strict=True):
        found.append(jax.device_get(answer))
        progress(int(rows[-1]) + 1, number)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:number], *found)


def validate(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    images: Array,
    labels: Array,
    indices: Array,
    *,
    threat: Threat,
    num_steps: int = 20,
    step_size: float,
    bounds: Bounds = UNIT,
) -> Validation:
    """Exact expected accuracy, clean and under one run of PGD on the expected loss.

    An upper bound to choose checkpoints by, at about a twelfth of the cost of `pgd_attacks`. The
    attacker keeps the clean example where PGD found nothing worse.

    Args:
      key: random key of the data set; the example of number `n` uses `fold_in(key, n)`.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[B, ...]` inputs, floats within `bounds` or uint8 in [0, 255].
      labels: `[B]` integer classes.
      indices: `[B]` numbers of the examples in the data set.
      threat: the allowed perturbations, in the units of the inputs.
      num_steps: gradient steps.
      step_size: length of one step in the threat's norm.
      bounds: lowest and highest value of an input.

    Returns:
      `Validation` of the batch.

    Raises:
      ValueError: if `num_steps` or `step_size` is not positive, or images, labels or weights are
        not what they should be; of traced values only shapes and dtypes are known.
    """
    inputs.check_batch(images, labels, bounds)
    inputs.check_members(logits_fn, weights, images.shape[1:], labels)
    numbers = {"num_steps": num_steps, "step_size": step_size, "bounds": bounds}

    def one(key, x, label):
        example = logits_fn, weights, x, label
        found, _ = attacks.on_mixture(attacks.pgd, key, *example, threat, **numbers)
        clean, robust = (mixture.accuracy(logits_fn(at), label, weights) for at in (x, found))
        return Validation(clean, jnp.minimum(clean, robust))

    return jax.vmap(one)(_run_keys(key, 0, 0, indices), to_float(images), labels)


@jax.jit
def _asked(logits_fn, x):
    return logits_fn(x)


def shape_of(logits_fn: LogitsFn, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Of the logits of a pytree: as of `jax.eval_shape`, traced once for all of one structure."""
    return _asked.eval_shape(logits_fn, x)


def for_work(num_passes: int, logits_fn: LogitsFn, shape: Sequence[int]) -> Callable:
    """`jax.jit`, on a CPU with only as much optimisation as so many forward passes are worth.

    By counted work and never by a clock: the same call compiles the same programs on every machine.

    Args:
      num_passes: through single networks, on one input each.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      shape: `[...]` of an input.
    """
    if jax.default_backend() != "cpu":
        return jax.jit
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    flops = _count_flops(logits_fn, x)
    if flops is None:
        return jax.jit
    flops *= num_passes / shape_of(logits_fn, x).shape[0]
    return _at_level(next((level for limit, level in _LEVELS if flops < limit), None))


def _count_flops(logits_fn, x):
    """Operations of one forward pass of all members; None where XLA does not say.

    Lowered once for all pytrees of one structure.
    """
    lowered = _asked.lower(jax.eval_shape(lambda tree: tree, logits_fn), x)
    try:
        cost = lowered.cost_analysis()
    except jax.errors.JaxRuntimeError:
        # A classifier read from a file is a program for batches of any size, whose shapes only the
        # compiler finds out.
        least: dict[str, Any] = {"xla_backend_optimization_level": 0}
        cost = lowered.compile(least).cost_analysis()
    return float(cost["flops"]) if cost and "flops" in cost else None


@functools.cache
def _at_level(level):
    if level is None:
        return jax.jit
    options: dict[str, Any] = {"xla_backend_optimization_level": level}
    if jax.__version_info__ < (0, 11):  # later ones have no other emitters
        options["xla_cpu_use_fusion_emitters"] = False
    return functools.partial(jax.jit, compiler_options=options)
