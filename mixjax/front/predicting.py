"""`mixjax.predict`: the classes that a mixture predicts, a member drawn for each image."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import batch, checks
from mixjax.evaluation import batches, inputs
from mixjax.front.classifiers import members_of
from mixjax.typing import Bounds, Key


def predict(
    key: Key,
    classify: Any,
    weights: Any,
    images: Any,
    *,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 256,
) -> np.ndarray:
    """Draws a member for each image and returns the class that it predicts.

    Args:
      key: random key; consumed. Image `n` draws by `fold_in(key, n)`, whatever the batch size.
      classify: the members, as `mixjax.evaluate` takes them.
      weights: `[L]` probabilities of the members; None: equal ones.
      images: `[N, ...]` floats within `bounds`, or uint8, which is scaled to [0, 1].
      bounds: lowest and highest value of an input, numbers or arrays that fit one input.
      batch_size: number of images classified at once, at most.

    Returns:
      `[N]` integer classes.

    Raises:
      ValueError: in one line, if an argument is not what it should be.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, mixjax
      >>> always = [lambda x, k=k: jax.nn.one_hot(jnp.full(len(x), k), 2) + 0 * x for k in (0, 1)]
      >>> answers = mixjax.predict(jax.random.key(0), always, [0.8, 0.2], np.zeros((1000, 2)))
      >>> bool(150 < answers.sum() < 250)
      True
    """
    checks.key(key=key)
    checks.at_least(1, batch_size=batch_size)
    bounds = batch.low_and_high(bounds)
    labels = np.zeros(np.shape(images)[:1] or 1, np.int32)  # the loop takes some, nobody reads them
    images = inputs.as_floats(inputs.checked(images, labels, bounds)[0])
    members = members_of(classify, weights, images[[0, -1]])
    answer = partial(
        batches.compiled(_drawn), key, members.logits_fn, batches.single(members.weights)
    )
    return batches.over_batches(answer, images, labels, batch_size=batch_size, bounds=bounds)


def _drawn(key, logits_fn, weights, images, labels, indices):
    del labels

    def one(key, x):
        member = jax.random.choice(key, len(weights), p=weights)
        return jnp.argmax(logits_fn(x)[member])

    return jax.vmap(one)(batch.example_keys(key, indices), images)
