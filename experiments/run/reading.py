"""Finished runs of `experiments.cifar10_mixture`, for the programs that look at them."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.meunier_2021.settings import Config
from mixjax import files, reporting

RECORDED = pathlib.Path(__file__).parents[2] / "results"  # committed results of runs


class Run(NamedTuple):
    """A finished run, or the single classifier in it."""

    folder: pathlib.Path
    recorded: dict
    config: Config
    result: dict

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"


def read_run(folder: pathlib.Path) -> Run:
    """Reads a finished run.

    Raises:
      ValueError: if there is none, or one that is not finished or of another program.
    """
    for file, what in (
        ("config.json", "no run of experiments.cifar10_mixture"),
        ("result.json", "a run that is not finished (continue it with --resume of its program)"),
        ("checkpoints", "a run without its checkpoints"),
    ):
        if not (folder / file).exists():
            raise ValueError(f"run_dir {folder} holds {what}: it has no {file}")
    recorded = reporting.read_config(folder)
    known = {field.name for field in dataclasses.fields(Config)}
    if foreign := sorted(recorded.keys() - known):
        raise ValueError(
            f"run_dir {folder} holds a run of another program or version: "
            f"config.json has {', '.join(foreign)}"
        )
    return Run(folder, recorded, Config(**recorded), reporting.read_result(folder))


def head(
    folder: pathlib.Path,
    results: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> reporting.Head:
    """What the page of a run begins with: what its PGD says, or the suite if it has met one.

    Args:
      folder: of the run.
      results: `name -> result`, the mixture last.
      evaluations: `budget -> name -> evaluation`; those under another threat have other names.
    """
    *others, name = results
    result = results[name]
    config = result["config"]
    suites = {
        budget: by_name
        for budget, by_name in evaluations.items()
        if set(by_name) == set(results) and "_" not in budget
    }
    budget = max(suites, key=lambda each: suites[each][name]["num_attack_runs"], default="")
    shown = suites[budget] if budget else results
    found = shown[name]
    runs, attack = found["num_attack_runs"], f"PGD-{config['test_steps']}"
    if budget:
        attack = f"the attack suite, budget {budget}"
    weights = ", ".join(f"{weight:.2f}" for weight in result["weights"])
    mixed = config["members"] > 1
    return reporting.Head(
        norm=reporting.NORMS[config["norm"]],
        radius=f"{config['epsilon']:.4g}, of pixels in [0, 1]",
        model=f"{name}: {config['model']}, weights {weights}" if mixed else config["model"],
        attack=f"{attack}, {runs} runs on each example",
        examples=f"{found['num_examples']} test examples of {config['dataset']}",
        found=_found(name, others, shown),
        worth=_worth(folder, result, found if budget else None) if mixed else "",
    )


def _found(name, others, shown):
    score = reporting.score_of(shown[name], "worst")
    if others and "versus_single" in shown[name]:
        one = reporting.score_of(shown[others[0]], "worst")
        difference = shown[name]["versus_single"].get("interval")
        second = "one classifier trained at equal cost"
        return reporting.compared(f"the {name}", score, second, one, difference)
    clean = reporting.percent(reporting.score_of(shown[name], "clean"))
    who = f"The {name}" if len(shown[name]["weights"]) > 1 else "The single classifier"
    withstood = reporting.percent(score)
    return f"{who} withstands the attacks on {withstood} of the examples, without one {clean}."


def _worth(folder, result, evaluation):
    pgd = reporting.percent(reporting.score_of(result, "worst"))
    if evaluation:
        left = reporting.percent(reporting.score_of(evaluation, "worst"))
        return f"PGD at the end of the training had left {pgd}; the suite leaves {left}."
    known = ""
    if recorded := _recorded(result["config"]):
        known = (
            " In the recorded run of these settings the suite left {:.1f} % where PGD had left "
            "{:.1f} %."
        ).format(*(100 * each["robust_accuracy"]["worst"] for each in recorded))
    return (
        "These attacks are PGD, which flatters a mixture: it finds too little of the mixture's "
        f"weakness.{known} The whole suite: "
        f"`python -m experiments.evaluate --run-dir {shlex.quote(str(folder))}`"
    )


def _recorded(config):
    """A committed evaluation of these settings by the suite, of any seed, and its run by PGD."""
    for path in sorted(RECORDED.glob("*_quick_suite.json")):
        suite = files.read_json(path)
        run = path.with_name(path.name.replace("_quick_suite", ""))
        if run.exists() and {**suite["config"], "seed": 0} == {**config, "seed": 0}:
            return suite, files.read_json(run)
    return None
