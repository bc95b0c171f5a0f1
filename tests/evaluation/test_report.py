import json
import math

import numpy as np
import pytest

from mixjax import evaluation
from tests.evaluation.answers import of_answers

WEIGHTS = np.array([0.5, 0.3, 0.2])
NAMES = ("one", "one", "two", "one", "three")
NUM_STEPS = (20, 20, 7, 7, 7)


def table(num_examples=60, num_members=3, weights=WEIGHTS, **settings):
    """A random table in which a right answer is likely at the clean point and less so elsewhere."""
    generator = np.random.default_rng(3)
    chance = np.array([0.95, 0.7, 0.8, 0.6, 0.85, 0.9])[:, None]
    members = generator.random((num_examples, 6, num_members)) < chance
    averaged = generator.random((num_examples, 6)) < chance[:, 0]
    is_nan = ~members & (generator.random(members.shape) < 0.1)
    settings = {"averaged_correct": averaged, "is_nan": is_nan, "num_steps": NUM_STEPS} | settings
    return of_answers(members, weights, NAMES, **settings)


def alone(right):
    """What a report says of one classifier, by loops."""
    robust = sum(all(row) for row in right) / len(right)
    return {
        "clean_accuracy": sum(row[0] for row in right) / len(right),
        "robust_accuracy": robust,
        "error_bar": pytest.approx(np.sqrt(robust * (1 - robust) / len(right))),
        "interval": list(evaluation.wilson_interval(robust, len(right))),
    }


def test_every_figure_equals_a_loop_over_examples_points_and_members():
    outcomes = table()
    found = outcomes.report()
    sums = {"clean": 0.0, "one": 0.0, "two": 0.0, "three": 0.0, "worst": 0.0, "lower": 0.0}
    for n in range(60):
        lowest = dict.fromkeys(sums, 1.0)
        for point in range(6):
            accuracy = sum(WEIGHTS[k] for k in range(3) if outcomes.correct[n, point, k])
            lines = ("clean", "one", "two", "three") if point == 0 else (NAMES[point - 1],)
            for line in (*lines, "worst"):
                lowest[line] = min(lowest[line], accuracy)
        lowest["lower"] = sum(
            WEIGHTS[k] for k in range(3) if all(outcomes.correct[n, point, k] for point in range(6))
        )
        for line in sums:
            sums[line] += lowest[line] / 60
    assert found["clean_accuracy"] == pytest.approx(sums["clean"], abs=1e-12)
    assert found["robust_accuracy"] == {
        line: pytest.approx(sums[line], abs=1e-12) for line in ("one", "two", "three", "worst")
    }
    assert found["sandwich"]["lower"] == pytest.approx(sums["lower"], abs=1e-12)
    assert found["sandwich"]["upper"] == found["robust_accuracy"]["worst"]
    for member in range(3):
        right = outcomes.correct[:, :, member]
        assert found["members"][member] == alone(right)
        count = sum(outcomes.is_nan[n, point, member] for n in range(60) for point in range(6))
        assert found["num_nan_answers"][member] == count > 0
    assert found["averaged"] == alone(outcomes.averaged_correct)


def test_the_report_is_json_and_counts_the_runs():
    found = table().report()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["num_members"], found["num_examples"], found["num_attack_runs"]) == (3, 60, 5)
    assert found["weights"] == [0.5, 0.3, 0.2]
    two = found["attacks"]["two"]
    assert (two["num_runs"], two["num_steps"], two["num_examples"]) == (1, 7, 60)
    assert list(found["error_bar"]) == ["clean", "one", "two", "three", "worst"]
    for name, mean in (found["robust_accuracy"] | {"clean": found["clean_accuracy"]}).items():
        assert found["interval"][name] == list(evaluation.wilson_interval(mean, 60))


def test_the_sandwich_holds_for_each_example_whatever_the_table():
    generator = np.random.default_rng(0)
    for num_members in (1, 2, 3, 7):
        weights = generator.dirichlet(np.full(num_members, 0.5)).astype(np.float32)
        outcomes = table(200, num_members, weights)
        lower, upper = outcomes.lower, outcomes.worst
        assert np.all(lower <= upper)
        assert np.all(upper <= outcomes.accuracies[:, 0])
        assert num_members == 1 or np.any(lower < upper)


def test_nobody_is_right_with_a_probability_above_one():
    weights = np.array([0.33334, 0.33334, 0.33334], np.float32)
    right = of_answers(np.ones((5, 2, 3), bool), weights, ["one"])
    assert right.worst.max() <= 1.0
    assert right.worst == pytest.approx(1.0, abs=1e-12)


def test_the_error_bar_of_a_proportion_is_the_textbook_one():
    values = np.repeat([1.0, 0.0], [30, 70])
    assert evaluation.mean_and_error_bar(values) == pytest.approx((0.3, np.sqrt(0.3 * 0.7 / 100)))
    assert evaluation.mean_and_error_bar([0.25]) == (0.25, 0.0)


@pytest.mark.parametrize("z", [1.0, 1.96])
@pytest.mark.parametrize(("mean", "num_examples"), [(0.3, 100), (0.97, 40), (0.5, 1), (0.02, 7)])
def test_the_ends_of_wilsons_interval_are_z_standard_errors_of_their_own_from_the_mean(
    mean, num_examples, z
):
    """The standard error is that under the end, not that under what was seen."""
    low, high = evaluation.wilson_interval(mean, num_examples, z=z)
    assert 0 < low < mean < high < 1
    for end in (low, high):
        sigma = np.sqrt(end * (1 - end) / num_examples)
        assert abs(mean - end) == pytest.approx(z * sigma, rel=1e-9)


def test_two_hundred_right_answers_of_two_hundred_do_not_mean_certainty():
    """Where the standard error is 0: `N / (N + z^2)`."""
    low, high = evaluation.wilson_interval(1.0, 200)
    assert (low, high) == (pytest.approx(200 / (200 + 1.96**2)), 1.0)
    assert evaluation.wilson_interval(0.0, 200) == pytest.approx((0.0, 1 - low))
    assert evaluation.wilson_interval(np.float32(1 + 1e-7), 200) == (low, 1.0)


@pytest.mark.parametrize("chance", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.3, 0.2]])
def test_wilsons_interval_holds_the_truth_as_often_as_it_says(chance, weights):
    """Also of expected accuracies, which are no coins: there it is wide rather than narrow."""
    right = np.random.default_rng(0).random((2000, 50, len(weights))) < chance
    means = (right @ np.array(weights)).mean(axis=1)
    held = [low <= chance <= high for low, high in map(wilson_of_50, means)]
    assert np.mean(held) > (0.915 if len(weights) == 1 else 0.985)


def wilson_of_50(mean):
    return evaluation.wilson_interval(mean, 50)


def test_a_paired_interval_is_that_of_the_gain_where_there_is_no_loss():
    """And where nothing differs it ends `z^2 / (N + z^2)` on either side of 0."""
    first = np.repeat([1.0, 0.0], [50, 50])
    second = np.repeat([1.0, 0.0], [54, 46])
    low, high = evaluation.paired_interval(second, first)
    gain = evaluation.wilson_interval(0.04, 100)
    nothing = evaluation.wilson_interval(0.0, 100)[1]
    assert high == pytest.approx(gain[1])
    assert low == pytest.approx(0.04 - np.hypot(0.04 - gain[0], nothing))
    assert evaluation.paired_interval(first, second) == pytest.approx((-high, -low))
    assert evaluation.paired_interval(first, first) == pytest.approx((-nothing, nothing))


def test_a_paired_interval_holds_the_truth_as_often_as_it_says():
    """Gains of .5 on a tenth of the examples, losses of 1 on a fifth: -.15 on average."""
    drawn = np.random.default_rng(0).random((2000, 100))
    gains, losses = 0.5 * (drawn < 0.1), 1.0 * (drawn > 0.8)
    ends = [evaluation.paired_interval(*pair) for pair in zip(gains, losses, strict=True)]
    assert np.mean([low <= -0.15 <= high for low, high in ends]) > 0.94


def test_the_error_bars_of_the_report_are_those_of_its_accuracies():
    outcomes = table()
    found = outcomes.report()
    values = outcomes.worst
    assert found["error_bar"]["worst"] == pytest.approx(values.std() / np.sqrt(60))
    clean = outcomes.accuracies[:, 0]
    assert found["error_bar"]["clean"] == pytest.approx(clean.std() / np.sqrt(60))


def test_a_paired_difference_knows_that_hard_examples_are_hard_for_both():
    """The second is right wherever the first is, and on 4 examples of 100 more."""
    first = np.repeat([1.0, 0.0], [50, 50])
    second = np.repeat([1.0, 0.0], [54, 46])
    difference, error_bar = evaluation.paired_difference(second, first)
    assert difference == pytest.approx(0.04)
    assert error_bar == pytest.approx(np.sqrt(0.04 * 0.96 / 100))
    assert error_bar < evaluation.mean_and_error_bar(first)[1] / 2
    assert evaluation.paired_difference(first, second)[0] == pytest.approx(-0.04)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], r"weights must have shape \[3\], got \[2\]"),
        ([0.5, 0.3, 0.3], "weights must be on the simplex"),
    ],
)
def test_weights_that_do_not_fit_the_answers_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        table(weights=weights).report()


def test_a_table_for_the_terminal_a_notebook_and_a_folder(tmp_path):
    """All three name every attack; what is suspicious is told."""
    finding = evaluation.Finding("nan_answers", 0.2, 0.0, "told")
    found = table(findings=(finding,))
    for text in (str(found), found._repr_markdown_(), found._repr_html_()):
        worst = f"{100 * found.robust_accuracy:.1f} %"
        for word in ("clean", "one", "two", "three", "all attacks", worst, "60 examples", "told"):
            assert word in text
    page = found.save(tmp_path / "a" / "b")
    assert {path.name for path in page.parent.iterdir()} == {
        "evaluation.json",
        "report.md",
        "suite.png",
        "suite.pdf",
    }
    stored = json.loads((page.parent / "evaluation.json").read_text())
    assert stored == json.loads(found.to_json())
    assert "suite.png" in page.read_text() and "told" in page.read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder .* cannot be written"):
        found.save(tmp_path / "file")


def test_without_costs_a_report_is_that_of_every_other_run():
    slow = table()
    quick = slow._replace(seconds=slow.seconds + 1)
    assert slow.report() != quick.report()
    assert slow.report(with_costs=False) == quick.report(with_costs=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": 1.5}, r"mean must lie in \[0, 1\], got 1.5"),
        ({"num_examples": 0}, "num_examples must be a whole number of at least 1, got 0"),
        ({"z": -1.0}, "z must be positive, got -1.0"),
    ],
)
def test_an_interval_of_something_else_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.wilson_interval(**{"mean": 0.5, "num_examples": 10, "z": 1.96, **arguments})


def test_a_difference_of_different_examples_is_refused():
    with pytest.raises(ValueError, match=r"others must have shape \[3\], got \[2\]"):
        evaluation.paired_interval(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\]"):
        evaluation.paired_interval(2 * np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"others must have shape \[3\], got \[2\]"):
        evaluation.paired_difference(np.ones(3), np.ones(2))


def test_the_interval_over_seeds_is_student_s():
    mean, (low, high) = evaluation.over_seeds([0.1, 0.2, 0.3, 0.4, 1.0])
    spread = 2.7764451 * math.sqrt((0.3**2 + 0.2**2 + 0.1**2 + 0.0**2 + 0.6**2) / 4) / math.sqrt(5)
    np.testing.assert_allclose([mean, low, high], [0.4, 0.4 - spread, 0.4 + spread], rtol=1e-7)


@pytest.mark.parametrize("values", [[0.5], [0.5, math.nan], [[0.5, 0.4]]])
def test_an_interval_over_seeds_takes_two_finite_numbers_at_least(values):
    with pytest.raises(ValueError, match="at least two finite numbers"):
        evaluation.over_seeds(values)
