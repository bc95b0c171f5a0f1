"""How strong is an attack network? Against a classifier without defence it must win.

    python -m experiments.hamm_2018.attack_network                 # digits, 5 minutes of a CPU core
    python -m experiments.hamm_2018.attack_network --preset mnist  # the paper's setting, a GPU
    python -m experiments.hamm_2018.attack_network --preset mnist --cpu --width 8 --steps 1500 \
        --network-steps 1500 --learning-rate 1e-3

Before an attack network judges a defence it has to break what has none (Hamm 2018, table 4: error
1.000 at eta .3 on MNIST). Trains a classifier from the initial weights of TensorFlow's tutorial and
one from He's, and against each several attack networks: the usual, stronger one; one whose label
enters as 0 and 1, one that raises the cross-entropy, one with dropout, and one with all three; and
the paper's as it is, which has all three, gives tanh of its output whatever its length and is not
bound to [-1, 1]. Draws their test errors during training beside those of FGSM and AutoPGD. Expect
FGSM to break the classifier with the tutorial's weights, as in the paper, and not that with He's;
and the usual network ahead of all others; that with all three hardly learns.
"""

import dataclasses

import jax.numpy as jnp

from experiments.hamm_2018 import reports, scores, settings, training
from experiments.hamm_2018.settings import words
from experiments.hamm_2018.training import Setting, train
from experiments.hamm_2018.variants import PRINTED, STRONG
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checks, losses, reporting

PROGRAM = "experiments.hamm_2018.attack_network"
USUAL = "usual"
VARIANTS = {
    USUAL: STRONG,
    "unscaled-label": STRONG._replace(label_scale=1.0),
    "cross-entropy": STRONG._replace(raised=losses.cross_entropy),
    "dropout": STRONG._replace(dropout=0.5),
    "all-three": STRONG._replace(label_scale=1.0, raised=losses.cross_entropy, dropout=0.5),
    "paper": PRINTED,
}


SHOWN = {"FGSM": "fgsm", "AutoPGD": "auto_pgd"}  # beside the networks


@dataclasses.dataclass(frozen=True)
class Config(settings.AttackConfig):
    """Every field is a flag; radii are for pixels in [-1, 1]."""

    etas: str = flag("0.3", "l-inf radii, for pixels in [-1, 1]")
    initialization: str = flag("tutorial he", "initial weights, a classifier for each")
    networks: str = flag(" ".join(VARIANTS), "attack networks, by what they do otherwise")


PRESETS = settings.presets("attack_network", Config)


def main(argv=None):
    """Trains, attacks, reports."""
    reports.main(PROGRAM, __doc__ or "", PRESETS, experiment, argv, check)


def check(config: Config):
    """Raises `ValueError` for what is out of range."""
    for word in words(config.networks):
        checks.one_of(VARIANTS, networks=word)


def experiment(setting: Setting) -> Outcome:
    """All networks against both classifiers at all radii."""
    panels, result, sections = {}, {}, []
    for start in words(setting.config.initialization):
        model = training.classifier(setting.config, setting.dataset, start)
        one = setting._replace(model=model)
        clean = train(one, start, training.undefended(one), num_steps=setting.config.steps)
        for eta in settings.etas(setting.config):
            title = f"{start}, eta = {eta:g}"
            curves = {
                name: curve(one, f"{start}/eta_{eta:g}/{name}", clean.variables, eta, name)
                for name in words(setting.config.networks)
            }
            scored = scores.score(
                one, f"{start}/eta_{eta:g}", clean.variables, eta, with_network=False
            )
            result[title] = {
                "clean": scores.error(scored, "clean"),
                "fgsm": scores.error(scored, "fgsm_curr"),
                "auto_pgd": scores.error(scored, "auto_pgd"),
                "attack_networks": curves,
                "num_examples": scored["num_examples"],
                "error_bar": scored["error_bar"],
            }
            ends = [0, setting.config.network_steps]
            lines = {shown: (ends, 2 * [result[title][name]]) for shown, name in SHOWN.items()}
            panels[title] = {**curves, **lines}
            sections.append(section(title, result[title]))
    reports.plot_errors(
        setting.folder / "errors.png",
        panels,
        xlabel="steps of the network",
        attack="attack networks, FGSM and AutoPGD",
        num_examples=len(setting.dataset.test.labels),
        names=(*VARIANTS, *SHOWN),
    )
    caption = "Test errors of the classifier without defence while attack networks are trained."
    strong = {title: is_broken(each) for title, each in result.items()}
    return Outcome(
        {"attack_network_is_strong": strong, "attacked": result},
        "\n".join(sections),
        reports.head(
            setting,
            finding(result),
            model=f"{setting.config.model} of width {setting.config.width} without defence, from "
            f"initial weights {setting.config.initialization}",
            attack=f"attack networks {setting.config.networks}; FGSM, "
            f"AutoPGD-{setting.config.apgd_steps}",
        ),
        sections,
        {"errors.png": caption},
    )


def finding(result: dict) -> str:
    """Which network goes furthest against each classifier, and whether that breaks it."""
    parts = []
    for title, each in result.items():
        networks = each["attack_networks"]
        best = max(networks, key=lambda name: networks[name][1][-1])
        verb = "breaks" if is_broken(each) else "does not break"
        parts.append(
            f"the best attack network, {best}, {verb} the classifier without defence ({title}): "
            f"error {strongest(each):.3f}, without an attack {each['clean']:.3f}, under AutoPGD "
            f"{each['auto_pgd']:.3f}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def strongest(found: dict) -> float:
    """The highest error that a network's training ends at."""
    return max(errors[-1] for _, errors in found["attack_networks"].values())


def is_broken(found: dict) -> bool:
    """Whether the best network breaks the classifier."""
    return scores.breaks(found["clean"], strongest(found))


def curve(setting: Setting, place: str, variables, eta: float, name: str) -> list[list[float]]:
    """Steps and test errors of a network's training against a classifier."""
    config, attacker = setting.config, VARIANTS[name]
    network = training.attack_network_of(config, setting.dataset, attacker)
    setting = setting._replace(network=network, attacker=attacker)

    def measure(state):
        return {"own": scores.error_under_network(setting, variables, state.variables, eta)}

    args = jnp.float32(eta), variables
    make = training.attacker(setting)
    train(setting, place, make, *args, num_steps=config.network_steps, measure=measure)
    metrics = reporting.read_metrics(setting.folder / place)
    return [[float(each[field]) for each in metrics] for field in ("step", "own")]


def section(title: str, found: dict) -> str:
    """A table: what each network reaches at the end, beside FGSM and AutoPGD."""
    known = {"none": "clean", **SHOWN}
    errors = {name: found[key] for name, key in known.items()}
    errors |= {name: curve[1][-1] for name, curve in found["attack_networks"].items()}
    number = found["num_examples"]
    cells = {name: [reporting.error_cell(error, number)] for name, error in errors.items()}
    table = reporting.rate_table("attack", ["error (95 % interval)"], cells)
    verb = "breaks" if is_broken(found) else "does not break"
    return (
        f"## {title}\n\n{table}\n{found['num_examples']} test examples. The best attack network "
        f"{verb} the classifier: {strongest(found):.3f}, to be above {scores.STRONG}, with "
        f"no attack {found['clean']:.3f}, to be at most {scores.TRAINED}.\n"
    )


if __name__ == "__main__":
    main()
