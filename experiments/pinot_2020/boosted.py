"""Boosted adversarial training: members one after another, and what is left of what they gain.

    python -m experiments.pinot_2020.boosted                    # digits, 2 CPU cores, 9 minutes
    python -m experiments.pinot_2020.boosted --preset mnist     # hours on a CPU
    python -m experiments.pinot_2020.boosted --preset fast      # CIFAR-10, ResNet18, a GPU
    python -m experiments.pinot_2020.boosted --preset paper     # WideResNet-28-10, days on a GPU

The first member is trained adversarially; each that follows learns naturally from the data set
attacked against the mixture so far, and takes `alpha` of the weight from the others. Table 1 holds
the accuracies of a natural network, the first member and the mixture: natural, under PGD on the
expected loss as the paper, under Carlini and Wagner's attack rejected beyond three l2 norms, and
under the whole attack suite, which knows the members. Table 2 has the grid over alpha and the
number of members, table 3 the choice of the first member by robust or by natural accuracy. The
paper's numbers, of CIFAR-10, stand beside.

A stopped run goes on with `--resume`, in the middle of any member.

Pinot et al., Randomization matters, 2020, algorithm 1, section 7 and supplement 2.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pinot_2020 import boosted_plots as plots
from experiments.pinot_2020 import boosted_setting as setting
from experiments.pinot_2020.boosted_attacks import pgd_scores, rejected_scores, score
from experiments.run import program
from experiments.run.command_line import flag
from mixjax import checks, data, evaluation, reporting
from mixjax.front.progress import Bars
from mixjax.front.sequence import Sequence, train_in_sequence

PROGRAM = "experiments.pinot_2020.boosted"
BUDGETS = {"quick": evaluation.QUICK, "standard": evaluation.STANDARD}

# Accuracies of tables 1 to 3, on CIFAR-10; C&W at the three norms.
PAPER = {
    "natural": {"natural": 0.88, "pgd": 0.00, "cw": [0.00, 0.00, 0.00]},
    "adversarial": {"natural": 0.83, "pgd": 0.42, "cw": [0.67, 0.60, 0.51]},
    "boosted": {"natural": 0.80, "pgd": 0.58, "cw": [0.70, 0.65, 0.59], "members": 10},
}
PAPER_GRID = {"alpha": 0.06, "pgd": [0.46, 0.56, 0.60, 0.60, 0.60, 0.59, 0.59, 0.59, 0.59, 0.58]}
PAPER_FIRST = {"robust_accuracy": 0.58, "clean_accuracy": 0.55}
LATER = "ARC took a BAT of ResNet18s on CIFAR-10 from 61.6 to 47.4 (Dbouk and Shanbhag, 2022)"


@dataclasses.dataclass(frozen=True)
class Config(setting.Setting):
    """Every field is a flag."""

    members: int = flag(4, "number of members n")
    alpha: float = flag(0.06, "weight of each new member, in (0, 1)")
    grid: str = flag("0.02 0.1", "further alphas of the grid; '-': none")
    both_first: bool = flag(True, "train the mixture of either choice of the first member")
    pgd_steps: int = flag(100, "steps of PGD on the expected loss")
    cw_steps: int = flag(100, "steps of Carlini and Wagner's attack under one constant")
    cw_searches: int = flag(9, "constants that it tries")
    budget: str = flag("quick", "of the attack suite", options=tuple(BUDGETS))
    suite_members: str = flag("ends", "numbers of members under the suite", options=("ends", "all"))


PRESETS = {
    "demo": Config(test_examples=150),
    "mnist": Config(
        dataset="mnist",
        width=16,
        epsilon=0.3,
        epochs=10,
        batch_size=128,
        learning_rate=5e-3,
        attack_steps=20,
        validation_examples=500,
        test_examples=1000,
        members=5,
        suite_members="all",
    ),
    "fast": Config(
        dataset="cifar10",
        model="resnet18",
        width=64,
        dtype="bfloat16",
        epsilon=8 / 255,
        ramp=0.0,
        attack_steps=10,
        epochs=30,
        batch_size=256,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=5e-4,
        average_decay=0.0,
        validations=30,
        validation_examples=1000,
        test_examples=1000,
        attack_batch_size=500,
        members=5,
        suite_members="all",
    ),
    "paper": Config(
        dataset="cifar10",
        model="wide_resnet_28_10",
        width=160,
        dropout=0.3,
        negative_slope=0.1,
        epsilon=0.031,
        ramp=0.0,
        attack_steps=20,
        epochs=200,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="steps",
        weight_decay=2e-4,
        average_decay=0.0,
        validations=200,
        validation_examples=1000,
        test_examples=10_000,
        attack_batch_size=500,
        members=10,
        grid="0.01 0.02 0.03 0.04 0.05 0.07 0.08 0.09 0.1",
        budget="standard",
        suite_members="all",
    ),
}


def main(argv=None):
    """Runs the experiment; bad input ends in one line and exit code 2."""
    hint = "; --preset demo needs no data"
    program.main(PROGRAM, __doc__ or "", PRESETS, run, argv, hint=hint)


def run(call: program.Call):
    """Trains, attacks and reports."""
    config = call.config
    check(config)
    if call.choice in ("fast", "paper"):
        program.need_accelerator(call)
    dataset = setting.load(config)
    title = f"Boosted adversarial training, {dataset.name}"
    program.complete(call, lambda: experiment(config, dataset, call.folder), title=title)


def check(config: Config):
    """Raises `ValueError` for what would otherwise go wrong only after the run has begun."""
    setting.check(config)
    names = "members pgd_steps cw_steps cw_searches"
    checks.at_least(1, **{name: getattr(config, name) for name in names.split()})
    for alpha in alphas(config):
        if not 0 < alpha < 1:
            name = "alpha" if alpha == config.alpha else "grid"
            raise ValueError(f"{name} must lie in (0, 1), got {alpha}")


def alphas(config: Config) -> list[float]:
    """Those of the grid, in order, the mixture's own among them."""
    others = [] if config.grid == "-" else program.numbers(0.0, 1.0, grid=config.grid)
    return sorted({config.alpha, *others})


def experiment(config: Config, dataset: data.Dataset, folder: pathlib.Path) -> program.Outcome:
    """Trains all mixtures and attacks them."""
    sequences = train_all(config, dataset, folder)
    main = sequences[config.alpha]
    judge = Judge(config, dataset)
    grid = {
        alpha: [judge.by_pgd(sequences[alpha], n) for n in range(1, config.members + 1)]
        for alpha in alphas(config)
    }
    count = len(main.members)
    numbers = sorted({1, count} if config.suite_members == "ends" else range(1, count + 1))
    suites = {n: judge.by_suite(main, n, folder / f"suite_{n}", alone=n == count) for n in numbers}
    rows = {
        "natural": (sequences["natural"], 1, {}),
        "adversarial": (main, 1, {"suite": figures(suites[1])}),
        "boosted": (main, count, {"suite": figures(suites[count])}),
    }
    table_1 = {
        name: {
            **(judge.by_pgd(sequence, n) or {}),
            "cw": judge.by_carlini_wagner(sequence, n),
            **more,
        }
        for name, (sequence, n, more) in rows.items()
    }
    first = {
        choice: {
            "first": judge.by_pgd(sequences[name], 1),
            "mixture": judge.by_pgd(sequences[name], config.members),
        }
        for choice, name in (("robust_accuracy", config.alpha), ("clean_accuracy", "clean"))
        if name in sequences
    }
    report = suites[count].report(with_costs=False)
    result = {
        "dataset": dataset.name,
        **report,
        "num_members": count,
        "weights": main.weights[-1],
        "stopped": main.stopped,
        "mixtures": [
            {"alpha": alpha, "num_members": len(weights), "weights": weights, **(scores or {})}
            for alpha, row in grid.items()
            for weights, scores in zip(sequences[alpha].weights, row, strict=False)
        ],
        "table_1": table_1,
        "table_2": {
            "alphas": [*grid],
            "num_members": [*range(1, config.members + 1)],
            "pgd": [
                [None if each is None else each["pgd"]["accuracy"] for each in row]
                for row in grid.values()
            ],
        },
        "table_3": first,
        "suite": {str(n): figures(found) for n, found in suites.items()},
        "paper": {"table_1": PAPER, "table_2": PAPER_GRID, "table_3": PAPER_FIRST, "later": LATER},
    }
    draw(config, folder, grid, suites)
    sections = page(config, result)
    drawn = {
        "members.png": "Accuracy against the number of members",
        "grid.png": "Accuracy under PGD on the expected loss over alpha and the number of members",
    }
    first = head(config, dataset, result)
    return program.Outcome(result, "\n".join(sections), first, sections, drawn)


def head(config: Config, dataset: data.Dataset, result: dict[str, Any]) -> reporting.Head:
    """What the page begins with: whether the mixture beats its first member, by two attackers."""
    alone, mixed = result["table_1"]["adversarial"], result["table_1"]["boosted"]
    count = result["num_members"]
    names = f"the boosted mixture of {count}", "its first member alone"

    def sentence(first, second, attack):
        what = f"of the examples withstand {attack}"
        return reporting.compared(names[0], first, names[1], second, what=what).removesuffix(".")

    by_pgd = sentence(mixed["pgd"], alone["pgd"], "PGD on the expected loss")
    by_suite = sentence(mixed["suite"]["worst"], alone["suite"]["worst"], "the attack suite")
    return reporting.Head(
        norm=reporting.NORMS[setting.ball(config).name],
        radius=f"{config.epsilon:.4g}, of pixels in [0, 1]",
        model=f"mixture of {count}, {config.model} of width {config.width}, alpha {config.alpha:g}",
        attack=f"PGD-{config.pgd_steps}, C&W, the attack suite, budget {config.budget}",
        examples=f"{result['num_examples']} test examples of {dataset.name}",
        found=f"{by_pgd}; under the whole suite {by_suite[0].lower()}{by_suite[1:]}.",
    )


def train_all(config: Config, dataset: data.Dataset, folder: pathlib.Path) -> dict[Any, Sequence]:
    """The natural network, the mixture of each alpha, and that of the other first member.

    The second member does not depend on alpha: it answers the first one alone.
    """
    recorded = program.recorded_of(config)
    common = {
        "train": dataset.train,
        "validation": dataset.validation,
        "threat": setting.ball(config),
        "plan": setting.plan(config, dataset),
    }
    key, first = setting.root(config), setting.adversarial(config, dataset)

    def train(name, alpha, first, **settings):
        return train_in_sequence(
            key,
            first,
            setting.boosted(config, dataset, alpha),
            folder=folder / name,
            config={**recorded, "alpha": alpha, "name": name},
            **common,
            **settings,
        )

    natural = setting.natural(config, dataset)
    sequences: dict[Any, Sequence] = {
        "natural": train("natural", config.alpha, natural, num_members=1, select="clean_accuracy")
    }
    main = train("boosted", config.alpha, first, num_members=config.members)
    sequences[config.alpha] = main
    for alpha in alphas(config):
        if alpha != config.alpha:
            shared = main.members[:2]
            weights = (np.ones(1), np.array([1 - alpha, alpha]))[: len(shared)]
            begin = Sequence(shared, weights)
            name = f"alpha_{alpha:g}"
            sequences[alpha] = train(name, alpha, first, num_members=config.members, begin=begin)
    if config.both_first:
        sequences["clean"] = train(
            "clean_first", config.alpha, first, num_members=config.members, select="clean_accuracy"
        )
    return sequences


class Judge:
    """The attacks on test data.

    For PGD a mixture of fewer members than n is one of n with weights of 0, of which no attack
    knows: one program serves all cells of the grid.
    """

    def __init__(self, config: Config, dataset: data.Dataset):
        """Takes the first test examples."""
        self.config, self.dataset = config, dataset
        self.key = jax.random.fold_in(setting.root(config), 3)
        self.batch_size = min(config.attack_batch_size, len(dataset.test.labels))
        self._found: dict[Any, Any] = {}

    def by_pgd(self, sequence: Sequence, n: int) -> dict[str, Any] | None:
        """Scores `natural` and `pgd` of the first n members; None if there are fewer."""
        if n > len(sequence.members):
            return None
        place = (id(sequence), n)
        if place not in self._found:
            self._found[place] = pgd_scores(
                self.key,
                *self._padded(sequence, n),
                *self.dataset.test,
                setting.ball(self.config),
                num_steps=self.config.pgd_steps,
                batch_size=self.batch_size,
            )
        return self._found[place]

    def by_carlini_wagner(self, sequence: Sequence, n: int) -> list[dict[str, Any]]:
        """Scores at the three norms, beyond which the natural example is kept."""
        return rejected_scores(
            sequence.logits_fn(n),
            sequence.weights[n - 1],
            *self.dataset.test,
            num_steps=self.config.cw_steps,
            num_searches=self.config.cw_searches,
            batch_size=self.batch_size,
        )

    def by_suite(
        self, sequence: Sequence, n: int, folder: pathlib.Path, *, alone: bool
    ) -> evaluation.Evaluation:
        """The whole suite on the first n members."""
        images, labels = self.dataset.test
        with Bars(name=f"suite on {n}") as bars:
            return evaluation.evaluate(
                self.key,
                sequence.logits_fn(n),
                sequence.weights[n - 1],
                images,
                labels,
                evaluation.attack_suite(setting.ball(self.config), suite_budget(self.config)),
                alone=alone,
                num_complete=0,
                batch_size=self.batch_size,
                folder=folder,
                progress=bars.show,
            )

    def _padded(self, sequence, n):
        missing = self.config.members - len(sequence.members)
        members = sequence.members + sequence.members[:1] * missing
        weights = np.zeros(len(members), np.float32)
        weights[:n] = sequence.weights[n - 1]
        return Sequence(members, ()).logits_fn(), jnp.asarray(weights)


def suite_budget(config: Config) -> evaluation.Budget:
    """That of the flag, with a run of AutoPGD for each member at least, the same for every n."""
    budget = BUDGETS[config.budget]
    return budget._replace(num_member_runs=max(budget.num_member_runs, config.members))


def figures(found: evaluation.Evaluation) -> dict[str, Any]:
    """What the suite leaves, and of a mixture the sandwich, best member and average."""
    kept: dict[str, Any] = {"worst": score(found.worst)}
    if found.alone and len(found.weights) > 1:
        report = found.report(with_costs=False)
        kept |= {"sandwich": report["sandwich"], "averaged": report["averaged"]}
        kept["best_member"] = max(report["members"], key=lambda each: each["robust_accuracy"])
    return kept


def draw(config: Config, folder: pathlib.Path, grid: dict, suites: dict):
    """Accuracy against the number of members, and the grid."""

    def under_pgd(scores):
        return None if scores is None else scores["pgd"]["accuracy"]

    row = [each for each in grid[config.alpha] if each is not None]
    lines = {
        "natural": [(n, each["natural"]) for n, each in enumerate(row, 1)],
        "PGD on the expected loss": [(n, each["pgd"]) for n, each in enumerate(row, 1)],
        "attack suite": [(n, score(found.worst)) for n, found in suites.items()],
        "PGD, the paper (CIFAR-10)": [
            (n, {"accuracy": value}) for n, value in enumerate(PAPER_GRID["pgd"][: len(row)], 1)
        ],
    }
    threat = setting.ball(config)
    within = f"{reporting.NORMS[threat.name]} radius {config.epsilon:.4g}"
    plots.plot_lines(folder / "members.png", lines, xlabel="members n", title=within)
    plots.plot_grid(
        folder / "grid.png",
        {
            f"n = {n}": [under_pgd(grid[alpha][n - 1]) for alpha in grid]
            for n in range(1, config.members + 1)
        },
        [f"{alpha:g}" for alpha in grid],
        xlabel="alpha",
        ylabel="members",
        title=f"PGD-{config.pgd_steps}, {within}",
    )


def page(config: Config, result: dict[str, Any]) -> list[str]:
    """The tables, the paper's numbers in brackets: those of CIFAR-10."""
    names = {
        "natural": "natural",
        "adversarial": "adversarial training",
        "boosted": f"BAT, n = {result['num_members']}, alpha = {config.alpha:g}",
    }
    norms = [
        f"C&W {each['norm']:.3f} ({each['norm_of_paper']})"
        for each in result["table_1"]["boosted"]["cw"]
    ]
    head = ["", "natural", f"PGD-{config.pgd_steps}", *norms, "attack suite"]
    lines = [head, ["---"] * len(head)]
    for name, row in result["table_1"].items():
        paper = PAPER[name]
        cells = [cell(row["natural"], paper["natural"]), cell(row["pgd"], paper["pgd"])]
        cells += [cell(*pair) for pair in zip(row["cw"], paper["cw"], strict=True)]
        cells.append(cell(row["suite"]["worst"]) if "suite" in row else "not run")
        lines.append([names[name], *cells])
    table_2 = [["alpha", *map(str, result["table_2"]["num_members"])]]
    table_2.append(["---"] * len(table_2[0]))
    for alpha, row in zip(result["table_2"]["alphas"], result["table_2"]["pgd"], strict=True):
        table_2.append([f"{alpha:g}", *("–" if v is None else f"{100 * v:.1f}" for v in row)])
    of_paper = [f"{100 * value:.0f}" for value in PAPER_GRID["pgd"][: len(table_2[0]) - 1]]
    table_2.append(["paper, .06", *of_paper, *[""] * (len(table_2[0]) - 1 - len(of_paper))])
    table_3 = [["first member by", "natural of it", "PGD of it", "natural of n", "PGD of n"]]
    table_3.append(["---"] * 5)
    for choice, row in result["table_3"].items():
        found = [row["first"], row["mixture"]]
        if None in found:
            continue
        cells = [cell(each[kind]) for each in found for kind in ("natural", "pgd")]
        cells[-1] += f" [{100 * PAPER_FIRST[choice]:.0f}]"
        table_3.append([choice.replace("_", " "), *cells])
    suites = ", ".join(f"n = {n}: {cell(each['worst'])}" for n, each in result["suite"].items())
    sandwich = result.get("sandwich")
    bound = f" Lower bound of the mixture: {100 * sandwich['lower']:.1f}." if sandwich else ""
    stopped = f"\n\nThe training ended before: {result['stopped']}" if result["stopped"] else ""
    return [
        "## Table 1\n\nAccuracy in percent, in square brackets the paper's on CIFAR-10.\n\n"
        + markdown(lines)
        + stopped,
        f"## Table 2\n\nUnder PGD-{config.pgd_steps}, by the number of members.\n\n"
        + markdown(table_2),
        "## Table 3\n\n" + markdown(table_3),
        f"## What the suite leaves\n\n{suites}.{bound} {LATER}.\n",
    ]


def cell(score: dict[str, Any], paper: float | None = None) -> str:
    """`57.5 +- 2.1 [58]`, in percent."""
    text = f"{100 * score['accuracy']:.1f} ± {100 * score['error_bar']:.1f}"
    return text if paper is None else f"{text} [{100 * paper:.0f}]"


def markdown(lines: list[list[str]]) -> str:
    """A table, its second line the rule."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


if __name__ == "__main__":
    main()
