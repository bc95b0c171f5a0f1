"""A short run of `cifar10_mixture` for the tests of what looks at its runs."""

import pytest

from experiments import cifar10_mixture
from mixjax import attacks, evaluation, reporting


def one_step(threat, names, number):
    """Compiles fast, in the place of attacks that have tests of their own."""
    return evaluation.Attack(names, 1, attacks.fgsm, threat, (0.0, 1.0), number)


def train(folder, *flags):
    """The run, without the attacks and figures that its own tests look at."""

    def pgd_attacks(threat, num_runs, **settings):
        return (one_step(threat, ("pgd_expected_loss",) * num_runs, 0),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "pgd_attacks", pgd_attacks)
        patch.setattr(cifar10_mixture, "draw_attacks", lambda *told: None)
        for name in ("plot_curves", "plot_weights"):
            patch.setattr(reporting, name, lambda path, *told, **settings: path.touch())
        cifar10_mixture.main([*flags, "--run-dir", str(folder)])
