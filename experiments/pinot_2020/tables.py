"""The tables of Pinot et al. 2020 in `RESULTS.md`: blind attacks, and theorems 1 and 2."""

import json
import pathlib

from mixjax import reporting

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results"
BLINDNESS = """\
- Four mixtures of two members: three linear ones, whose strongest attack has a closed form, and a
  pair trained on digits by boosted adversarial training.
- Expected accuracy left by each attack alone, in percent, with Wilson's 95 % interval.
- All return the point of lowest exact expected accuracy that they visit. The blind ones follow the
  loss of averaged logits or the expected loss; ARC and the climber see the members.
"""

PENALTIES = """\
- Two Gaussians in the plane, an attacker who pays for the moved distance (norm) or points (mass).
- Theorem 1: best responses go round in circles; what each player gains by each move is above 0.
- Theorem 2: inside its interval of weights the mixture has less risk than its first classifier.
- Where its condition fails, there may be no gain.
"""


def penalties() -> str:
    """What the players gain by moving, and the mixture's gain inside of theorem 2's interval."""
    result = json.loads((RESULTS / "penalized_attackers.json").read_text())
    moves = {
        f"{name} penalty": [each["least_gain_of_the_defender"], each["least_gain_of_the_attacker"]]
        for name, each in result["cycle"].items()
    }
    head = ["least gain of the defender by a move", "of the attacker"]
    link = "[theorem 1](results/penalized_attackers.json)"
    first = reporting.rate_table(link, head, moves)
    cases = {
        words: [str(each["cases"]), f"{each['least_gain']:.4f}", f"{each['largest_gain']:.4f}"]
        for words, each in (
            ("its condition holds", result["theorem_2"]),
            ("its condition fails", result["condition_fails"]),
        )
    }
    head = ["settings", "least gain inside of the interval", "largest gain"]
    link = "[theorem 2](results/penalized_attackers.json)"
    return f"{first}\n{reporting.rate_table(link, head, cases)}"


def blindness() -> str:
    """One row for each attack, one column for each mixture."""
    result = json.loads((RESULTS / "digits_boosted_pair.json").read_text())
    columns = {**result["linear"], "digits, boosted": result}
    rows = {
        name: [_cell(each, name) for each in columns.values()] for name in result["robust_accuracy"]
    }
    rows["exact optimum"] = [_optimum(each) for each in columns.values()]
    return reporting.rate_table("[left by](results/digits_boosted_pair.json)", list(columns), rows)


def _cell(result, name):
    low, high = result["interval"][name]
    return f"{100 * result['robust_accuracy'][name]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _optimum(result):
    return f"{100 * result['optimum']['accuracy']:.1f}" if "optimum" in result else ""
