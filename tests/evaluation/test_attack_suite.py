"""Which attacks the suite is made of: each climbs what its name says, and together they suffice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, evaluation, losses, mixture, threats
from tests import linear_game

SIZE = 16
BUDGET = evaluation.Budget(
    num_restarts=1,
    num_targets=2,
    num_member_runs=3,
    num_steps=12,
    num_member_aware_runs=1,
    num_member_aware_steps=10,
    num_orders=2,
    num_queries=30,
)
WEIGHTS = jnp.array([0.3, 0.7])


def linear_logits(vectors, x):
    """Member k scores class 0 by `vectors[k] . (x - 1/2)` and class 1 by 0."""
    values = vectors @ (x - 0.5)
    return jnp.stack([values, jnp.zeros_like(values)], axis=-1)


def network_logits(variables, x):
    """Members that are small networks with five classes."""
    hidden = jnp.tanh(jnp.einsum("ldh,d->lh", variables[0], x))
    return jnp.einsum("lhc,lh->lc", variables[1], hidden)


@pytest.fixture(scope="module")
def network():
    keys = jax.random.split(jax.random.key(3))
    variables = jax.random.normal(keys[0], (2, SIZE, 5)), jax.random.normal(keys[1], (2, 5, 5))
    return jax.tree_util.Partial(network_logits, variables)


def nan_outside(attack, threat):
    """The same attack, whose points outside of the ball or of the bounds are NaN."""

    def function(key, run, logits_fn, weights, x, label):
        point = attack.run(key, run, logits_fn, weights, x, label)
        inside = threat.norm(point - x) <= threat.epsilon * (1 + 1e-4)
        return jnp.where(inside & jnp.all((point >= 0) & (point <= 1)), point, jnp.nan)

    return attack._replace(function=function, threat=None)


@pytest.mark.parametrize("threat", [threats.linf(0.06), threats.l2(0.18)], ids=["linf", "l2"])
def test_on_members_with_pixels_of_their_own_the_suite_reaches_the_optimum(key, threat):
    """One point fools everybody who can be fooled: the optimum is `sum_k weights_k rob_k`."""
    vectors = np.zeros((2, SIZE), np.float32)
    vectors[0, :6], vectors[1, 6:12] = np.random.default_rng(0).normal(size=(2, 6))
    images = np.random.default_rng(1).uniform(0.2, 0.8, (12, SIZE)).astype(np.float32)
    images[:, 12:14], images[:, 14:] = 0.0, 1.0  # on their bounds, and no member's
    labels = ((images - 0.5) @ vectors.sum(axis=0) < 0).astype(np.int32)
    margins = ((images - 0.5) @ vectors.T) * np.where(labels == 0, 1, -1)[:, None]
    dual = [float(threat.dual_norm(vector)) for vector in vectors]
    optimum = (margins > threat.epsilon * np.array(dual)) @ np.asarray(WEIGHTS)
    assert 0 < optimum.mean() < ((margins > 0) @ np.asarray(WEIGHTS)).mean() - 0.2
    suite = [nan_outside(attack, threat) for attack in evaluation.attack_suite(threat, BUDGET)]
    logits_fn = functools.partial(linear_logits, vectors)
    settings = dict(alone=False, num_complete=None)
    found = evaluation.evaluate(key, logits_fn, WEIGHTS, images, labels, suite, **settings)
    assert not np.any(found.is_nan)  # nobody leaves the ball or the bounds
    np.testing.assert_allclose(found.worst, optimum, atol=1e-6)
    report = found.report()
    assert ("carlini_wagner" in report["attacks"]) == (threat.dual_norm(jnp.ones(4)) == 2)
    for name in ("arc", "lattice_climber"):
        assert report["robust_accuracy"][name] == pytest.approx(optimum.mean(), abs=0.03)


def test_the_baseline_is_pgd_20_on_the_expected_cross_entropy(key, network):
    threat, label = threats.l2(0.3), jnp.int32(2)
    x = jax.random.uniform(key, (SIZE,))

    def loss_fn(x):
        members = network(x)
        return sum(WEIGHTS[k] * losses.cross_entropy(members[k], label) for k in range(2))

    attack, *_ = evaluation.attack_suite(threat, BUDGET)
    found = jax.jit(attack.run)(key, 0, network, WEIGHTS, x, label)
    settings = dict(num_steps=20, step_size=0.125 * 0.3)
    settings["accuracy_fn"] = lambda x: mixture.accuracy(network(x), label, WEIGHTS)
    plain, _ = jax.jit(lambda x: attacks.pgd(key, loss_fn, x, threat, **settings))(x)
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert attack.names == ("pgd_expected_loss",) and attack.num_steps == 20


def test_every_run_of_auto_pgd_climbs_the_loss_that_its_name_says(key, network):
    """Against AutoPGD on a directly written loss, from the same key."""
    threat, label = threats.linf(0.1), jnp.int32(1)
    x = jax.random.uniform(key, (SIZE,))
    (_, attack, *_) = evaluation.attack_suite(threat, BUDGET)
    attacked = jax.jit(attack.run)
    probs = WEIGHTS @ jax.nn.softmax(network(x))
    likeliest = [int(k) for k in jnp.argsort(-probs) if k != label]

    def of_member(loss, k, x):
        return loss(network(x)[k], label)

    def expected(loss, x):
        return sum(WEIGHTS[k] * of_member(loss, k, x) for k in range(2))

    def targeted(target):
        return functools.partial(
            expected, lambda logits, label: losses.targeted_dlr(logits, label, target)
        )

    loss_fns = [
        ("apgd_expected_loss", functools.partial(expected, losses.cross_entropy)),
        ("apgd_mean_probability", lambda x: -mixture.log_probs(network(x), WEIGHTS)[label]),
        ("apgd_expected_dlr", functools.partial(expected, losses.dlr)),
        ("apgd_expected_margin", functools.partial(expected, lambda *a: -losses.margin(*a))),
        ("apgd_targeted_dlr", targeted(likeliest[0])),
        ("apgd_targeted_dlr", targeted(likeliest[1])),
        ("apgd_members", functools.partial(of_member, losses.cross_entropy, 0)),
        ("apgd_members", functools.partial(of_member, losses.cross_entropy, 1)),
        ("apgd_members", functools.partial(of_member, losses.cross_entropy, 0)),
    ]
    assert attack.names == tuple(name for name, _ in loss_fns)
    settings = dict(num_steps=12)
    settings["accuracy_fn"] = lambda x: mixture.accuracy(network(x), label, WEIGHTS)

    @jax.jit
    def plain(key, number, x):
        def loss_fn(x):
            return jnp.stack([each(x) for _, each in loss_fns])[number]

        return attacks.apgd(key, loss_fn, x, threat, **settings)[0]

    points = []
    for run in range(len(loss_fns)):
        found = attacked(key, jnp.int32(run), network, WEIGHTS, x, label)
        np.testing.assert_allclose(found, plain(key, run, x), atol=1e-5)
        points.append(np.asarray(found))
    assert len({point.tobytes() for point in points}) >= 5  # they are not one loss


def test_the_number_of_runs_is_that_of_the_budget():
    suite = evaluation.attack_suite(threats.l2(0.3), BUDGET)
    assert [attack.names[0] for attack in suite] == [
        "pgd_expected_loss",
        "apgd_expected_loss",
        "arc",
        "lattice_climber",
        "carlini_wagner",
        "square",
    ]
    assert sum(len(attack.names) for attack in suite) == 1 + 4 + 2 + 3 + 1 + 1 + 4 + 1


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
    assert climb == {"num_runs": (1, 0, 0, 0, 9, 0), "num_steps": 100}
    assert (fab, square) == ({"num_steps": 100}, {"num_queries": 5000})


def test_a_run_of_fab_goes_towards_its_class_and_from_a_random_point_once_all_had_their_turn(
    key, network
):
    """Four wrong classes and six runs: from two keys the first four are the same."""
    threat, x = threats.l2(1.5), jax.random.uniform(key, (SIZE,))
    label = jnp.argmax(network(x)[1])
    budget = BUDGET._replace(num_boundary_targets=6, lines=("fab_targeted",))
    (attack,) = evaluation.attack_suite(threat, budget)
    assert attack.names == ("fab_targeted",) * 6
    run = jax.jit(lambda key, number: attack.run(key, number, network, WEIGHTS, x, label))
    found = [[run(jax.random.key(seed), number) for number in range(6)] for seed in (0, 1)]
    same = [bool(jnp.all(a == b)) for a, b in zip(*found, strict=True)]
    assert same == [True] * 4 + [False] * 2
    targets = attacks.likeliest_wrong(mixture.log_probs(network(x), WEIGHTS), label, 4)
    alone = jax.jit(
        lambda target: attacks.fab_targeted(
            key, network, WEIGHTS, x, label, target[None], threat, num_steps=12
        )[0]
    )
    for number in range(4):
        np.testing.assert_allclose(found[0][number], alone(targets[number]), atol=1e-6)


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
    vectors = jnp.zeros((2, SIZE)).at[0, 0].set(1.0).at[1, 1].set(1.0)
    logits_fn = functools.partial(linear_logits, vectors)
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
    """The boundary of one linear classifier is .2 away."""
    vectors = np.zeros((1, SIZE), np.float32)
    vectors[0, 3] = 1.0
    logits_fn = jax.tree_util.Partial(linear_logits, jnp.asarray(vectors))
    x = jnp.full(SIZE, 0.5).at[3].set(0.7)
    budget = BUDGET._replace(num_steps=60)
    (attack,) = (
        each
        for each in evaluation.attack_suite(threats.l2(1.0), budget)
        if "carlini_wagner" in each.names
    )

    @jax.jit
    def within(threat):
        return attack._replace(threat=threat).run(key, 0, logits_fn, jnp.ones(1), x, jnp.int32(0))

    for epsilon, moves in ((0.19, False), (0.22, True)):
        assert bool(jnp.any(within(threats.l2(epsilon)) != x)) == moves


def test_nearest_points_are_those_of_the_mean_probability_and_of_shares_of_the_members(
    key, network
):
    """The same number of runs for every `L`; the second lowers the expected loss."""
    seen = []

    def carlini_wagner(margin_fn, x, *, fooled_fn, **settings):
        seen.append((float(margin_fn(x)), bool(fooled_fn(x))))
        return x, attacks.CarliniWagnerInfo(jnp.bool_(True), jnp.zeros(()), jnp.zeros(()))

    x = jax.random.uniform(key, (SIZE,))
    logits = np.asarray(network(x))
    labels = logits.argmax(-1)
    assert labels[0] != labels[1] and WEIGHTS[1] > 0.5
    label = int(labels[1])  # the first member is wrong, the second right
    attack = evaluation.attack_suite(threats.l2(0.1), BUDGET)[4]
    assert attack.names == ("carlini_wagner",) * 2 + ("carlini_wagner_members",) * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "carlini_wagner", carlini_wagner)
        for run in range(4):
            attack.run(key, jnp.int32(run), network, WEIGHTS, x, jnp.int32(label))
    mean = np.log(np.asarray(WEIGHTS @ jax.nn.softmax(network(x))))
    lead = mean[label] - np.delete(mean, label).max()
    second = logits[1, label] - np.delete(logits[1], label).max()
    want = [
        (lead, lead <= 0),
        (float(WEIGHTS[1]) * second, lead <= 0),
        (second, False),
        (second, False),
    ]
    for (margin, fooled), (margin_wanted, fooled_wanted) in zip(seen, want, strict=True):
        assert margin == pytest.approx(float(margin_wanted), rel=1e-4)
        assert fooled == fooled_wanted


@functools.cache
def nearest_points(epsilon):
    """Compiled `(key, *game) -> [4, N, D]`, those of every run."""
    attack = evaluation.attack_suite(threats.l2(epsilon), evaluation.STANDARD)[4]

    @jax.jit
    def attacked(key, *game):
        game = linear_game.LinearGame(*game, bounds=(0.0, 1.0))

        def one(run, x, label):
            return attack.run(key, run, game.logits, game.weights, x, label)

        each = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)), in_axes=(0, None, None))
        return each(jnp.arange(4), game.x, game.labels)

    return attacked


@pytest.mark.parametrize("kind", ["steeper", "opposed"])
def test_nearest_points_of_the_members_reach_the_optimum_of_a_linear_mixture(kind, key):
    """Those of the mean probability alone leave more than twice as much."""
    game, epsilon = linear_game.two(1, kind, num_examples=40), 0.4
    risks = np.stack([game.risk(points) for points in nearest_points(epsilon)(key, *game[:5])])
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
    attack = evaluation.attack_suite(threats.linf(0.1), BUDGET._replace(num_member_runs=1))[1]
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


def test_within_bounds_per_feature_the_quick_suite_finds_the_optimum_of_a_linear_table(key):
    """Years and shares; of one member the optimum is the step that a ball and a box leave."""
    low, high = np.float32([18.0, 0.0, -1.0]), np.float32([90.0, 1.0, 1.0])
    slopes, offset = np.float32([[0.2, -3.0, 1.0]]), np.float32([-9.0])
    bounds = (low, high)
    generator = np.random.default_rng(5)
    images = generator.uniform(low, high, (24, 3)).astype(np.float32)
    images[:6, 1], images[6:12, 0] = 1.0, 18.0  # on their bounds

    def logits_fn(x):
        score = jnp.asarray(slopes) @ x + offset
        return jnp.stack([score, 0.0 * score], axis=1)

    scores = images @ slopes[0] + offset
    labels = (scores < 0).astype(np.int32)
    sign = np.where(labels == 0, -1.0, 1.0)[:, None]
    epsilon = 4.0
    change = np.stack(
        [
            steepest_in_a_box(s * slopes[0], low - x, high - x, epsilon)
            for s, x in zip(sign, images, strict=True)
        ]
    )
    lowest = sign[:, 0] * (scores + change @ slopes[0])
    clear = np.abs(lowest) > 0.02
    robust = lowest < 0
    assert clear.sum() > 18 and 4 < robust.sum() < 20
    lines = "pgd_expected_loss", "apgd_expected_loss", "carlini_wagner"
    budget = evaluation.QUICK._replace(lines=lines)
    suite = evaluation.attack_suite(threats.l2(epsilon), budget, bounds=bounds)
    found = evaluation.evaluate(key, logits_fn, [1.0], images, labels, suite, alone=False)
    np.testing.assert_array_equal(found.worst[clear], robust[clear])


def steepest_in_a_box(slope, low, high, epsilon):
    """The step of highest `slope @ step` within an l2 ball and a box: `clip(t slope)`, bisected."""
    short, long = 0.0, 1e6
    for _ in range(200):
        middle = (short + long) / 2
        step = np.clip(middle * slope, low, high)
        short, long = (middle, long) if np.linalg.norm(step) <= epsilon else (short, middle)
    return np.clip(short * slope, low, high)
