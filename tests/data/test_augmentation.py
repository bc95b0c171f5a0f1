import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import data


def shifted_and_mirrored(image, row, column, mirrored, pad):
    """Pixel by pixel: output (i, j) is input (i + row - pad, j' + column - pad), black outside."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            source_row = i + row - pad
            source_column = (width - 1 - j if mirrored else j) + column - pad
            if 0 <= source_row < height and 0 <= source_column < width:
                result[i, j] = image[source_row, source_column]
    return result


def outcomes(image, result, pad):
    """All (row, column, mirrored) that turn `image` into `result`."""
    return [
        (row, column, mirrored)
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
        for mirrored in (False, True)
        if np.array_equal(shifted_and_mirrored(image, row, column, mirrored, pad), result)
    ]


def random_images(shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(1, 256, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_image_is_a_shift_and_mirror_of_itself_and_images_differ_in_theirs(key, dtype):
    images = random_images((24, 5, 7, 3), dtype)
    results = np.asarray(jax.jit(lambda k, x: data.augment(k, x, pad=2))(key, images))
    assert results.dtype == dtype and results.shape == images.shape
    found = [outcomes(image, result, 2) for image, result in zip(images, results, strict=True)]
    assert all(len(each) == 1 for each in found)
    assert len({each[0] for each in found}) > 15


def test_all_shifts_and_both_sides_are_equally_likely(key):
    """18 outcomes at pad 1; one image per draw that tells them all apart."""
    image = random_images((4, 3, 1))
    num_draws = 3600
    images = np.broadcast_to(image, (num_draws, *image.shape))
    results = np.asarray(data.augment(key, images, pad=1))
    expected = {
        shifted_and_mirrored(image, row, column, mirrored, 1).tobytes()
        for row in range(3)
        for column in range(3)
        for mirrored in (False, True)
    }
    values, counts = np.unique([result.tobytes() for result in results], return_counts=True)
    assert len(expected) == 18 and {bytes(value).ljust(12, b"\0") for value in values} == expected
    chi_square = np.sum((counts - num_draws / 18) ** 2 / (num_draws / 18))
    assert chi_square < 40.8  # exceeded once in a thousand keys, 17 degrees of freedom


def test_without_flip_no_image_is_mirrored_and_without_pad_none_is_shifted(key):
    images = random_images((40, 4, 6, 1))
    shifted = np.asarray(data.augment(key, images, pad=1, flip=False))
    for image, result in zip(images, shifted, strict=True):
        assert [mirrored for _, _, mirrored in outcomes(image, result, 1)] == [False]
    np.testing.assert_array_equal(data.augment(key, images, pad=0, flip=False), images)
    mirrored = np.asarray(data.augment(key, images, pad=0, flip=True))
    is_mirrored = (mirrored == images[:, :, ::-1]).all(axis=(1, 2, 3))
    is_same = (mirrored == images).all(axis=(1, 2, 3))
    assert (is_mirrored ^ is_same).all() and 10 < is_mirrored.sum() < 30


def test_the_same_key_gives_the_same_images_and_another_key_others(key):
    images = random_images((16, 6, 6, 3))
    first, again = data.augment(key, images), data.augment(key, images)
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != data.augment(jax.random.key(1), images)).any()


def test_bytes_become_fractions_of_white():
    every_byte = jnp.arange(256, dtype=jnp.uint8)
    result = jax.jit(data.to_float)(every_byte)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, np.arange(256) / 255, rtol=1e-6)
    assert result[0] == 0 and result[255] == 1
    np.testing.assert_array_equal(data.to_float(jnp.array([0.25, 1.0])), [0.25, 1.0])


@pytest.mark.parametrize("arguments", [{"pad": -1}, {"pad": 1.5}])
def test_a_pad_that_is_no_whole_number_of_pixels_is_refused(key, arguments):
    with pytest.raises(ValueError, match="pad must be a whole number of at least 0, got"):
        data.augment(key, jnp.zeros((2, 4, 4, 1)), **arguments)


def test_a_single_image_is_refused(key):
    with pytest.raises(ValueError, match=r"images must have shape .*got \[4, 4, 1\]"):
        data.augment(key, jnp.zeros((4, 4, 1)))


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_a_key_gives_the_same_images(self):
        images = random_images((6, 5, 7, 3))
        got = self.variant(data.augment)(jax.random.key(3), images)
        chex.assert_trees_all_equal(got, data.augment(jax.random.key(3), images))

    @chex.all_variants
    def test_compiled_or_not_on_any_device_bytes_become_fractions_of_white(self):
        every_byte = np.arange(256, dtype=np.uint8)
        got = self.variant(data.to_float)(every_byte)
        chex.assert_trees_all_close(got, np.float32(every_byte / 255), rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.int16, np.int32])
def test_images_whose_white_is_not_known_are_refused(dtype):
    with pytest.raises(ValueError, match=f"uint8 or floating point, got {np.dtype(dtype)}"):
        data.to_float(jnp.ones((2, 4, 4, 1), dtype))
