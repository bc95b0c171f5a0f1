"""Training against an attack network that learns meanwhile (Hamm 2018, section 4).

    python -m experiments.minimax_defense                            # digits, a CPU, 3 minutes
    python -m experiments.minimax_defense --preset mnist             # the paper's setting, a GPU
    python -m experiments.minimax_defense --preset mnist --cpu --etas "0.3 0.4" --width 8 \
        --steps 1500 --network-steps 1500 --learning-rate 1e-3

Trains every defence of the paper's tables (no defence, Adv FGSM1, LWA, Sens, Alt, Minimax) and,
but for the demo, Maximin for each eta, attacks each by FGSM, by an attack network trained afresh
against it and by AutoPGD, which the paper does not run (tables 4, 5, 9 and 10); draws the errors
of the games under their own attacker during training (figures 3 and 7) and the attacks themselves
(figure 4). Then it mixes the minimax-, Sens- and adversarially trained classifiers with the
weights that `games.solve` gives them. The report says so where the attack network is too weak
against the classifier without defence to judge any other.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _machine, _machine_mixture, _machine_report, _machine_score
from experiments._config import flag
from experiments._machine import Setting, words
from experiments._machine_report import Outcome
from experiments._machine_training import train
from mixjax import _check, attacks, defenses, games, losses, mixture, reporting

PROGRAM = "experiments.minimax_defense"
GAMES = {"Alt": games.alternating, "Minimax": games.minimax, "Maximin": games.maximin}
GRADIENT = {"LWA FGSM": defenses.learning_with_adversary, "Sens FGSM": defenses.sensitivity}
ROWS = ("Adv FGSM1", *GRADIENT, *GAMES)
MIXED = ("Minimax", "Sens FGSM", "Adv FGSM1")


@dataclasses.dataclass(frozen=True)
class Config(_machine.Config):
    """Every field is a flag; radii are for pixels in [-1, 1]."""

    network_dropout: float = flag(0.0, "of the attack network's hidden units; the paper's is 0.5")
    penalty: float = flag(1.0, "gamma of minimax and maximin")
    rows: str = flag("adv lwa sens alt minimax maximin", "defences trained beside no defence")
    mixture_examples: int = flag(1000, "examples of each split that the mixture is attacked on")


DEMO = dict(steps=400, network_steps=400, mixture_examples=100, rows="adv lwa sens alt minimax")
PRESETS = _machine_report.presets(Config, demo=DEMO)


def main(argv=None):
    """Trains, attacks, mixes, reports."""
    _machine_report.main(PROGRAM, __doc__ or "", PRESETS, experiment, argv, check)


def check(config: Config):
    """Raises `ValueError` for what is out of range."""
    _check.non_negative(penalty=config.penalty)
    _check.at_least(1, mixture_examples=config.mixture_examples)
    for word in words(config.rows):
        _check.one_of([short(row) for row in ROWS], rows=word)


def short(row: str) -> str:
    """A row's name as in the flag `rows` and in the run's folder."""
    return row.split()[0].lower()


def experiment(setting: Setting) -> Outcome:
    """All rows at all radii."""
    config = setting.config
    makes = defences(setting)
    clean = train(setting, "no_defense", _machine.undefended(setting), num_steps=config.steps)
    rows, panels, mixtures, figures, sections = {}, {}, {}, {}, []
    for eta in _machine.etas(config):
        trained = {"No defense": ("no_defense", clean)}
        panel = panels.setdefault(f"eta = {eta:g}", {})
        for row, make in makes.items():
            name = f"eta_{eta:g}/{short(row)}"
            args = (jnp.float32(eta), *([clean.variables] if row == "Adv FGSM1" else []))
            offset = config.steps if row == "Adv FGSM1" else 0
            state = train(
                setting,
                name,
                make,
                *args,
                num_steps=offset + config.steps,
                measure=functools.partial(own_error, setting, eta) if row in GAMES else None,
            )
            trained[row] = (name, state)
            if row in GAMES:
                metrics = reporting.read_metrics(setting.folder / name)
                panel[row] = [[each[field] for each in metrics] for field in ("step", "own")]
        for row, (name, state) in trained.items():
            place = f"{name}/eta_{eta:g}" if row == "No defense" else name
            rows[row, eta] = _machine_score.score(setting, place, state.variables, eta)
        if set(MIXED) <= set(trained):
            members = {row: (trained[row][0], trained[row][1].variables) for row in MIXED}
            mixed = _machine_mixture.play(
                setting, f"eta_{eta:g}/mixture", members, eta, config.mixture_examples
            )
            mixtures[f"{eta:g}"] = mixed
            sections.append(mixture_section(eta, mixed))
        if not figures:
            figures = draw(setting, trained, eta)
    if any(panels.values()):
        reporting.plot_errors(setting.folder / "errors.png", panels, xlabel="training steps")
        figures["errors.png"] = (
            "Test errors during training, under the attack network of the game (figures 3 and 7)."
        )
    curves = {
        title: {row: [list(map(float, each)) for each in curve] for row, curve in panel.items()}
        for title, panel in panels.items()
    }
    outcome = _machine_report.outcome(
        setting, rows, figures, mixtures=mixtures, error_under_own_attack=curves
    )
    return outcome._replace(
        sections=[*outcome.sections, *sections],
        summary="\n".join([outcome.summary, *sections]),
    )


def defences(setting: Setting) -> dict[str, Callable[..., defenses.Defense]]:
    """`row -> make`, each `(eta, ...) -> Defense`; Adv FGSM1 starts from what has no defence."""
    config, model, network = setting.config, setting.model, setting.network
    optimizer = optax.adam(config.learning_rate)

    def adversarial(eta, variables):
        defense = defenses.cat_and_mouse(
            model, optimizer, _machine.ball(eta), _machine.fgsm, num_steps_per_round=config.steps
        )

        def init(key):  # at the beginning of round 1
            state = defense.init(key)._replace(variables=variables, opponent=variables)
            return state._replace(step=jnp.asarray(config.steps, jnp.int32))

        return defense._replace(init=init)

    def gradient(method, eta):
        return method(model, optimizer, _machine.ball(eta), _machine.fgsm)

    def game(method, eta):
        play = functools.partial(
            method, descent=optimizer, ascent=optax.adam(config.network_learning_rate)
        )
        return defenses.against_network(model, network, play, _machine.ball(eta))

    makes: dict[str, Callable[..., defenses.Defense]] = {"Adv FGSM1": adversarial}
    for row, method in GRADIENT.items():
        makes[row] = functools.partial(gradient, method)
    for row, method in GAMES.items():
        if row != "Alt":
            method = functools.partial(method, penalty=config.penalty)
        makes[row] = functools.partial(game, method)
    return {row: make for row, make in makes.items() if short(row) in words(config.rows)}


def own_error(setting: Setting, eta: float, state) -> dict[str, float]:
    """The error under the attack network of the game, on test examples."""
    run = functools.partial(_under_network(setting), state.variables, state.opponent, eta)
    return {"own": float(_machine_score.over_test(setting, run).mean())}


@functools.cache
def _under_network(setting: Setting):
    """Compiled `(variables, network, eta, images, labels, indices) -> wrong [B]`."""

    def one(variables, network, eta, x, label):
        def loss_fn(x):
            return losses.cross_entropy(setting.model.apply(variables, x), label)

        direction_fn = functools.partial(setting.network.apply, network)
        threat = _machine.ball(eta)
        point, _ = attacks.attack_network(direction_fn, loss_fn, x, label, threat)
        return ~mixture.correct(setting.model.apply(variables, point), label)

    def batch(variables, network, eta, images, labels, indices):
        del indices
        return jax.vmap(one, in_axes=(None, None, None, 0, 0))(
            variables, network, eta, images, labels
        )

    return jax.jit(batch)


def mixture_section(eta: float, mixed: dict) -> str:
    """The table of the mixture, and whether mixing pays."""
    gain, bar = (mixed["gain_over_best_member"][name] for name in ("mean", "error_bar"))
    verb = "gains" if gain > bar else "loses" if gain < -bar else "neither gains nor loses"
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in mixed["weights"].items())
    head = [_machine_report.ATTACKS.get(name, name.upper()) for name in _machine_mixture.HEAD]
    table = reporting.rate_table("classifier", head, _machine_mixture.cells(mixed))
    return (
        f"## Mixtures, eta = {eta:g}\n\n{table}\n"
        f"{mixed['num_examples']} test examples. The game's weights, from validation data: "
        f"{weights}. Beside the best member alone, {mixed['best_member']}, the mixture {verb}: "
        f"its worst error is less by {gain:.3f} ± {bar:.3f}.\n"
    )


def draw(setting: Setting, trained: dict, eta: float, number: int = 8) -> dict[str, str]:
    """Figure 4: FGSM and an attack network on what has no defence, and the games' attackers."""
    images, labels = (part[:number] for part in setting.dataset.test)
    place, clean = trained["No defense"]
    network = _machine_score.attack_network(setting, f"{place}/eta_{eta:g}", clean.variables, eta)
    subjects = {"attack network": (clean.variables, network)}
    subjects |= {
        row: (state.variables, state.opponent)
        for row, (_, state) in trained.items()
        if row in GAMES
    }

    def one(x, label):
        def loss_fn(x):
            return losses.cross_entropy(setting.model.apply(clean.variables, x), label)

        threat = _machine.ball(eta)
        points = {"clean": x, "FGSM": attacks.fgsm(loss_fn, x, threat)[0]}
        answers = {
            name: jnp.argmax(setting.model.apply(clean.variables, point))
            for name, point in points.items()
        }
        for name, (variables, network) in subjects.items():
            points[name] = attacks.follow(x, setting.network.apply(network, x, label), threat)
            answers[name] = jnp.argmax(setting.model.apply(variables, points[name]))
        return points, answers

    points, answers = jax.jit(jax.vmap(one))(images, np.asarray(labels))
    points = {name: points[name] for name in ("clean", "FGSM", *subjects)}
    reporting.plot_gallery(
        setting.folder / "attacks.png", points, labels, answers, setting.dataset.class_names
    )
    caption = (
        f"Test examples under attacks of eta = {eta:g} (figure 4) and the answers: FGSM and the "
        "attack network on the classifier without defence, each game's attacker on its classifier."
    )
    return {"attacks.png": caption}


if __name__ == "__main__":
    main()
