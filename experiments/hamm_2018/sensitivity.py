"""Training that knows how the attack follows the classifier: LWA and Sens (Hamm 2018, section 3.2).

    python -m experiments.hamm_2018.sensitivity                 # digits, 3 minutes of a CPU core
    python -m experiments.hamm_2018.sensitivity --preset mnist  # the paper's setting, a GPU
    python -m experiments.hamm_2018.sensitivity --preset mnist --cpu --etas 0.3 \
        --steps 5000 --width 16

Trains a classifier without defence and, for each eta, one by LWA (on the FGSM attack of the moment)
and one by Sens (the same with the penalty `gamma / 2 sum_i |df/dz_i|^2`, `gamma = eta N`), draws
their errors during training (figures 2 and 6), and attacks them by FGSM, an attack network and
AutoPGD (rows LWA and Sens of tables 3 to 5 and 8 to 10). Expect LWA and Sens level under FGSM and
far below the classifier without defence. A step of Sens costs half as much again as one of LWA: the
report says what each cost, `experiments.hamm_2018.minimax_defense --equal-compute` levels it.
"""

import dataclasses
import functools

import jax.numpy as jnp
import optax

from experiments.hamm_2018 import reports, scores, settings, training
from experiments.hamm_2018.training import Setting, train
from experiments.hamm_2018.variants import fgsm
from experiments.run.program import Outcome
from mixjax import defenses, reporting

PROGRAM = "experiments.hamm_2018.sensitivity"
NAMES = {"LWA FGSM": defenses.learning_with_adversary, "Sens FGSM": defenses.sensitivity}


@dataclasses.dataclass(frozen=True)
class Config(settings.Config):
    """Every field is a flag; radii are for pixels in [-1, 1]."""


PRESETS = settings.presets("sensitivity", Config)


def main(argv=None):
    """Trains, attacks, reports."""
    reports.main(PROGRAM, __doc__ or "", PRESETS, experiment, argv)


def experiment(setting: Setting) -> Outcome:
    """All rows at all radii."""
    config = setting.config
    optimizer = optax.adam(config.learning_rate)
    makes = {
        name: functools.partial(_make, method, setting, optimizer) for name, method in NAMES.items()
    }
    clean = train(setting, "no_defense", training.undefended(setting), num_steps=config.steps)
    rows, curves, figures = {}, {}, {}
    for eta in settings.etas(config):
        name = f"no_defense/eta_{eta:g}"
        rows["No defense", eta] = scores.score(setting, name, clean.variables, eta)
        panel = curves.setdefault(f"eta = {eta:g}", {})
        for row, make in makes.items():
            name = f"{row.split()[0].lower()}/eta_{eta:g}"
            state = train(
                setting,
                name,
                make,
                jnp.float32(eta),
                num_steps=config.steps,
                measure=lambda state, eta=eta: scores.current(setting, state.variables, eta),
            )
            rows[row, eta] = scores.score(setting, name, state.variables, eta)
            metrics = reporting.read_metrics(setting.folder / name)
            for attack in ("clean", "fgsm_curr"):
                x, errors = zip(*((each["step"], each[attack]) for each in metrics), strict=True)
                panel[f"{row.split()[0]}, {reports.ATTACKS[attack]}"] = (x, errors)
            if not figures:
                network = scores.attack_network(setting, name, state.variables, eta)
                figures = reports.draw_attacks(setting, state.variables, network, eta)
    reports.plot_errors(
        setting.folder / "errors.png",
        curves,
        xlabel="training steps",
        attack="without attack and under FGSM",
        num_examples=len(setting.dataset.test.labels),
    )
    figures = {"errors.png": "Test errors during training (figures 2 and 6).", **figures}
    cost = training.step_costs(setting, {name: (make, 0.1) for name, make in makes.items()})
    cost = {"No defense": 1.0, **cost}
    costs = training.costs(cost, {name: config.steps for name in cost}, {})
    return reports.outcome(setting, rows, figures, costs=costs)


def _make(method, setting, optimizer, eta):
    return method(setting.model, optimizer, training.ball(eta), fgsm(setting.config))


if __name__ == "__main__":
    main()
