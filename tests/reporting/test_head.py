"""What a page begins with: the lines of a head, and which of two classifiers a sentence names."""

import re

import numpy as np
import pytest

from mixjax import evaluation, reporting
from mixjax.reporting import Head, compared, order


def score(accuracy, low, high):
    return {"accuracy": accuracy, "interval": [low, high]}


def test_a_head_names_norm_radius_model_attack_and_examples_before_one_sentence():
    head = Head("l2", "0.5", "a network", "PGD-7", "30 of digits", "It falls.", "Little.")
    lines = [line for line in str(head).splitlines() if line]
    names = [re.split(r"\*\*", line)[1] for line in lines]
    assert names[:5] == ["norm", "radius", "model", "attack", "examples"]
    assert lines[5:] == ["**What was found.** It falls.", "**What it is worth.** Little."]
    assert str(head._replace(worth="")).rstrip().endswith("It falls.")


def test_intervals_that_touch_do_not_tell_two_classifiers_apart():
    assert order((0.5, 0.6), (0.1, 0.5)) == order((0.1, 0.5), (0.5, 0.6)) == 0
    assert order((0.51, 0.6), (0.1, 0.5)) == 1 and order((0.1, 0.5), (0.51, 0.6)) == -1


@pytest.mark.parametrize(
    ("difference", "begin"),
    [
        ((0.01, 0.09), "The mixture is better than one network: 60.0 %"),
        ((-0.09, -0.01), "The mixture is worse than one network: 60.0 %"),
        ((-0.01, 0.09), f"Between the mixture and one network there is {reporting.NO_DIFFERENCE}:"),
        (None, f"Between the mixture and one network there is {reporting.NO_DIFFERENCE}:"),
    ],
)
def test_a_sentence_says_also_that_the_mixture_lost_or_that_nobody_knows(difference, begin):
    text = compared(
        "the mixture", score(0.6, 0.5, 0.7), "one network", score(0.56, 0.46, 0.66), difference
    )
    assert text.startswith(begin) and "56.0 % (95 % interval 46.0 to 66.0)" in text
    assert ("a difference of +4.0" in text) is (difference is not None)


def test_a_page_begins_with_its_head(tmp_path):
    with pytest.raises(ValueError, match="at least one result"):
        reporting.write_report(tmp_path, {}, head=Head(*"abcdef"))


def evaluated(correct, alone=None):
    """`correct [N, 2, L]` at the clean point and at one of an attack; members as good alone."""
    number = correct.shape[2]
    weights = np.arange(1, number + 1) / np.arange(1, number + 1).sum()

    def found(table, weights):
        size = len(table)
        return evaluation.Evaluation(
            "mixture", None, weights, ("one",), (3,), np.zeros(size, int), table,
            table.all(axis=2), ~table & False, np.ones(size, bool), np.zeros((size, 1)),
            np.array([size]), np.array([1]), np.array([1]), np.ones(1),
        )  # fmt: skip

    each = (
        tuple(found(alone[:, :, k : k + 1], np.ones(1)) for k in range(number))
        if alone is not None
        else ()
    )
    return found(correct, weights)._replace(alone=each)


def test_an_evaluation_says_whether_the_mixture_beats_its_best_member():
    """Member 2 keeps all by itself, while the mixture loses a third of its weight everywhere."""
    correct, alone = np.ones((40, 2, 2), bool), np.ones((40, 2, 2), bool)
    correct[:, 1, 0] = alone[:, 1, 0] = False
    head = evaluated(correct, alone).head
    assert head.found.startswith(
        "The mixture is worse than its best member alone, member 2: 66.7 %"
    )
    assert head.model == "mixture of 2, weights 0.33 0.67" and head.examples == "40"
    level = evaluated(alone | True, alone | True).head.found
    assert reporting.NO_DIFFERENCE in level
    single = evaluated(correct[:, :, :1]).head
    assert single.found.startswith("The mixture withstands the attacks on 0.0 %")


def test_what_makes_the_figures_doubtful_stands_in_the_head():
    sign = evaluation.Finding("zero_gradients", 0.5, 0.1, "told")
    head = evaluated(np.ones((4, 2, 1), bool))._replace(findings=(sign,)).head
    assert head.worth.endswith("too high: zero gradients.")
