"""What comes into an evaluation: any range, any byte order, any key; and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import evaluation, threats

WEIGHTS = [0.25, 0.75]
BUDGET = evaluation.Budget(1, 1, 2, 3, 1, 2, 1, 5)


def logits_fn(x):
    """Member 1 is right above -.5 of the first feature, member 2 above 2 of the second."""
    margins = jnp.stack([x[0] + 0.5, x[1] - 2.0])
    return jnp.stack([margins, jnp.zeros(2)], axis=1)


def down(bounds=None, step=0.0):
    """An attack that goes down by `step`, within its bounds."""

    def run(logits_fn, x):
        logits_fn(x)
        return jnp.clip(x - step, *(bounds or (-jnp.inf, jnp.inf)))

    return evaluation.Attack(("down",), 1, run, bounds=bounds)


def suite(images, attacks, labels=None, **settings):
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    arguments = (jax.random.key(0), logits_fn, WEIGHTS, images, labels, attacks)
    return evaluation.evaluate(*arguments, batch_size=2, **settings)


def curves(images, attacks, labels=None, **settings):
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    arguments = (jax.random.key(0), logits_fn, WEIGHTS, images, labels)
    return evaluation.security_curves(
        *arguments, attacks, [0.1], names=("down",), batch_size=2, **settings
    )


EVALUATIONS = pytest.mark.parametrize("evaluate", [suite, curves])


def right(found):
    """Expected accuracy, clean and attacked."""
    if isinstance(found, evaluation.SecurityCurves):
        return found.accuracies["down"][:, 0].tolist()
    return found.accuracies[0].tolist()


@EVALUATIONS
def test_the_bounds_of_the_attacks_are_those_of_the_evaluation(evaluate):
    """The first feature at -.4, of [-1, 1]; the second member is wrong there anyway."""
    images = np.full((3, 2), -0.4, np.float32)
    assert right(evaluate(images, (down((-1.0, 1.0), 0.2),))) == [0.25, 0.0]
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got .* from -0.4"):
        evaluate(images, (down(step=0.2),))


@EVALUATIONS
def test_bounds_may_differ_from_feature_to_feature(evaluate):
    bounds = (np.array([-0.45, 0.0], np.float32), np.array([0.0, 10.0], np.float32))
    images = np.array([[-0.4, 5.0]] * 2, np.float32)
    # The first feature may not fall below -.45, where the first member is still right.
    assert right(evaluate(images, (down(bounds, 4.0),))) == [1.0, 0.25]
    with pytest.raises(ValueError, match=r"images must lie in bounds, got values from -5.4"):
        evaluate(images[:, ::-1] - 5, (down(bounds),))
    with pytest.raises(ValueError, match=r"bounds must .* input of shape \[3\], got shapes \[2\]"):
        evaluate(np.zeros((2, 3), np.float32), (down(bounds),))


def test_what_the_suite_is_told_of_bounds_it_passes_on():
    threat = threats.l2(0.1)
    for attacks in (
        evaluation.attack_suite(threat, BUDGET, bounds=(-1.0, 2.0)),
        evaluation.pgd_attacks(threat, step_size=0.1, bounds=(-1.0, 2.0)),
    ):
        assert {attack.bounds for attack in attacks} == {(-1.0, 2.0)}


@EVALUATIONS
def test_uint8_goes_with_no_bounds_but_0_and_1(evaluate):
    images = np.zeros((2, 2), np.uint8)
    assert right(evaluate(images, (down((0.0, 1.0), 0.6),))) == [0.25, 0.25]
    message = r"uint8 images are scaled to \[0, 1\], which must be the bounds, got \(-1.0, 1.0\)"
    with pytest.raises(ValueError, match=message):
        evaluate(images, (down((-1.0, 1.0), 0.6),))


def test_attacks_of_different_bounds_are_refused_and_one_that_does_not_know_joins():
    images = np.full((2, 2), -0.4, np.float32)
    assert right(suite(images, (down((-1.0, 1.0), 0.2), down())))[:2] == [0.25, 0.0]
    with pytest.raises(ValueError, match="attacks must all have the same bounds, got .* and"):
        suite(images, (down((-1.0, 1.0)), down((-2.0, 1.0))))


@EVALUATIONS
@pytest.mark.parametrize("dtype", [">f8", np.float16, jnp.bfloat16])
def test_any_floats_of_any_byte_order_are_the_same_inputs(evaluate, dtype):
    images = np.array([[0.25, 0.5], [0.75, 0.5]], np.float32)
    labels = np.zeros(2, ">i8" if isinstance(dtype, str) else np.uint8)
    assert right(evaluate(images.astype(dtype), (down((-1.0, 1.0), 0.5),), labels)) == [0.25, 0.25]
    assert right(evaluate(images.astype(dtype), (down((-1.0, 1.0), 0.8),), labels)) == [0.25, 0.0]


@EVALUATIONS
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, 2), np.nan), np.zeros(2, int), r"images must lie in \[0, 1\], got .* nan"),
        (np.zeros((2, 2)), np.zeros(2), "labels must be integers, got float64"),
        (np.zeros((2, 2)), np.array([0, 2]), r"labels must lie in \[0, 1\], got .* to 2.0"),
        (np.zeros((2, 2)), np.array([0, -1]), "labels must be at least 0, got -1"),
        (np.zeros((2, 2), complex), np.zeros(2, int), "images must be uint8 or floats"),
    ],
)
def test_what_no_attack_can_use_is_refused_in_one_line(evaluate, images, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(images, (down(),), labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": jnp.ones(3) / 3}, r"weights must have shape \[2\], got \[3\]"),
        ({"logits_fn": lambda x: x}, r"logits_fn must return \[L, C\] logits, got shape \[2\]"),
        ({"images": np.full((2, 2), np.nan)}, "images must lie in .* nan"),
        ({"images": np.full((2, 2), 3.0)}, "images must lie in .* 3.0"),
        ({"labels": np.zeros(2)}, "labels must be integers, got float"),
        ({"labels": np.full(2, 7)}, r"labels must lie in \[0, 1\], got"),
        ({"labels": np.zeros(3, int)}, r"labels must have shape \[2\], got \[3\]"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_is_checked_as_far_as_its_values_are_known(change, message, compiled):
    """Compiled, only shapes and dtypes are."""
    settings = {
        "logits_fn": logits_fn,
        "weights": jnp.array(WEIGHTS),
        "images": np.zeros((2, 2), np.float32),
        "labels": np.zeros(2, np.int32),
        "indices": np.arange(2),
        **change,
    }
    logits = jax.tree_util.Partial(settings.pop("logits_fn"))
    validate = functools.partial(evaluation.validate, threat=threats.linf(0.1), step_size=0.1)
    call = functools.partial(validate, jax.random.key(0), logits)
    if not compiled:
        with pytest.raises(ValueError, match=message):
            call(**settings)
    elif "shape" in message or "integers" in message:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call, **settings)


def test_validation_takes_inputs_of_any_range(key):
    images, labels = np.full((2, 2), -0.45, np.float32), np.zeros(2, np.int32)
    settings = {"threat": threats.linf(0.1), "num_steps": 2, "step_size": 0.1}
    arguments = (logits_fn, np.float32(WEIGHTS), images, labels, np.arange(2))

    @jax.jit
    def validate(key):
        bounds = (-1.0, 1.0), (-0.46, 1.0)
        return [evaluation.validate(key, *arguments, **settings, bounds=each) for each in bounds]

    whole, narrow = validate(key)
    np.testing.assert_allclose([whole.clean, whole.robust], [[0.25] * 2, [0.0] * 2], atol=1e-6)
    np.testing.assert_allclose(narrow.robust, 0.25)


def test_diagnosis_takes_inputs_of_any_range_and_the_whole_box_is_that_of_its_bounds():
    images, labels = np.full((2, 2), -0.4, np.float32), np.zeros(2, np.int32)
    bounds = (np.array([-1.0, 0.0], np.float32) - 1, np.array([1.0, 5.0], np.float32))
    findings = evaluation.diagnose(
        logits_fn, WEIGHTS, images, labels, threats.linf(0.1), num_steps=2, bounds=bounds
    )
    assert "radius is 6 and" in {finding.name: finding for finding in findings}[
        "huge_radius_survived"
    ].text.replace("6.0", "6")


@EVALUATIONS
def test_a_key_of_another_generator_gives_answers_that_the_batch_does_not_change(evaluate):
    def run(key, run, logits_fn, weights, x, label):
        logits_fn(x)
        return x - 2 * jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)

    attacks = (evaluation.Attack(("down",) * 3, 1, run, bounds=(-3.0, 3.0)),)
    images = np.linspace(-0.4, 3.0, 10, dtype=np.float32).repeat(2).reshape(10, 2)
    key = jax.random.key(0, impl="rbg")
    found = [_with_key(evaluate, key, images, attacks, size) for size in (2, 5)]
    assert len(np.unique(found[0])) > 1
    np.testing.assert_array_equal(*found)


def _with_key(evaluate, key, images, attacks, batch_size):
    arguments = (key, logits_fn, WEIGHTS, images, np.zeros(len(images), int))
    if evaluate is curves:
        settings = {"names": ("down",), "batch_size": batch_size}
        found = evaluation.security_curves(*arguments, attacks, [0.1], **settings)
        return found.points["down"]
    settings = {"alone": False, "batch_size": batch_size}
    return evaluation.evaluate(*arguments, attacks, **settings).correct


def test_several_keys_are_refused_and_a_raw_one_is_what_it_stands_for():
    images, labels = np.zeros((2, 2), np.float32), np.zeros(2, int)
    attacks = (down(),)
    for key in (jax.random.split(jax.random.key(0)), jax.random.PRNGKey(0)):
        arguments = (key, logits_fn, WEIGHTS, images, labels, attacks)
        if key.shape == (2,) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            with pytest.raises(ValueError, match=r"key must be one random key, got shape \[2\]"):
                evaluation.evaluate(*arguments)
        else:
            assert right(evaluation.evaluate(*arguments)) == [0.25, 0.25]


def test_the_name_of_an_attack_need_not_be_that_of_a_file(tmp_path):
    """Nor are two names that look the same in one taken for each other."""
    names = ("pgd 8/255", "pgd 8:255", "../" + "x" * 300)
    attacks = (down()._replace(names=names),)
    images = np.full((2, 2), 0.5, np.float32)
    for _ in range(2):
        found = suite(images, attacks, folder=tmp_path / "e")
        assert right(found) == [0.25] * 4
    written = sorted(path.name for path in (tmp_path / "e" / "mixture").glob("*.npz"))
    assert written[1:3] == ["001-pgd_8_255-00000.npz", "002-pgd_8_255-00000.npz"]
    assert len(written) == 4


def test_from_a_black_pixel_an_image_of_bytes_is_attacked_upwards_alone(key):
    """Pixels below 0 are no images: the logit x0 + .05 at x0 = 0 stays positive within .1."""

    def above(x):
        return jnp.array([[x[0, 0, 0] + 0.05, 0.0]])

    images = np.zeros((2, 2, 2, 1), np.uint8)
    images[1] = 20  # 20 / 255 - .1 + .05 > 0 as well
    labels = np.array([0, 1])
    attacks = evaluation.attack_suite(threats.linf(0.1), BUDGET)[:1]
    found = evaluation.evaluate(key, above, [1.0], images, labels, attacks)
    assert found.worst.tolist() == [1.0, 0.0]
