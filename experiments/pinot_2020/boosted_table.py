"""One table of all that trains members of a mixture: at one training cost, under one suite.

    python -m experiments.pinot_2020.boosted_table                      # digits, about an hour
    python -m experiments.pinot_2020.boosted_table --preset mnist       # MNIST, about 12 hours
    python -m experiments.pinot_2020.boosted_table --preset cifar10     # width 16, days on a CPU

Algorithm 2 of Meunier et al. (one member a step, PGD-10), boosted adversarial training, BARRE,
MRBoost drawn from at random, double oracle with trained networks, independent members, and one
network, each trained with as many passes through single networks as independent members cost, or a
little fewer, for epochs are whole. Algorithm 2 pays most for an update of a member, as its attacker
faces all of them. On digits 60 epochs of each independent member are enough for it to answer the
natural examples (with 12, tried first, it answered 70 %), but not to converge under attack: with
`--epochs 180 --rows algorithm_2`, three times the cost, it goes on, and with 360 and 720
still; 1440 change little.
What is asked, and what is expected, written down before any row was run:

1. Does the accuracy of boosted adversarial training rise with n, as in the paper? Expected: under
   PGD on the expected loss it does, and under the suite, which knows the members, it does not: the
   later members are natural networks, which an attack on the first member's level also fools.
2. Does mixing pay under the suite at equal cost? Expected: no. One network is level with the best
   mixture or better; of the mixtures those whose members are each robust (BARRE, algorithm 2,
   independent members) lead those whose later members are natural (BAT, double oracle), whose
   worth is at most a little above the first member's share.
3. When has algorithm 2 converged? Where twice the epochs change what the suite leaves by less than
   two points, mean of five seeds, or where the 95 % interval of that difference, seed by seed,
   includes 0. Expected, once 180 and 360 epochs were known: that 720 change 360 by less. They
   changed it by more; 1440 changed 720 by less.

A row that is done is kept, and a stopped run goes on with `--resume` in the middle of any other.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pinot_2020 import boosted_setting as setting
from experiments.pinot_2020.boosted import BUDGETS, cell, markdown
from experiments.pinot_2020.boosted_attacks import pgd
from experiments.run import program
from experiments.run.command_line import flag
from mixjax import checks, data, defenses, ensemble, evaluation, files, reporting
from mixjax.batch import to_float
from mixjax.front import loop
from mixjax.front.progress import Bars
from mixjax.front.sequence import Sequence, train_by_double_oracle, train_in_sequence

PROGRAM = "experiments.pinot_2020.boosted_table"
_ORACLE_STEPS, _MODEL_STEPS = 5, 20
_OTHER_ALPHAS = (0.02, 0.1)  # of the grid of boosted adversarial training
# Passes per member of the two attacks that the double oracle's attacker runs: PGD and ARC, each of
# 20 steps; ARC asks for two gradients of each member a step.
_RESPONSE = 21 + 60
_ANSWERS, _KEPT_OUT = ("pgd_expected_loss", "arc"), ("lattice_climber", "square")


@dataclasses.dataclass(frozen=True)
class Config(setting.Setting):
    """Every field is a flag."""

    members: int = flag(3, "number of members of each mixture")
    alpha: float = flag(0.06, "weight of each new member of boosted adversarial training")
    rows: str = flag("", "names of the rows, such as 'bat barre'; empty: all")
    budget: str = flag("quick", "of the attack suite", options=tuple(BUDGETS))


PRESETS = {
    "digits": Config(epochs=60),
    "mnist": Config(
        dataset="mnist",
        width=16,
        epsilon=0.3,
        epochs=8,
        batch_size=128,
        learning_rate=5e-3,
        validation_examples=300,
        test_examples=500,
    ),
    "cifar10": Config(
        dataset="cifar10",
        model="resnet18",
        width=16,
        epsilon=8 / 255,
        ramp=0.0,
        epochs=4,
        batch_size=128,
        learning_rate=3e-3,
        average_decay=0.995,
        validation_examples=300,
        test_examples=300,
    ),
}


class Trained(NamedTuple):
    """A mixture, what its training cost, and what else is to be told of it."""

    sequence: Sequence
    passes: float
    epochs: int
    more: dict[str, Any]


class Place(NamedTuple):
    """What all rows are trained with."""

    config: Config
    dataset: data.Dataset
    folder: pathlib.Path
    epochs: int


def main(argv=None):
    """Runs the experiment; bad input ends in one line and exit code 2."""
    program.main(PROGRAM, __doc__ or "", PRESETS, run, argv, folder="runs/{name}_{choice}")


def run(call: program.Call):
    """Trains and attacks row by row."""
    config = call.config
    check(config)
    dataset = setting.load(config)
    title = f"Members one after another and together, {dataset.name}"
    program.complete(call, lambda: experiment(config, dataset, call.folder), title=title)


def check(config: Config):
    """Raises `ValueError` for what would otherwise go wrong only after the run has begun."""
    setting.check(config)
    checks.at_least(2, members=config.members)
    if not 0 < config.alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {config.alpha}")
    for name in config.rows.split():
        checks.one_of(tuple(ROWS), rows=name)


def experiment(config: Config, dataset: data.Dataset, folder: pathlib.Path) -> program.Outcome:
    """All rows asked for, each of them once."""
    rows: dict[str, Any] = {}
    for name, (cost, train) in ROWS.items():
        path = folder / name / "row.json"
        if config.rows and name not in config.rows.split():
            rows[name] = None
            continue
        if not path.exists():
            start = time.monotonic()
            epochs = affordable(cost, config)
            trained = train(Place(config, dataset, folder / name, epochs))
            row = judged(name, trained, config, dataset, folder / name)
            files.write_json(path, {**row, "seconds": time.monotonic() - start}, "row")
        rows[name] = files.read_json(path)
    result = {"dataset": dataset.name, "num_members": config.members, "rows": rows}
    table = page(rows)
    sections = [f"## The table\n\n{table}"]
    return program.Outcome(result, table, head(config, dataset, rows), sections)


def head(config: Config, dataset: data.Dataset, rows: dict[str, Any]) -> reporting.Head:
    """What the page begins with: whether the best mixture beats one network."""
    scores = {
        name.replace("_", " "): reporting.score_of(row, "worst")
        for name, row in rows.items()
        if row
    }
    one = scores.pop("one network", None)
    best = max(scores, key=lambda name: scores[name]["accuracy"], default="")
    if one and best:
        first = f"the best mixture, {best},"
        found = reporting.compared(first, scores[best], "one network at equal cost", one)
    else:
        told = [f"{name} {reporting.percent(score)}" for name, score in scores.items()]
        found = f"Nothing to compare yet: {', '.join(told) or 'no mixture has been trained'}."
    return reporting.Head(
        norm=reporting.NORMS[setting.ball(config).name],
        radius=f"{config.epsilon:.4g}, of pixels in [0, 1]",
        model=f"mixtures of {config.members} and one network, {config.model} of width "
        f"{config.width}, at equal training cost",
        attack=f"the attack suite, budget {config.budget}",
        examples=f"{len(dataset.test.labels)} test examples of {dataset.name}",
        found=found,
    )


def affordable(cost: Callable[[Config, int], float], config: Config) -> int:
    """The most epochs with which a row costs no more than independent members."""
    limit = independent_cost(config, config.epochs)
    most = next(n for n in range(1, 10_000) if cost(config, n + 1) > limit * (1 + 1e-9))
    return most


def independent_cost(config: Config, epochs: int) -> float:
    """Passes per training image: of an attack step, an answer to judge it, and the update."""
    return config.members * epochs * (config.attack_steps + 2)


def single_cost(config: Config, epochs: int) -> float:
    """Of one network."""
    return epochs * (config.attack_steps + 2)


def boosted_cost(config: Config, epochs: int) -> float:
    """The first member, one attack for each of the others, and their natural training."""
    later = range(1, config.members)
    return single_cost(config, epochs) + sum(k * (config.attack_steps + 1) + epochs for k in later)


def together_cost(config: Config, epochs: int) -> float:
    """Each new member attacked together with those before it."""
    numbers = range(1, config.members + 1)
    return sum(epochs * (k * (config.attack_steps + 1) + 1) for k in numbers)


def oracle_cost(config: Config, epochs: int) -> float:
    """As boosted, with the attacker's answers in place of one attack."""
    later = range(1, config.members)
    return single_cost(config, epochs) + sum(k * _RESPONSE + epochs for k in later)


def algorithm_2_cost(config: Config, epochs: int) -> float:
    """Epochs of the whole game: model steps and, one in `period`, a weight step."""
    attack = config.members * (config.attack_steps + 1)
    period = _MODEL_STEPS * config.members + 1
    weight_step = _ORACLE_STEPS * (attack + config.members)
    return epochs * ((period - 1) * (attack + 1) + weight_step) / period


def common(place: Place) -> dict[str, Any]:
    """Arguments of both trainings one after another."""
    config = dataclasses.replace(place.config, epochs=place.epochs)
    recorded = {**program.recorded_of(config), "row": place.folder.name}
    recorded = {name: value for name, value in recorded.items() if name not in ("rows", "budget")}
    return {
        "train": place.dataset.train,
        "validation": place.dataset.validation,
        "threat": setting.ball(config),
        "plan": setting.plan(config, place.dataset),
        "folder": place.folder,
        "config": recorded,
    }


def in_sequence(
    place: Place,
    cost: Callable[[Config, int], float],
    make: Callable[..., Any],
    num_members: int | None = None,
) -> Trained:
    """A row of members one after another."""
    config = dataclasses.replace(place.config, epochs=place.epochs)
    first = setting.adversarial(config, place.dataset)
    following = make(config, place.dataset, first[0])
    sequence = train_in_sequence(
        setting.root(config),
        first,
        (first[0], following),
        num_members=num_members or config.members,
        **common(place),
    )
    passes = cost(config, place.epochs) * len(place.dataset.train.labels)
    return Trained(sequence, passes, place.epochs, {"stopped": sequence.stopped})


def parts(config: Config, dataset: data.Dataset) -> tuple[Any, ...]:
    """Optimiser, growing ball and attack of the trainings against an attack."""
    num_steps = setting.plan(config, dataset).num_steps
    return (
        setting.optimizer(config, num_steps),
        setting.growing(config, num_steps),
        pgd(config.attack_steps),
    )


def independent(config, dataset, model):
    """Members that know nothing of each other."""
    return defenses.independent(model, *parts(config, dataset), average_decay=config.average_decay)


def bat(config, dataset, model, alpha=None):
    """Boosted adversarial training; `alpha` in the place of the config's."""
    del model
    return setting.boosted(config, dataset, config.alpha if alpha is None else alpha)[1]


def barre(config, dataset, model):
    """BARRE; a member that starts from a robust one needs no growing ball."""
    optimizer, _, attack = parts(config, dataset)
    return defenses.barre(
        model, optimizer, setting.ball(config), attack, average_decay=config.average_decay
    )


def mrboost(config, dataset, model):
    """MRBoost, drawn from at random."""
    return defenses.margin_boosted(
        model, *parts(config, dataset), average_decay=config.average_decay
    )


def double_oracle(place: Place) -> Trained:
    """Double oracle; its value is that on the training images, where the game is played.

    Its attacker has two attacks, which the cost of training allows for. The upper bound of the
    value is the risk under all others of the suite too, but two that are kept out to check it.
    """
    config = dataclasses.replace(place.config, epochs=place.epochs)
    suite = evaluation.attack_suite(setting.ball(config), evaluation.QUICK)
    own, known, kept_out = (
        tuple(each for each in suite if (each.names[0] in lines) is wanted)
        for lines, wanted in ((_ANSWERS, True), (_KEPT_OUT, False), (_KEPT_OUT, True))
    )
    found = train_by_double_oracle(
        setting.root(config),
        setting.adversarial(config, place.dataset),
        setting.natural(config, place.dataset),
        attacks=own,
        num_members=config.members,
        **common(place),
    )
    images, labels = place.dataset.train

    def risk(attacks, number):
        last = evaluation.evaluate(
            jax.random.fold_in(setting.root(config), number),
            found.sequence.logits_fn(),
            found.sequence.weights[-1],
            np.asarray(to_float(np.asarray(images))),
            labels,
            attacks,
            alone=False,
            num_complete=0,
            batch_size=config.attack_batch_size,
        )
        return 1.0 - float(last.worst.mean())

    upper, checked = max(risk(known, 6), found.rounds[-1].upper), risk(kept_out, 5)
    more = {
        "rounds": [each._asdict() for each in found.rounds],
        "upper": upper,
        "lower": found.rounds[-1].lower,
        "risk_under_attacks_kept_out": checked,
        "upper_holds": bool(checked <= upper + 1e-9),
    }
    passes = oracle_cost(config, place.epochs) * len(labels)
    return Trained(found.sequence, passes, place.epochs, more)


def algorithm_2(place: Place) -> Trained:
    """Algorithm 2 of Meunier et al.: one member a step, weights by the oracle every 20 of each."""
    config, dataset = dataclasses.replace(place.config, epochs=place.epochs), place.dataset
    model, plan = setting.network(config, dataset), setting.plan(config, dataset)
    # The members' optimisers count their own updates, a share of all.
    own_steps = max(1, plan.num_steps // config.members)

    def attack(key, loss_fn, x, threat):
        return pgd(config.attack_steps)(key, loss_fn, x, threat)

    training = defenses.mixture(
        model,
        setting.optimizer(config, own_steps),
        setting.growing(config, plan.num_steps),
        attack,
        num_members=config.members,
        weighing=defenses.oracle_weighing(num_steps=_ORACLE_STEPS),
        num_model_steps=_MODEL_STEPS,
        update="one",
        average_decay=config.average_decay,
    )
    key = setting.root(config)

    def batch(examples, step):
        picked = data.batch_indices(key, step, len(examples.labels), config.batch_size)
        return to_float(examples.images[picked]), examples.labels[picked]

    steps = loop.in_dispatches(training.step, batch)
    threat = setting.ball(config)

    @jax.jit
    def score(average, weights, images, labels, indices):
        logits_fn = partial(ensemble.apply, model.apply, average)
        number = plan.num_validation_steps
        numbers = {"num_steps": number, "step_size": threat.step_size(number)}
        return evaluation.validate(
            key, logits_fn, weights, to_float(images), labels, indices, threat=threat, **numbers
        )

    def measure(state):
        found = evaluation.over_batches(
            partial(score, state.average, state.weights),
            *dataset.validation,
            batch_size=len(dataset.validation.labels),
        )
        accuracies = {"clean_accuracy": found.clean.mean(), "robust_accuracy": found.robust.mean()}
        return {**accuracies, "weights": state.weights}

    place.folder.mkdir(parents=True, exist_ok=True)
    best = loop.run(
        loop.Placement(jax.jit(steps, static_argnums=2, donate_argnums=0)),
        loop.start(training.init(key)),
        jax.tree.map(jnp.asarray, dataset.train),
        marks=range(plan.steps_per_validation, plan.num_steps + 1, plan.steps_per_validation),
        dispatch_steps=1,
        measure=measure,
        folder=place.folder,
        checkpoints=place.folder / "checkpoints",
        config=common(place)["config"],
        name="algorithm 2",
    )
    members = ensemble.members(model.apply, jax.tree.map(jnp.asarray, best.average))
    weights = np.asarray(best.weights, np.float64)
    passes = algorithm_2_cost(config, place.epochs) * len(dataset.train.labels)
    sequence = Sequence(tuple(members), (weights / weights.sum(),))
    return Trained(sequence, passes, place.epochs, {})


# Name of the row: what its epochs cost per training image, and how it is trained.
ROWS: dict[str, tuple[Callable[[Config, int], float], Callable[[Place], Trained]]] = {
    "one_network": (
        single_cost,
        lambda place: in_sequence(place, single_cost, independent, 1),
    ),
    "independent": (
        independent_cost,
        lambda place: in_sequence(place, independent_cost, independent),
    ),
    "bat": (boosted_cost, lambda place: in_sequence(place, boosted_cost, bat)),
    "barre": (together_cost, lambda place: in_sequence(place, together_cost, barre)),
    "mrboost": (together_cost, lambda place: in_sequence(place, together_cost, mrboost)),
    "double_oracle": (oracle_cost, double_oracle),
    "algorithm_2": (algorithm_2_cost, algorithm_2),
    **{
        f"bat_alpha_{alpha:g}": (
            boosted_cost,
            lambda place, alpha=alpha: in_sequence(place, boosted_cost, partial(bat, alpha=alpha)),
        )
        for alpha in _OTHER_ALPHAS
    },
}


def judged(
    name: str, trained: Trained, config: Config, dataset: data.Dataset, folder: pathlib.Path
) -> dict[str, Any]:
    """The figures of a row under the suite, the same runs for every number of members."""
    sequence, budget = trained.sequence, BUDGETS[config.budget]
    runs = max(budget.num_member_runs, config.members)
    with Bars(name=name) as bars:
        found = evaluation.evaluate(
            jax.random.fold_in(setting.root(config), 4),
            sequence.logits_fn(),
            sequence.weights[-1],
            *dataset.test,
            evaluation.attack_suite(setting.ball(config), budget._replace(num_member_runs=runs)),
            num_complete=None,
            batch_size=min(config.attack_batch_size, len(dataset.test.labels)),
            folder=folder / f"suite_{config.budget}",
            progress=bars.show,
        )
    return {
        **found.report(with_costs=False),
        "weights": sequence.weights[-1],
        "training": {
            "passes": trained.passes,
            "epochs": trained.epochs,
            **trained.more,
        },
        "inference_passes": {"drawn": 1, "averaged": len(sequence.members)},
    }


def page(rows: dict[str, Any]) -> str:
    """The table, in percent."""
    head = [
        "",
        "clean",
        "PGD-20",
        "AutoPGD",
        "suite",
        "lower bound",
        "best member",
        "averaged",
        "million passes",
    ]
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        told = name.replace("_", " ")
        if row is None:
            lines.append([told, "not run yet", *[""] * (len(head) - 2)])
            continue

        def under(attack, row=row):
            if attack not in row["robust_accuracy"]:
                return "not run"
            bar = row["error_bar"][attack]
            return cell({"accuracy": row["robust_accuracy"][attack], "error_bar": bar})

        best = max(row["members"], key=lambda each: each["robust_accuracy"])
        lines.append(
            [
                told,
                f"{100 * row['clean_accuracy']:.1f}",
                under("pgd_expected_loss"),
                under("apgd_expected_loss"),
                under("worst"),
                f"{100 * row['sandwich']['lower']:.1f}",
                f"{100 * best['robust_accuracy']:.1f}",
                f"{100 * row['averaged']['robust_accuracy']:.1f}",
                f"{row['training']['passes'] / 1e6:.2f}",
            ]
        )
    return markdown(lines)


if __name__ == "__main__":
    main()
