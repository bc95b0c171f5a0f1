"""`mixjax.evaluate`: what a classifier or a mixture is worth under attack, in one call."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, evaluation, parallel
from mixjax.attacks import check_numbers, name_of
from mixjax.evaluation import batches, inputs
from mixjax.front.classifiers import members_of
from mixjax.front.progress import Bars
from mixjax.threats import Threat
from mixjax.typing import Bounds, Key

_NUM_PROBED = 100  # examples that the checks on the attacks look at


def evaluate(
    classify: Any,
    images: Any,
    labels: Any,
    threat: Threat,
    *,
    weights: Any = None,
    budget: evaluation.Budget | None = None,
    attacks: Sequence[evaluation.Attack | Callable] = (),
    key: Key | None = None,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int | None = None,
    folder: Any = None,
    progress: bool = True,
) -> evaluation.Evaluation:
    """Attacks a classifier, or a mixture, each of its members and their average, by a whole suite.

    Args:
      classify: function of images `[N, ...]` to logits `[N, C]`, or to those of all members of a
        mixture `[L, N, C]`; or a list of functions to `[N, C]`, the members, which need share
        nothing but the number of classes.
      images: `[N, ...]` floats within `bounds`, or uint8, which is scaled to [0, 1].
      labels: `[N]` integer classes.
      threat: the allowed perturbations, in the units of the inputs.
      weights: `[L]` probabilities of the members; None: equal ones.
      budget: `evaluation.QUICK` if None, `evaluation.STANDARD`, `evaluation.AUTOATTACK` or one of
        your own.
      attacks: more of them, to follow those of the budget: functions whose parameters say what they
        need (`attacks.on_mixture`), or several runs of one as an `evaluation.Attack`.
      key: random key; None: `jax.random.key(0)`. The same key gives the same answers, whatever the
        batch size.
      bounds: lowest and highest value of an input, numbers or arrays that fit one input.
      batch_size: number of images attacked at once, at most; None: 64 on a CPU, 256 elsewhere.
      folder: where to write down what is done: the same call goes on from there, whenever it was
        stopped. None: nowhere.
      progress: whether to show a bar on standard error.

    Returns:
      An `evaluation.Evaluation`: `print` it, or read `clean_accuracy`, `robust_accuracy`, the
      `images` of lowest expected accuracy, `findings`, `report()`.

    Raises:
      ValueError: in one line, before an attack compiles, if an argument is not what it should be,
        or if `folder` holds an evaluation of something else.
      KeyboardInterrupt: after Ctrl-C; what is done is in `folder`, if there is one.

    Example:
      >>> import jax.numpy as jnp, numpy as np, mixjax
      >>> from mixjax import evaluation, threats
      >>> classify = lambda x: jnp.stack([x.sum(axis=1), jnp.ones(len(x))], axis=1)
      >>> images, labels = np.array([[0.6, 0.5], [0.9, 0.8]]), np.array([0, 0])
      >>> one = evaluation.QUICK._replace(lines=("pgd_expected_loss",))  # attack of all of them
      >>> report = mixjax.evaluate(
      ...     classify, images, labels, threats.linf(0.1), budget=one, progress=False
      ... )
      >>> report.clean_accuracy, report.robust_accuracy
      (1.0, 0.5)
    """
    key = jax.random.key(0) if key is None else key
    checks.key(key=key)
    checks.threat(threat=threat)
    if not isinstance(attacks, Sequence):
        raise ValueError(f"attacks must be a list of attacks, got {attacks!r}")
    budget = evaluation.QUICK if budget is None else budget
    suite = evaluation.attack_suite(threat, budget, bounds=bounds)
    suite += tuple(_as_attack(each, threat) for each in attacks)
    images, labels = inputs.checked(images, labels, bounds)
    batch_size = batches.equal_batches(len(images), batch_size)
    members = members_of(classify, weights, inputs.as_floats(images[[0, -1]]))
    try:
        with Bars(progress) as bars:
            found = evaluation.evaluate(
                key,
                members.logits_fn,
                members.weights,
                images,
                labels,
                suite,
                member_fns=members.alone,
                num_diagnosed=_NUM_PROBED,
                batch_size=batch_size,
                folder=folder,
                progress=bars.show,
                transform=parallel.over_examples(),
            )
    except KeyboardInterrupt:
        told = "give a folder to keep it" if folder is None else "the same call goes on"
        raise KeyboardInterrupt(f"the evaluation was stopped: {told}") from None
    if images.dtype == np.uint8:
        finding = _divides_itself(members, images, labels, found.accuracies[:, 0])
        found = found._replace(findings=(*found.findings, finding))
    return found


def _as_attack(attack, threat):
    if not isinstance(attack, evaluation.Attack):
        check_numbers(attack)
        return evaluation.Attack((name_of(attack),), 1, attack, threat)
    return attack if attack.threat is not None else attack._replace(threat=threat)


def _divides_itself(members, images, labels, clean):
    """Whether the members expect pixels in [0, 255]; here uint8 is scaled to [0, 1]."""
    rows = np.linspace(0, len(images) - 1, min(_NUM_PROBED, len(images))).astype(np.int32)
    pixels = jnp.asarray(images[rows], jnp.float32)
    answers = batches.judge_batch(members.logits_fn, members.weights, pixels, labels[rows], rows)
    accuracy = evaluation.expected_accuracy(answers.correct, members.weights).mean()
    return evaluation.Finding(
        "divides_itself",
        float(accuracy - clean[rows].mean()),  # on the same examples
        0.1,
        "by how much the accuracy is higher on pixels from 0 to 255; uint8 images are scaled to "
        "[0, 1] and the model seems to divide them once more",
    )
