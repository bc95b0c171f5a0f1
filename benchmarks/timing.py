"""Times of several programs that take turns: what disturbs the machine disturbs all of them.

In each repeat every case is timed once, A, B, C, then A, B, C again. A ratio is taken within each
repeat and only then summarised, so that a machine that is slow for a while slows both its sides.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mixjax import checks


class Case(NamedTuple):
    """One program to time.

    Attributes:
      name: what it is called in tables.
      num_members: number of members of the mixture that it works on.
      prepare: does what is done once, compilation above all, and returns the call to time. That
        ends when its work has ended, and returns a loss that shows what the work was.
    """

    name: str
    num_members: int
    prepare: Callable[[], Callable[[], float]]


class Timing(NamedTuple):
    """What a case took.

    Attributes:
      case: the case.
      compile_seconds: duration of its preparation.
      loss: result of its first call, which is not timed.
      seconds: duration of one call, for each repeat.
      cpu_seconds: processor time of one call, of all threads together, for each repeat. Where
        other programs run as well, it says more about one thread's work than the duration.
    """

    case: Case
    compile_seconds: float
    loss: float
    seconds: list[float]
    cpu_seconds: list[float]


class Spread(NamedTuple):
    """A number measured in every repeat: its median, lowest and highest value."""

    median: float
    low: float
    high: float


def interleave(
    cases: Sequence[Case],
    *,
    num_repeats: int,
    min_seconds: float = 0.0,
    tell: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Prepares all cases, calls each once untimed, then times them in turns.

    Args:
      cases: the programs, in the order of their turns.
      num_repeats: number of turns of each.
      min_seconds: a turn makes calls until it has lasted so long, at least one.
      tell: gets a line about each thing done.
      clock: seconds since some moment.

    Returns:
      The timings, in the order of `cases`.

    Raises:
      ValueError: if `num_repeats` is below 1 or `min_seconds` negative.
    """
    checks.at_least(1, num_repeats=num_repeats)
    checks.non_negative(min_seconds=min_seconds)
    calls, timings = [], []
    for case in cases:
        start = clock()
        call = case.prepare()
        elapsed = clock() - start
        calls.append(call)
        timings.append(Timing(case, elapsed, call(), [], []))
        tell(f"{label(case)}: prepared in {elapsed:.1f} s, loss {timings[-1].loss:.4f}")
    for repeat in range(num_repeats):
        for call, timing in zip(calls, timings, strict=True):
            cpu_start = time.process_time()
            seconds, num_calls = _turn(call, min_seconds, clock)
            timing.seconds.append(seconds)
            timing.cpu_seconds.append((time.process_time() - cpu_start) / num_calls)
            tell(f"{label(timing.case)}: repeat {repeat + 1}, {timing.seconds[-1]:.4g} s")
    return timings


def label(case: Case) -> str:
    """The case in words: `mixjax unrolled, L = 4`."""
    return f"{case.name}, L = {case.num_members}" if case.num_members else case.name


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of the values."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(numerator: Timing, denominator: Timing, *, cpu: bool = False) -> Spread:
    """How many times as long the first takes as the second, turn by turn.

    Args:
      numerator: the first.
      denominator: the second.
      cpu: whether processor time counts instead of duration.
    """
    first, second = ((t.cpu_seconds if cpu else t.seconds) for t in (numerator, denominator))
    return spread([one / other for one, other in zip(first, second, strict=True)])


def _turn(call, min_seconds, clock):
    """Mean duration of a call, and how many there were."""
    start, elapsed, num_calls = clock(), 0.0, 0
    while num_calls == 0 or elapsed < min_seconds:
        call()
        num_calls += 1
        elapsed = clock() - start
    return elapsed / num_calls, num_calls
