"""How strong is an attack network? Against a classifier without defence it must win.

    python -m experiments.attack_network                             # digits, a CPU, a minute
    python -m experiments.attack_network --preset mnist              # the paper's setting, a GPU
    python -m experiments.attack_network --preset mnist --cpu --width 8 --steps 1500 \
        --network-steps 1500 --learning-rate 1e-3

Before an attack network judges a defence it has to break what has none (Hamm 2018, table 4: error
1.000 at eta .3 on MNIST). Trains a classifier from the initial weights of TensorFlow's tutorial and
one from He's, and against each several attack networks: the usual one, one whose label enters as
0 and 1, one that raises the cross-entropy, one with dropout, and one with all three, as the paper
has it. Draws their test errors during training beside those of FGSM and AutoPGD. Expect FGSM to
break the classifier with the tutorial's weights, as in the paper, and not that with He's; and the
usual network ahead of all others, the last of which hardly learns.
"""

import dataclasses

import jax.numpy as jnp
import optax

from experiments import _machine, _machine_report, _machine_score, minimax_defense
from experiments._config import flag
from experiments._machine import Setting, words
from experiments._machine_report import Outcome
from experiments._machine_training import train
from mixjax import _check, attacks, defenses, losses, models, reporting

PROGRAM = "experiments.attack_network"
USUAL = "usual"
VARIANTS = {
    USUAL: {},
    "unscaled-label": {"label_scale": 1.0},
    "cross-entropy": {"raised": losses.cross_entropy},
    "dropout": {"dropout": 0.5},
    "all-three": {"label_scale": 1.0, "raised": losses.cross_entropy, "dropout": 0.5},
}


@dataclasses.dataclass(frozen=True)
class Config(_machine.Config):
    """Every field is a flag; radii are for pixels in [-1, 1]."""

    etas: str = flag("0.3", "l-inf radii, for pixels in [-1, 1]")
    initialization: str = flag("tutorial he", "initial weights, a classifier for each")
    networks: str = flag(" ".join(VARIANTS), "attack networks, by what they do otherwise")


PRESETS = _machine_report.presets(Config, demo=dict(etas="0.4", initialization="tutorial he"))


def main(argv=None):
    """Trains, attacks, reports."""
    _machine_report.main(PROGRAM, __doc__ or "", PRESETS, experiment, argv, check)


def check(config: Config):
    """Raises `ValueError` for what is out of range."""
    for word in words(config.networks):
        _check.one_of(VARIANTS, networks=word)


def experiment(setting: Setting) -> Outcome:
    """All networks against both classifiers at all radii."""
    panels, result, sections = {}, {}, []
    for start in words(setting.config.initialization):
        one = setting._replace(model=_machine.started(setting.model, start))
        clean = train(one, start, _machine.undefended(one), num_steps=setting.config.steps)
        for eta in _machine.etas(setting.config):
            title = f"{start}, eta = {eta:g}"
            curves = {
                name: curve(one, f"{start}/eta_{eta:g}/{name}", clean.variables, eta, name)
                for name in words(setting.config.networks)
            }
            scored = _machine_score.score(
                one, f"{start}/eta_{eta:g}", clean.variables, eta, with_network=False
            )
            result[title] = {
                "clean": _machine_score.error(scored, "clean"),
                "fgsm": _machine_score.error(scored, "fgsm_curr"),
                "auto_pgd": _machine_score.error(scored, "auto_pgd"),
                "attack_networks": curves,
                "num_examples": scored["num_examples"],
                "error_bar": scored["error_bar"],
            }
            ends = [0, setting.config.network_steps]
            lines = {name: ([ends, 2 * [result[title][name]]]) for name in ("fgsm", "auto_pgd")}
            panels[title] = {**curves, **lines}
            sections.append(section(title, result[title]))
    reporting.plot_errors(setting.folder / "errors.png", panels, xlabel="steps of the network")
    caption = "Test errors of the classifier without defence while attack networks are trained."
    strong = {title: is_broken(each) for title, each in result.items()}
    return Outcome(
        {"attack_network_is_strong": strong, "attacked": result},
        sections,
        {"errors.png": caption},
        "\n".join(sections),
    )


def strongest(found: dict) -> float:
    """The highest error that a network's training ends at."""
    return max(errors[-1] for _, errors in found["attack_networks"].values())


def is_broken(found: dict) -> bool:
    """Whether the best network breaks the classifier."""
    return _machine_score.breaks(found["clean"], strongest(found))


def curve(setting: Setting, place: str, variables, eta: float, name: str) -> list[list[float]]:
    """Steps and test errors of a network's training against a classifier."""
    choice = dict(VARIANTS[name])
    raised = choice.pop("raised", attacks.log_error)
    config, dataset = setting.config, setting.dataset
    network = models.attack_network(
        dataset.num_classes,
        input_shape=dataset.image_shape,
        hidden=(config.network_width,) * 3,
        **choice,
    )
    setting = setting._replace(network=network)

    def measure(state):
        state = defenses.ClassifierState(variables, state.variables, (), state.key, state.step)
        return minimax_defense.own_error(setting, eta, state)

    args = jnp.float32(eta), variables
    make = attacker(setting, raised)
    train(setting, place, make, *args, num_steps=config.network_steps, measure=measure)
    metrics = reporting.read_metrics(setting.folder / place)
    return [[float(each[field]) for each in metrics] for field in ("step", "own")]


def attacker(setting: Setting, raised):
    """`(eta, variables of a classifier) -> Defense`: a network that raises another loss."""
    optimizer = optax.adam(setting.config.network_learning_rate)

    def loss_fn(variables, x, label):
        return raised(setting.model.apply(variables, x), label)

    def make(eta, variables):
        training = attacks.attack_network_training(
            setting.network, optimizer, loss_fn, _machine.ball(eta)
        )

        def step(state, images, labels):
            return training.step(state, variables, images, labels)

        return defenses.Defense(training.init, step)

    return make


def section(title: str, found: dict) -> str:
    """A table: what each network reaches at the end, beside FGSM and AutoPGD."""
    ends = {name: [curve[1][-1]] for name, curve in found["attack_networks"].items()}
    known = {name: [found[key]] for key, name in (("fgsm", "FGSM"), ("auto_pgd", "AutoPGD"))}
    table = reporting.rate_table("attack", ["error"], {"none": [found["clean"]], **known, **ends})
    verb = "breaks" if is_broken(found) else "does not break"
    return (
        f"## {title}\n\n{table}\n{found['num_examples']} test examples. The best attack network "
        f"{verb} the classifier: {strongest(found):.3f}, to be above {_machine_score.STRONG}, with "
        f"no attack {found['clean']:.3f}, to be at most {_machine_score.TRAINED}.\n"
    )


if __name__ == "__main__":
    main()
