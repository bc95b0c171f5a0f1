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


def drawn(children, path, address="", *flags):
    """The document after its script has run, and what the browser's console said."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "needs Chromium: apt-get install chromium"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [*flags, "--virtual-time-budget=5000", "--dump-dom", f"{path.as_uri()}{address}"]
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


# A window is never narrower than 500 pixels, a frame in it is.
FRAME = """<body><iframe width="400" height="800" style="border: 0" srcdoc="{}"></iframe><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
  page.querySelector("details").open = true;
  document.body.dataset.seen = [frame.contentWindow.innerWidth, page.documentElement.scrollWidth,
    style.backgroundColor, style.color].join(";");
}});
</script></body>"""


@pytest.mark.parametrize("is_dark", [False, True])
def test_a_screen_of_400_pixels_is_wide_enough_and_dark_where_the_reader_wants_it(
    children, path, tmp_path, is_dark
):
    measured = tmp_path / "page.html"
    text = html.escape(path.read_text(encoding="utf-8"))
    measured.write_text(FRAME.format(text), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    page, complaints = drawn(children, measured, "", scheme)
    found = re.search(r'data-seen="([^"]*)"', page)
    assert found and complaints == []
    width, scrolled, paper, ink = found[1].split(";")
    assert int(scrolled) <= int(width) == 400
    brightness = [sum(map(int, re.findall(r"[0-9]+", color)[:3])) / 3 for color in (paper, ink)]
    assert (brightness[0] < 60 and brightness[1] > 200) is is_dark
    assert (brightness[0] > 200 and brightness[1] < 60) is not is_dark


def test_the_page_opens_on_the_attack_that_takes_most_and_names_it(children, path):
    text = path.read_text(encoding="utf-8")
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])
    drops = {
        (n, name): walk["accuracy"][0] - min(walk["accuracy"][0], walk["accuracy"][-1])
        for n, image in enumerate(content["images"])
        for name, walk in image["walks"].items()
    }
    page, _ = drawn(children, path)
    said = re.search(r'<p class="soft" id="explanation">([^<]*)<', page)
    assert said and max(drops.values()) > 0
    named = {
        explore.ASCENT: "PGD on the expected loss",
        **{name: name.replace("_", " ").capitalize() for name in explore.ATTACKS},
    }
    best = {name for (_, name), drop in drops.items() if drop == max(drops.values())}
    assert any(
        said[1].startswith((f"{named[name]} breaks", f"{named[name]} lowers")) for name in best
    )


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
