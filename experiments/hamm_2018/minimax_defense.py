"""Training against an attack network that learns meanwhile (Hamm 2018, section 4).

    python -m experiments.hamm_2018.minimax_defense                 # digits, over 10 core-minutes
    python -m experiments.hamm_2018.minimax_defense --preset mnist  # the paper's setting, a GPU
    python -m experiments.hamm_2018.minimax_defense --preset mnist --cpu --etas "0.3 0.4" \
        --width 8 --steps 1500 --network-steps 1500 --learning-rate 1e-3

Trains every defence of the paper's tables (no defence, Adv FGSM1, LWA, Sens, Alt, Minimax) and,
but for the demo, Maximin for each eta, attacks each by FGSM, by an attack network trained afresh
against it and by AutoPGD, which the paper does not run (tables 4, 5, 9 and 10); draws the errors
of the games under their own attacker during training (figures 3 and 7) and the attacks themselves
(figure 4). Then it mixes the minimax-, Sens- and adversarially trained classifiers with the
weights that `games.solve` gives them. The report says so where the attack network is too weak
against the classifier without defence to judge any other.

The games are played and the classifiers judged by the attack network of `--attacker`: that of the
paper as it is, or a stronger one, the default. Minimax and Maximin take both gradients at the old
point, as algorithm 1 is printed, or with `--order alternating` the leader's at the new opponent.
A step of one defence costs up to four times that of another, six with that order: the report says
what each cost, and with `--equal-compute` every defence costs as much as `--steps` of the most
expensive, what Adv FGSM1 goes on from included.

What five seeds at equal cost on digits are asked, and what is expected, written down before the
first was read: does Minimax err less than the others under the worst of all attacks? Expected: less
than Alt and than Adv FGSM1, which hides its gradients, but not less than Sens, which takes almost
four steps for each of its own. Under an attack network alone it errs least.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.hamm_2018 import mixtures, reports, scores, settings, training
from experiments.hamm_2018.settings import words
from experiments.hamm_2018.training import Setting, train
from experiments.hamm_2018.variants import ORDERS, Order, fgsm
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checks, defenses, games, losses, reporting

PROGRAM = "experiments.hamm_2018.minimax_defense"
# Another row of the tables is another entry, by its method of training; `--rows` chooses by words.
GAMES = {"Alt": games.alternating, "Minimax": games.minimax, "Maximin": games.maximin}
GRADIENT = {"LWA FGSM": defenses.learning_with_adversary, "Sens FGSM": defenses.sensitivity}
ROWS = ("Adv FGSM1", *GRADIENT, *GAMES)
MIXED = ("Minimax", "Sens FGSM", "Adv FGSM1")
VERBS = {1: "gains", -1: "loses", 0: "neither gains nor loses"}


def short(row: str) -> str:
    """A row's name as in the flag `rows` and in the run's folder."""
    return row.split()[0].lower()


@dataclasses.dataclass(frozen=True)
class Config(settings.Config):
    """Every field is a flag; radii are for pixels in [-1, 1]."""

    penalty: float = flag(1.0, "gamma of minimax and maximin")
    order: Order = flag(
        "simultaneous",
        "of minimax and maximin: simultaneous, as printed; alternating, the leader's step at the "
        "new opponent",
        options=ORDERS,
    )
    equal_compute: bool = flag(
        False, "scale the steps of the defences so that all cost as much as the most expensive"
    )
    rows: str = flag(" ".join(map(short, ROWS)), "defences trained beside no defence")
    mixture_examples: int = flag(1000, "examples of each split that the mixture is attacked on")


PRESETS = settings.presets("minimax_defense", Config)


def main(argv=None):
    """Trains, attacks, mixes, reports."""
    reports.main(PROGRAM, __doc__ or "", PRESETS, experiment, argv, check)


def check(config: Config):
    """Raises `ValueError` for what is out of range."""
    checks.non_negative(penalty=config.penalty)
    checks.at_least(1, mixture_examples=config.mixture_examples)
    for word in words(config.rows):
        checks.one_of([short(row) for row in ROWS], rows=word)


def experiment(setting: Setting) -> Outcome:
    """All rows at all radii."""
    config = setting.config
    clean = train(setting, "no_defense", training.undefended(setting), num_steps=config.steps)
    numbers, costs = lengths(setting, clean.variables)
    makes = defences(setting, numbers)
    rows, panels, mixtures_at, figures, sections = {}, {}, {}, {}, []
    for eta in settings.etas(config):
        trained = {"No defense": ("no_defense", clean)}
        panel = panels.setdefault(f"eta = {eta:g}", {})
        for row, make in makes.items():
            name = f"eta_{eta:g}/{short(row)}"
            args = (jnp.float32(eta), *([clean.variables] if row == "Adv FGSM1" else []))
            offset = numbers[row] if row == "Adv FGSM1" else 0
            state = train(
                setting,
                name,
                make,
                *args,
                num_steps=offset + numbers[row],
                measure=own(setting, eta) if row in GAMES else None,
            )
            trained[row] = (name, state)
            if row in GAMES:
                metrics = reporting.read_metrics(setting.folder / name)
                panel[row] = [[each[field] for each in metrics] for field in ("step", "own")]
        for row, (name, state) in trained.items():
            place = f"{name}/eta_{eta:g}" if row == "No defense" else name
            rows[row, eta] = scores.score(setting, place, state.variables, eta)
        if set(MIXED) <= set(trained):
            members = {row: (trained[row][0], trained[row][1].variables) for row in MIXED}
            mixed = mixtures.play(
                setting, f"eta_{eta:g}/mixture", members, eta, config.mixture_examples
            )
            mixtures_at[f"{eta:g}"] = mixed
            sections.append(mixture_section(eta, mixed))
        if not figures:
            figures = draw(setting, trained, eta)
    if any(panels.values()):
        reports.plot_errors(
            setting.folder / "errors.png",
            panels,
            xlabel="training steps",
            attack="under the attack network of the game",
            num_examples=len(setting.dataset.test.labels),
            names=tuple(GAMES),
        )
        figures["errors.png"] = (
            "Test errors during training, under the attack network of the game (figures 3 and 7)."
        )
    curves = {
        title: {row: [list(map(float, each)) for each in curve] for row, curve in panel.items()}
        for title, panel in panels.items()
    }
    outcome = reports.outcome(
        setting, rows, figures, costs=costs, mixtures=mixtures_at, error_under_own_attack=curves
    )
    told = [mixing(eta, mixed) for eta, mixed in mixtures_at.items()]
    found = "; ".join([outcome.head.found.removesuffix("."), *told])
    return outcome._replace(
        head=outcome.head._replace(found=f"{found}."),
        sections=[*outcome.sections, *sections],
        summary="\n".join([outcome.summary, *sections]),
    )


def lengths(setting: Setting, variables) -> tuple[dict[str, int], dict]:
    """Steps of each row, and what training costs it; Adv FGSM1 goes on from round 0."""
    config = setting.config
    numbers = {row: config.steps for row in ROWS}
    made = {
        row: (make, jnp.float32(0.1), *([variables] if row == "Adv FGSM1" else []))
        for row, make in defences(setting, numbers).items()
    }
    cost = {"No defense": 1.0} | training.step_costs(setting, made)
    begun = {"Adv FGSM1": float(config.steps)} if "Adv FGSM1" in cost else {}
    if config.equal_compute:
        numbers |= training.equal_steps(cost, config.steps, begun)
    numbers["No defense"] = config.steps
    return numbers, training.costs(cost, numbers, begun)


def defences(
    setting: Setting, numbers: dict[str, int]
) -> dict[str, Callable[..., defenses.Defense]]:
    """`row -> make`, each `(eta, ...) -> Defense`; Adv FGSM1 starts from what has no defence.

    Args:
      setting: what is trained on what.
      numbers: `row -> steps`; one of Adv FGSM1 is the length of its rounds.
    """
    config, model, network = setting.config, setting.model, setting.network
    optimizer = optax.adam(config.learning_rate)

    def adversarial(eta, variables):
        defense = defenses.cat_and_mouse(
            model,
            optimizer,
            training.ball(eta),
            fgsm(config),
            num_steps_per_round=numbers["Adv FGSM1"],
        )

        def init(key):  # at the beginning of round 1
            state = defense.init(key)._replace(variables=variables, opponent=variables)
            return state._replace(step=jnp.asarray(numbers["Adv FGSM1"], jnp.int32))

        return defense._replace(init=init)

    def gradient(method, eta):
        return method(model, optimizer, training.ball(eta), fgsm(config))

    def game(method, eta):
        play = functools.partial(
            method, descent=optimizer, ascent=optax.adam(config.network_learning_rate)
        )
        return defenses.against_network(
            model,
            network,
            play,
            training.ball(eta),
            move=setting.attacker.move,
            bounds=setting.attacker.bounds,
        )

    makes: dict[str, Callable[..., defenses.Defense]] = {"Adv FGSM1": adversarial}
    for row, method in GRADIENT.items():
        makes[row] = functools.partial(gradient, method)
    for row, method in GAMES.items():
        if row != "Alt":
            method = functools.partial(method, penalty=config.penalty, order=config.order)
        makes[row] = functools.partial(game, method)
    return {row: make for row, make in makes.items() if short(row) in words(config.rows)}


def own(setting: Setting, eta: float):
    """`state -> error` under the attack network of the game, for the curve of its training."""

    def measure(state):
        return {"own": scores.error_under_network(setting, state.variables, state.opponent, eta)}

    return measure


def mixture_section(eta: float, mixed: dict) -> str:
    """The table of the mixture, and whether mixing pays."""
    gain, (low, high) = (mixed["gain_over_best_member"][name] for name in ("mean", "interval"))
    verb = VERBS[reporting.order((low, high), (0, 0))]
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in mixed["weights"].items())
    head = [reports.ATTACKS.get(name, name.upper()) for name in mixtures.HEAD]
    table = reporting.rate_table("classifier", head, mixtures.cells(mixed))
    return (
        f"## Mixtures, eta = {eta:g}\n\n{table}\n"
        f"{mixed['num_examples']} test examples. The game's weights, from validation data: "
        f"{weights}. Beside the best member alone, {mixed['best_member']}, the mixture {verb}: "
        f"its worst error is less by {gain:.3f} (95 % interval {low:.3f} to {high:.3f}).\n"
    )


def mixing(eta: str, mixed: dict) -> str:
    """Whether the game's mixture is better than its best member, as a part of a sentence."""
    gain = mixed["gain_over_best_member"]
    sign = reporting.order(gain["interval"], (0, 0))
    told = "" if sign else f", {reporting.NO_DIFFERENCE}"
    return (
        f"at eta = {eta} mixing {VERBS[sign]} beside the best member alone, {mixed['best_member']}"
        f" ({gain['mean']:+.3f}{told})"
    )


def draw(setting: Setting, trained: dict, eta: float, number: int = 8) -> dict[str, str]:
    """Figure 4: FGSM and an attack network on what has no defence, and the games' attackers."""
    images, labels = (part[:number] for part in setting.dataset.test)
    place, clean = trained["No defense"]
    network = scores.attack_network(setting, f"{place}/eta_{eta:g}", clean.variables, eta)
    subjects = {"attack network": (clean.variables, network)}
    subjects |= {
        row: (state.variables, state.opponent)
        for row, (_, state) in trained.items()
        if row in GAMES
    }

    def one(x, label):
        def loss_fn(x):
            return losses.cross_entropy(setting.model.apply(clean.variables, x), label)

        threat = training.ball(eta)
        points = {"clean": x, "FGSM": fgsm(setting.config)(None, loss_fn, x, threat)[0]}
        answers = {
            name: jnp.argmax(setting.model.apply(clean.variables, point))
            for name, point in points.items()
        }
        for name, (variables, network) in subjects.items():
            points[name] = training.under_network(setting, network, loss_fn, x, label, threat)
            answers[name] = jnp.argmax(setting.model.apply(variables, points[name]))
        return points, answers

    points, answers = jax.jit(jax.vmap(one))(images, np.asarray(labels))
    points = {name: points[name] for name in ("clean", "FGSM", *subjects)}
    reports.plot_gallery(
        setting.folder / "attacks.png", points, labels, answers, setting.dataset.class_names
    )
    caption = (
        f"Test examples under attacks of eta = {eta:g} (figure 4) and the answers: FGSM and the "
        "attack network on the classifier without defence, each game's attacker on its classifier."
    )
    return {"attacks.png": caption}


if __name__ == "__main__":
    main()
