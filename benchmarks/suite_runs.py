"""What each run of an attack suite adds: accuracy that it takes, and at how many passes.

    python -m benchmarks.suite_runs single=runs/e/mixture pair=runs/f/mixture

Reads folders that `mixjax.evaluate(folder=...)` has written, in which every example met every run:
nothing is attacked here. For each run: what it leaves alone, what it takes beyond those before it,
and what is lost without its line of the report. The order in which a suite takes most per pass is
the greedy one: first the run that takes most for its passes, then the one that takes most beyond
it, and so on.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import comparison, setting
from mixjax import files, reporting

PROGRAM = "benchmarks.suite_runs"


class Runs(NamedTuple):
    """What is read of one folder.

    Attributes:
      names: the `R` lines of the report.
      costs: `[R]` forward passes of a run on an example, a gradient being two.
      accuracies: `[N, R + 1]` exact expected accuracy at the example and at what each run found.
      seconds: `[R]` with compiling.
    """

    names: list[str]
    costs: np.ndarray
    accuracies: np.ndarray
    seconds: np.ndarray


def main(argv=None):
    """Reads, prints and writes the result."""
    flags, began = parse(argv), time.perf_counter()
    try:
        subjects = {name: subject(read(folder)) for name, folder in flags.folders.items()}
    except (ValueError, OSError, KeyError) as error:
        setting.fail(PROGRAM, error)
    seconds = time.perf_counter() - began
    result = {
        "benchmark": "suite_runs",
        "subjects": subjects,
        "lines": by_line(subjects),
        "provenance": reporting.provenance(comparison.argv_of(PROGRAM, argv), 0, seconds),
    }
    files.write_json(flags.output, result)
    print(table(result))


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(PROGRAM, __doc__)
    add: Callable[..., Any] = parser.add_argument
    add("folders", nargs="+", metavar="NAME=FOLDER", help="of the evaluation of one subject")
    add("--output", type=pathlib.Path, default=setting.RESULTS / "suite_runs.json")
    flags = parser.parse_args(argv)
    pairs = [each.partition("=") for each in flags.folders]
    if not all(name and folder for name, _, folder in pairs):
        setting.fail(PROGRAM, f"folders must be NAME=FOLDER, got {' '.join(flags.folders)}")
    flags.folders = {name: pathlib.Path(folder) for name, _, folder in pairs}
    with parser.checking():
        setting.check_output(flags.output)
    return flags


def read(folder: pathlib.Path) -> Runs:
    """The runs of one evaluation.

    Raises:
      ValueError: if some example did not meet every run.
    """
    config = json.loads((folder / "config.json").read_text())
    weights, attacks = np.asarray(config["weights"]), config["attacks"]
    accuracies = np.full((config["num_examples"], len(attacks)), np.nan)
    seconds = np.zeros(len(attacks))
    for path in sorted(folder.glob("*.npz")):
        place, found = int(path.name.split("-")[0]), files.read_arrays(path)
        accuracies[found["rows"], place] = found["correct"] @ weights
        seconds[place] += found["seconds"]
    if np.isnan(accuracies).any():
        raise ValueError(f"{folder} has examples that did not meet every run")
    costs = np.array([max(1, forward + 2 * backward) for _, forward, backward in attacks[1:]])
    return Runs([name for name, *_ in attacks[1:]], costs, accuracies, seconds[1:])


def subject(runs: Runs) -> dict[str, Any]:
    """The figures of one subject."""
    worst = np.minimum.accumulate(runs.accuracies, axis=1).mean(axis=0)
    names, lowest = np.array(runs.names), runs.accuracies.min(axis=1)

    def without(line):
        kept = np.append(True, names != line)
        return float((runs.accuracies[:, kept].min(axis=1) - lowest).mean())

    return {
        "num_examples": len(runs.accuracies),
        "clean_accuracy": float(worst[0]),
        "robust_accuracy": float(worst[-1]),
        "runs": [
            {
                "line": name,
                "passes": int(cost),
                "seconds": float(seconds),
                "leaves_alone": float(left),
                "takes_beyond_those_before": float(taken),
            }
            for name, cost, seconds, left, taken in zip(
                runs.names,
                runs.costs,
                runs.seconds,
                runs.accuracies[:, 1:].mean(axis=0),
                -np.diff(worst),
                strict=True,
            )
        ],
        "lost_without": {line: without(line) for line in dict.fromkeys(runs.names)},
        "greedy": greedy(runs),
    }


def greedy(runs: Runs) -> list[dict[str, Any]]:
    """The runs that take most per pass beyond those before, until none takes anything."""
    worst, left, order = runs.accuracies[:, 0], set(range(len(runs.names))), []
    while left:
        taken = {
            k: float((worst - np.minimum(worst, runs.accuracies[:, k + 1])).mean()) for k in left
        }
        best = max(sorted(left), key=lambda k: taken[k] / runs.costs[k])
        if taken[best] <= 0:
            break
        order.append({"line": runs.names[best], "run": best + 1, "takes": taken[best]})
        worst = np.minimum(worst, runs.accuracies[:, best + 1])
        left.remove(best)
    return order


def by_line(subjects: dict[str, Any]) -> dict[str, Any]:
    """Of each line of the report: means over the subjects that met it, and the number of these."""
    found = {}
    for line in dict.fromkeys(line for each in subjects.values() for line in each["lost_without"]):
        met = [each for each in subjects.values() if line in each["lost_without"]]
        of_line = [[run for run in each["runs"] if run["line"] == line] for each in met]
        places = [[each["line"] for each in one["greedy"]] for one in met]
        found[line] = {
            "subjects": len(met),
            "passes": float(np.mean([sum(run["passes"] for run in each) for each in of_line])),
            "leaves_alone": float(
                np.mean([min(run["leaves_alone"] for run in each) for each in of_line])
            ),
            "lost_without": float(np.mean([each["lost_without"][line] for each in met])),
            "first_of_greedy": sum(each[:1] == [line] for each in places),
            "in_greedy": sum(line in each for each in places),
        }
    return found


def table(result: dict[str, Any]) -> str:
    """Lines of the report in percent, those that leave least alone first."""
    head = ("line", "passes", "leaves alone", "lost without", "taken first", "taken")
    rows = [
        (
            line,
            f"{each['passes']:.0f}",
            f"{100 * each['leaves_alone']:.1f}",
            f"{100 * each['lost_without']:.2f}",
            f"{each['first_of_greedy']}",
            f"{each['in_greedy']} of {each['subjects']}",
        )
        for line, each in sorted(result["lines"].items(), key=lambda pair: pair[1]["leaves_alone"])
    ]
    return "\n".join(
        f"{line:24}" + "".join(f"{each:>14}" for each in row) for line, *row in [head, *rows]
    )


if __name__ == "__main__":
    main()
