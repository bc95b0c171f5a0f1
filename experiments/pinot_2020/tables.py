"""The tables of Pinot et al. 2020 in `RESULTS.md`: blind attacks, two theorems, boosted members."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from mixjax import evaluation, reporting

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

MEMBERS = """\
- Mixtures of three members and one network, all at one training cost, in passes through single
  networks; an answer of the mixture costs one pass, one of the average three.
- Mean over the seeds, in brackets its 95 % interval; each seed's examples are the same. Of one seed
  alone the interval is Wilson's over the examples, and nothing is compared.
- *Rob. Acc.* as Meunier et al. define it: of each example the worst of AutoPGD on the cross-entropy
  and on the difference of logits ratio, restarts x steps.
- *180 to 1440 epochs*: Algorithm 2 at 3, 6, 12 and 24 times that cost; *minus fewer epochs* is the
  difference from half as many, seed by seed, that of 180 from 60. It has converged where that is
  below two points or its interval includes 0: at 1440.
- The suite has the same number of runs in every row. *Lower bound*: what the members keep alone.
- *Minus one network*: the difference of what the suite leaves, seed by seed, of the mixture and of
  its *averaged* ensemble, whose answer costs three passes; of the double oracle
  also from the best of BAT's alphas in that seed. Its *upper value* is the risk under the rest of
  the suite after training, not that of its last round.
- BAT against the number of members n: under PGD on the expected loss, which does not see the
  members, and under the suite; *minus n = 1* is a difference seed by seed.
"""
FEWER_EPOCHS = {  # of runs that were asked for some rows alone: those they are compared with
    "members_table_digits_algorithm_2_180_epochs": "members_table_digits",  # 60
    "members_table_digits_algorithm_2_360_epochs": "members_table_digits_algorithm_2_180_epochs",
    "members_table_digits_algorithm_2_720_epochs": "members_table_digits_algorithm_2_360_epochs",
    "members_table_digits_algorithm_2_1440_epochs": "members_table_digits_algorithm_2_720_epochs",
}
TABLES = (  # of `experiments.queue`
    "members_table_digits",
    "members_table_digits_standard",
    *FEWER_EPOCHS,
    "members_table_mnist",
    "members_table_cifar10_width_16",
)
FEWEST_SEEDS = 5  # for a comparison
PARTS = {  # of a row of `boosted_table`
    "clean": lambda row: row["clean_accuracy"],
    "PGD-20": lambda row: row["robust_accuracy"]["pgd_expected_loss"],
    "AutoPGD": lambda row: row["robust_accuracy"]["apgd_expected_loss"],
    "Rob. Acc.": lambda row: row["reported_by"]["rob_acc"]["accuracy"],
    "suite": lambda row: row["robust_accuracy"]["worst"],
    "lower bound": lambda row: row["sandwich"]["lower"],
    "best member": lambda row: max(each["robust_accuracy"] for each in row["members"]),
    "averaged": lambda row: row["averaged"]["robust_accuracy"],
}

AHEAD = {  # of one network under the suite
    "suite": "minus one network",
    "averaged": "averaged, minus one network",
}

INTERVALS = {  # over the examples of one seed
    "clean": lambda row: row["interval"]["clean"],
    "PGD-20": lambda row: row["interval"]["pgd_expected_loss"],
    "AutoPGD": lambda row: row["interval"]["apgd_expected_loss"],
    "Rob. Acc.": lambda row: row["reported_by"]["rob_acc"]["interval"],
    "suite": lambda row: row["interval"]["worst"],
}

LEFT = {  # of a run of `boosted` with n members
    "PGD on the expected loss": lambda run, n: _of_alpha(run)[n]["pgd"]["accuracy"],
    "the suite": lambda run, n: run["suite"][n]["worst"]["accuracy"],
}


def members() -> str:
    """All that trains members, at one cost; and boosted training against the number of them."""
    parts = []
    for base in TABLES:
        runs = [each["rows"] for each in _of_all_seeds(base)]
        if not runs:
            if base not in FEWER_EPOCHS:
                parts.append(f"{base.replace('_', ' ').capitalize()}: not run yet.\n")
            continue
        before = [each["rows"] for each in _of_all_seeds(FEWER_EPOCHS.get(base, base))]
        rows = {}
        for name in runs[0]:
            if any(run[name] is None for run in runs):
                if base in FEWER_EPOCHS:
                    continue
                empty = len(PARTS) + len(AHEAD)
                rows[name.replace("_", " ")] = ["not run yet", *[""] * empty]
                continue
            of_row = [run[name] for run in runs]
            cells = [_over(of_row, part, INTERVALS.get(each)) for each, part in PARTS.items()]
            if base in FEWER_EPOCHS:
                cells.append(_ahead(runs, name, [name], before))
            elif name == "one_network":
                cells += ["", ""]
            else:
                cells += [_ahead(runs, name, ["one_network"], part=each) for each in AHEAD]
            cells.append(f"{of_row[0]['training']['passes'] / 1e6:.2f}")
            rows[name.replace("_", " ")] = cells
        done = [row for run in runs for row in run.values() if row is not None]
        spent = done[0]["reported_by"]["rob_acc"]
        of_runs = f"Rob. Acc. {spent['num_restarts']} x {spent['num_steps']}"
        head = [of_runs if each == "Rob. Acc." else each for each in PARTS]
        ahead = ["minus fewer epochs"] if base in FEWER_EPOCHS else AHEAD.values()
        head += [*ahead, "million passes"]
        parts.append(reporting.rate_table(_corner(base, runs), head, rows))
        if len(runs) > 1:
            widest = max(high - low for low, high in map(INTERVALS["suite"], done))
            parts.append(
                f"Over the {done[0]['num_examples']} examples of one seed Wilson's 95 % interval "
                f"of what the suite leaves is at most {100 * widest:.1f} wide.\n"
            )
        if any(run["double_oracle"] is None for run in runs):
            continue
        rows = {"value of the double oracle": _bounds(runs)}
        head = ["lower value", "upper value", "risk under attacks kept out", "upper holds in"]
        head.append("suite, minus the best of BAT")
        parts.append(reporting.rate_table("risk on the training images", head, rows))
    if runs := _of_all_seeds(base := "boosted_digits"):
        numbers, rows = [*runs[0]["suite"]], {}
        for name, left in LEFT.items():
            values = [[left(run, n) for run in runs] for n in numbers]
            rows[name] = [rate_cell(of_n) for of_n in values]
            rises = [
                [each - one for each, one in zip(of_n, values[0], strict=True)] for of_n in values
            ]
            rows[f"{name}, minus n = {numbers[0]}"] = ["", *map(mean_cell, rises[1:])]
        head = [f"n = {n}" for n in numbers]
        parts.append(reporting.rate_table(_corner(base, runs), head, rows))
    return "\n".join(parts)


def _of_all_seeds(base: str) -> list[dict[str, Any]]:
    """The committed results of that name, seed 0 first."""
    paths = [*RESULTS.glob(f"{base}.json"), *sorted(RESULTS.glob(f"{base}_seed_*.json"))]
    return [json.loads(path.read_text()) for path in paths]


def _corner(base: str, runs: Sequence[Any]) -> str:
    return f"[{base.replace('_', ' ')}, seeds: {len(runs)}](results/{base}.json)"


def _bounds(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Of the double oracle, which plays on its training images."""
    trainings = [run["double_oracle"]["training"] for run in runs]
    names = "lower", "upper", "risk_under_attacks_kept_out"
    cells = [_over(trainings, lambda each, name=name: each[name]) for name in names]
    cells.append(f"{sum(each['upper_holds'] for each in trainings)} of {len(trainings)}")
    grid = [name for name in runs[0] if name.startswith("bat")]
    return [*cells, _ahead(runs, "double_oracle", grid)]


def _ahead(
    runs: Sequence[dict[str, Any]],
    name: str,
    others: Sequence[str],
    of_others: Sequence[dict[str, Any]] | None = None,
    *,
    part: str = "suite",
) -> str:
    """By how much a row leaves more than the best of others under the suite, seed by seed.

    The others are rows of the same runs, or of as many other runs. `part`: of that row.
    """
    pairs = [*zip(runs, runs if of_others is None else of_others, strict=False)]
    if len(pairs) < FEWEST_SEEDS or any(run[each] is None for _, run in pairs for each in others):
        return ""
    left = PARTS["suite"]
    return mean_cell(
        [PARTS[part](run[name]) - max(left(other[each]) for each in others) for run, other in pairs]
    )


def _of_alpha(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The mixtures of the run's own alpha, by their number of members."""
    alpha = run["config"]["alpha"]
    return {str(each["num_members"]): each for each in run["mixtures"] if each["alpha"] == alpha}


def _over(
    runs: Sequence[Any],
    part: Callable[[Any], float],
    interval: Callable[[Any], Sequence[float]] | None = None,
) -> str:
    """Mean over the runs of a part of each; of one run, with the interval over its examples."""
    values = [part(run) for run in runs]
    if len(runs) == 1 and interval is not None:
        return _with_interval(values[0], interval(runs[0]))
    return rate_cell(values)


def mean_cell(values: Sequence[float], lowest: float = -1.0) -> str:
    """Mean in percent, with its interval over the seeds where there are several."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    mean, (low, high) = evaluation.over_seeds(values)
    return _with_interval(mean, (max(low, lowest), min(high, 1.0)))


def rate_cell(values: Sequence[float]) -> str:
    """As `mean_cell`, of what is at least 0: Student's interval knows no bounds."""
    return mean_cell(values, lowest=0.0)


def _with_interval(value, interval):
    low, high = interval
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


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
