import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, evaluation, mixture, threats

SIZE = 16
EPSILON = 0.1
LINF = threats.linf(EPSILON)
PGD = {"num_steps": 20, "step_size": EPSILON / 4}


def linear_logits(vectors, x):
    """Member k scores class 0 by `vectors[k] . (x - 1/2)` and class 1 by 0."""
    scores = vectors @ (x.ravel() - 0.5)
    return jnp.stack([scores, jnp.zeros_like(scores)], axis=-1)


def linear(vectors):
    """Compiled once for all vectors."""
    return jax.tree_util.Partial(linear_logits, np.asarray(vectors, np.float32))


def network_logits(variables, x):
    """Members that are small networks with three classes."""
    hidden = jnp.tanh(jnp.einsum("ldh,d->lh", variables["hidden"], x.ravel()))
    return jnp.einsum("lhc,lh->lc", variables["out"], hidden)


def network(num_members):
    random = np.random.default_rng(0)
    shapes = {"hidden": (num_members, SIZE, 5), "out": (num_members, 5, 3)}
    variables = {name: np.float32(random.normal(size=shape)) for name, shape in shapes.items()}
    return jax.tree_util.Partial(network_logits, variables)


def on_different_pixels():
    """Two linear members, each with six pixels of its own."""
    vectors = np.zeros((2, SIZE), np.float32)
    vectors[0, :6], vectors[1, 6:12] = np.random.default_rng(0).normal(size=(2, 6))
    return vectors


def examples(num_examples, num_classes=2):
    """Inputs so far inside [0, 1] that an attack never meets the bounds, and labels."""
    random = np.random.default_rng(1)
    images = random.uniform(0.3, 0.7, (num_examples, 4, 4, 1)).astype(np.float32)
    return images, random.integers(0, num_classes, num_examples).astype(np.int32)


def one_step(num_runs):
    """Quick to compile: from a random start against the member whose turn it is."""

    def function(key, run, logits_fn, weights, x, label):
        def loss_fn(x):
            return -jax.nn.log_softmax(logits_fn(x)[run % len(weights)])[label]

        start = x + jax.random.uniform(key, x.shape, minval=-EPSILON, maxval=EPSILON)
        return start + EPSILON * jnp.sign(jax.grad(loss_fn)(start))

    return (evaluation.Attack(("step",) * num_runs, 1, function),)


def evaluate(key, logits_fn, weights, images, labels, runs=None, **settings):
    runs = evaluation.pgd_attacks(LINF, **PGD) if runs is None else runs
    settings = {"alone": False, "num_complete": None, "batch_size": 16} | settings
    found = evaluation.evaluate(key, logits_fn, weights, images, labels, runs, **settings)
    return found, found.report()


def signed_margins(vectors, images, labels):
    """`[N, L]` distance of each score from the boundary, positive where the member is right."""
    flat = np.asarray(images).reshape(len(images), -1) - 0.5
    return (flat @ np.asarray(vectors).T) * np.where(np.asarray(labels) == 0, 1, -1)[:, None]


# Closed forms.


def test_a_linear_member_is_robust_iff_its_margin_exceeds_epsilon_times_the_dual_norm(key):
    vectors = np.random.default_rng(2).normal(size=(2, SIZE)) * 0.5 ** np.arange(SIZE)
    images, labels = examples(40)
    margins = signed_margins(vectors, images, labels)
    robust = margins > EPSILON * np.abs(vectors).sum(axis=1)
    assert 0.05 < robust.mean() < (margins > 0).mean() - 0.2  # both sides of the claim occur
    _, found = evaluate(key, linear(vectors), [0.3, 0.7], images, labels)
    for member in range(2):
        accuracies = found["members"][member]
        assert accuracies["clean_accuracy"] == np.mean(margins[:, member] > 0)
        assert accuracies["robust_accuracy"] == np.mean(robust[:, member])


def test_members_that_look_at_different_pixels_make_the_sandwich_tight(key):
    """One attack fools everybody who can be fooled: the optimum is `sum_k weights_k rob_k`."""
    vectors = on_different_pixels()
    weights = np.array([0.3, 0.7])
    images, labels = examples(40)
    robust = signed_margins(vectors, images, labels) > EPSILON * np.abs(vectors).sum(axis=1)
    optimum = robust @ weights
    logits_fn = linear(vectors)
    outcomes, found = evaluate(key, logits_fn, weights, images, labels)
    np.testing.assert_allclose(outcomes.worst, optimum, atol=1e-12)
    assert found["robust_accuracy"]["worst"] == pytest.approx(optimum.mean(), abs=1e-12)
    assert found["sandwich"]["lower"] == pytest.approx(optimum.mean(), abs=1e-12)
    assert found["robust_accuracy"]["pgd_expected_loss"] == pytest.approx(optimum.mean())


def blind_logits(x):
    """Losses `c + u - u^2` and `c - u - u^2` for label 0: their mean is highest in the middle."""
    u = jnp.mean(x) - 0.5
    member_losses = jnp.log(2.0) - 0.08 + jnp.stack([u, -u]) - u**2
    margins = -jnp.log(jnp.expm1(member_losses))
    return jnp.stack([margins, jnp.zeros(2)], axis=-1)


def test_only_the_members_own_attacks_see_through_a_symmetric_mixture(key):
    """Each member is fooled from its own side only: the true robust accuracy is 1/2.

    The expected loss and the mean probability draw the attacker away from both sides.
    """
    images, labels = np.full((20, 4, 4, 1), 0.5, np.float32), np.zeros(20, np.int32)
    _, found = evaluate(key, blind_logits, [0.5, 0.5], images, labels)
    assert found["clean_accuracy"] == 1.0
    assert found["robust_accuracy"] == {
        "pgd_expected_loss": 1.0,
        "pgd_mean_probability": 1.0,
        "pgd_members": 0.5,
        "worst": 0.5,
    }
    assert found["sandwich"] == {"lower": 0.0, "upper": 0.5}
    assert [member["robust_accuracy"] for member in found["members"]] == [0.0, 0.0]


@pytest.mark.parametrize(("prob", "right"), [(0.92, False), (0.97, True)])
def test_the_averaged_ensemble_answers_by_mean_probability_and_not_by_mean_logits(key, prob, right):
    """Weights .4, .3, .3 and probabilities p, .2, .2 of the label.

    The mean probability `.4 p + .12` exceeds 1/2 iff p > .95; the mean logit exceeds 0 iff p > .89.
    """
    probs = np.array([prob, 0.2, 0.2])
    logits = jax.tree_util.Partial(
        lambda logits, x: logits, np.float32(np.log(np.stack([probs, 1 - probs], axis=-1)))
    )
    images, labels = np.full((1, 4, 4, 1), 0.5, np.float32), np.zeros(1, np.int32)
    _, found = evaluate(key, logits, [0.4, 0.3, 0.3], images, labels, runs=())
    assert found["averaged"]["clean_accuracy"] == right
    assert found["clean_accuracy"] == pytest.approx(0.4)


def test_a_run_returns_the_point_on_its_path_that_fools_most_and_not_that_of_highest_loss(key):
    """Member 1 is just wrong where pixels differ, as at a random start, and flat elsewhere.

    Member 2 is far wrong at the corner where all pixels end: there the loss is highest, and four
    fifths of the accuracy are back. So it is under PGD and in a validation.
    """

    def logits_fn(x):
        just_wrong = jnp.where(jnp.std(x) > 0.03, -0.01, 1.0)
        margins = jnp.stack([just_wrong, 300 * (0.58 - jnp.mean(x))])
        return jnp.stack([margins, -margins], axis=-1) / 2

    weights, x = np.float32([0.8, 0.2]), np.full((1, 4, 4, 1), 0.5, np.float32)
    settings = {"num_steps": 20, "step_size": 0.05}
    (attack,) = evaluation.pgd_attacks(LINF, num_runs=6, **settings)
    validate = functools.partial(evaluation.validate, threat=LINF, **settings)

    @jax.jit
    def both(key):
        example = jax.tree_util.Partial(logits_fn), weights
        point = attack.run(key, 0, *example, x[0], 0)
        found = validate(key, *example, x, np.zeros(1, np.int32), np.arange(1))
        return mixture.accuracy(logits_fn(point), 0, weights), found.robust[0]

    assert max(both(key)) < 0.2 + 1e-6


# Two routes to one table.


def test_outcomes_equal_a_loop_over_examples_runs_and_members(key):
    weights = jnp.array([0.2, 0.3, 0.5])
    logits_fn = network(3)
    compiled_logits_fn = jax.jit(logits_fn)
    images, _ = examples(7)
    labels = np.array([np.argmax(compiled_logits_fn(x)[0]) for x in images])
    nothing = evaluation.Attack(("nothing",) * 2, 0, lambda x: x)
    runs = (nothing, *one_step(num_runs=9))
    outcomes, _ = evaluate(key, logits_fn, weights, images, labels, runs)

    compiled = [(attack.names, jax.jit(attack.run)) for attack in runs]
    members = np.zeros((7, 12, 3), bool)
    averaged = np.zeros((7, 12), bool)
    for n in range(7):
        points = [images[n]]
        for number, (names, attack) in enumerate(compiled, 1):
            attack_key = jax.random.fold_in(jax.random.fold_in(key, n), number)
            for run in range(len(names)):
                run_key = jax.random.fold_in(attack_key, run)
                points.append(
                    attack(run_key, jnp.int32(run), logits_fn, weights, images[n], labels[n])
                )
        for r, point in enumerate(points):
            logits = np.asarray(compiled_logits_fn(point), np.float64)
            probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            members[n, r] = logits.argmax(axis=1) == labels[n]
            averaged[n, r] = (np.asarray(weights) @ probs).argmax() == labels[n]
    assert 0.1 < members.mean() < 0.9
    np.testing.assert_array_equal(outcomes.correct, members)
    np.testing.assert_array_equal(outcomes.averaged_correct, averaged)


@pytest.mark.parametrize("num_members", [1, 2])  # not 3: each kind of loss has three runs
def test_the_runs_climb_the_losses_that_their_names_say(key, num_members):
    """Against each loss directly written: what PGD is handed over, which has tests of its own."""
    weights = np.float32([0.6, 0.3, 0.1][:num_members]) / sum([0.6, 0.3, 0.1][:num_members])
    logits_fn = network(num_members)
    (x,), _ = examples(1)
    label, settings = 1, {"num_steps": 5, "step_size": 0.05}
    (attack,) = evaluation.pgd_attacks(LINF, num_runs=10, **settings)
    assert attack.names == (
        *("pgd_expected_loss",) * 3,
        *("pgd_mean_probability",) * 3,
        *("pgd_members",) * 4,
    )
    told = []

    def one(run):
        seen = []

        def pgd(key, loss_fn, x, threat, *, accuracy_fn, **settings):
            told.append(settings)
            seen.append((loss_fn(x), accuracy_fn(x), jax.random.key_data(key), threat.epsilon))
            return x, None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attacks, "pgd", pgd)
            attack.run(key, run, logits_fn, weights, x, label)
        return seen[0]

    losses, accuracies, keys, epsilons = jax.jit(jax.vmap(one))(np.arange(10, dtype=np.int32))
    assert told == [{**settings, "bounds": (0.0, 1.0)}]
    logits = np.asarray(logits_fn(x))
    probs = np.exp(logits[:, label]) / np.exp(logits).sum(axis=1)
    wanted = [-np.log(probs) @ weights] * 3 + [-np.log(probs @ weights)] * 3
    wanted += [-np.log(probs[run % num_members]) for run in range(4)]
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    right = (logits.argmax(axis=1) == label) @ weights
    np.testing.assert_allclose(accuracies, right, atol=1e-6)
    # One member: the losses agree, so from one key they lead to one point.
    assert (np.ptp(losses) < 1e-5) == (num_members == 1)
    np.testing.assert_array_equal(keys, [jax.random.key_data(key)] * 10)
    np.testing.assert_array_equal(epsilons, np.float32(EPSILON))


def test_members_of_weight_zero_are_attacked_but_do_not_count(key):
    """As if in their place stood the first one once more."""
    vectors = np.random.default_rng(2).normal(size=(2, SIZE))
    images, labels = examples(40)
    _, both = evaluate(key, linear(vectors), [1.0, 0.0], images, labels)
    _, alone = evaluate(key, linear(vectors[[0, 0]]), [0.5, 0.5], images, labels)
    assert both["robust_accuracy"] == {
        **alone["robust_accuracy"],
        "pgd_members": both["robust_accuracy"]["pgd_members"],
    }
    assert both["sandwich"] == alone["sandwich"]
    assert both["members"][0] == alone["members"][0]
    robust = signed_margins(vectors, images, labels) > EPSILON * np.abs(vectors).sum(axis=1)
    assert both["members"][1]["robust_accuracy"] == robust[:, 1].mean()


# Budget, batches, devices.


@pytest.mark.parametrize("num_members", [1, 2, 4])
def test_every_number_of_members_meets_the_same_number_of_runs(key, num_members):
    (attack,) = evaluation.pgd_attacks(LINF, num_runs=12, num_steps=2, step_size=0.05)
    weights = np.full(num_members, 1 / num_members, np.float32)
    x = jax.ShapeDtypeStruct((4, 4, 1), jnp.float32)
    passes = evaluation.count_passes(attack, network(num_members), weights, x)
    assert len(attack.names) == 12 and passes.backward == 2 * num_members


def test_padding_is_neither_counted_nor_returned():
    seen = []

    def batch_fn(images, labels, indices):
        seen.append((images.shape, indices.tolist()))
        return {"label": jnp.asarray(labels), "pixel": jnp.asarray(images[:, 0])}

    images = np.linspace(0, 1, 7, dtype=np.float32)[:, None]
    labels = np.arange(7)
    steps = []

    found = evaluation.over_batches(
        batch_fn, images, labels, batch_size=3, progress=lambda *done: steps.append(done)
    )
    np.testing.assert_array_equal(found["label"], labels)
    np.testing.assert_array_equal(found["pixel"], images[:, 0])
    assert seen == [((3, 1), [0, 1, 2]), ((3, 1), [3, 4, 5]), ((3, 1), [6, 6, 6])]
    assert steps == [(0, 7), (3, 7), (6, 7), (7, 7)]


def test_variables_of_a_partial_are_arguments_of_the_compiled_function(key):
    logits_fn = network(2)
    images, labels = examples(2, num_classes=3)
    programs = []

    def transform(batch_fn):
        def spy(*args):
            programs.append(jax.make_jaxpr(batch_fn)(*args).jaxpr)
            return jax.jit(batch_fn)(*args)

        return spy

    evaluate(key, logits_fn, [0.5, 0.5], images, labels, one_step(6), transform=transform)
    assert len(programs) == 13  # six runs, and the answers there and at the clean examples
    for program in programs:
        shapes = [variable.aval.shape for variable in program.invars]
        assert {leaf.shape for leaf in jax.tree.leaves(logits_fn)} <= {*shapes}


def test_the_uint8_image_255_is_the_input_1(key):
    """The member is right above .998 only; 254 / 255 is .996."""

    def logits_fn(x):
        return jnp.stack([jnp.mean(x) - 0.998, 0.0])[None]

    images = np.full((2, 4, 4, 1), 255, np.uint8)
    images[1] = 254
    outcomes, _ = evaluate(key, logits_fn, [1.0], images, np.zeros(2, np.int32), runs=())
    assert outcomes.correct.ravel().tolist() == [True, False]
    floats = images / np.float32(255)
    same, _ = evaluate(key, logits_fn, [1.0], floats, np.zeros(2, np.int32), runs=())
    np.testing.assert_array_equal(same.correct, outcomes.correct)


def test_nan_logits_are_errors(key):
    vectors = np.stack([np.full(SIZE, np.nan), np.full(SIZE, 1.0)])
    images = np.full((40, 4, 4, 1), 0.9, np.float32)
    _, found = evaluate(key, linear(vectors), [0.4, 0.6], images, np.zeros(40, np.int32))
    for each in (found["members"][0], found["averaged"]):
        assert each["clean_accuracy"] == each["robust_accuracy"] == 0.0
    assert found["clean_accuracy"] == pytest.approx(0.6)


# Validation.


@functools.partial(jax.jit, static_argnames="num_steps")
def validate(key, logits_fn, weights, images, labels, indices, num_steps, step_size):
    """The same compiled code for all members and lengths of a step."""
    examples = logits_fn, weights, images, labels, indices
    numbers = {"num_steps": num_steps, "step_size": step_size}
    return evaluation.validate(key, *examples, threat=LINF, **numbers)


def test_validation_is_exact_clean_and_under_attack(key):
    """Members on different pixels: the expected loss alone finds the optimum."""
    vectors = on_different_pixels()
    weights = np.float32([0.3, 0.7])
    images, labels = examples(30)
    margins = signed_margins(vectors, images, labels)
    robust = margins > EPSILON * np.abs(vectors).sum(axis=1)
    found = evaluation.over_batches(
        lambda *batch: validate(key, linear(vectors), weights, *batch, **PGD),
        *(images, labels),
        batch_size=16,
    )
    np.testing.assert_allclose(found.clean, (margins > 0) @ weights, atol=1e-6)
    np.testing.assert_allclose(found.robust, robust @ weights, atol=1e-6)


def test_validation_takes_the_steps_that_it_is_asked_for(key):
    """A short step from a random start does little harm, a long one or many short ones do."""
    images = np.full((15, 4, 4, 1), 0.5 + EPSILON / 2, np.float32)
    batch = images, np.zeros(15, np.int32), np.arange(15)
    logits_fn, weights = linear(np.ones((2, SIZE))), np.float32([0.5, 0.5])

    def robust(**settings):
        return np.mean(validate(key, logits_fn, weights, *batch, **settings).robust)

    assert robust(num_steps=1, step_size=EPSILON / 8) > 0.9
    assert robust(num_steps=1, step_size=2 * EPSILON) == 0.0
    assert robust(num_steps=20, step_size=EPSILON / 8) == 0.0


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.full((4, 4, 4, 1), np.nan)}, r"images must lie in \[0, 1\], got .* nan"),
        ({"images": np.full((4, 4, 4, 1), 1.5)}, r"images must lie in \[0, 1\], got .* 1.5"),
        ({"images": np.ones((4, 4, 4, 1), int)}, "images must be uint8 or floats .* got int64"),
        ({"images": np.zeros((0, 4, 4, 1))}, "images must be .* not empty, got"),
        ({"labels": np.array([0, 1, 2, 3])}, r"labels must lie in \[0, 2\], got .* 3.0"),
        ({"labels": np.array([0, 1, -1, 2])}, "labels must be at least 0, got -1"),
        ({"labels": np.array([0.0, 1.0, 1.0, 2.0])}, "labels must be integers, got float64"),
        ({"labels": np.array([0, 1, 1])}, r"labels must have shape \[4\], got \[3\]"),
        ({"weights": np.array([0.5, 0.6])}, r"weights must be on the simplex .* 0.6"),
        ({"weights": np.array([0.5, np.nan])}, "weights must be on the simplex .* nan"),
        ({"weights": np.array([0.2, 0.3, 0.5])}, r"weights must have shape \[2\], got \[3\]"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"logits_fn": lambda x: x.ravel()}, r"logits_fn must return .* got shape \[16\]"),
        ({"key": 3}, r"key must be a random key, such as jax.random.key\(3\), got 3$"),
    ],
)
def test_bad_input_is_named_with_its_value(key, change, message):
    settings = {
        "key": key,
        "logits_fn": network(2),
        "weights": np.array([0.5, 0.5]),
        "images": np.full((4, 4, 4, 1), 0.5),
        "labels": np.array([0, 1, 2, 0]),
        "attacks": evaluation.pgd_attacks(LINF, **PGD),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(transform=_never, **settings)


def _never(batch_fn):
    raise AssertionError("something was compiled before the arguments were checked")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_runs": 2}, "num_runs must be a whole number of at least 3, got 2"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"step_size": -0.1}, "step_size must be positive, got -0.1"),
        ({"bounds": (1, 0)}, r"bounds must be .* got \(1, 0\)"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        evaluation.pgd_attacks(LINF, **{**PGD, **change})


@pytest.mark.parametrize(("num_runs", "num_members"), [(9, 3), (9, 4), (11, 5)])
def test_too_few_runs_for_the_members_are_refused(key, num_runs, num_members):
    """Nine runs leave three for the members; of eleven, five are left."""
    (attack,) = evaluation.pgd_attacks(LINF, num_runs=num_runs, num_steps=1, step_size=0.1)
    weights = jnp.full(num_members, 1 / num_members)
    arguments = (key, jnp.int32(0), network(num_members), weights, jnp.ones((4, 4, 1)), 0)
    if (num_runs, num_members) != (9, 4):
        assert jax.eval_shape(attack.run, *arguments).shape == (4, 4, 1)
    else:
        with pytest.raises(ValueError, match="num_runs must be at least 12 for 4 .* got 9"):
            jax.eval_shape(attack.run, *arguments)
