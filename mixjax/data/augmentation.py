"""Images on the device: random crops and flips; for use inside `jit`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax import checks
from mixjax.typing import Array, Key


class Augmentation(NamedTuple):
    """The random changes that leave an image of its class: keywords of `augment`.

    Attributes:
      pad: largest shift in pixels; 0 shifts nothing.
      flip: whether to mirror an image with probability 1/2.
    """

    pad: int = 0
    flip: bool = False


NO_AUGMENTATION = Augmentation()


def augment(key: Key, images: Array, *, pad: int = 4, flip: bool = True) -> Array:
    """Shifts each image by up to `pad` pixels each way, and mirrors it with probability 1/2.

    The default numbers suit CIFAR; what suits a data set is its `augmentation`:
    `augment(key, images, **dataset.augmentation._asdict())`.

    Each image is padded by `pad` black pixels on every side, cropped back to its size at a place
    drawn uniformly among the `(2 pad + 1)^2`, and mirrored left to right with probability 1/2.

    Args:
      key: random key; consumed.
      images: `[B, H, W, C]` of any dtype; black is 0.
      pad: largest shift in pixels, at least 0, static.
      flip: whether to mirror, static.

    Returns:
      `[B, H, W, C]` of the same dtype.

    Raises:
      ValueError: if `pad` is negative or `images` has not four axes.

    References:
      He et al., Deep residual learning for image recognition, 2016, section 4.2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import data
      >>> images = jnp.ones((2, 4, 4, 1))
      >>> data.augment(jax.random.key(0), images, pad=1).shape
      (2, 4, 4, 1)
    """
    checks.key(key=key)
    checks.at_least(0, pad=pad)
    checks.shape((None,) * 4, images=images)
    # One draw says all about an image: every new shape of a draw costs compilation.
    num_shifts = 2 * pad + 1
    draw = jax.random.randint(key, images.shape[:1], 0, num_shifts**2 * (2 if flip else 1))
    is_mirrored, place = draw // num_shifts**2 == 1, draw % num_shifts**2
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image, row, column):
        return jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])

    cropped = jax.vmap(crop)(padded, place // num_shifts, place % num_shifts)
    return jnp.where(is_mirrored[:, None, None, None], cropped[:, :, ::-1], cropped)
