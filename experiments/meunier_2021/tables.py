"""The tables of Meunier et al. 2021 in `RESULTS.md`, from the committed results in the plane."""

import json
import pathlib

from mixjax import reporting

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results"
INTRODUCTION = """\
- Three Gaussians in the plane, ten random half-planes, 1000 examples, 10 seeds.
- The attacker picks the worst of 1000 points drawn from the ball around each example.
- Mean over the seeds, in brackets the standard deviation over them.
- *Seeds with a gain*: in how many the best mixture is strictly better than the best half-plane, the
  mixture solved exactly, and found by Algorithm 1 as in the paper.
"""


def tables() -> str:
    """The motivating example, the synthetic problem by radius, double oracle beside boosting."""
    parts = [motivating_example(_read("motivating_example")), by_radius(_read("synthetic"))]
    return "\n".join([*parts, double_oracle(_read("double_oracle"))])


def motivating_example(result: dict) -> str:
    """Risks of the two classifiers of section 2.1 and of their mixture, as fractions."""
    exact = result["exact"]
    rows = {
        name: [exact[f"standard_risk_of_{key}"], exact[risk]]
        for name, key, risk in (
            ("first classifier", "f1", "adversarial_risk_of_f1"),
            ("second classifier", "f2", "adversarial_risk_of_f2"),
            ("the game's mixture", "the_mixture", "value"),
        )
    }
    link = "[motivating example](results/motivating_example.json)"
    return reporting.rate_table(link, ["standard risk", "adversarial risk"], rows)


def by_radius(result: dict) -> str:
    """Risks of the best mixture and of the best single classifier by the attacker's radius."""
    rows = {
        f"{row['epsilon']:g}": [
            *(_spread(row[name]) for name in ("mixture", "single", "gain", "gain_on_test")),
            f"{row['seeds_with_gain']} of {row['seeds']}",
            f"{row['seeds_with_gain_by_algorithm_1']} of {row['seeds']}",
        ]
        for row in result["radii"]
    }
    head = ["risk of the best mixture", "of the best half-plane", "gain", "gain on new examples"]
    head += ["seeds with a gain", "by Algorithm 1"]
    return reporting.rate_table("[radius](results/synthetic.json)", head, rows)


def double_oracle(result: dict) -> str:
    """Bounds on the game's value after the last round, double oracle beside boosting."""
    solvers = {"double oracle": result["double_oracle"]}
    solvers |= {f"boosting, alpha = {share}": row for share, row in result["boosting"].items()}
    rows = {
        name: [*(f"{row[key]:.3f}" for key in ("lower", "upper", "gap")), str(row["rounds"])]
        for name, row in solvers.items()
    }
    head = ["lower bound", "upper bound", "gap", "rounds"]
    words = f"The best single classifier has risk {result['best_single_member']:.3f}.\n"
    return reporting.rate_table("[solver](results/double_oracle.json)", head, rows) + f"\n{words}"


def _spread(values):
    return f"{values['mean']:.3f} ({values['standard_deviation']:.3f})"


def _read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())
