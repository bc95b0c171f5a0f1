"""Losses of one member on one example, never reduced.

`logits` are `[C]`, `label` is an integer `[]`; `jax.vmap` adds members and examples. The sign is
the defender's: the attacker ascends. A margin is the opposite: positive means correct.

A class of logit -inf is masked: it is never predicted, and values and gradients are those of the
other classes; where that class is the label the input is misclassified and a loss is infinite.
Logits of half precision become float32, whose range holds the differences of overconfident ones.

The functions that take `weights` are losses of a mixture, whose members give `[L, C]` logits. Each
says in its own way how far the mixture is from being fooled, and each leads an attack elsewhere. A
member that answers NaN errs: no more can be gained from it, and it decides nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax import _softmax, checks, mixture
from mixjax.typing import Array

_SMALLEST_SPREAD = 1e-12  # of logits that differ; far below the spacing of float32 around 1
_WEIGHT_ROUNDING = 1e-6  # of weights that sum to 1


def cross_entropy(logits: Array, label: Array) -> Array:
    """`-log p(label)`: `[C], [] -> []`, in nats.

    Raises:
      ValueError: if the logits are not `[C]` or the label is not one of their classes.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> losses.cross_entropy(jnp.array([0.0, 0.0]), 1).round(4)  # log 2
      Array(0.6931, dtype=float32)
    """
    logits = _of_one(logits, label)
    return -_softmax.log_softmax(logits)[label]


def trades(clean_logits: Array, logits: Array) -> Array:
    """`KL(p(x) || p(x'))`, what an attacker raises in TRADES, in nats.

    Args:
      clean_logits: `[C]` logits on the clean input `x`.
      logits: `[C]` logits on the attacked input `x'`.

    Returns:
      `[]` divergence, 0 where both agree.

    Raises:
      ValueError: if the logits are not `[C]`.

    References:
      Zhang et al., Theoretically principled trade-off between robustness and accuracy, 2019.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> round(float(losses.trades(jnp.array([0.0, 0.0]), jnp.array([0.0, 2.0]))), 3)
      0.434
    """
    checks.logits("C", clean_logits=clean_logits, logits=logits)
    log_p, log_q = (_softmax.log_softmax(_wide(z)) for z in (clean_logits, logits))
    # Of log-probabilities, not of probabilities: a quotient of two that underflow would be 0 / 0.
    p = jnp.exp(log_p)
    # A class that x excludes costs nothing, whatever x' says of it: 0 log 0 is 0.
    return jnp.sum(p * jnp.where(p == 0, 0.0, log_p - log_q))


def margin(logits: Array, label: Array) -> Array:
    """`logits[label] - max of the others`: `[C], [] -> []`; positive means correct.

    Raises:
      ValueError: if there is one class only, which nothing can lead, the logits are not `[C]` or
        the label is not one of their classes.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> losses.margin(jnp.array([2.0, 0.5, 1.0]), 0)
      Array(1., dtype=float32)
    """
    logits = _of_one(logits, label)
    return jnp.where(_masked(logits[label]), -jnp.inf, _lead(logits, label))


def dlr(logits: Array, label: Array) -> Array:
    """`-(z_label - max of the others) / (z_1st - z_3rd)`, logits sorted downwards: `[C], [] -> []`.

    Unlike the cross-entropy it does not change when the logits are shifted or multiplied by a
    positive number, so that overconfident networks do not hide their gradients. It lies in
    [-1, 0] where the label is ahead and is positive where it is behind.

    With three classes the denominator is the whole spread. With two the quotient could only be
    -1 or 1, useless to an attacker: there it is the plain `-margin`. Where the three highest logits
    tie the denominator is 1e-12, so that value and gradient stay finite.

    Raises:
      ValueError: as `margin`.

    References:
      Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, equation 6.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> logits = jnp.array([3.0, 2.0, 1.0])
      >>> float(losses.dlr(logits, 0)), float(losses.dlr(100.0 * logits, 0))
      (-0.5, -0.5)
    """
    logits = _of_one(logits, label)
    score = -_lead(logits, label) / _spread(logits, 3)
    return jnp.where(_masked(logits[label]), jnp.inf, score)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """`-(z_label - z_target) / (z_1st - (z_3rd + z_4th) / 2)`: `[C], [], [] -> []`.

    As `dlr`, but of the lead over one class: positive only where `target` is ahead of the label, so
    that a positive value always means an error.

    With three classes there is no fourth and the denominator is the whole spread; with two it is
    the plain `z_target - z_label`. A masked target is out of reach: -inf.

    Raises:
      ValueError: as `margin`, and if the target is not one of the classes.

    References:
      Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, equation 7.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> round(float(losses.targeted_dlr(jnp.array([3.0, 2.0, 1.0, 0.0]), 0, 1)), 3)
      -0.4
    """
    logits = _of_one(logits, label)
    checks.label(logits.shape[-1], target=target)
    # Both differences are finite where they are not used: no infinity gets into the gradient.
    out_of_reach, wrong = _masked(logits[target]), _masked(logits[label])
    known = jnp.where(_masked(logits), 0.0, logits)
    score = (known[target] - known[label]) / _spread(logits, 4)
    return jnp.where(wrong, jnp.inf, jnp.where(out_of_reach, -jnp.inf, score))


def zero_one(logits: Array, label: Array) -> Array:
    """1 unless the label is strictly ahead of every other class: `[C], [] -> []`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> float(losses.zero_one(jnp.array([1.0, 1.0]), 0))  # a tie is an error
      1.0
    """
    logits = _of_one(logits, label)
    return 1.0 - mixture.correct(logits, label)


def expected(
    loss: Callable[[Array, Array], Array], logits: Array, label: Array, weights: Array
) -> Array:
    """`sum_k weights_k loss(logits_k, label)`: `[L, C], [], [L] -> []`.

    Args:
      loss: `[C], [] -> []`, of one member.
      logits: `[L, C]` logits of the members on one example.
      label: `[]` the true class.
      weights: `[L]` probabilities of the members.

    Raises:
      ValueError: if there is not one weight for each member, or as by `loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> logits, weights = jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.array([0.75, 0.25])
      >>> losses.expected(losses.zero_one, logits, 0, weights)
      Array(0.25, dtype=float32)
    """
    checks.logits("L C", logits=logits)
    of_members = jax.vmap(loss, in_axes=(0, None))
    return mixture.expected_loss(of_members(_still_where_nan(logits), label), weights)


def mean_probability_margin(logits: Array, label: Array, weights: Array) -> Array:
    """`log p(label) - max of the others`, `p` the mean probability: `[L, C], [], [L] -> []`.

    Positive while the averaged ensemble, which answers by the expected probabilities, is correct.

    Raises:
      ValueError: if there is not one weight for each member.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.25, 0.75]]))
      >>> margin = losses.mean_probability_margin(logits, 0, jnp.array([0.75, 0.25]))
      >>> round(float(margin), 3)  # the mean probabilities are 5/8 and 3/8
      0.511
    """
    checks.logits("L C", logits=logits)
    checks.shape((len(logits),), weights=weights)
    logits = jnp.minimum(logits, jnp.finfo(logits.dtype).max)  # infinite ones are certain
    # A member that answers NaN would make the mean NaN: it errs, and the others are averaged.
    answers = ~jnp.any(jnp.isnan(_softmax.log_softmax(logits)), axis=-1)
    weights = jnp.where(answers, weights, 0.0)
    logits = jnp.where(answers[:, None], logits, 0.0)
    lead = margin(mixture.log_probs(logits, weights), label)
    return jnp.where(jnp.any(weights > 0), lead, -jnp.inf)


def expected_margin(logits: Array, label: Array, weights: Array) -> Array:
    """`sum_k weights_k margin_k`: `[L, C], [], [L] -> []`.

    Negative where the members that err do so by more than the others are right by, each times its
    weight: a member with large logits may decide, however small its weight.

    Raises:
      ValueError: if there is not one weight for each member.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> losses.expected_margin(logits, 0, jnp.array([0.75, 0.25]))
      Array(1.25, dtype=float32)
    """
    return mixture.expected_loss(_finite_margins(logits, label, weights), weights)


def expected_hinge(logits: Array, label: Array, weights: Array) -> Array:
    """`sum_k weights_k max(margin_k, 0)`: `[L, C], [], [L] -> []`; 0 where all err.

    The expected loss of Carlini and Wagner's attack: from a member that errs no more is gained.

    Raises:
      ValueError: if there is not one weight for each member.

    References:
      Pinot et al., Randomization matters, 2020, supplement 2.1 and 2.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # the second errs already
      >>> losses.expected_hinge(logits, 0, jnp.array([0.75, 0.25]))
      Array(1.5, dtype=float32)
    """
    margins = _finite_margins(logits, label, weights)
    return mixture.expected_loss(jnp.maximum(margins, 0.0), weights)


def accuracy_margin(
    logits: Array, label: Array, weights: Array, share: float | Array = 1.0
) -> Array:
    """The largest margin among the members fooled most easily: `[L, C], [], [L] -> []`.

    Members are ordered by their margins, and the first of them that weigh `share` together count.
    It is positive exactly where `mixture.accuracy` exceeds `1 - share`: with a tiny share until any
    member errs, with 1/2 until half of the weight does, with 1 until all of it does.

    Args:
      logits: `[L, C]` logits of the members on one example.
      label: `[]` the true class.
      weights: `[L]` probabilities of the members; those of weight 0 do not count.
      share: weight of the members that are to err, in (0, 1].

    Raises:
      ValueError: if there is not one weight for each member, or `share` is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import losses
      >>> logits, weights = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0.75, 0.25])
      >>> float(losses.accuracy_margin(logits, 0, weights, 0.25))  # a quarter errs already
      -1.0
      >>> float(losses.accuracy_margin(logits, 0, weights))
      2.0
    """
    checks.shape((len(logits),), weights=weights)
    checks.positive(share=share)
    checks.within(0.0, 1.0, share=share)
    margins = _margins(logits, label)
    order = jnp.argsort(jnp.where(jnp.isnan(margins), -jnp.inf, margins))
    margins, weights = margins[order], jnp.asarray(weights)[order]
    enough = (jnp.cumsum(weights) >= share - _WEIGHT_ROUNDING) & (weights > 0)
    # The first place from which on the fooled weigh enough; a tie of weights in the last digit must
    # not move it by a member.
    margin = margins[jnp.argmax(enough)]
    return jnp.where(jnp.isnan(margin), -jnp.inf, margin)


def _of_one(logits, label):
    """Checked logits of one member on one example, in float32 at least."""
    checks.logits("C", logits=logits)
    checks.label(logits.shape[-1], label=label)
    return _wide(logits)


def _wide(logits):
    logits = jnp.asarray(logits)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _masked(logits):
    return logits == -jnp.inf


def _lead(logits, label):
    """`logits[label] - max of the others`, finite where the label is masked."""
    checks.at_least(2, num_classes=logits.shape[-1])
    others = jnp.max(logits, where=jnp.arange(logits.shape[-1]) != label, initial=-jnp.inf)
    masked = _masked(logits[label])
    return jnp.where(masked, 0.0, logits[label]) - jnp.where(masked, 0.0, others)


def _spread(logits, num_highest):
    """The highest logit less the mean of the third and later of `num_highest`; 1 without any."""
    # Four at most are needed, of a thousand classes, too; a sort of all of them costs more than the
    # loss.
    highest, _ = jax.lax.top_k(logits, min(num_highest, logits.shape[-1]))
    others = highest[2:]
    counts = ~_masked(others)
    number = jnp.sum(counts)
    mean = jnp.sum(jnp.where(counts, others, 0.0)) / jnp.maximum(number, 1)
    top = jnp.where(number > 0, highest[0], 1.0)
    return jnp.where(number > 0, jnp.maximum(top - mean, _SMALLEST_SPREAD), 1.0)


def _still_where_nan(logits):
    """The logits `[L, C]`; those of a member that answers NaN have no derivative.

    Theirs would be NaN, which times the member's weight of 0 is NaN, and would hide the others.
    """
    answers = ~jnp.any(jnp.isnan(logits), axis=-1, keepdims=True)
    return jnp.where(answers, logits, jax.lax.stop_gradient(logits))


def _margins(logits, label):
    checks.logits("L C", logits=logits)
    return jax.vmap(margin, in_axes=(0, None))(_still_where_nan(logits), label)


def _finite_margins(logits, label, weights):
    """Margins `[L]`, 0 for a member that answers NaN or has no weight: 0 times infinity is NaN."""
    checks.shape((len(logits),), weights=weights)
    return jnp.nan_to_num(jnp.where(weights > 0, _margins(logits, label), 0.0), nan=0.0)
