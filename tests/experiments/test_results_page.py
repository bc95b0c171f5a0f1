"""`RESULTS.md` says what the committed results say; so does every number in the other pages."""

import json

import pytest

from experiments import page_numbers, results_page
from mixjax import reporting


def test_the_page_of_results_is_the_one_of_the_committed_files():
    assert results_page.PAGE.read_text() == results_page.page()


def test_every_committed_result_is_linked_from_the_page_or_shares_a_row_of_its_seeds():
    page = results_page.page()
    names = [path.stem for path in results_page.RESULTS.glob("*.json")]

    def stands_there(name):
        row = results_page.SEED.sub("", name).replace("_", " ")
        places = f"results/{name}.json", f"| {row}", f"| [{row}, seeds: "
        return any(place in page for place in places)

    assert [name for name in names if not stands_there(name)] == []


@pytest.mark.parametrize("path", page_numbers.pages(), ids=lambda path: path.name)
def test_every_number_with_a_key_is_that_of_its_file(path):
    text = path.read_text()
    assert page_numbers.refreshed(text, path.parent) == text


def test_a_changed_number_would_be_noticed(tmp_path):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "a.json"
    path.write_text(json.dumps({"risk": {"x/y": [0.5, 0.3245]}}))
    link = '[{}](results/a.json "risk/x/y/1{}")'
    text = f"It is {link.format('99.9 %', '')}, which is {link.format('.12', ' [1 -]')}."
    wanted = f"It is {link.format('32.5 %', '')}, which is {link.format('.68', ' [1 -]')}."
    assert page_numbers.refreshed(text, tmp_path) == wanted
    assert page_numbers.numbers(text) == ["99.9 %", ".12"]
    with pytest.raises(ValueError, match="holds nothing at risk/x"):
        page_numbers.refreshed('[1](results/a.json "risk/x")', tmp_path)
    with pytest.raises(ValueError, match="must hold one number"):
        page_numbers.refreshed('[1 to 2](results/a.json "risk/x/y/0")', tmp_path)


def test_a_number_over_seeds_is_their_mean(tmp_path):
    (tmp_path / "results").mkdir()
    for name, value in (("a", 0.1), ("a_seed_1", 0.2), ("a_seed_2", 0.6)):
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({"gain": -value}))
    text = '[0.00](results/a.json "over seeds: gain [abs]")'
    assert page_numbers.refreshed(text, tmp_path) == text.replace("0.00", "0.30")


def run(seed, robust, **config):
    return {
        "clean_accuracy": 0.9,
        "robust_accuracy": {"worst": robust},
        "config": {"epochs": 3, "seed": seed, **config},
        "provenance": {"seed": seed},
    }


def runs(difference=None):
    each = [run(seed, 0.5 + seed / 100) for seed in range(5)]
    for result in each if difference is not None else []:
        result["versus_single"] = {"difference": difference}
    return each


def test_five_seeds_make_a_row_and_four_do_not():
    table = results_page.over_seeds({"five": runs(-0.25), "four": runs()[:4]})
    _, _, row = table.splitlines()
    assert row == (
        "| five | 5 | 90.0 (90.0 to 90.0) | 52.0 (50.0 to 54.0) | -25.0 (-25.0 to -25.0) |"
    )


def test_without_five_seeds_there_is_no_table():
    assert results_page.over_seeds({"four": runs()[:4]}) == ""


def test_a_run_without_the_single_classifier_has_no_difference():
    *_, row = results_page.over_seeds({"five": runs()}).splitlines()
    assert row.endswith("|  |")


@pytest.mark.parametrize("other", [run(4, 0.5, epochs=9), run(3, 0.5)], ids=["config", "seed"])
def test_runs_that_differ_in_more_or_in_less_than_their_seed_are_refused(other):
    with pytest.raises(ValueError, match="differ in their seed and in nothing else"):
        results_page.over_seeds({"five": [*runs()[:4], other]})


def trained(**changes):
    config = {"members": 2, "update": "one", "attack_steps": 10, "attack_step_size": 2 / 255}
    config |= {"weights": "oracle", "weight_steps": 5, "model_steps": 100, "epochs": 30}
    return {"config": config | {"average_decay": 0.0, "ramp": 0.0} | changes}


def test_a_table_says_of_each_training_in_what_it_is_not_algorithm_2():
    cifar = {"update": "all", "attack_steps": 3, "attack_step_size": 4 / 255, "weight_steps": 2}
    cifar |= {"model_steps": 50, "epochs": 2, "average_decay": 0.98}
    table = reporting.training_table(
        {
            "printed": trained(),
            "cifar": trained(**cifar),
            "cifar standard suite": trained(**cifar),
            "single": trained(members=1, ramp=0.3),
            "uniform": trained(weights="uniform"),
            "of another program": {"config": {"epochs": 3}},
        }
    )
    assert table.splitlines()[2:] == [
        "| printed | one member | PGD-10, step 0.0078 | oracle, T_theta = 100, T_lambda = 5 | 30 "
        "| nothing |",
        "| cifar | all 2 | PGD-3, step 0.016 | oracle, T_theta = 50, T_lambda = 2 | 2 "
        "| all members on each batch, averaged parameters |",
        "| single | one member | PGD-10, step 0.0078 |  | 30 | one classifier, growing radius |",
        "| uniform | one member | PGD-10, step 0.0078 | uniform, T_theta = 100 | 30 "
        "| fixed weights |",
    ]


def test_no_result_is_of_attacks_that_still_returned_the_point_of_highest_loss():
    """Those had no interval."""
    found = {
        path.name: json.loads(path.read_text()) for path in results_page.RESULTS.glob("*.json")
    }
    evaluations = {name: each for name, each in found.items() if "error_bar" in each}
    assert evaluations and all("interval" in each for each in evaluations.values())
