"""Results as Markdown tables; accuracies in percent, in brackets Wilson's 95 % interval.

Results of older versions hold no interval: it is worked out from the accuracy and the examples.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixjax.intervals import wilson_interval


def results_table(results: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None) -> str:
    """One row for each result, to be read from left to right: what, how good, how sure.

    Only a result of `Evaluation.report`, where each member met all runs, has a lower bound.

    Args:
      results: dicts as in `check_result`.
      labels: names of the rows, as a column of its own; None for no such column.

    Returns:
      Markdown text.
    """
    head = ["data", "L", "weights", "clean %", "robust %", "lower bound %"]
    head += ["members alone %", "averaged %", "examples", "attack runs", "minutes", "device"]
    rows = [_row(result) for result in results]
    if labels is not None:
        head = ["", *head]
        rows = [[label, *row] for label, row in zip(labels, rows, strict=True)]
    return _markdown(head, rows)


def training_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How each mixture was trained, and how that differs from Algorithm 2, as Markdown.

    One row for each config of `experiments.cifar10_mixture`, under the first name that has it.

    Args:
      results: `name -> result`; those of other programs are left out.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, algorithm 2.
    """
    rows, known = [], []
    for name, result in results.items():
        config = result["config"]
        if {"update", "attack_steps", "weight_steps"} <= config.keys() and config not in known:
            known.append(config)
            rows.append([name, *_training(config)])
    head = ["", "updated per step", "training attack", "weights", "epochs per member"]
    head += ["other than in Algorithm 2"]
    return _markdown(head, rows) if rows else ""


def _training(config):
    alone = config["members"] == 1
    weights = f"{config['weights']}, T_theta = {config['model_steps']}"
    if config["weights"] != "uniform":
        weights += f", T_lambda = {config['weight_steps']}"
    differences = {
        "one classifier": alone,
        "all members on each batch": config["update"] == "all" and not alone,
        "fixed weights": config["weights"] == "uniform" and not alone,
        "averaged parameters": config["average_decay"] > 0,
        "growing radius": config["ramp"] > 0,
    }
    return [
        "one member" if config["update"] == "one" or alone else f"all {config['members']}",
        f"PGD-{config['attack_steps']}, step {config['attack_step_size']:.2g}",
        "" if alone else weights,
        str(config["epochs"]),
        ", ".join(name for name, holds in differences.items() if holds) or "nothing",
    ]


def attack_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each attack, one column for each result: `name -> result`, as Markdown.

    The last row is the strongest attack, `optimum` of a result, if it is known for any.
    """
    attacks = dict.fromkeys(
        attack for result in results.values() for attack in result["robust_accuracy"]
    )
    attacks = [attack for attack in attacks if attack != "worst"] + ["worst"]
    rows = [["no attack", *(_clean(result) for result in results.values())]]
    for attack in attacks:
        rows.append([attack, *(_robust(result, attack) for result in results.values())])
    if any("optimum" in result for result in results.values()):
        optima = [
            _scored(result.get("optimum"), result["num_examples"]) for result in results.values()
        ]
        rows.append(["exact optimum", *optima])
    return _markdown(["attack", *(f"{name} %" for name in results)], rows)


def suite_table(evaluation: Mapping[str, Any]) -> str:
    """The attacks of an evaluation: what each leaves, on how many examples, at which cost."""
    rows = []
    for name, attack in evaluation["attacks"].items():
        counts = ("num_examples", "num_runs", "num_steps", "num_gradients", "num_answers")
        cells = [str(attack[count]) for count in counts]
        rows.append([name, _robust(evaluation, name), *cells, f"{attack['seconds']:.1f}"])
    cost = evaluation["cost"]["mixture"]
    worst = [str(evaluation["num_examples"]), str(evaluation["num_attack_runs"]), ""]
    worst += [f"{cost['gradients']:.0f}", f"{cost['answers']:.0f}"]
    seconds = cost["seconds"] * evaluation["num_examples"]
    rows.append(["worst", _robust(evaluation, "worst"), *worst, f"{seconds:.1f}"])
    head = ["attack", "left %", "examples", "runs", "steps", "gradients", "answers", "seconds"]
    return _markdown(head, rows)


def reported_table(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """What a paper would report by each of four attackers, on the same examples, as Markdown.

    The third is the "Rob. Acc." of Meunier et al. 2021: the worst of AutoPGD on the expected
    cross-entropy and on the expected DLR, there with 5 restarts of 100 steps.
    """
    attackers = {
        "pgd_expected_loss": "PGD-20 on the expected loss %",
        "apgd_expected_loss": "AutoPGD on the expected loss %",
        "rob_acc": "Rob. Acc.: AutoPGD-CE and -DLR %",
        "worst": "the whole suite %",
    }
    rows = []
    for name, evaluation in evaluations.items():
        reported = evaluation["reported_by"]
        number = reported["num_examples"]
        cells = [_scored(reported.get(attacker), number) for attacker in attackers]
        paper = reported.get("rob_acc")
        budget = f"{paper['num_restarts']} x {paper['num_steps']}" if paper else ""
        rows.append([name, str(evaluation["num_members"]), *cells, budget, str(number)])
    head = ["", "L", *attackers.values(), "restarts x steps of Rob. Acc.", "examples"]
    return _markdown(head, rows)


def findings_table(findings: Iterable[Mapping[str, Any]]) -> str:
    """The diagnostics of an evaluation, as Markdown."""
    rows = [
        [
            finding["name"].replace("_", " "),
            "**above the limit**" if finding["is_suspicious"] else "as it should be",
            f"{finding['value']:.3f}",
            f"{finding['limit']:.3f}",
            finding["text"],
        ]
        for finding in findings
    ]
    return _markdown(["check", "", "value", "limit", "what it is"], rows)


def members_table(result: Mapping[str, Any]) -> str:
    """The members of one result, each alone, and their averaged ensemble, as Markdown."""
    rows = [
        [f"member {k}", f"{weight:.3f}", *_alone(member)]
        for k, (weight, member) in enumerate(
            zip(result["weights"], result["members"], strict=True), 1
        )
    ]
    rows.append(["averaged", "", *_alone(result["averaged"])])
    rows.append(["mixture", "1.000", _clean(result), _robust(result, "worst")])
    return _markdown(["classifier", "weight", "clean %", "robust %"], rows)


def _row(result):
    # Each member met a suite of its own; results of older suites hold no interval, but their cost.
    met_alone = "lower_bound" in result.get("interval", {}) or "cost" in result
    lower = _percent(result["sandwich"]["lower"]) if met_alone else ""
    alone = ", ".join(_percent(member["robust_accuracy"]) for member in result["members"])
    device = result["provenance"]["device"]
    return [
        result["dataset"],
        str(result["num_members"]),
        ", ".join(f"{weight:.2f}" for weight in result["weights"]),
        _clean(result),
        _robust(result, "worst"),
        lower,
        alone,
        _percent(result["averaged"]["robust_accuracy"]),
        str(result["num_examples"]),
        str(result.get("num_attack_runs", "")),
        _minutes(result["provenance"]),
        f"{device['number']} x {device['kind']}",
    ]


def _minutes(provenance):
    """How long the run took; what came before it was resumed is not counted, and said to be."""
    minutes = f"{provenance['seconds'] / 60:.1f}"
    return f"{minutes} (resumed)" if "--resume" in provenance["command"] else minutes


def _clean(result):
    return _with_interval(result["clean_accuracy"], interval_of(result, "clean"))


def _robust(result, attack):
    if attack not in result["robust_accuracy"]:
        return ""
    return _with_interval(result["robust_accuracy"][attack], interval_of(result, attack))


def _scored(score, num_examples):
    if score is None:
        return ""
    wilson = wilson_interval(score["accuracy"], num_examples)
    return _with_interval(score["accuracy"], score.get("interval", wilson))


def interval_of(result: Mapping[str, Any], name: str) -> Sequence[float]:
    """The interval of the accuracy `name`, `clean` or an attack's: `(low, high)`."""
    if name in result.get("interval", {}):
        return result["interval"][name]
    accuracies = {"clean": result["clean_accuracy"], **result["robust_accuracy"]}
    met = result.get("attacks", {}).get(name, {}).get("num_examples", result["num_examples"])
    return wilson_interval(accuracies[name], met)


def score_of(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `accuracy` called `name`, `clean` or an attack's, with its `interval`."""
    accuracies = {"clean": result["clean_accuracy"], **result["robust_accuracy"]}
    return {"accuracy": accuracies[name], "interval": interval_of(result, name)}


def _with_interval(accuracy, interval):
    low, high = interval
    return f"{_percent(accuracy)} ({_percent(low)} to {_percent(high)})"


def _alone(accuracies):
    return [_percent(accuracies["clean_accuracy"]), _percent(accuracies["robust_accuracy"])]


def _percent(value):
    return f"{100 * value:.1f}"


def _markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)
