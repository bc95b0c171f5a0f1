"""The README says what the committed results of the games with attack networks say."""

from experiments import machine_table


def result():
    return {
        "dataset": "mnist",
        "errors": {
            "0.3": {
                "No defense": {
                    "clean": {"error": 0.05, "error_bar": 0.01},
                    "attack_network_curr": {"error": 0.93, "error_bar": 0.02},
                }
            }
        },
    }


def test_the_tables_are_those_of_the_committed_files():
    page = (machine_table.ROOT / "README.md").read_text()
    assert machine_table.updated(page) == page
    begin = page.index(machine_table.BEGIN) + len(machine_table.BEGIN)
    assert machine_table.updated(page[:begin] + "| 99.9 |\n" + page[begin:]) == page


def test_errors_stand_beside_the_paper_s():
    (table,) = machine_table.defences(result())
    _, _, row = table.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "No defense"
    assert cells[1] == "0.050 ± 0.010 (0.026)"
    assert cells[3] == "0.930 ± 0.020 (1.000)"
    assert cells[4] == ""


def test_further_runs_share_a_table_whose_rows_name_what_differs():
    config = {"dataset": "mnist", "width": 32, "steps": 3000, "penalty": 0.1}
    run = {**result(), "config": config, "provenance": {"seed": 1}}
    *_, row = machine_table.further({"machine_further_wide": run}).splitlines()
    assert row.startswith(
        "| [mnist, eta = 0.3, width 32, 3000 steps, gamma 0.1, seed 1]"
        "(benchmarks/results/machine_further_wide.json): No defense | 0.050 ± 0.010 |  | 0.930 "
    )


def test_of_a_network_s_curve_the_end_counts():
    curves = {"usual": [[100.0, 200.0], [0.4, 0.95]]}
    known = {"clean": 0.02, "fgsm": 0.9, "auto_pgd": 1.0}
    table = machine_table.attackers({"attacked": {"he": {**known, "attack_networks": curves}}})
    assert "| attack network, usual | 0.950 |" in table
    assert "| FGSM | 0.900 |" in table


def test_an_attacker_that_is_too_weak_to_judge_is_named():
    assert "it can judge one" in machine_table.verdict({"attack_network_is_strong": True})
    assert "too weak" in machine_table.verdict({"attack_network_is_strong": False})
