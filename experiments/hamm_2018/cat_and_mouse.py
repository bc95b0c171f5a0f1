"""Attack the classifier, retrain it on that attack, attack again (Hamm 2018, section 3.1).

    python -m experiments.hamm_2018.cat_and_mouse                 # digits, 5 minutes of a CPU core
    python -m experiments.hamm_2018.cat_and_mouse --preset mnist  # 80 + 80 rounds, a GPU
    python -m experiments.hamm_2018.cat_and_mouse --preset mnist --cpu --etas 0.3 \
        --rounds 10 --steps 1000

Round 0 trains without defence. FGSM r is the attack on the classifier that round r - 1 left, and
Adv FGSM r the classifier of round r, retrained on clean and attacked images 1:1. Every round's
classifier is kept in `eta_<eta>-rounds`. Writes the error of each round's classifier under its own
and under the next round's attack (figures 1 and 5), the table of classifiers against attacks
(tables 3 and 8) and what is left under FGSM and IFGSM before and after one round (tables 1, 2, 6
and 7). Expect each classifier to withstand the attack that it has seen and to fall to the next one.
The paper does not say how long a round is.
"""

import dataclasses
import functools

import jax.numpy as jnp
import optax

from experiments.hamm_2018 import reports, scores, settings, training
from experiments.hamm_2018.settings import PAPER
from experiments.hamm_2018.training import Setting, train
from experiments.hamm_2018.variants import fgsm, ifgsm
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checkpoint, checks, defenses, reporting

PROGRAM = "experiments.hamm_2018.cat_and_mouse"


@dataclasses.dataclass(frozen=True)
class Config(settings.Config):
    """Every field is a flag; radii are for pixels in [-1, 1]."""

    rounds: int = flag(80, "rounds of attack and retraining, after round 0 without an attack")
    steps: int = flag(5_000, "training steps of a round, round 0 included")


PRESETS = settings.presets("cat_and_mouse", Config)


def main(argv=None):
    """Plays the rounds, attacks, reports."""
    reports.main(PROGRAM, __doc__ or "", PRESETS, experiment, argv, check)


def check(config: Config):
    """Raises `ValueError` for what is out of range."""
    checks.at_least(1, rounds=config.rounds)


def experiment(setting: Setting) -> Outcome:
    """All rounds at all radii."""
    config = setting.config
    play = _player(setting, fgsm(config))
    play_ifgsm = _player(setting, ifgsm(config))
    rows, panels, sections, own, figures = {}, {}, [], {}, {}
    for eta in settings.etas(config):
        folder = f"eta_{eta:g}"
        kept, metrics = play(folder, eta, config.rounds)
        panels[f"eta = {eta:g}"] = {
            "after training, its own attack": _points(metrics, "own", 0),
            "after the next attack": _points(metrics, "next", 1),
        }
        shown = _shown(config)
        table = _table(setting, kept, shown, eta)
        sections.append(
            f"## Classifiers against attacks, eta = {eta:g}\n\n"
            + reporting.rate_table("classifier", ["clean", *(f"FGSM{k}" for k in shown)], table)
        )
        for number in (0, *shown):
            name = f"Adv FGSM{number}" if number else "No defense"
            rows[name, eta] = scores.score(setting, f"{folder}/adv_{number}", kept[number], eta)
        _, ifgsm_metrics = play_ifgsm(f"ifgsm_{folder}", eta, 1)
        own[f"{eta:g}"] = {"fgsm": metrics[1]["own"], "ifgsm": ifgsm_metrics[1]["own"]}
        if not figures:
            place = f"{folder}/adv_{config.rounds}", kept[config.rounds]
            network = scores.attack_network(setting, *place, eta)
            figures = reports.draw_attacks(setting, place[1], network, eta)
    sections.append(
        "## One round: error under the attack that it was trained on\n\n"
        + reporting.rate_table("eta", ["FGSM", "IFGSM"], {k: [*v.values()] for k, v in own.items()})
    )
    reports.plot_errors(
        setting.folder / "rounds.png",
        panels,
        xlabel="rounds of attack and retraining",
        attack="under FGSM",
        num_examples=len(setting.dataset.test.labels),
        points=True,
    )
    caption = (
        "Error of each round's classifier: under the attack that it was trained on, and the next"
    )
    figures = {"rounds.png": f"{caption} (figures 1 and 5).", **figures}
    cycle = {
        title: {name: [*map(list, c)] for name, c in each.items()} for title, each in panels.items()
    }
    outcome = reports.outcome(
        setting, rows, figures, costs=_costs(setting), rounds=cycle, one_round=own
    )
    return outcome._replace(sections=[*outcome.sections, *sections])


def _make(setting, attack, eta):
    return defenses.cat_and_mouse(
        setting.model,
        optax.adam(setting.config.learning_rate),
        training.ball(eta),
        attack,
        num_steps_per_round=setting.config.steps,
    )


def _shown(config):
    """The rounds of the tables."""
    return [*dict.fromkeys([1, min(2, config.rounds), config.rounds])]


def _costs(setting):
    """What training cost the classifiers of the tables, round 0 and those between included."""
    config, attack = setting.config, fgsm(setting.config)
    row = {"round": (functools.partial(_make, setting, attack), 0.1)}
    each = training.step_costs(setting, row)["round"]
    names = {f"Adv FGSM{number}": number * config.steps for number in _shown(config)}
    cost = {"No defense": 1.0} | dict.fromkeys(names, each)
    begun = {name: float(config.steps) for name in names}
    return training.costs(cost, {"No defense": config.steps, **names}, begun)


def _player(setting, attack):
    """`(name, eta, rounds) -> (variables of each round, metrics)`: plays on from where it was."""
    config = setting.config
    make = functools.partial(_make, setting, attack)

    def play(name, eta, num_rounds):
        transferred = functools.partial(scores.transferred, setting, eta=eta, attack=attack)

        def finish(state):
            number = int(state.step) // config.steps - 1
            checkpoint.save(kept, number, state.variables, {"round": number})
            # The opponent is still the classifier that this round was trained against.
            source = state.opponent if number else state.variables
            own = transferred(source, state.variables)
            following = transferred(state.variables, state.variables)
            return {"round": number, "own": own.mean(), "next": following.mean()}

        (setting.folder / name).mkdir(exist_ok=True)
        with checkpoint.open(
            setting.folder / f"{name}-rounds",
            {},
            metric="round",
            num_latest=num_rounds + 1,
            num_best=0,
        ) as kept:
            number = num_rounds + 1
            state = train(
                setting,
                name,
                make,
                jnp.float32(eta),
                num_steps=number * config.steps,
                measure=finish,
                measurements=number,
            )
            found = [checkpoint.restore(kept, state.variables, k)[0] for k in range(number)]
        return found, reporting.read_metrics(setting.folder / name)

    return play


def _points(metrics, field, shift):
    """Rounds and errors; an attack stands half a round after the training before it."""
    first = 1 if field == "own" else 0
    numbers = [each["round"] + shift / 2 for each in metrics[first:]]
    return numbers, [each[field] for each in metrics[first:]]


def _table(setting, kept, shown, eta):
    """`classifier -> errors`: clean and under FGSM of the rounds shown (table 3)."""
    table = {}
    for number in (0, *shown):
        clean = scores.current(setting, kept[number], eta)["clean"]
        errors = [
            scores.transferred(
                setting, kept[each - 1], kept[number], eta, fgsm(setting.config)
            ).mean()
            for each in shown
        ]
        name = f"Adv FGSM{number}" if number else "No defense"
        published = PAPER.get(setting.config.dataset, {}).get(eta, {}).get(name, {})
        columns = ("clean", *(f"FGSM{each}" for each in shown))
        examples = len(setting.dataset.test.labels)
        table[name] = [
            reporting.error_cell(float(error), examples, published.get(column))
            for column, error in zip(columns, (clean, *errors), strict=True)
        ]
    return table


if __name__ == "__main__":
    main()
