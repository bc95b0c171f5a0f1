"""What a page begins with: who was attacked within what, and a sentence that says what was found.

The sentence is made of the numbers, also where the mixture has lost. Where 95 % intervals do not
tell two classifiers apart, it says so and names no winner.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NO_DIFFERENCE = "no difference that these examples show"
NORMS = {"linf": "l-inf", "l2": "l2"}


class Head(NamedTuple):
    """The first lines of a page; `str` gives them as Markdown.

    Attributes:
      norm: in which perturbations are measured.
      radius: how large they may be, with the unit.
      model: who was attacked.
      attack: by what.
      examples: how many, and of which data.
      found: one sentence in plain words, made of the numbers.
      worth: how far the figures are to be trusted, if there is something to be said.
    """

    norm: str
    radius: str
    model: str
    attack: str
    examples: str
    found: str
    worth: str = ""

    @property
    def within(self) -> str:
        """Norm and radius in a few words, for the title of a figure."""
        return f"{self.norm} radius {self.radius.split(',')[0]}"

    def __str__(self) -> str:
        lines = [f"- **{name}**: {getattr(self, name)}" for name in self._fields[:5]]
        words = [f"\n**What was found.** {self.found}\n"]
        words += [f"**What it is worth.** {self.worth}\n"] if self.worth else []
        return "\n".join(lines + words)


def order(first: Sequence[float], second: Sequence[float]) -> int:
    """1 if the interval `first` lies above `second`, -1 if below, 0 if they overlap.

    Example:
      >>> from mixjax import reporting
      >>> [reporting.order((0.4, 0.6), other) for other in ((0.1, 0.3), (0.5, 0.7), (0.7, 0.8))]
      [1, 0, -1]
    """
    return int(first[0] > second[1]) - int(first[1] < second[0])


def percent(score: Mapping[str, Any]) -> str:
    """`57.5 % (95 % interval 52.2 to 62.6)` of a score with `accuracy` and `interval`."""
    low, high = score["interval"]
    accuracy = f"{100 * score['accuracy']:.1f} %"
    return f"{accuracy} (95 % interval {100 * low:.1f} to {100 * high:.1f})"


def compared(
    first: str,
    one: Mapping[str, Any],
    second: str,
    other: Mapping[str, Any],
    difference: Sequence[float] | None = None,
    *,
    what: str = "of the examples withstand the attacks",
) -> str:
    """A sentence that says which of two classifiers is better, or that the examples do not show it.

    Args:
      first: name of one.
      one: its score, with `accuracy` and `interval`.
      second: name of the other one.
      other: its score.
      difference: interval of the first minus the second on the same examples, which is narrower
        than two intervals suggest; None: the scores' own intervals decide, by whether they overlap.
      what: what the scores are a share of.

    Example:
      >>> from mixjax import reporting
      >>> one = {"accuracy": 0.5, "interval": (0.4, 0.6)}
      >>> other = {"accuracy": 0.8, "interval": (0.7, 0.9)}
      >>> reporting.compared("the mixture", one, "one network", other).split(":")[0]
      'The mixture is worse than one network'
    """
    if difference is None:
        sign, numbers = order(one["interval"], other["interval"]), ""
    else:
        low, high = (100 * end for end in difference)
        sign = order(difference, (0.0, 0.0))
        value = 100 * (one["accuracy"] - other["accuracy"])
        numbers = f", a difference of {value:+.1f} (95 % interval {low:+.1f} to {high:+.1f})"
    if sign:
        verdict = f"{first} is {'better' if sign > 0 else 'worse'} than {second}"
    else:
        verdict = f"between {first} and {second} there is {NO_DIFFERENCE}"
    verdict = verdict[0].upper() + verdict[1:]
    return f"{verdict}: {percent(one)} against {percent(other)} {what}{numbers}."
