"""From a command line to `result.json` and `report.md`, for the experiments of Hamm 2018."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.hamm_2018 import compute, scores
from experiments.hamm_2018.printed import PAPER
from experiments.hamm_2018.settings import (
    CIFAR10,
    DIGITS,
    AttackConfig,
    Setting,
    attacker_of,
    ball,
    build,
    check,
    load,
    recorded,
    under_network,
)
from experiments.hamm_2018.variants import fgsm, said
from experiments.run import program
from experiments.run.program import Outcome
from mixjax import losses, reporting
from mixjax.typing import PyTree

ATTACKS = {
    "clean": "no attack",
    "fgsm_curr": "FGSM-curr",
    "attack_network_curr": "AttNet-curr",
    "ifgsm_curr": "IFGSM-curr",
    "auto_pgd": "AutoPGD (not in the paper)",
    "worst": "worst of all",
}
_MEANING = """\
Error rates on test examples, in brackets Wilson's 95 % interval over them; in square brackets what
the paper reports, *T4* in its table 4. **FGSM-curr** is FGSM on this very classifier,
**AttNet-curr** an attack network trained afresh against it, **AutoPGD** the worst of two losses,
which the paper does not run. Radii eta are for pixels in [-1, 1].
"""


def presets(
    make: Callable[..., AttackConfig], *, demo: dict | None = None, cifar10: dict | None = None
) -> dict[str, Any]:
    """The presets of an experiment: the paper's two, Fashion-MNIST, and quick digits."""
    return {
        "demo": make(**DIGITS | (demo or {})),
        "mnist": make(),
        "fashion_mnist": make(dataset="fashion_mnist"),
        "cifar10": make(**CIFAR10 | (cifar10 or {})),
    }


def main(
    name: str,
    description: str,
    presets: dict[str, Any],
    experiment: Callable[[Setting], Outcome],
    argv,
    check_own: Callable[[Any], None] = lambda config: None,
):
    """Runs an experiment and writes its result and report; bad input is one line, exit code 2.

    Args:
      name: name of the module.
      description: what `--help` shows.
      presets: name to config, "demo" among them.
      experiment: the experiment.
      argv: arguments; None for those of the process.
      check_own: raises `ValueError` for fields of its own that are out of range.
    """

    def run(call):
        config = call.config
        program.need_accelerator(call)
        check(config)
        check_own(config)
        dataset = load(config)
        model, network = build(config, dataset)
        attacker = attacker_of(config)
        setting = Setting(config, dataset, model, network, call.folder, call.command, attacker)
        title = f"{call.name.replace('_', ' ')}: {call.choice or config.dataset}"
        program.complete(call, lambda: experiment(setting), recorded=recorded(config), title=title)

    hint = "; --preset demo needs no data"
    program.main(name, description, presets, run, argv, folder="runs/{name}-{choice}", hint=hint)


def tables(setting: Setting, rows: dict[tuple[str, float], dict[str, Any]]) -> list[str]:
    """A table for each radius: `(classifier, eta) -> result`, beside the paper's numbers."""
    number = next(iter(rows.values()))["num_examples"]
    sections = [_MEANING, f"{said(recorded(setting.config))}\n"]
    sections.append(f"{number} test examples of {setting.config.dataset}.\n")
    for eta in dict.fromkeys(eta for _, eta in rows):
        here = {name: result for (name, each), result in rows.items() if each == eta}
        paper = PAPER.get(setting.config.dataset, {}).get(eta, {})
        sections.append(f"## eta = {eta:g}\n\n{reporting.error_table(here, ATTACKS, paper)}")
    return sections


def errors_of(rows: dict[tuple[str, float], dict[str, Any]]) -> dict[str, Any]:
    """The same for `result.json`: `eta -> classifier -> attack -> error, error bar, interval`."""
    found: dict[str, Any] = {}
    for (name, eta), result in rows.items():
        accuracies = {"clean": result["clean_accuracy"], **result["robust_accuracy"]}
        found.setdefault(f"{eta:g}", {})[name] = {
            attack: scores.error_entry(
                accuracy, result["error_bar"][attack], result["num_examples"]
            )
            for attack, accuracy in accuracies.items()
        }
    return {"errors": found, "num_examples": next(iter(rows.values()))["num_examples"]}


def outcome(
    setting: Setting,
    rows: dict[tuple[str, float], dict[str, Any]],
    figures: dict[str, str],
    *,
    costs: dict[str, Any] | None = None,
    **more,
) -> Outcome:
    """The outcome of an experiment whose result is a table of classifiers, "No defense" with them.

    Args:
      setting: what was trained on what.
      rows: `(classifier, eta) -> result`.
      figures: `file -> caption`.
      costs: as of `compute.costs`, for the table of what training cost.
      **more: further entries of `result.json`.
    """
    gates = [scores.gate(result) for (name, _), result in rows.items() if name == "No defense"]
    sentences = [sentence for _, sentence in gates]
    result = errors_of(rows) | {
        "attack_network_is_strong": all(is_strong for is_strong, _ in gates)
    }
    sections = [*tables(setting, rows), *(f"{sentence}\n" for sentence in sentences)]
    if costs:
        result["training_cost"] = costs
        sections.append(f"## What training cost\n\n{compute.table(costs)}")
    return Outcome({**result, **more}, "\n".join(sections[1:]), sections, figures)


def draw_attacks(
    setting: Setting, variables: PyTree, network: PyTree, eta: float, number: int = 8
) -> dict[str, str]:
    """Figure 4: examples clean, under FGSM and under the attack network; `{file: caption}`."""
    images, labels = (np.asarray(part[:number]) for part in setting.dataset.test)
    apply = setting.model.apply

    def one(variables, network, x, label):
        def loss_fn(x):
            return losses.cross_entropy(apply(variables, x), label)

        threat = ball(eta)
        points = {
            "clean": x,
            "FGSM": fgsm(setting.config)(None, loss_fn, x, threat)[0],
            "attack network": under_network(setting, network, loss_fn, x, label, threat),
        }
        return points, {name: apply(variables, point).argmax() for name, point in points.items()}

    points, answers = jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))(
        variables, network, images, labels
    )
    points = {name: points[name] for name in ("clean", "FGSM", "attack network")}
    names = setting.dataset.class_names
    reporting.plot_gallery(setting.folder / "attacks.png", points, labels, answers, names)
    caption = (
        f"Test examples under attacks of eta = {eta:g}, and what the classifier makes of them."
    )
    return {"attacks.png": caption}
