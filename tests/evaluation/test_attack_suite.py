"""Which attacks the suite is made of: each climbs what its name says, and together they suffice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, evaluation, mixture, threats
from mixjax.evaluation import batches
from tests import linear_game

SIZE, NUM_EXAMPLES, NUM_MEMBERS = 12, 40, 5  # of all linear mixtures: attacked in one shape
BUDGET = evaluation.Budget(
    num_restarts=1,
    num_targets=2,
    num_member_runs=3,
    num_steps=100,
    num_member_aware_runs=1,
    num_member_aware_steps=10,
    num_orders=2,
    num_queries=30,
)
WEIGHTS = np.float32([0.3, 0.7])
UNIT = np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)  # bounds per feature
INDICES = np.arange(NUM_EXAMPLES, dtype=np.int32)


def linear_logits(variables, x):
    """Members of two classes: `slopes[k] @ x + offsets[k]`."""
    slopes, offsets = variables
    return slopes @ x + offsets


def linear(slopes, offsets, num_members=NUM_MEMBERS):
    """Of slopes `[L, 2, SIZE]` and offsets, then the first member again and again."""
    first = np.zeros(num_members - len(slopes), int)
    variables = (np.float32(np.concatenate([each, each[first]])) for each in (slopes, offsets))
    return jax.tree_util.Partial(linear_logits, tuple(variables))


def scoring(vectors, offset=0.0, **settings):
    """Member k scores class 0 by `vectors[k] @ (x - 1/2) + offset` and class 1 by 0."""
    slopes, offsets = np.zeros((2, 2, SIZE)), np.zeros((2, 2))
    slopes[:, 0], offsets[:, 0] = vectors, offset - vectors.sum(axis=1) / 2
    return linear(slopes, offsets, **settings)


def suite(epsilon, bounds=UNIT):
    """One attack of each kind: AutoPGD, which takes any loss, on two of its losses."""
    lines = "pgd_expected_loss", "apgd_expected_loss", "apgd_members", "arc", "lattice_climber"
    lines += "carlini_wagner", "carlini_wagner_members", "square"
    budget = BUDGET._replace(num_member_runs=NUM_MEMBERS, lines=lines)
    return evaluation.attack_suite(threats.l2(epsilon), budget, bounds=bounds)


def attacked(key, attack, logits_fn, weights, images, labels):
    """The points `[R, N, D]` that its runs find; compiled once for all bounds, radii, members.

    The members that come again have no weight.
    """
    runs = range(len(attack.names))
    weights = np.concatenate([weights, np.zeros(NUM_MEMBERS - len(weights), np.float32)])
    batch = np.float32(images), np.int32(labels), INDICES
    found = [batches.attack_batches(key, logits_fn, weights, attack, run, [batch]) for run in runs]
    return np.stack([np.asarray(next(each)) for each in found])


def right(logits_fn, points, labels):
    """`[..., N, 2]` which of the first two members are right."""
    slopes, offsets = (each[:2] for each in logits_fn.args[0])
    logits = np.einsum("kcd,...d->...kc", np.float64(slopes), points) + offsets
    return (logits[..., 0] > logits[..., 1]) == (labels == 0)[:, None]


def network_logits(variables, x):
    """Members that are small networks with five classes."""
    hidden = jnp.tanh(jnp.einsum("ldh,d->lh", variables[0], x))
    return jnp.einsum("lhc,lh->lc", variables[1], hidden)


@pytest.fixture(scope="module")
def network():
    random = np.random.default_rng(3)
    variables = random.normal(size=(2, SIZE, 5)), random.normal(size=(2, 5, 5))
    return jax.tree_util.Partial(network_logits, tuple(map(np.float32, variables)))


@pytest.fixture(scope="module")
def points():
    """Of the network."""
    return np.random.default_rng(4).uniform(size=(3, SIZE)).astype(np.float32)


def asked_of(name, look, attack, network, label, points):
    """`[R, N, ...]` what `look(key, *arguments, **settings)` makes of the calls of `attacks.name`.

    No attack is made: each run would climb from the points what it hands over at them.
    """

    def one(run, x):
        seen = []

        def instead(*arguments, **settings):
            seen.append(look(*arguments, **settings))
            return x, None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attacks, name, instead)
            attack.run(jax.random.key(0), run, network, WEIGHTS, x, label)
        return seen[0]

    runs = np.arange(len(attack.names), dtype=np.int32)
    of_all = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return jax.tree.map(np.asarray, jax.jit(of_all)(runs, points))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def accuracies(logits, label):
    """Exact expected accuracies `[N]` of logits `[N, L, C]`."""
    return (logits.argmax(-1) == label) @ WEIGHTS


def test_on_members_with_pixels_of_their_own_the_suite_reaches_the_optimum(key):
    """Each falls at its own distance, both together at the hypotenuse of the two."""
    vectors = np.zeros((2, SIZE))
    vectors[0, :5], vectors[1, 5:10] = np.random.default_rng(0).normal(size=(2, 5))
    images = np.random.default_rng(2).uniform(0.2, 0.8, (NUM_EXAMPLES, SIZE)).astype(np.float32)
    images[:, 10], images[:, 11] = 0.0, 1.0  # on their bounds, and no member's
    logits_fn, labels = scoring(vectors), ((images - 0.5) @ vectors.sum(axis=0) < 0).astype(int)
    margins = ((images - 0.5) @ vectors.T) * np.where(labels == 0, 1, -1)[:, None]
    distances = np.maximum(margins, 0) / np.linalg.norm(vectors, axis=1)
    optimum = np.where(distances < 0.1, 1 - WEIGHTS, 1.0).min(axis=1)
    optimum = np.where(np.hypot(*distances.T) < 0.1, 0.0, optimum)
    assert len({*optimum.round(3)}) == 4  # none, either one or both fall
    found = {}
    for attack in suite(0.1):
        points = attacked(key, attack, logits_fn, WEIGHTS, images, labels)
        assert np.linalg.norm(points - images, axis=-1).max() <= 0.1 * (1 + 1e-4)
        assert points.min() >= 0 and points.max() <= 1
        found[attack.names[0]] = (right(logits_fn, points, labels) @ WEIGHTS).min(axis=0)
    np.testing.assert_allclose(np.min([*found.values()], axis=0), optimum, atol=1e-6)
    for name in ("arc", "lattice_climber"):
        assert found[name].mean() == pytest.approx(optimum.mean(), abs=0.03)


GAMES = {
    "steeper": linear_game.two(0, "steeper", num_examples=NUM_EXAMPLES, dimension=SIZE),
    "opposed": linear_game.two(1, "opposed", num_examples=NUM_EXAMPLES, dimension=SIZE),
    "five": linear_game.random(5, 5, num_examples=NUM_EXAMPLES, dimension=SIZE),
}


@pytest.mark.parametrize("name", GAMES)
def test_the_suite_reaches_97_percent_of_the_optimum_and_misses_nobody(name, key):
    game, epsilon = GAMES[name], 0.4
    logits_fn = linear(game.slopes, game.offsets)
    data = game.weights, game.x, game.labels
    points = np.concatenate([attacked(key, each, logits_fn, *data) for each in suite(epsilon)])
    risks = np.max([game.risk(each) for each in points], axis=0)
    best, clean = game.optimal_risk(2, epsilon), game.risk(game.x)
    above = np.any(risks > best + 1e-6)  # by rounding, if at all
    assert not above or np.all(risks <= game.optimal_risk(2, epsilon * (1 + 1e-4)) + 1e-6)
    assert risks.mean() >= 0.97 * best.mean(), f"{risks.mean()} of {best.mean()}"
    assert not np.any((best > clean + 1e-6) & (risks <= clean + 1e-6))


def test_within_a_radius_of_0_every_attack_of_the_suite_stays_where_it_is(key):
    """No step size was set, so none may be refused."""
    logits_fn = scoring(np.random.default_rng(2).normal(size=(2, SIZE)))
    images = np.random.default_rng(1).uniform(size=(NUM_EXAMPLES, SIZE)).astype(np.float32)
    labels = np.arange(NUM_EXAMPLES) % 2
    for attack in suite(0.0):
        found = attacked(key, attack, logits_fn, WEIGHTS, images, labels)
        np.testing.assert_allclose(found, np.broadcast_to(images, found.shape), atol=1e-6)


def test_the_baseline_is_pgd_20_on_the_expected_cross_entropy(network, points):
    threat, label = threats.l2(0.3), 2
    *_, attack = evaluation.attack_suite(threat, BUDGET)
    told = []

    def look(key, loss_fn, x, threat, *, accuracy_fn, **settings):
        told.append(settings)
        return loss_fn(x), accuracy_fn(x), settings.pop("step_size"), threat.epsilon

    loss, accuracy, step_size, epsilon = asked_of("pgd", look, attack, network, label, points)
    logits = np.asarray(jax.vmap(network)(points))
    want = -np.log(softmax(logits)[..., label]) @ WEIGHTS
    np.testing.assert_allclose(loss[0], want, rtol=1e-5)
    np.testing.assert_allclose(accuracy[0], accuracies(logits, label), atol=1e-6)
    np.testing.assert_allclose(step_size, 0.125 * 0.3, rtol=1e-6)
    np.testing.assert_allclose(epsilon, 0.3, rtol=1e-6)
    assert told == [{"num_steps": 20, "bounds": (0.0, 1.0)}]
    assert attack.names == ("pgd_expected_loss",) and attack.num_steps == 20


def test_every_run_of_auto_pgd_climbs_the_loss_that_its_name_says(network, points):
    """Against each loss directly written, and the exact accuracy that chooses among points."""
    threat, label = threats.linf(0.1), 1
    attack, *_ = evaluation.attack_suite(threat, BUDGET)
    told = []

    def look(key, loss_fn, x, threat, *, accuracy_fn, **settings):
        told.append(settings)
        return loss_fn(x), accuracy_fn(x), threat.epsilon

    loss, accuracy, epsilon = asked_of("apgd", look, attack, network, label, points)
    logits = np.asarray(jax.vmap(network)(points))
    mean = np.einsum("l,nlc->nc", WEIGHTS, softmax(logits))
    likeliest = [[k for k in np.argsort(-each) if k != label] for each in mean]
    cross_entropy = -np.log(softmax(logits)[..., label])
    ordered, own = np.sort(logits, axis=-1)[..., ::-1], logits[..., label]
    best_other = np.delete(logits, label, axis=-1).max(-1)

    def targeted(place):
        targets = np.array([each[place] for each in likeliest])
        other = np.take_along_axis(logits, targets[:, None, None], axis=-1)[..., 0]
        spread = ordered[..., 0] - (ordered[..., 2] + ordered[..., 3]) / 2
        return (other - own) / spread @ WEIGHTS

    want = [
        ("apgd_mean_probability", -np.log(mean[:, label])),
        ("apgd_members", cross_entropy[:, 0]),
        ("apgd_members", cross_entropy[:, 1]),
        ("apgd_members", cross_entropy[:, 0]),
        ("apgd_expected_margin", (best_other - own) @ WEIGHTS),
        ("apgd_expected_loss", cross_entropy @ WEIGHTS),
        ("apgd_expected_dlr", (best_other - own) / (ordered[..., 0] - ordered[..., 2]) @ WEIGHTS),
        ("apgd_targeted_dlr", targeted(0)),
        ("apgd_targeted_dlr", targeted(1)),
    ]
    assert attack.names == tuple(name for name, _ in want)
    np.testing.assert_allclose(loss, np.stack([each for _, each in want]), rtol=1e-4)
    assert len({each.tobytes() for each in loss}) == 8  # members take turns, else no two are one
    np.testing.assert_allclose(accuracy, np.tile(accuracies(logits, label), (9, 1)), atol=1e-6)
    np.testing.assert_allclose(epsilon, 0.1, rtol=1e-6)
    assert told == [{"num_steps": 100, "bounds": (0.0, 1.0)}]


def test_one_classifier_meets_as_many_runs_the_member_aware_ones_towards_further_classes(
    network, points
):
    """Two runs towards the likeliest wrong classes, and three more; four wrong classes."""
    suite = evaluation.attack_suite(
        threats.linf(0.1), BUDGET._replace(num_member_aware_runs=2, num_targets=1)
    )
    of_mixture, alone = ([run for each in suite for run in each.runs(L)] for L in (2, 1))
    assert len(of_mixture) == len(alone) == 1 + 3 + 3 + 1 + 4 + 1 + 1
    moved = [(one, two) for one, two in zip(alone, of_mixture, strict=True) if one != two]
    assert [attack.names[run] for _, (attack, run) in moved] == [
        *["lattice_climber"] * 2,
        *["arc"] * 2,
    ]
    assert [attack.names[run] for (attack, run), _ in moved] == ["apgd_targeted_dlr"] * 4
    climb, (attack, _) = suite[0], moved[0][0]
    assert attack.function is climb.function  # compiled once for all
    runs = [run for (_, run), _ in moved]
    assert runs == [8, 9, 10, 11] and len(climb.names) == 8  # with random numbers of their own

    label, member = 1, jax.tree_util.Partial(_first, network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "apgd", lambda key, loss_fn, x, threat, **_: (loss_fn(x), None))
        found = [
            [attack.run(jax.random.key(0), run, member, np.ones(1), x, label) for x in points]
            for run in (7, *runs)
        ]
    logits = np.asarray(jax.vmap(network)(points))[:, 0]
    ordered, wrong = np.sort(logits)[:, ::-1], np.argsort(-logits)
    spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    wrong = np.stack([[k for k in each if k != label] for each in wrong])
    want = (np.take_along_axis(logits, wrong, 1) - logits[:, [label]]) / spread[:, None]
    np.testing.assert_allclose(found, want.T[[0, 1, 2, 3, 0]], rtol=1e-4)


def _first(network, x):
    return network(x)[:1]


def test_the_number_of_runs_is_that_of_the_budget():
    suite = evaluation.attack_suite(threats.l2(0.3), BUDGET)
    assert [attack.names[0] for attack in suite] == [
        "apgd_mean_probability",
        "lattice_climber",
        "arc",
        "carlini_wagner",
        "square",
        "pgd_expected_loss",
    ]
    assert sum(len(attack.names) for attack in suite) == 4 + 2 + 3 + 1 + 1 + 4 + 1 + 1
    other = [attack.names[0] for attack in evaluation.attack_suite(threats.linf(0.1), BUDGET)]
    assert other == [attack.names[0] for attack in suite if "carlini" not in attack.names[0]]


@pytest.mark.parametrize("threat", [threats.linf(0.1), threats.l2(0.3)], ids=["linf", "l2"])
def test_the_budget_autoattack_is_the_published_composition(threat):
    """APGD-CE, APGD-T towards 9 targets, FAB-T towards 9, 100 steps each; Square, 5000 queries."""
    suite = evaluation.attack_suite(threat, evaluation.AUTOATTACK)
    runs = [(name, attack.num_steps) for attack in suite for name in attack.names]
    assert runs == [
        ("apgd_expected_loss", 100),
        *[("apgd_targeted_dlr", 100)] * 9,
        *[("fab_targeted", 100)] * 9,
        ("square", 5000),
    ]
    climb, fab, square = (attack.function.keywords for attack in suite)
    assert climb == {"num_runs": (0, 0, 0, 1, 0, 9), "num_more": 0, "num_steps": 100}
    assert (fab, square) == ({"num_steps": 100}, {"num_queries": 5000})


def test_a_run_of_fab_goes_towards_its_class_and_from_a_random_point_once_all_had_their_turn(
    network, points
):
    """Four wrong classes and six runs."""
    budget = BUDGET._replace(num_boundary_targets=6, lines=("fab_targeted",))
    (attack,) = evaluation.attack_suite(threats.l2(1.5), budget)
    assert attack.names == ("fab_targeted",) * 6
    told, label = [], 2

    def look(key, logits_fn, weights, x, label, targets, threat, *, random_start, **settings):
        told.append(settings)
        return targets, random_start, logits_fn(x), weights

    found = asked_of("fab_targeted", look, attack, network, label, points)
    targets, random_start, logits, weights = found
    assert random_start.tolist() == [[False] * 3] * 4 + [[True] * 3] * 2
    mean = np.einsum("l,nlc->nc", WEIGHTS, softmax(np.asarray(jax.vmap(network)(points))))
    likeliest = np.array([[k for k in np.argsort(-each) if k != label] for each in mean])
    np.testing.assert_array_equal(targets[..., 0], likeliest.T[[0, 1, 2, 3, 0, 1]])
    assert logits.shape == (6, 3, 2, 5) and np.allclose(weights, WEIGHTS)
    assert told == [{"num_steps": 100, "bounds": (0.0, 1.0)}]


def test_lines_choose_among_the_runs_and_leave_their_random_numbers_as_they_are():
    whole = {
        (attack.number, name)
        for attack in evaluation.attack_suite(threats.l2(0.3), BUDGET)
        for name in attack.names
    }
    for line in ("carlini_wagner_members", "apgd_members", "arc", "square", "pgd_expected_loss"):
        (attack,) = evaluation.attack_suite(threats.l2(0.3), BUDGET._replace(lines=(line,)))
        assert {(attack.number, name) for name in attack.names} <= whole
    (attack,) = evaluation.attack_suite(
        threats.l2(0.3), BUDGET._replace(lines=("carlini_wagner_members",))
    )
    assert (
        attack.names == ("carlini_wagner_members",) * 2 and attack.function.keywords["first"] == 2
    )


def test_a_trained_attack_network_joins_the_suite_with_a_line_of_its_own(key):
    """Its direction fools the second member, whom the rest of this short suite cannot reach."""
    vectors = np.eye(2, SIZE, dtype=np.float32)
    logits_fn = scoring(vectors, num_members=2)
    images = np.full((4, SIZE), 0.5, np.float32)
    images[:, 0], images[:, 1] = 0.9, 0.55
    threat, labels = threats.linf(0.1), np.zeros(4, np.int32)

    def trained(x, label, threat):
        return attacks.attack_network(
            lambda x, label: -vectors[1], lambda x: 0.0 * x[0], x, label, threat
        )

    suite = (
        evaluation.Attack(("idle",), 1, lambda x: x),
        evaluation.Attack(("attack_network",), 1, trained, threat),
    )
    report = evaluation.evaluate(key, logits_fn, WEIGHTS, images, labels, suite).report()
    assert report["robust_accuracy"] == pytest.approx(
        {"idle": 1.0, "attack_network": 0.3, "worst": 0.3}
    )


def test_the_nearest_fooling_point_counts_only_inside_the_radius(key):
    """The boundary of one linear classifier, of two that are alike, is .2 away."""
    logits_fn, labels = scoring(np.eye(SIZE)[[3, 3]]), np.zeros(NUM_EXAMPLES)
    images = np.full((NUM_EXAMPLES, SIZE), 0.5)
    images[:, 3] = 0.7
    for epsilon, moves in ((0.19, False), (0.22, True)):
        attack = nearest(epsilon)
        found = attacked(key, attack, logits_fn, WEIGHTS, images, labels)[0]
        assert np.any(found != np.float32(images), axis=1).tolist() == [moves] * NUM_EXAMPLES


def nearest(epsilon):
    """Carlini and Wagner's attack of the suite."""
    (attack,) = (each for each in suite(epsilon) if "carlini_wagner" in each.names)
    return attack


def test_nearest_points_are_those_of_the_mean_probability_and_of_shares_of_the_members(
    network, points
):
    """The same number of runs for every `L`; the second lowers the expected loss."""

    def look(margin_fn, x, *, fooled_fn, **settings):
        return margin_fn(x), fooled_fn(x)

    x = points[:1]
    logits = np.asarray(network(x[0]))
    labels = logits.argmax(-1)
    assert labels[0] != labels[1] and WEIGHTS[1] > 0.5
    label = int(labels[1])  # the first member is wrong, the second right
    attack = nearest(0.1)
    assert attack.names == ("carlini_wagner",) * 2 + ("carlini_wagner_members",) * 2
    margin, fooled = asked_of("carlini_wagner", look, attack, network, label, x)
    mean = np.log(WEIGHTS @ softmax(logits))
    lead = mean[label] - np.delete(mean, label).max()
    second = logits[1, label] - np.delete(logits[1], label).max()
    np.testing.assert_allclose(margin[:, 0], [lead, WEIGHTS[1] * second, second, second], rtol=1e-4)
    assert fooled[:, 0].tolist() == [lead <= 0, lead <= 0, False, False]


@pytest.mark.parametrize("kind", ["steeper", "opposed"])
def test_nearest_points_of_the_members_reach_the_optimum_of_a_linear_mixture(kind, key):
    """Those of the mean probability alone leave more than twice as much."""
    game, epsilon = linear_game.two(1, kind, num_examples=NUM_EXAMPLES, dimension=SIZE), 0.4
    logits_fn = linear(game.slopes, game.offsets)
    points = attacked(key, nearest(epsilon), logits_fn, game.weights, game.x, game.labels)
    risks = np.stack([game.risk(each) for each in points])
    best = 1 - game.optimal_risk(2, epsilon).mean()
    assert best - 1e-6 <= 1 - risks.max(axis=0).mean() <= best + 0.03
    assert 1 - risks[:2].max(axis=0).mean() > 2 * best


def test_the_black_box_prefers_fooling_a_member_to_any_gain_in_margins(key):
    """One query in the direction of either member; asked for the score alone."""
    seen = []

    def asked(score_fn, x):
        seen.append([score_fn(jnp.array([value, 0.5])) for value in (0.5, 0.54, 0.56, 0.9)])
        return x

    def members(x):  # right below .55 and below .95, the second ever less so
        return jnp.stack([jnp.array([10 * (bound - x[0]), 0.0]) for bound in (0.55, 0.95)])

    arguments = (members, jnp.array([0.6, 0.4]), jnp.array([0.5, 0.5]), 0, threats.linf(0.1))
    attacks.on_mixture(asked, key, *arguments)
    scores = np.array(seen[0])
    assert np.all(np.diff(scores) > 0) and scores[2] - scores[1] > 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_restarts": 0}, "num_restarts must be a whole number of at least 1, got 0"),
        ({"num_queries": 0.5}, "num_queries must be a whole number of at least 1, got 0.5"),
        ({"num_boundary_targets": -1}, "num_boundary_targets must be a .* at least 0, got -1"),
        ({"lines": ("fab",)}, "lines must be one of pgd_expected_loss, .* got fab"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        evaluation.attack_suite(threats.linf(0.1), BUDGET._replace(**change))
    with pytest.raises(ValueError, match="bounds must be a pair"):
        evaluation.attack_suite(threats.linf(0.1), BUDGET, bounds=(1.0, 0.0))


def test_too_few_runs_for_the_members_are_refused(key, network):
    attack = evaluation.attack_suite(threats.linf(0.1), BUDGET._replace(num_member_runs=1))[0]
    with pytest.raises(ValueError, match="num_member_runs must be at least .* members 2, got 1"):
        jax.eval_shape(attack.run, key, jnp.int32(0), network, WEIGHTS, jnp.ones(SIZE), 0)


def test_the_attacks_on_a_mixture_know_nothing_of_a_member_of_weight_zero(key):
    """It answers NaN: noted, attacked alone, and in no gradient, turn or draw of the others."""
    images, labels = np.full((2, 1), 0.5, np.float32), np.zeros(2, np.int32)
    seen = []

    def logits_fn(x):
        logits = jnp.stack([jnp.append(x + k, 0.0) for k in range(3)])
        return jnp.where((jnp.arange(3) == 1)[:, None], jnp.nan, logits)

    def run(key, run, logits_fn, weights, x, label):
        logits = logits_fn(x)
        seen.append((logits.shape, weights.shape))
        return jnp.where(jnp.any(jnp.isnan(logits)), x, x - weights[-1] * logits[0, 0])

    told = (evaluation.Attack(("tell",), 1, run, threats.linf(1.0)),)
    mixed = (key, logits_fn, [0.25, 0.0, 0.75], images, labels, told)
    found = evaluation.evaluate(*mixed, num_complete=2)
    assert {*seen} == {((2, 2), (2,)), ((1, 2), (1,))}
    assert found.correct[0].tolist() == [[True, False, True]] * 2
    assert len(found.alone) == 3 and np.all(found.alone[1].is_nan[:, 0])
    curves = evaluation.security_curves(*mixed, [0.9], names=("tell",))
    assert {*seen} == {((2, 2), (2,)), ((1, 2), (1,))}
    np.testing.assert_allclose(curves.points["tell"], 0.5 - 0.75 * 0.5)


def test_the_black_box_takes_an_answer_of_nan_for_an_error(key):
    """Both members are right at first; only above .6 the second answers NaN: that is found."""

    def logits_fn(x):
        second = jnp.where(x[0] > 0.6, jnp.nan, 1.0 + 0.0 * x[0])
        first = 1.0 - 0.5 * x[0]
        return jnp.stack([jnp.stack([each, 0.0 * each]) for each in (first, second)])

    square = evaluation.attack_suite(threats.linf(0.2), BUDGET)[-1]
    x = jnp.full(SIZE, 0.5)
    point = jax.jit(lambda key: square.run(key, 0, logits_fn, WEIGHTS, x, jnp.int32(0)))(key)
    assert point[0] > 0.6
    assert mixture.accuracy(logits_fn(point), 0, WEIGHTS) == pytest.approx(0.3)


def test_within_bounds_per_feature_the_suite_finds_the_optimum_of_a_linear_table(key):
    """Years and shares; of one member the optimum is the step that a ball and a box leave."""
    low, high = UNIT[0].copy(), UNIT[1].copy()
    low[:3], high[:3] = [18.0, 0.0, -1.0], [90.0, 1.0, 1.0]
    slopes, offset, epsilon = np.zeros(SIZE), -9.0, 4.0
    slopes[:3] = 0.2, -3.0, 1.0
    generator = np.random.default_rng(5)
    images = generator.uniform(low, high, (NUM_EXAMPLES, SIZE)).astype(np.float32)
    images[:10, 1], images[10:20, 0] = 1.0, 18.0  # on their bounds
    logits_fn = scoring(np.stack([slopes, slopes]), offset + slopes.sum() / 2)
    scores = images @ slopes + offset
    labels = (scores < 0).astype(np.int32)
    sign = np.where(labels == 0, -1.0, 1.0)[:, None]
    change = np.stack(
        [
            steepest_in_a_box(s * slopes, low - x, high - x, epsilon)
            for s, x in zip(sign, images, strict=True)
        ]
    )
    lowest = sign[:, 0] * (scores + change @ slopes)
    clear = np.abs(lowest) > 0.02
    robust = lowest < 0
    assert clear.sum() > 30 and 7 < robust.sum() < 33
    stands = np.ones(NUM_EXAMPLES, bool)
    for attack in suite(epsilon, (low, high)):
        if attack.names[0] in ("pgd_expected_loss", "apgd_expected_loss", "carlini_wagner"):
            found = attacked(key, attack, logits_fn, WEIGHTS, images, labels)
            assert np.all((found >= low) & (found <= high))
            stands &= right(logits_fn, found, labels).any(axis=-1).all(axis=0)
    np.testing.assert_array_equal(stands[clear], robust[clear])


def steepest_in_a_box(slope, low, high, epsilon):
    """The step of highest `slope @ step` within an l2 ball and a box: `clip(t slope)`, bisected."""
    short, long = 0.0, 1e6
    for _ in range(200):
        middle = (short + long) / 2
        step = np.clip(middle * slope, low, high)
        short, long = (middle, long) if np.linalg.norm(step) <= epsilon else (short, middle)
    return np.clip(short * slope, low, high)
