"""A filter of images that keeps one label readable and hides another (Hamm 2018, section 5.2).

    python -m experiments.hamm_2018.privacy_filter                 # digits, a CPU, minutes
    python -m experiments.hamm_2018.privacy_filter --preset mnist  # a GPU

The leader u is a filter `z(x; u)` of images that adds noise to what a network makes of them (what
a network makes faint, a fresh reader would only make strong again), with a classifier that reads
from them what is to be kept: whether the digit is even. The follower v is a classifier of what is
to be hidden: whether the digit is below 5. They play `weight CE_kept(u) - CE_hidden(u, v)` by the
paper's minimax method and by alternating steps. Then the filter is fixed, and fresh classifiers,
trained on filtered images, read both labels. At best the hidden one is read as by
somebody who knows the kept label only (each parity has three digits of five on one side: an error
of .4), and the kept one as well as ever. Expect both methods to come near that on digits, while
noise alone leaves both labels readable. The paper's risk is `-CE_hidden` alone, which a filter that
erases everything lowers best; the term of what is to be kept, and the noise, are ours.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.hamm_2018 import reports, scores, settings, training
from experiments.hamm_2018.training import Setting, train
from experiments.hamm_2018.variants import ORDERS, Order, said
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checks, defenses, evaluation, games, losses, models, reporting
from mixjax.typing import Training

PROGRAM = "experiments.hamm_2018.privacy_filter"
SIDES = ("below 5", "5 or more")


@dataclasses.dataclass(frozen=True)
class Config(settings.RunConfig):
    """Every field is a flag."""

    learning_rate: float = flag(
        1e-3, "of Adam, for the filter and the classifier of the kept label"
    )
    network_steps: int = flag(10_000, "training steps of the classifiers that judge a filter")
    weight: float = flag(1.0, "of the kept label's cross-entropy beside the hidden one's")
    noise: float = flag(0.3, "standard deviation of what the filter adds to its output, in pixels")
    penalty: float = flag(1.0, "gamma of the minimax method")
    order: Order = flag(
        "simultaneous",
        "of minimax: simultaneous, as printed; alternating, the filter's step at the new reader",
        options=ORDERS,
    )
    ascent_steps: int = flag(1, "steps of the follower before each one of the leader")


PRESETS = {
    "demo": Config(**settings.FILTER),
    "mnist": Config(),
}


def main(argv=None):
    """Trains the filters, judges them, reports."""
    reports.main(PROGRAM, __doc__ or "", PRESETS, experiment, argv, check)


def check(config: Config):
    """Raises `ValueError` for what is out of range."""
    checks.one_of(("digits", "mnist"), dataset=config.dataset)
    checks.positive(weight=config.weight)
    checks.non_negative(penalty=config.penalty, noise=config.noise)
    checks.at_least(1, ascent_steps=config.ascent_steps)


def kept(labels):
    """1 where the digit is odd."""
    return labels % 2


def hidden(labels):
    """1 where the digit is 5 or more."""
    return (labels >= 5).astype(labels.dtype)


READERS = {"kept": kept, "hidden": hidden}


def experiment(setting: Setting) -> Outcome:
    """Both filters and none, each judged by fresh classifiers of both labels."""
    config, dataset = setting.config, setting.dataset
    reader = getattr(models, config.model)(2, config.width, input_shape=dataset.image_shape)
    # The network of the attacks: it has a label, which is always 0 here.
    body = models.attack_network(
        1, input_shape=dataset.image_shape, hidden=(config.network_width,) * 3
    )

    def transform(params, key, images):
        """`z(x; u)`: `[B, ...] -> [B, ...]`; () is noise alone, None no filter at all."""
        if params is None:
            return images
        noise = config.noise * jax.random.normal(key, images.shape)
        if params == ():
            return images + noise
        labels = jnp.zeros(len(images), jnp.int32)
        return jax.nn.sigmoid(body.apply({"params": params}, images, labels)) + noise

    filters = {"no filter": None, "noise alone": ()}
    for name, method in {"alternating": games.alternating, "minimax": minimax(config)}.items():
        make = players(config, method, body, reader, transform)
        filters[name] = train(setting, name, make, num_steps=config.steps).u["filter"]
    rows, pictures, answers = {}, {}, {}
    images, digits = (part[:8] for part in dataset.test)
    make = judge(config, reader, transform)
    read = jax.jit(functools.partial(answer, reader, transform))
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    for name, params in filters.items():
        pictures[name] = np.asarray(transform(params, key, images))
        rows[name] = {}
        for number, label in enumerate(READERS):
            place = f"{name.replace(' ', '_')}-{label}"
            args = params, jnp.int32(number)
            state = train(setting, place, make, *args, num_steps=config.network_steps)
            answers_of = functools.partial(read, params, state.variables, key)
            correct = scores.over_test(
                setting, lambda x, y, _, f=answers_of, label=label: f(x) == READERS[label](y)
            )
            mean, error_bar = evaluation.mean_and_error_bar(1.0 - correct)
            rows[name][label] = scores.error_entry(1 - mean, error_bar, len(correct))
            answers[name] = answers_of(images)
    reports.plot_gallery(setting.folder / "filtered.png", pictures, hidden(digits), answers, SIDES)
    return report(setting, rows)


def minimax(config: Config):
    """The paper's method with the penalty and the order of the flags."""
    return functools.partial(games.minimax, penalty=config.penalty, order=config.order)


def players(config: Config, method, body, reader, transform):
    """`() -> Training` whose `u` is the filter and the kept label's reader, `v` the other one."""

    def cross_entropy(params, images, labels):
        logits = reader.apply({"params": params}, images)
        return jnp.mean(jax.vmap(losses.cross_entropy)(logits, labels))

    def f(u, v, key, images, digits):
        seen = transform(u["filter"], key, images)
        utility = cross_entropy(u["kept"], seen, kept(digits))
        return config.weight * utility - cross_entropy(v, seen, hidden(digits))

    def make():
        game = method(
            f,
            optax.adam(config.learning_rate),
            optax.adam(config.network_learning_rate),
            num_ascent_steps=config.ascent_steps,
        )

        def init(key):
            keys = jax.random.split(key, 3)
            u = {"filter": body.init(keys[0])["params"], "kept": reader.init(keys[1])["params"]}
            return game.init(u, reader.init(keys[2])["params"])

        def step(state, images, digits):
            return game.update(state, noise_key(config, state), images, digits)

        return Training(init, step)

    return make


def judge(config: Config, reader, transform):
    """`(params of a filter, number of a label) -> Training` of a fresh reader of what it filters.

    The number is that of the label in `READERS`, whose readers share what is compiled.
    """
    optimizer = optax.adam(config.network_learning_rate)

    def make(params, number):
        reading = defenses.learning_with_adversary(
            reader, optimizer, training.ball(1.0), training.stay
        )

        def step(state, images, digits):
            seen = transform(params, noise_key(config, state), images)
            labels = jnp.stack([read(digits) for read in READERS.values()])[number]
            return reading.step(state, seen, labels)

        return Training(reading.init, step)

    return make


def noise_key(config: Config, state):
    """The random key of a training step's noise."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 5), state.step)


def answer(reader, transform, params, variables, key, images):
    """Classes `[B]` of a reader of filtered images."""
    return jnp.argmax(reader.apply(variables, transform(params, key, images)), axis=-1)


def blind_error(digits) -> float:
    """Least error on the hidden label of somebody who knows the kept one only."""
    pairs = np.stack([kept(digits), hidden(digits)])
    counts = np.array([[np.sum((pairs.T == (k, h)).all(1)) for h in (0, 1)] for k in (0, 1)])
    return float(1 - counts.max(axis=1).sum() / counts.sum())


def finding(rows: dict, blind: float) -> str:
    """Whether the better filter hides more than noise alone does, and whether it keeps the rest."""
    best = max(("alternating", "minimax"), key=lambda name: rows[name]["hidden"]["error"])
    one, other = (rows[name]["hidden"] for name in (best, "noise alone"))
    sign = reporting.order(one["interval"], other["interval"])
    verdict = (
        f"between the filter of {best} and noise alone there is {reporting.NO_DIFFERENCE}"
        if sign == 0
        else f"the filter of {best} hides {'more' if sign > 0 else 'less'} than noise alone"
    )
    return (
        f"{verdict[0].upper()}{verdict[1:]}: fresh readers err on {one['error']:.3f} of the hidden "
        f"labels against {other['error']:.3f}, at best on {blind:.3f}, and on "
        f"{rows[best]['kept']['error']:.3f} of the kept ones."
    )


def report(setting: Setting, rows: dict) -> Outcome:
    """The table: a good filter has a low error on the left and a high one on the right."""
    blind = blind_error(setting.dataset.test.labels)
    number = len(setting.dataset.test.labels)
    table = reporting.rate_table(
        "filter",
        ["error of the kept label (even or odd)", "error of the hidden label (5 or more)"],
        {
            name: [reporting.error_cell(each["error"], number) for each in row.values()]
            for name, row in rows.items()
        },
    )
    sentence = (
        f"Who knows the kept label and nothing else errs on {blind:.3f} of the hidden ones: more "
        "cannot be hidden.\n"
    )
    head = (
        f"{number} test examples, read by classifiers trained afresh on filtered images; in "
        f"brackets Wilson's 95 % interval. {said(settings.recorded(setting.config))}\n"
    )
    return Outcome(
        {"filters": rows, "error_knowing_the_kept_label": blind, "num_examples": number},
        f"{table}\n{sentence}",
        reports.head(
            setting,
            finding(rows, blind),
            norm="none: a filter is free to change every pixel",
            radius="none",
            model=f"fresh readers: {setting.config.model} of width {setting.config.width}",
            attack="two filters against a reader of what is to be hidden, noise alone, and none",
        ),
        [head, table, sentence],
        {"filtered.png": "Test examples as the filters leave them; below, what is read of them."},
    )


if __name__ == "__main__":
    main()
