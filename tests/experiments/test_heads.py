"""The sentence that each program's page begins with, of committed numbers and of turned ones."""

import copy
import json
import pathlib
from fractions import Fraction

import numpy as np
import pytest

from experiments.hamm_2018 import attack_network, minimax_defense, privacy_filter, reports
from experiments.meunier_2021 import double_oracle, motivating_example, synthetic
from experiments.pinot_2020 import (
    attack_blindness,
    blindness,
    boosted,
    boosted_table,
    penalized_attackers,
)
from experiments.run import reading
from mixjax import data, evaluation
from mixjax.reporting import NO_DIFFERENCE

RESULTS = pathlib.Path(__file__).parents[2] / "results"
SINGLE, MIXTURE = "single", "mixture of 2"


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def score(accuracy, width=0.02):
    return {"accuracy": accuracy, "interval": [accuracy - width, accuracy + width]}


@pytest.fixture
def digits():
    return data.load("digits")


def left(name):
    """What the attacks leave, and the weights, as a page writes them."""
    result = read(name)
    weights = ", ".join(f"{each:.2f}" for each in result["weights"])
    return f"{100 * result['robust_accuracy']['worst']:.1f} %", weights


PGD, WEIGHTS = left("digits_demo_mixture_of_2")
SUITE, _ = left("digits_demo_mixture_of_2_quick_suite")


def head_of_demo(evaluations=None, **changed):
    results = {SINGLE: read("digits_demo_single"), MIXTURE: read("digits_demo_mixture_of_2")}
    results[MIXTURE] |= changed
    return reading.head(pathlib.Path("runs/my demo"), results, evaluations or {})


def test_the_demo_says_that_the_mixture_lost_and_what_its_pgd_is_worth():
    head = head_of_demo()
    assert (head.norm, head.radius) == ("l-inf", "0.2, of pixels in [0, 1]")
    assert head.model == f"mixture of 2: small_resnet, weights {WEIGHTS}"
    assert head.attack == "PGD-20, 12 runs on each example"
    assert head.examples == "360 test examples of digits"
    begin = f"The mixture of 2 is worse than one classifier trained at equal cost: {PGD}"
    assert head.found.startswith(begin)
    assert f"the suite left {SUITE} where PGD had left {PGD}" in head.worth
    assert head.worth.endswith("--run-dir 'runs/my demo'`")


@pytest.mark.parametrize(
    ("interval", "word"), [([0.01, 0.1], "is better than"), ([-0.1, 0.1], NO_DIFFERENCE)]
)
def test_a_run_names_no_winner_where_the_interval_holds_zero(interval, word):
    versus = {"difference": 0.05, "error_bar": 0.02, "interval": interval}
    assert word in head_of_demo(versus_single=versus).found


def test_without_a_single_classifier_a_run_says_what_is_left():
    result = read("digits_demo_mixture_of_2")
    del result["versus_single"]
    found = reading.head(pathlib.Path("a"), {MIXTURE: result}, {}).found
    assert found.startswith(f"The mixture of 2 withstands the attacks on {PGD}")


def test_settings_that_nobody_has_recorded_leave_the_suite_to_whoever_asks():
    config = read("digits_demo_mixture_of_2")["config"] | {"epsilon": 0.21}
    worth = head_of_demo(config=config).worth
    assert "recorded" not in worth and "experiments.evaluate" in worth


def test_a_run_that_has_met_the_suite_says_what_it_leaves_and_another_threat_s_is_not_taken():
    names = {SINGLE: "digits_demo_single", MIXTURE: "digits_demo_mixture_of_2"}
    quick = {name: read(f"{file}_quick_suite") for name, file in names.items()}
    head = head_of_demo({"quick": quick, "quick_l2_0.5": copy.deepcopy(quick)})
    assert head.attack == "the attack suite, budget quick, 20 runs on each example"
    assert head.worth.startswith(f"PGD at the end of the training had left {PGD}")
    assert f"the suite leaves {SUITE}" in head.worth and f": {SUITE}" in head.found
    other = head_of_demo({"quick_l2_0.5": quick})
    assert other.attack.startswith("PGD-20") and f"left {PGD}" in other.worth


def test_attacks_that_see_the_members_are_said_to_find_more_only_if_they_do():
    pair = read("digits_boosted_pair")
    results = {**pair["linear"], "pair": pair}
    head = attack_blindness.head("quick", blindness.Config(), results)
    assert "attacks that know the members find more" in head.found and "51.0 %" in head.found
    level = copy.deepcopy(pair)
    for place in ("robust_accuracy", "interval"):
        level[place]["worst"] = level[place]["pgd_expected_loss"]
    found = attack_blindness.head("quick", blindness.Config(), {"pair": level}).found
    assert NO_DIFFERENCE in found


def test_a_boosted_mixture_may_win_under_pgd_and_not_under_the_suite(digits):
    rows = {
        "adversarial": {"pgd": score(0.4), "suite": {"worst": score(0.35)}},
        "boosted": {"pgd": score(0.6), "suite": {"worst": score(0.34)}},
    }
    result = {"table_1": rows, "num_members": 3, "num_examples": 50}
    found = boosted.head(boosted.Config(), digits, result).found
    first, second = found.split("; ")
    assert first.startswith(
        "The boosted mixture of 3 is better than its first member alone: 60.0 %"
    )
    assert NO_DIFFERENCE in second


def row(worst):
    return {"clean_accuracy": 1.0, "robust_accuracy": {"worst": worst}, "num_examples": 100}


def test_the_table_compares_the_best_mixture_with_one_network_as_soon_as_there_is_one(digits):
    rows = {"one_network": row(0.7), "bat": row(0.2), "barre": row(0.5), "mrboost": None}
    config = boosted_table.Config()
    found = boosted_table.head(config, digits, rows).found
    assert found.startswith("The best mixture, barre, is worse than one network at equal cost: 50")
    rows["barre"] = row(0.69)
    assert NO_DIFFERENCE in boosted_table.head(config, digits, rows).found
    for few in ({"bat": row(0.2)}, {}):
        found = boosted_table.head(config, digits, few | {"one_network": None}).found
        assert found.startswith("Nothing to compare yet")


@pytest.mark.parametrize("eta", ["0.3", "0.4"])
def test_of_hamm_s_classifiers_the_one_that_errs_least_under_all_attacks_is_named(eta):
    errors = read(f"hamm_minimax_defense_mnist_width_8_eta_{eta}")["errors"]
    for each in errors[eta].values():  # recorded before intervals were
        each["worst"]["interval"] = evaluation.wilson_interval(each["worst"]["error"], 1000)
    found = reports.least(errors)
    rows = errors[eta]
    best = min(rows, key=lambda name: rows[name]["worst"]["error"])
    assert f"eta = {eta} {best} errs least" in found
    assert f"under FGSM alone {rows[best]['fgsm_curr']['error']:.3f}" in found
    level = copy.deepcopy(errors)
    level[eta][best]["worst"]["interval"] = [0.0, 1.0]
    assert NO_DIFFERENCE in reports.least(level)
    level[eta]["No defense"]["worst"]["error"] = 0.0
    assert "no defence is better than none" in reports.least(level)


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.1, 0.3), "mixing gains"), ((-0.3, -0.1), "mixing loses"), ((-0.1, 0.1), NO_DIFFERENCE)],
)
def test_whether_mixing_pays_beside_the_best_member_is_part_of_the_sentence(interval, word):
    mixed = {"gain_over_best_member": {"mean": 0.2, "interval": interval}, "best_member": "Sens"}
    assert word in minimax_defense.mixing("0.4", mixed)


def test_the_best_attack_network_is_named_for_each_classifier():
    attacked = read("hamm_attack_network_mnist_width_8")["attacked"]
    found = attack_network.finding(attacked)
    assert found.count("attack network") == len(attacked) and found[0] == "T"
    for title, each in attacked.items():
        verb = "breaks" if attack_network.is_broken(each) else "does not break"
        assert f"{verb} the classifier without defence ({title})" in found


@pytest.mark.parametrize(
    ("hidden", "word"), [(0.39, "hides more than"), (0.1, "hides less"), (0.2, NO_DIFFERENCE)]
)
def test_a_filter_is_compared_with_noise_alone(hidden, word):
    def entry(error):
        return {"error": error, "interval": [error - 0.02, error + 0.02]}

    rows = {"noise alone": {"hidden": entry(0.21), "kept": entry(0.1)}}
    rows["alternating"] = {"hidden": entry(0.05), "kept": entry(0.3)}
    rows["minimax"] = {"hidden": entry(hidden), "kept": entry(0.12)}
    found = privacy_filter.finding(rows, 0.4)
    assert word in found and "minimax" in found and "on 0.120 of the kept ones" in found


def test_the_games_in_the_plane_say_where_mixing_wins_and_that_it_may_not():
    result = read("synthetic")
    found = synthetic.head(synthetic.Config(), result).found
    assert "in every seed from radius" in found and "in 10 of 10 seeds" in found
    result["better_in_every_seed_from"] = None
    assert "at no radius" in synthetic.head(synthetic.Config(), result).found

    values = motivating_example.values()
    assert "is better than each classifier alone: its adversarial risk is 3/4 against 1" in (
        motivating_example.head(values).found
    )
    values["value"] = Fraction(1)
    assert "is no better than each" in motivating_example.head(values).found


def test_double_oracle_says_whether_its_bounds_meet_and_whom_it_beats():
    result = read("double_oracle")
    found = double_oracle.head(double_oracle.Config(), result).found
    assert "double oracle meet within 0.01" in found and "no better" not in found
    result["double_oracle"]["gap"] = 0.5
    result["best_single_member"] = 0.1
    found = double_oracle.head(double_oracle.Config(), result).found
    assert "do not meet" in found and "no better than the best single member (0.100)" in found


def test_penalised_attackers_say_that_a_mixture_loses_where_the_condition_fails():
    result = read("penalized_attackers")
    found = penalized_attackers.head(penalized_attackers.Config(), result).found
    assert "a mixture gains in all 50 cases" in found and "a mixture loses" in found
    result["theorem_2"]["least_gain"] = -0.1
    found = penalized_attackers.head(penalized_attackers.Config(), result).found
    assert "does not always gain" in found


def test_nothing_about_a_seed_decides_which_recorded_run_is_compared():
    results = {MIXTURE: read("digits_demo_mixture_of_2_seed_3")}
    head = reading.head(pathlib.Path("a"), results, {})
    assert np.isclose(results[MIXTURE]["config"]["seed"], 3) and "recorded run" in head.worth
