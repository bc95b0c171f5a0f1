"""The smallest game that a mixture wins, in exact rational numbers.

    python -m experiments.meunier_2021.motivating_example      # seconds

Section 2.1 of Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021. Class
-1 sits at 0, class 1 at -1 or 1, half each; `f1(x) = -x - 1/2` and `f2(x) = x - 1/2` err where
`f(x) y <= 0`; points move by at most 1. Expect: standard risk 1/4 of everybody, adversarial risk 1
of each classifier and 3/4 of the mixture (1/2, 1/2), which together with the attacker who moves 0
to either side with probability 1/2 is an equilibrium of value 3/4.

Writes `figure.png` and `result.json`, every value as a fraction and as a number.
"""

import dataclasses
import pathlib
from fractions import Fraction

import numpy as np

from experiments.meunier_2021 import plots
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checks, games
from mixjax.reporting import Head

PROGRAM = "experiments.meunier_2021.motivating_example"
HALF = Fraction(1, 2)

# Probability, place and class of each example; where each may go: the rows of errors change only
# at -1/2 and 1/2, so that whole numbers represent every point within reach.
EXAMPLES = ((HALF, 0, -1), (Fraction(1, 4), -1, 1), (Fraction(1, 4), 1, 1))
MOVES = (-1, 0, 1)
CLASSIFIERS = (lambda x: -x - HALF, lambda x: x - HALF)
UNIFORM = (HALF, HALF)

# An attack: probabilities of the moves of each example. Class 1 goes to 0, where both err.
_TO_ZERO = ((0, 0, 1), (1, 0, 0))
STAY = ((0, 1, 0),) * 3
RIGHT = ((0, 0, 1), *_TO_ZERO)
LEFT = ((1, 0, 0), *_TO_ZERO)
BOTH_SIDES = ((HALF, 0, HALF), *_TO_ZERO)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag."""

    points: int = flag(41, "weights of the first classifier in the figure, from 0 to 1")
    seed: int = flag(0, "nothing is random: 0 alone", options=(0,))
    run_dir: str = flag("", "folder of the results; empty: runs/motivating_example")
    debug: bool = flag(False, "show the traceback of an error")


PRESETS = {"paper": Config()}


def main(argv=None):
    """Computes, compares with the linear program, draws."""
    program.main(PROGRAM, __doc__ or "", PRESETS, program.in_folder(experiment), argv)


def experiment(config: Config, folder: pathlib.Path) -> Outcome:
    """All values, and the risk of every mixture under the two attacks."""
    checks.at_least(2, points=config.points)
    shares = [Fraction(k, config.points - 1) for k in range(config.points)]
    mixtures = [(share, 1 - share) for share in shares]
    found = values()
    solved = games.solve(table())
    plots.plot_game_of_two(
        folder / "figure.png",
        np.array(shares, float),
        {
            "attacked at its worst": np.array([worst(w) for w in mixtures], float),
            "0 moved to 1": np.array([risk(w, RIGHT) for w in mixtures], float),
            "0 moved to either side": np.array([risk(w, BOTH_SIDES) for w in mixtures], float),
            "not attacked": np.array([risk(w, STAY) for w in mixtures], float),
        },
        value=float(found["value"]),
    )
    result = {
        "exact": {name: str(value) for name, value in found.items()},
        "numbers": {name: float(value) for name, value in found.items()},
        "linear_program": {
            "weights": solved.weights,
            "value": solved.value,
            "gap": solved.gap,
            "attack": solved.attack,
        },
    }
    lines = [f"{name.replace('_', ' '):62}{value}" for name, value in found.items()]
    drawn = {"figure.png": "Risk of each mixture, not attacked and under three attacks."}
    return Outcome(result, "\n".join(lines), head(found), figures=drawn)


def head(found: dict[str, Fraction]) -> Head:
    """What the page begins with: whether the mixture beats both classifiers."""
    alone = min(found["adversarial_risk_of_f1"], found["adversarial_risk_of_f2"])
    verdict = "is better than" if found["value"] < alone else "is no better than"
    return Head(
        norm="length of a move on the line",
        radius="1",
        model="two thresholds and their mixtures",
        attack="the best one, exact",
        examples="3 points, of probability 1/2, 1/4 and 1/4",
        found=f"The mixture (1/2, 1/2) {verdict} each classifier alone: its adversarial risk is "
        f"{found['value']} against {alone}, exactly.",
    )


def errors(classifier, example, move) -> bool:
    """Whether a classifier errs on an example after a move; a tie is an error."""
    _, x, label = example
    return classifier(x + move) * label <= 0


def risk(weights, attack) -> Fraction:
    """Expected error of a mixture under an attack, exactly."""
    return sum(
        (
            probability * weight * example[0]
            for example, row in zip(EXAMPLES, attack, strict=True)
            for move, probability in zip(MOVES, row, strict=True)
            for weight, classifier in zip(weights, CLASSIFIERS, strict=True)
            if errors(classifier, example, move)
        ),
        Fraction(0),
    )


def worst(weights) -> Fraction:
    """Adversarial risk of a mixture: the best move for each example."""
    return sum(
        (
            example[0]
            * max(
                sum(
                    weight
                    for weight, classifier in zip(weights, CLASSIFIERS, strict=True)
                    if errors(classifier, example, move)
                )
                for move in MOVES
            )
            for example in EXAMPLES
        ),
        Fraction(0),
    )


def best_answer(attack) -> Fraction:
    """Least risk of a mixture under an attack: that of one of the classifiers."""
    return min(risk(member, attack) for member in ((1, 0), (0, 1)))


def values() -> dict[str, Fraction]:
    """Everything that the paper says, and what each player loses by leaving the equilibrium."""
    value = worst(UNIFORM)
    return {
        "standard_risk_of_f1": risk((1, 0), STAY),
        "standard_risk_of_f2": risk((0, 1), STAY),
        "standard_risk_of_the_mixture": risk(UNIFORM, STAY),
        "adversarial_risk_of_f1": worst((1, 0)),
        "adversarial_risk_of_f2": worst((0, 1)),
        "value": value,
        "least_risk_under_the_randomised_attack": best_answer(BOTH_SIDES),
        "least_risk_under_the_attack_that_moves_0_to_1": best_answer(RIGHT),
        "least_risk_under_the_attack_that_moves_0_to_-1": best_answer(LEFT),
        "gap_of_the_equilibrium": value - best_answer(BOTH_SIDES),
        "defender_loses_by_playing_f1": worst((1, 0)) - value,
        "defender_loses_by_playing_f2": worst((0, 1)) - value,
        "defender_loses_by_the_mixture_(3/4,_1/4)": worst((Fraction(3, 4), Fraction(1, 4))) - value,
        "attacker_loses_by_moving_0_to_1_always": value - best_answer(RIGHT),
        "attacker_loses_by_moving_0_to_-1_always": value - best_answer(LEFT),
        "attacker_loses_by_not_attacking": value - best_answer(STAY),
        "single_response_f1_to_the_randomised_attack": risk((1, 0), BOTH_SIDES),
        "single_response_f2_to_the_randomised_attack": risk((0, 1), BOTH_SIDES),
        "single_response_f1_to_the_attack_that_moves_0_to_1": risk((1, 0), RIGHT),
        "single_response_f2_to_the_attack_that_moves_0_to_1": risk((0, 1), RIGHT),
    }


def table() -> np.ndarray:
    """`[4, 3, 2]` losses for `games.solve`: the example of probability 1/2 stands twice."""
    examples = [EXAMPLES[0], *EXAMPLES]
    return np.array(
        [
            [[errors(f, example, move) for f in CLASSIFIERS] for move in MOVES]
            for example in examples
        ],
        float,
    )


if __name__ == "__main__":
    main()
