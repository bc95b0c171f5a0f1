"""The page of a finished run: one file, whose numbers are those of a direct computation."""

import base64
import html.parser
import io
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import explore
from experiments.meunier_2021.algorithm import build
from experiments.meunier_2021.training import restore
from experiments.run import reading
from mixjax import attacks, data, evaluation, losses, threats
from tests import short_run

# A linear model on digits: the run that is explored takes seconds.
TINY = (
    "--preset demo --model linear --epochs 3 --batch-size 256 --attack-steps 2 --model-steps 2 "
    "--weight-steps 2 --learning-rate 0.05 --validation-examples 40 --validation-steps 2 "
    "--test-examples 30 --test-runs 6 --test-steps 2 --test-batch-size 40 --dispatch-steps 2 "
    "--devices 1 --no-single"
).split()
SMALL = "--num-images 6 --num-examples 6 --num-radii 2 --num-points 4 --batch-size 4".split()


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text of the script that holds the content."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.content, self.is_content = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.is_content = dict(attrs).get("id") == "content"

    def handle_endtag(self, tag):
        self.is_content = False

    def handle_data(self, data):
        if self.is_content:
            self.content += data


def quick_attacks(threat, budget, attack_suite=evaluation.attack_suite):
    """PGD under the names of all: they share what is compiled, and have tests of their own."""
    *others, baseline = attack_suite(threat, budget)
    return *(baseline._replace(names=each.names, number=each.number) for each in others), baseline


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, without the attacks and figures that its own tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "finished"

    short_run.train(folder, *TINY)
    return folder


@pytest.fixture(scope="module")
def page(finished):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "attack_suite", quick_attacks)
        explore.main(["--run-dir", str(finished), *SMALL])
    return Page((finished / explore.PAGE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def content(page):
    return json.loads(page.content)


@pytest.fixture(scope="module")
def logits_of(finished):
    """`images [N, 8, 8, 1] -> [L, N, C]` of the run's linear members, in NumPy."""
    run = reading.read_run(finished)
    state = restore(build(run.config, data.load("digits")), run.checkpoints, run.recorded)
    (dense,) = state.average["params"].values()
    kernels, biases = np.float64(dense["kernel"]), np.float64(dense["bias"])

    def logits(images):
        flat = np.reshape(np.float64(images), (len(images), -1))
        return np.einsum("nd,ldc->lnc", flat, kernels) + biases[:, None]

    return logits


def pixels(text):
    """Images `[T, 8, 8, 1]` in [0, 1] from the page."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 8, 8, 1) / 255


def walks(content):
    for image in content["images"]:
        for name, walk in image["walks"].items():
            yield image, name, walk


def test_the_page_is_one_file_that_loads_nothing(page, finished):
    text = (finished / explore.PAGE).read_text(encoding="utf-8")
    assert len(text) < explore.MAX_BYTES and "__CONTENT__" not in text
    program = text.replace(page.content, "")  # base64 may hold anything
    assert not re.search(r"https?:|//\w|url\(|@import|<link|<iframe", program)
    assert not [
        attrs["src"] for _, attrs in page.tags if "src" in attrs and "${" not in attrs["src"]
    ]
    (policy,) = [
        attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert str(finished.parent) not in text


def test_the_page_has_names_for_what_cannot_be_seen(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len({*ids})
    assert ("html", {"lang": "en"}) in page.tags
    for tag, attrs in page.tags:
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
        if tag == "canvas":
            assert attrs["role"] == "img"
    script = page.tags.index(("script", {}))
    controls = [tag for tag, _ in page.tags[:script] if tag in ("input", "select", "button")]
    assert controls == ["select", "input"]
    assert sum(tag == "label" for tag, _ in page.tags[:script]) == 2


def test_the_page_names_the_run_as_its_result_does(content, finished):
    result = json.loads((finished / "result.json").read_text())
    for name in ("weights", "clean_accuracy", "robust_accuracy", "num_examples", "members"):
        assert content["result"][name] == result[name]
    assert content["result"]["interval"] == result["interval"]["worst"]
    assert content["provenance"] == result["provenance"]
    assert (content["epsilon"], content["norm"], content["shape"]) == (0.2, "l∞", [8, 8, 1])


def test_the_images_are_the_first_test_images(content):
    test = data.load("digits").test
    assert [image["number"] for image in content["images"]] == list(range(6))
    for image, expected, label in zip(content["images"], test.images, test.labels, strict=False):
        head, body = image["clean"].split(",")
        assert head == "data:image/png;base64" and image["label"] == label
        with Image.open(io.BytesIO(base64.b64decode(body))) as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected[..., 0])
        np.testing.assert_array_equal(255 * pixels(image["clean_pixels"])[0], expected)


def test_every_number_of_a_walk_is_that_of_a_direct_computation(content, logits_of):
    weights = np.array(content["result"]["weights"])
    # The points of a page are rounded to 1 / 255: up to half of it in each of 64 pixels.
    for image, name, walk in walks(content):
        points = pixels(walk["pixels"])
        if len(points) == 1:
            share = np.linspace(0, 1, 5)[:, None, None, None]
            points = (1 - share) * pixels(image["clean_pixels"]) + share * points
        assert len(points) == 5 and walk.keys() >= {"answers", "accuracy"}, name
        logits = logits_of(points).swapaxes(0, 1)
        others = np.delete(logits, image["label"], axis=2).max(axis=2)
        margins = logits[..., image["label"]] - others
        np.testing.assert_allclose(walk["margins"], margins, atol=0.15)
        np.testing.assert_allclose(walk["margins"][0], margins[0], atol=2e-4)
        chances = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        np.testing.assert_allclose(walk["confidences"][0], chances[0].max(axis=1), atol=2e-4)
        of_label = chances[..., image["label"]]
        np.testing.assert_allclose(walk["of_label"], of_label, atol=0.05)
        np.testing.assert_allclose(walk["of_label"][0], of_label[0], atol=2e-4)
        clear = np.abs(margins) > 0.15
        assert np.array_equal(np.array(walk["correct"])[clear], margins[clear] > 0)
        assert walk["answers"][0] == logits[0].argmax(axis=1).tolist()
        np.testing.assert_allclose(walk["accuracy"], walk["correct"] @ weights, atol=1e-4)


def test_no_walk_leaves_the_ball_and_the_attacks_arrive_somewhere(content):
    for image, name, walk in walks(content):
        change = np.abs(pixels(walk["pixels"]) - pixels(image["clean_pixels"]))
        assert change.max() <= content["epsilon"] + 0.51 / 255, name
        last = change[-1].max()
        assert walk["radius"][0] == 0 and walk["radius"][-1] == pytest.approx(last, abs=0.51 / 255)
    changed = [walk["accuracy"][-1] < walk["accuracy"][0] for _, _, walk in walks(content)]
    assert np.mean(changed) > 0.3


def test_the_curves_are_what_is_left_within_each_radius(content):
    curves = content["curves"]
    assert curves["radii"] == pytest.approx([0, 0.2, 0.4]) and curves["num_examples"] == 6
    at_epsilon = {}
    for name in content["attacks"]:
        ends = [
            (image["walks"][name]["accuracy"][0], image["walks"][name]["accuracy"][-1])
            for image in content["images"]
        ]
        at_epsilon[name] = np.min(ends, axis=1)
        clean, left, further = curves["accuracy"][name]
        assert clean == pytest.approx(np.mean(ends, axis=0)[0], abs=1e-4)
        assert left == pytest.approx(at_epsilon[name].mean(), abs=1e-4)
        assert curves["error_bar"][name][1] == pytest.approx(
            at_epsilon[name].std() / np.sqrt(6), abs=1e-4
        )
        assert further <= left <= clean
    worst = np.min([*at_epsilon.values()], axis=0)
    assert curves["accuracy"]["worst"][1] == pytest.approx(worst.mean(), abs=1e-4)
    assert curves["accuracy"]["worst"][2] < curves["accuracy"]["worst"][0]


def test_the_best_point_of_the_ascent_is_that_of_pgd_without_random_start(key):
    slopes = jax.random.normal(key, (2, 3, 5))
    weights, label = jnp.array([0.3, 0.7]), jnp.int32(1)
    x = jnp.linspace(0.1, 0.9, 5)

    def logits_fn(x):
        return jnp.tanh(jnp.sum(slopes * x[None, None], axis=-1))

    def loss_fn(x):
        return losses.expected(losses.cross_entropy, logits_fn(x), label, weights)

    @jax.jit
    def both(threat):
        points, seen = explore.ascent_path(threat, logits_fn, weights, x, label, num_steps=6)
        best, info = attacks.pgd(
            key,
            loss_fn,
            x,
            threat,
            num_steps=6,
            step_size=threat.step_size(6),
            random_start=False,
        )
        lengths = jax.vmap(threat.norm)(points - x[None])
        return points, seen, best, info.loss, jax.vmap(loss_fn)(points), lengths

    for threat in (threats.linf(0.2), threats.l2(0.3)):
        points, seen, best, loss, values, lengths = jax.device_get(both(threat))
        assert len(points) == 7 and np.array_equal(points[0], x)
        assert values.max() == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(points[values.argmax()], best, atol=1e-6)
        assert seen["margins"].shape == (7, 2)
        np.testing.assert_allclose(seen["radius"], lengths, rtol=1e-6)


def test_no_text_can_end_the_script_that_holds_it():
    page = explore.filled("<script>__CONTENT__</script>", {"a": "</script><b>ü"})
    assert page.count("</script>") == 1 and "<b>" not in page
    assert json.loads(page[8:-9]) == {"a": "</script><b>ü"}


def test_a_color_image_keeps_its_colors():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    with Image.open(io.BytesIO(base64.b64decode(explore.png(image).split(",")[1]))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-images 0", "num_images must be a whole number of at least 1, got 0"),
        ("--num-images 7", "num_images must lie in [1, 6], got"),
        ("--num-radii 3", "num_radii must be even, got 3"),
        ("--num-radii 0", "num_radii must be a whole number of at least 2, got 0"),
        ("--num-points 0", "num_points must be a whole number of at least 1, got 0"),
        ("--batch-size 0", "batch_size must be a whole number of at least 1, got 0"),
        ("--num-points many", "--num-points: not a whole number: 'many'"),
        ("--run-dir=", "run_dir must be the folder of a finished run: --run-dir DIR"),
        ("--run-dir /nowhere", "run_dir /nowhere holds no run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, finished, capsys):
    with pytest.raises(SystemExit) as stop:
        explore.main(["--run-dir", str(finished), *SMALL, *flags.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line.startswith("python -m experiments.explore: error: ") and message in line


def test_a_page_that_is_too_large_is_refused_and_not_written(
    page, content, finished, capsys, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(explore.PAGE))
    found = {name: content[name] for name in ("attacks", "curves", "images")}
    monkeypatch.setattr(explore, "explored", lambda *told: found)
    monkeypatch.setattr(explore, "MAX_BYTES", 10_000)
    with pytest.raises(SystemExit):
        explore.main(["--run-dir", str(folder), *SMALL])
    assert "num_images must be lower: with 6 the page has 0." in capsys.readouterr().err
    assert not (folder / explore.PAGE).exists()


def test_the_flags_say_what_they_mean(capsys):
    with pytest.raises(SystemExit):
        explore.main(["--help"])
    text = capsys.readouterr().out
    for field in explore.Settings.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text
