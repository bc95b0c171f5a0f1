"""The page of a run in headless Chromium (`apt-get install chromium`) draws what it was given."""

import html
import json
import re
import shutil

import pytest

from experiments import cifar10_mixture, explore

TINY = (
    "--preset demo --model linear --epochs 2 --batch-size 256 --attack-steps 2 --model-steps 2 "
    "--weight-steps 2 --learning-rate 0.05 --validation-examples 40 --validation-steps 2 "
    "--test-examples 30 --test-runs 6 --test-steps 2 --test-batch-size 40 --dispatch-steps 2 "
    "--devices 1 --no-single"
).split()
SMALL = "--num-images 3 --num-examples 4 --num-radii 2 --num-points 4 --batch-size 4".split()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    cifar10_mixture.main([*TINY, "--run-dir", str(folder)])
    explore.main(["--run-dir", str(folder), *SMALL])
    return folder / explore.PAGE


def drawn(children, path, address=""):
    """The document after its script has run, and what the browser's console said."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "needs Chromium: apt-get install chromium"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"{path.as_uri()}{address}"]
    finished = children.run(command)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, [line for line in finished.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_draws_without_an_error_and_everything_has_a_name(children, path):
    page, complaints = drawn(children, path)
    assert complaints == []
    body = page[page.index("<body") : page.index('<script type="application/json"')]
    assert body.count("<svg role=") == 3 and "NaN" not in body and "undefined" not in body
    for tag in re.findall(r"<(?:svg role|canvas|img)[^>]*>", body):
        assert re.search(r'(?:aria-label|alt)="[^"]{5,}"', tag), tag
    assert body.count('type="radio"') == 3 and body.count("<option") == 5


@pytest.mark.parametrize("attack", [explore.ASCENT, *explore.ATTACKS])
def test_the_address_chooses_what_is_shown(children, attack, path):
    text = path.read_text(encoding="utf-8")
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])
    for image, point in ((0, 0), (2, 3)):
        walk = content["images"][image]["walks"][attack]
        page, _ = drawn(children, path, f"#image={image}&attack={attack}&point={point}")
        accuracy = re.search(r'<output id="accuracy"[^>]*>([^<]*)<', page)
        assert accuracy and accuracy[1] == f"{100 * walk['accuracy'][point]:.1f} %"
        rows = re.search(r'<table id="answers">(.*?)</table>', page, re.DOTALL)
        assert rows
        for row, answer, correct in zip(
            re.findall(r'<tr><th scope="row">.*?</tr>', rows[1], re.DOTALL),
            walk["answers"][point],
            walk["correct"][point],
            strict=True,
        ):
            words = html.unescape(re.sub("<[^>]*>", " ", row)).split()
            assert words[2:5] == [str(answer), *(("✓", "right") if correct else ("✗", "wrong"))]
