"""What the tables of the games with attack networks say of a result."""

import json

from experiments.hamm_2018 import mixtures, tables
from experiments.hamm_2018.settings import PAPER
from experiments.hamm_2018.variants import said


def result():
    return {
        "dataset": "mnist",
        "num_examples": 1000,
        "errors": {
            "0.3": {
                "No defense": {
                    "clean": {"error": 0.05, "error_bar": 0.01},
                    "attack_network_curr": {"error": 0.93, "error_bar": 0.02},
                }
            }
        },
    }


def test_errors_stand_beside_the_paper_s():
    table, words = tables.defences(result())
    assert "what a step cost was not recorded" in words
    _, _, row = table.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "No defense"
    assert cells[1] == "0.050 (0.038 to 0.065) [0.006 T1, 0.026 T3]"
    assert cells[3] == "0.930 (0.912 to 0.944) [1.000 T4]"
    assert cells[4] == "[1.000 T1]"


def test_what_training_cost_is_a_table_where_it_was_recorded():
    row = {"cost_of_a_step": 3.7561, "steps": 250, "cost": 939.0}
    _, table = tables.defences({**result(), "training_cost": {"Minimax": row}})
    assert table.splitlines()[2] == "| Minimax | 3.76 | 250 | 939 |"


def test_every_number_of_the_paper_has_its_table_where_two_tables_contradict_each_other():
    row = PAPER["mnist"][0.3]["Adv FGSM80"]["fgsm_curr"]
    assert row == {3: 0.442, 4: 0.473}
    row = {eta: PAPER["mnist"][eta]["Adv FGSM1"]["fgsm_curr"] for eta in (0.3, 0.4, 0.5, 0.6)}
    assert [each[3] for each in row.values()] == [0.995, 0.984, 0.970, 0.889]
    assert [each[4] for each in row.values()] == [0.996, 0.984, 0.985, 0.966]
    assert PAPER["cifar10"][0.2]["No defense"]["fgsm_curr"] == {6: 0.825, 8: 0.969, 9: 0.969}
    assert PAPER["mnist"][0.3]["Sens FGSM"]["FGSM80"] == {3: 0.194}
    assert PAPER["cifar10"][0.4]["Minimax"] == {
        "fgsm_curr": {10: 0.931},
        "attack_network_curr": {10: 0.994},
    }


def test_a_committed_run_says_which_variants_made_it():
    """Runs from before the printed forms were there had none of them."""
    old = {"ifgsm_steps": 10, "penalty": 1.0}
    assert "FGSM clipped to [-1, 1]" in said(old) and "of the stronger kind" in said(old)
    assert "min step at the new v" in said(old)
    new = dict(old, gradient_attacks="printed", attacker="paper", order="simultaneous")
    assert "FGSM may leave [-1, 1]" in said(new) and "as in the paper" in said(new)
    assert "both gradients at the old point" in said(new)
    assert said({**old, "order": "alternating"}) == said(old)
    old["apgd_steps"] = 20
    assert "AutoPGD kept by loss" in said(old)
    new = said({**old, "auto_pgd_keeps": "lowest accuracy"})
    assert "AutoPGD keeps the point that fools most" in new and "kept by loss" not in new
    assert "its point of highest loss kept" in new
    new = said({**old, "ifgsm_keeps": "lowest accuracy"})
    assert "a point on its path that fools kept" in new and "highest loss" not in new
    paths = tables.RESULTS.glob("hamm_minimax_defense_*.json")
    heads = [said(json.loads(path.read_text())["config"]) for path in paths]
    variant = "min step at the new v"
    further = 1  # table of runs, some of which are of the variant
    assert tables.table().count(variant) == sum(variant in head for head in heads) + further


def test_further_runs_share_a_table_whose_rows_name_what_differs():
    config = {"dataset": "mnist", "width": 32, "steps": 3000, "penalty": 0.1, "ifgsm_steps": 9}
    run = {**result(), "config": config, "provenance": {"seed": 1}}
    _, _, row, _, words = tables.further({"hamm_further_wide": run}).splitlines()
    assert row.startswith(
        "| [mnist, eta = 0.3, width 32, 3000 steps, gamma 0.1, seed 1]"
        "(results/hamm_further_wide.json): No defense | 0.050 (0.038 to 0.065) |  "
        "| 0.930 "
    )
    assert words.startswith("All of these: FGSM clipped") and "at the new v" in words
    other = {**run, "config": {**config, "order": "simultaneous"}}
    table = tables.further({"a": run, "b": other})
    assert "\na: FGSM clipped" in table and "\nb: FGSM clipped" in table


def test_of_a_network_s_curve_the_end_counts():
    curves = {"usual": [[100.0, 200.0], [0.4, 0.95]]}
    known = {"clean": 0.02, "fgsm": 0.9, "auto_pgd": 1.0}
    table = tables.attackers(
        {"attacked": {"he": {**known, "num_examples": 500, "attack_networks": curves}}}
    )
    assert "| attack network, usual | 0.950 (0.927 to 0.966) |" in table
    assert "| FGSM | 0.900 (0.871 to 0.923) |" in table


def test_an_attacker_that_is_too_weak_to_judge_is_named():
    assert "it can judge one" in tables.verdict({"attack_network_is_strong": True})
    assert "too weak" in tables.verdict({"attack_network_is_strong": False})


def of_seed(minimax, sens):
    def errors(worst, attacks):
        return {each: {"error": worst if each == "worst" else 0.25} for each in attacks}

    rows = {"Sens FGSM": errors(sens, tables.ATTACKS), "Minimax": errors(minimax, tables.ATTACKS)}
    gain = {"mean": minimax - sens}
    mixed = {
        "errors": {"Minimax": errors(minimax, mixtures.HEAD)},
        "gain_over_best_member": gain,
        "num_examples": 100,
    }
    return {
        "errors": {"0.4": rows},
        "mixtures": {"0.4": mixed},
        "training_cost": {"Minimax": {"cost_of_a_step": 10.0, "steps": 400, "cost": 4000.0}},
        "provenance": {"seed": 0},
        "config": {
            **{"dataset": "digits", "width": 8, "steps": 400, "batch_size": 128},
            **{"network_steps": 400, "ifgsm_steps": 10, "penalty": 1.0},
        },
    }


def test_seeds_at_one_cost_share_a_table_of_means_and_of_differences_seed_by_seed():
    """Mean and Student's interval in closed form: two values .1 apart, 12.7 sd, cut at 0 and 1."""
    text = tables.equal_compute([of_seed(0.5, 0.7), of_seed(0.6, 0.9)])
    assert "(results/hamm_digits_equal_compute.json): digits" in text and "seeds: 2." in text
    sens = next(line for line in text.splitlines() if line.startswith("| Sens FGSM |"))
    cells = [cell.strip() for cell in sens.strip("|").split("|")]
    assert cells[1] == "0.250 (0.250 to 0.250)"
    assert cells[-2:] == ["0.800 (0.000 to 1.000)", "0.250 (-0.385 to 0.885)"]
    minimax = next(line for line in text.splitlines() if line.startswith("| Minimax |"))
    assert minimax.endswith("| 0.550 (0.000 to 1.000) |  |")
    assert "on the same 100 examples: -0.250 (-0.885 to 0.385)." in text
    assert "| Minimax | 10.00 | 400 | 4000 |" in text
