"""The figures draw the numbers they are given, with labels, and read well without colour."""

import itertools
import sys

import matplotlib.colors
import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from experiments import explore
from mixjax import reporting
from mixjax.reporting import drawing

ENTRIES = [
    {"step": 5, "loss": 0.3},
    {
        "step": 10,
        "epoch": 0.5,
        "clean_accuracy": 0.6,
        "robust_accuracy": 0.2,
        "weights": [0.5, 0.5],
    },
    {
        "step": 20,
        "epoch": 1.0,
        "clean_accuracy": 0.9,
        "robust_accuracy": 0.5,
        "weights": [0.3, 0.7],
    },
]
NAMES = ("cat", "dog", "ship")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    saved = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        saved.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return saved


def pictures(axis):
    return np.stack([np.asarray(image.get_array()) for image in axis.get_images()])


def lines(axis):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axis.get_lines()
    }


def examples(num_channels=1, num_members=2):
    generator = np.random.default_rng(0)
    images = generator.uniform(0.3, 0.7, (3, 4, 4, num_channels)).astype(np.float32)
    attacked = images.copy()
    attacked[0, 1, 2] += 0.1
    attacked[2, 0, 0] -= 0.05
    clean = np.tile(np.arange(3)[:, None], (1, num_members))
    fooled = clean.copy()
    fooled[1, -1] = 2
    return images, attacked, np.arange(3), clean, fooled


def test_curves_draw_percent_against_epochs_for_each_run(tmp_path, drawn):
    other = [ENTRIES[2] | {"epoch": 3.0, "clean_accuracy": 0.95}]
    reporting.plot_curves(tmp_path / "curves.png", {"single": ENTRIES, "mixture": other})
    standard, robust = drawn[0].axes
    assert lines(standard) == {
        "single": ([0.5, 1.0], pytest.approx([60, 90])),
        "mixture": ([3.0], pytest.approx([95])),
    }
    assert lines(robust)["single"] == ([0.5, 1.0], pytest.approx([20, 50]))
    for axis, title in ((standard, "standard accuracy"), (robust, "robust accuracy")):
        assert axis.get_title() == title
        assert axis.get_xlabel() == "epochs per classifier"
        assert axis.get_ylabel() == "accuracy (%)"
    assert {text.get_text() for text in standard.get_legend().get_texts()} == {"single", "mixture"}
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "curves.pdf"}
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_weights_draw_one_panel_for_each_run_and_one_line_for_each_member(tmp_path, drawn):
    reporting.plot_weights(tmp_path / "weights.png", {"mixture": ENTRIES})
    (axis,) = drawn[0].axes
    assert lines(axis)["member 1"] == ([0.5, 1.0], [0.5, 0.3])
    assert lines(axis)["member 2"] == ([0.5, 1.0], [0.5, 0.7])
    assert lines(axis)["uniform"][1] == [0.5, 0.5]
    assert (axis.get_title(), axis.get_ylabel()) == ("mixture", "weight (probability)")


@pytest.mark.parametrize("num_channels", [1, 3])
def test_attacks_show_clean_attacked_and_the_scaled_difference(tmp_path, drawn, num_channels):
    images, attacked, *rest = examples(num_channels)
    reporting.plot_attacks(tmp_path / "attacks.png", images, attacked, *rest, NAMES)
    (axis,) = drawn[0].axes
    shown = np.reshape(pictures(axis), (3, 3, 4, 4, 3))
    np.testing.assert_allclose(shown[0, ..., :1], images[..., :1], atol=1e-6)
    np.testing.assert_allclose(shown[1, ..., :1], attacked[..., :1], atol=1e-6)
    difference = np.full((3, 4, 4), 0.5)
    difference[0, 1, 2] = 1.0
    difference[2, 0, 0] = 0.25
    np.testing.assert_allclose(shown[2, ..., 0], difference, atol=1e-6)
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"true: {n}" for n in NAMES]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert [row.split("\n")[0] for row in rows] == ["clean", "attacked", "difference"]
    assert "±0.100" in rows[2]


def test_rows_of_pictures_do_not_overlap_and_each_text_stands_under_its_own(tmp_path, drawn):
    reporting.plot_attacks(tmp_path / "attacks.png", *examples(), NAMES)
    (axis,) = drawn[0].axes
    extents = [image.get_extent() for image in axis.get_images()]
    for n, (left, right, bottom, top) in enumerate(extents):
        assert right - left == pytest.approx(1) and bottom - top == pytest.approx(1)
        if n % 3:
            assert left > extents[n - 1][1]
        if n >= 3:
            assert top > extents[n - 3][2] + 0.2
        if n < 6:
            x, y = axis.texts[n].get_position()
            assert x == pytest.approx((left + right) / 2) and bottom < y < bottom + 0.1


def test_under_each_image_stands_what_the_members_say_with_a_mark_for_errors(tmp_path, drawn):
    reporting.plot_attacks(tmp_path / "attacks.png", *examples(), NAMES)
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert texts[:3] == ["cat ✓\ncat ✓", "dog ✓\ndog ✓", "ship ✓\nship ✓"]
    assert texts[4] == "dog ✓\nship ✗"
    assert len(texts) == 6
    colors = [text.get_color() for text in drawn[0].axes[0].texts]
    assert colors[0] == drawing.RIGHT and colors[4] == drawing.WRONG


def test_an_attack_that_changes_nothing_is_grey(tmp_path, drawn):
    images, _, *rest = examples()
    reporting.plot_attacks(tmp_path / "attacks.png", images, images, *rest, NAMES)
    assert np.all(pictures(drawn[0].axes[0])[6:] == 0.5)


def test_one_example_is_enough(tmp_path):
    one = [value[:1] for value in examples()]
    reporting.plot_attacks(tmp_path / "attacks.png", *one, NAMES)


def test_the_files_are_png_of_readme_size(tmp_path):
    reporting.plot_curves(tmp_path / "curves.png", {"single": ENTRIES})
    with Image.open(tmp_path / "curves.png") as image:
        image.verify()
        assert image.format == "PNG" and 1000 <= image.width <= 1600


def test_a_security_curve_has_a_panel_for_each_classifier_and_a_line_for_each_attack(
    tmp_path, drawn
):
    single = {
        "radii": [0.0, 0.1],
        "accuracy": {"arc": [0.9, 0.5], "worst": [0.9, 0.4]},
        "interval": {"arc": [[0.88, 0.91], [0.48, 0.53]], "worst": [[0.8, 1.0], [0.38, 0.42]]},
    }
    mixture = single | {"accuracy": {"arc": [0.8, 0.6], "worst": [0.8, 0.3]}}
    path = tmp_path / "security.png"
    reporting.plot_security(path, {"single": single, "mixture": mixture}, norm="l2")
    for axis, name, ends in zip(
        drawn[0].axes, ("single", "mixture"), ([90, 40], [80, 30]), strict=True
    ):
        assert axis.get_title() == name and axis.get_xlabel() == "radius (l2)"
        found = {bars.get_label(): bars.lines[0] for bars in axis.containers}
        assert [*found] == ["arc", "worst"]
        assert found["worst"].get_xdata() == pytest.approx([0.0, 0.1])
        assert found["worst"].get_ydata() == pytest.approx(ends)
        if name == "single":
            (segments,) = axis.containers[0].lines[2]
            np.testing.assert_allclose(segments.get_segments()[1][:, 1], [48, 53])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_attack_has_one_look_in_every_figure_and_on_the_page(tmp_path, drawn):
    """The page of a run gives its colours numbers: those of the same list."""
    curves = {
        "radii": [0.0, 0.1],
        "accuracy": dict.fromkeys(("mine", "arc", "worst"), [0.9, 0.5]),
        "interval": dict.fromkeys(("mine", "arc", "worst"), [[0.8, 1.0], [0.4, 0.6]]),
    }
    few = {**curves, "accuracy": {"arc": [0.9, 0.5]}}
    reporting.plot_security(tmp_path / "a.png", {"one": curves, "other": few})
    looks = [
        {bars.get_label(): bars.lines[0].get_color() for bars in axis.containers}
        for axis in drawn[0].axes
    ]
    assert looks[0]["arc"] == looks[1]["arc"] == drawing.COLORS[drawing.ATTACKS.index("arc")]
    assert looks[0]["worst"] == drawing.COLORS[6] and len({*looks[0].values()}) == 3
    assert (explore.ASCENT, *explore.ATTACKS) == drawing.ATTACKS


def test_titles_name_norm_radius_and_attack(tmp_path, drawn):
    attack = "PGD-20, l-inf radius 0.2"
    reporting.plot_curves(tmp_path / "a.png", {"one": ENTRIES}, attack=attack)
    assert drawn[0].axes[1].get_title() == "under PGD-20, l-inf radius 0.2"
    report = {"robust_accuracy": {"worst": 0.5}, "clean_accuracy": 0.9, "num_examples": 30}
    reporting.plot_suite(tmp_path / "b.png", report, threat="l2 radius 0.5")
    assert drawn[-1].axes[0].get_title() == "l2 radius 0.5; dashed: clean"


def test_lines_differ_in_lightness_or_style_so_that_colour_is_not_needed():
    def lightness(color):
        return np.dot(matplotlib.colors.to_rgb(color), [0.2126, 0.7152, 0.0722])

    for first, second in itertools.combinations(range(6), 2):
        same_style = drawing.STYLES[first % 4] == drawing.STYLES[second % 4]
        gap = abs(lightness(drawing.COLORS[first]) - lightness(drawing.COLORS[second]))
        assert not same_style or gap > 0.1


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda path: reporting.plot_curves(path, {"single": ENTRIES[:1]}),
            "metrics of single must hold an entry with epoch, clean_accuracy, robust_accuracy",
        ),
        (
            lambda path: reporting.plot_weights(path, {"single": []}),
            "metrics of single must hold an entry with epoch, weights",
        ),
        (lambda path: reporting.plot_curves(path, {}), "runs must hold at least one run"),
        (lambda path: reporting.plot_security(path, {}), "curves must hold those of one"),
        (lambda path: reporting.plot_weights(path, {}), "runs must hold at least one run"),
        (
            lambda path: reporting.plot_attacks(path, *examples(2), NAMES),
            r"images must be \[N, H, W, 1 or 3\], got \[3, 4, 4, 2\]",
        ),
        (
            lambda path: reporting.plot_attacks(
                path, examples()[0], examples()[1][:2], *examples()[2:], NAMES
            ),
            r"attacked must have shape \[3, 4, 4, 1\], got \[2, 4, 4, 1\]",
        ),
        (
            lambda path: reporting.plot_attacks(
                path, *examples()[:3], examples()[3][:, :1], examples()[4], NAMES
            ),
            r"attacked_predictions must have shape \[3, 1\], got \[3, 2\]",
        ),
    ],
)
def test_what_cannot_be_drawn_is_named_and_nothing_is_written(tmp_path, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_imported_by_the_first_figure_and_pyplot_never(children, tmp_path):
    code = """
import sys
from experiments import explore
from mixjax import reporting
assert "matplotlib" not in sys.modules
run = [{"epoch": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5}]
reporting.plot_curves(sys.argv[1], {"one": run})
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    finished = children.run([sys.executable, "-c", code, str(tmp_path / "curves.png")])
    assert finished.returncode == 0, finished.stderr
