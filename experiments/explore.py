"""A finished run as one page to look at: no server, no other file, nothing loaded from anywhere.

    python -m experiments.explore --run-dir runs/demo    # writes runs/demo/explore.html

Its time depends on the networks and on the examples; of the demo's, most goes into compiling.

Pick a test image and an attack and walk from the clean image to the attacked one: what each
member answers, how the expected accuracy falls, which members the attack goes for. Below it the
security curve: the accuracy that each attack leaves, against the radius.
"""

import base64
import dataclasses
import functools
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.evaluate import BUDGETS
from experiments.meunier_2021.algorithm import build, members
from experiments.meunier_2021.training import restore
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.reading import read_run
from mixjax import checks, data, evaluation, files, losses, mixture, reporting, threats

PROGRAM = "experiments.explore"
PAGE = "explore.html"
TEMPLATE = pathlib.Path(__file__).with_name("explore.html")
ATTACKS = evaluation.CURVES
ASCENT = "ascent_path"  # not an attack of its own: what the first of them does step by step
MAX_BYTES = 2_000_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every field is a flag."""

    run_dir: str = flag("", "folder of the finished run")
    num_images: int = flag(12, "test images to look at")
    num_examples: int = flag(100, "test examples behind the security curve, at most")
    num_radii: int = flag(8, "radii of the security curve besides 0, up to twice the run's, even")
    num_points: int = flag(20, "steps of a walk")
    batch_size: int = flag(50, "examples attacked at once, at most")
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    manual_dir: str = flag("", "folder with the official archives, to prepare data offline")
    debug: bool = flag(False, "show the traceback of an error")


def main(argv=None):
    """Writes the page; bad input ends in one line and exit code 2."""
    budgets = dict.fromkeys(BUDGETS, Settings())
    program.main(PROGRAM, __doc__ or "", budgets, run, argv, selector="budget", folder="")


def run(call: program.Call):
    """Writes the page and says where."""
    print(f"{write_page(BUDGETS[call.choice], call.config)} holds the page.")


def write_page(budget: evaluation.Budget, settings: Settings) -> pathlib.Path:
    """Reads the run, attacks it, and writes the page into its folder."""
    names = ("num_images", "num_examples", "num_points", "batch_size")
    checks.at_least(1, **{name: getattr(settings, name) for name in names})
    checks.within(1, settings.num_examples, num_images=settings.num_images)
    checks.at_least(2, num_radii=settings.num_radii)
    if settings.num_radii % 2:
        raise ValueError(f"num_radii must be even, got {settings.num_radii}")
    if not settings.run_dir:
        raise ValueError("run_dir must be the folder of a finished run: --run-dir DIR")
    folder = pathlib.Path(settings.run_dir)
    run = read_run(folder)
    dataset = data.load(
        run.config.dataset, settings.data_dir or None, manual_dir=settings.manual_dir or None
    )
    game = build(run.config, dataset)
    state = restore(game, run.checkpoints, run.recorded)
    images, labels = (part[: settings.num_examples] for part in dataset.test)
    found = explored(
        members(game.model, state),
        state.weights,
        data.to_float(jnp.asarray(images)),
        jnp.asarray(labels),
        threats.BY_NAME[run.config.norm],
        run.config.epsilon,
        budget,
        settings,
    )
    number = run.config.members
    content = {
        "title": f"{dataset.name}: {f'a mixture of {number}' if number > 1 else 'one classifier'}",
        "norm": {"linf": "l∞", "l2": "l2"}[run.config.norm],
        "epsilon": run.config.epsilon,
        "class_names": dataset.class_names,
        "shape": dataset.image_shape,
        "result": {
            name: run.result[name]
            for name in ("weights", "clean_accuracy", "robust_accuracy", "members", "num_examples")
        }
        | {"interval": reporting.interval_of(run.result, "worst")},
        "provenance": run.result["provenance"],
        **found,
    }
    page = filled(TEMPLATE.read_text(encoding="utf-8"), content)
    if (size := len(page.encode())) > MAX_BYTES:
        raise ValueError(
            f"num_images must be lower: with {settings.num_images} the page has {size / 1e6:.1f} "
            f"MB, above {MAX_BYTES / 1e6:.0f} MB"
        )
    files.write(folder / PAGE, page)
    return folder / PAGE


def explored(logits_fn, weights, images, labels, ball, epsilon, budget, settings: Settings) -> dict:
    """The security curves, and what there is to see on the first images, as plain values."""
    curves = security_curves(
        logits_fn,
        weights,
        images,
        labels,
        evaluation.attack_suite(ball(epsilon), budget),
        epsilon * np.linspace(0, 2, settings.num_radii + 1)[1:],
        batch_size=min(settings.batch_size, len(labels)),
    )
    threat, num_points = ball(epsilon), settings.num_points
    walk = jax.jit(functools.partial(line, threat, num_points=num_points))
    climb = jax.jit(functools.partial(ascent_path, threat, num_steps=num_points))
    found = {name: points[settings.num_radii // 2 - 1] for name, points in curves.points.items()}
    pictures = []
    for n in program.shown(range(min(settings.num_images, len(labels))), "walks", "image"):
        example = logits_fn, weights, images[n], labels[n]
        walks = {name: described(*walk(*example, found[name][n])) for name in ATTACKS}
        walks[ASCENT] = described(*climb(*example), is_straight=False)
        pictures.append(
            {
                "number": n,
                "label": int(labels[n]),
                "clean": png(to_bytes(images[n])),
                "clean_pixels": text(images[n]),
                "walks": walks,
            }
        )
    return {
        "attacks": ATTACKS,
        "curves": curves.report(),
        "images": pictures,
    }


def security_curves(logits_fn, weights, images, labels, attacks, radii, **settings):
    """As `evaluation.security_curves` of `ATTACKS`, one after the other, with a bar."""
    listed = {name for attack in attacks for name in attack.names}
    parts = [
        evaluation.security_curves(
            jax.random.key(0),
            logits_fn,
            weights,
            images,
            labels,
            attacks,
            radii,
            names=(name,),
            **settings,
        )
        for name in program.shown([name for name in ATTACKS if name in listed], "curves", "attack")
    ]
    accuracies = {name: left for part in parts for name, left in part.accuracies.items()}
    accuracies["worst"] = np.min([part.accuracies["worst"] for part in parts], axis=0)
    points = {name: found for part in parts for name, found in part.points.items()}
    return parts[0]._replace(accuracies=accuracies, points=points)


def line(threat, logits_fn, weights, x, label, x_adv, *, num_points: int):
    """The straight way from `x` to `x_adv`: points, and all that is to be seen at them."""
    share = jnp.linspace(0.0, 1.0, num_points + 1).reshape(-1, *[1] * x.ndim)
    points = (1 - share) * x[None] + share * x_adv[None]
    return points, seen(threat, logits_fn, weights, points, label)


def ascent_path(threat, logits_fn, weights, x, label, *, num_steps: int):
    """The points that PGD on the expected loss visits, from `x` itself."""

    def loss_fn(x):
        return losses.expected(losses.cross_entropy, logits_fn(x), label, weights)

    def step(point, _):
        direction = threat.steepest(jnp.nan_to_num(jax.grad(loss_fn)(point)))
        delta = point - x + threat.step_size(num_steps) * direction
        point = jnp.clip(x + threat.project(delta), 0.0, 1.0)
        return point, point

    _, points = jax.lax.scan(step, x, length=num_steps)
    points = jnp.concatenate([x[None], points])
    return points, seen(threat, logits_fn, weights, points, label)


def seen(threat, logits_fn, weights, points, label) -> dict:
    """What the members say at points `[T, ...]` of one example, the first of them clean."""
    logits = jax.vmap(logits_fn)(points)  # [T, L, C]
    alone = jax.vmap(lambda logits: mixture.log_probs(logits[None], jnp.ones(1)))
    probabilities = jnp.exp(jax.vmap(alone)(logits))
    return {
        "radius": jax.vmap(threat.norm)(points - points[:1]),
        "answers": jnp.argmax(logits, axis=-1),
        "confidences": jnp.max(probabilities, axis=-1),
        "of_label": probabilities[..., label],
        "margins": jax.vmap(jax.vmap(losses.margin, (0, None)), (0, None))(logits, label),
        "correct": mixture.correct(logits, label),
        "accuracy": jnp.sum(weights[None] * mixture.correct(logits, label), axis=1),
    }


def described(points, values, *, is_straight: bool = True) -> dict:
    """A walk as plain values; of a straight one the last point's pixels are enough."""
    walk: dict = {"pixels": text(points[-1] if is_straight else points)}
    for name, value in values.items():
        value = np.asarray(value)
        is_real = np.issubdtype(value.dtype, np.floating)
        walk[name] = (np.round(np.float64(value), 4) if is_real else value).tolist()
    return walk


def to_bytes(images) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return np.rint(255 * np.asarray(images)).astype(np.uint8)


def text(images) -> str:
    """Images in [0, 1] as base64 of their bytes."""
    return base64.b64encode(to_bytes(images).tobytes()).decode()


def png(image: np.ndarray) -> str:
    """A uint8 image `[H, W, 1 or 3]` as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def filled(template: str, content: dict) -> str:
    """The template with the content in it; no `<` of it can end the script that holds it."""
    words = json.dumps(files.plain(content), ensure_ascii=False, separators=(",", ":"))
    return template.replace("__CONTENT__", words.replace("<", "\\u003c"))


if __name__ == "__main__":
    main()
