"""Attackers who pay for what they move, on the line and in the plane.

An attack gains 1 for a wrong answer and pays `lam` times its length (norm penalty) or `lam` for
being made at all (mass penalty); nothing moves further than `epsilon`, in the Euclidean norm under
the norm penalty and in the maximum norm under the mass penalty.

References:
  Pinot et al., Randomization matters, 2020, section 4.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special

PENALTIES = ("norm", "mass")
CLASSES = (1, -1)
_FAR = 40.0  # standard deviations beyond which there is nothing
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


class Gaussians(NamedTuple):
    """Class 1 around `mean`, class -1 around `-mean`, equally likely, with deviation `scale`."""

    mean: float
    scale: float

    def density(self, label, x):
        """Density of a class."""
        z = (x - label * self.mean) / self.scale
        return np.exp(-(z**2) / 2) / (self.scale * np.sqrt(2 * np.pi))

    def mass(self, label, low, high):
        """Probability of an interval in a class."""
        center = label * self.mean
        return scipy.special.ndtr((high - center) / self.scale) - scipy.special.ndtr(
            (low - center) / self.scale
        )


class Classifier(NamedTuple):
    """Answers on the line: `labels [J + 1]` between and beyond the `edges [J]`, in order."""

    edges: tuple[float, ...]
    labels: tuple[int, ...]

    def __call__(self, x):
        """The label at each point."""
        return np.array(self.labels)[np.searchsorted(self.edges, x)]


def threshold(edge: float) -> Classifier:
    """Class 1 above the edge."""
    return Classifier((edge,), (-1, 1))


def defender_response(classifier: Classifier, gaussians: Gaussians, epsilon: float) -> Classifier:
    """The Bayes classifier under the best attack on a threshold, of either penalty.

    No point of a class is left on its own side within `epsilon` of the edge, so that the answer
    is turned over there; elsewhere the likelier class of the two, above or below 0.
    """
    (edge,) = classifier.edges
    edges = sorted({edge - epsilon, edge, edge + epsilon, 0.0})
    middles = np.array([edges[0] - 1, *(np.add(edges[1:], edges[:-1]) / 2), edges[-1] + 1])
    turned = np.abs(middles - edge) < epsilon
    labels = np.where(turned, -classifier(middles), np.sign(middles * gaussians.mean)).astype(int)
    kept = labels[1:] != labels[:-1]
    return Classifier(tuple(np.array(edges)[kept]), (int(labels[0]), *map(int, labels[1:][kept])))


def worst_score(x, label, classifiers, weights, penalty, epsilon, lam):
    """`max_z P(the mixture errs at z) - lam * cost(x, z)`, exactly, on the line.

    Args:
      x: `[P]` points.
      label: their class.
      classifiers: of the mixture.
      weights: `[L]` probabilities.
      penalty: "norm" or "mass".
      epsilon: longest move.
      lam: price.

    Returns:
      `[P]` scores; a point on an edge counts for both sides of it.
    """
    edges = np.array(sorted({edge for classifier in classifiers for edge in classifier.edges}))
    low, high = np.append(-np.inf, edges), np.append(edges, np.inf)
    middles = np.concatenate([edges[:1] - 1, (edges[1:] + edges[:-1]) / 2, edges[-1:] + 1])
    wrong = sum(w * (each(middles) != label) for w, each in zip(weights, classifiers, strict=True))
    distance = np.maximum(0, np.maximum(low - x[:, None], x[:, None] - high))
    cost = distance if penalty == "norm" else (distance > 0)
    return np.where(distance <= epsilon, wrong - lam * cost, -np.inf).max(axis=1)


def worst_risk(gaussians, classifiers, weights, penalty, epsilon, lam, *, num_panels=8):
    """Risk of a mixture under its best penalised attack.

    Gauss quadrature on `num_panels` panels between any two places where the score may jump; only
    where two moves are worth the same it has a kink inside a panel.

    Returns:
      The risk, and an estimate of the quadrature's error: the change from half as many panels.
    """
    edges = [edge for classifier in classifiers for edge in classifier.edges]
    reach = gaussians.mean + 10 * gaussians.scale
    jumps = {edge + move for edge in edges for move in (-epsilon, 0.0, epsilon)}
    jumps = sorted({-reach, reach} | {jump for jump in jumps if abs(jump) < reach})

    def integrate(panels):
        shares = np.arange(panels + 1) / panels
        ends = np.add.outer(jumps[:-1], 0.0)[:, None] + np.diff(jumps)[:, None] * shares
        low, width = ends[:, :-1].ravel(), np.diff(ends, axis=1).ravel()
        x = (low[:, None] + width[:, None] * (1 + _NODES) / 2).ravel()
        measure = (width[:, None] / 2 * _NODE_WEIGHTS).ravel()
        total = 0.0
        for label in CLASSES:
            score = worst_score(x, label, classifiers, weights, penalty, epsilon, lam)
            total += 0.5 * np.sum(measure * score * gaussians.density(label, x))
        return float(total)

    fine = integrate(2 * num_panels)
    return fine, abs(fine - integrate(num_panels))


def threshold_risk(gaussians: Gaussians, edge, penalty, epsilon, lam) -> float:
    """The same for one threshold, in closed form (lemmas 1 and 2)."""
    total = 0.0
    for label in CLASSES:
        # Class -1 is class 1 of the mirrored line.
        offset = label * edge - gaussians.mean
        lost = scipy.special.ndtr(offset / gaussians.scale)
        attacked = scipy.special.ndtr((offset + epsilon) / gaussians.scale) - lost
        price = attacked
        if penalty == "norm":  # the mean of `x - edge` over the attacked zone
            near, far = gaussians.density(1, gaussians.mean + np.array([offset, offset + epsilon]))
            price = gaussians.scale**2 * (near - far) - offset * attacked
        total += 0.5 * (lost + attacked - lam * price)
    return float(total)


def vanishing(gaussians: Gaussians, edge, epsilon) -> list[tuple[float, float]]:
    """For each class: the masses of `U + epsilon` without U, and of U, its attackable zone.

    The condition of theorem 2 is that the first is at most the second.
    """
    pairs = []
    for label in CLASSES:
        low, high = sorted((edge, edge + label * epsilon))
        inside = gaussians.mass(label, low, high)
        pairs.append((gaussians.mass(label, low - epsilon, high + epsilon) - inside, inside))
    return [(float(outside), float(inside)) for outside, inside in pairs]


class Lattice(NamedTuple):
    """The line in cells: `centers [J]`, `masses [2, J]` of classes 1 and -1, summing to 1/2."""

    centers: np.ndarray
    masses: np.ndarray


def lattice(gaussians: Gaussians, num_cells: int, extent: float) -> Lattice:
    """Cells of equal width over `[-extent, extent]`; the outermost ones hold the tails."""
    edges = np.linspace(-extent, extent, num_cells + 1)
    centers = (edges[1:] + edges[:-1]) / 2
    edges[0], edges[-1] = -_FAR * gaussians.scale - extent, _FAR * gaussians.scale + extent
    masses = [0.5 * gaussians.mass(label, edges[:-1], edges[1:]) for label in CLASSES]
    return Lattice(centers, np.array(masses))


def attack_cells(cells: Lattice, answers, penalty, epsilon):
    """The best attack on answers `[J]` of -1 or 1: `[2, J]` numbers of the cells moved to.

    Under the norm penalty to the nearest cell of the other answer, under the mass penalty by the
    whole radius in its direction, if that is answered wrongly too.
    """
    width = cells.centers[1] - cells.centers[0]
    reach = int(epsilon / width + 1e-6)
    target = np.tile(np.arange(len(answers)), (2, 1))
    for row, label in enumerate(CLASSES):
        wrong = np.flatnonzero(answers != label)
        for cell in np.flatnonzero(answers == label):
            if not len(wrong):
                continue
            nearest = wrong[np.abs(wrong - cell).argmin()]
            if abs(nearest - cell) <= reach:
                far = cell + reach * np.sign(nearest - cell)
                is_far = penalty == "mass" and 0 <= far < len(answers) and answers[far] != label
                target[row, cell] = far if is_far else nearest
    return target


def attacked_risk(cells: Lattice, answers, target, penalty, lam) -> float:
    """Risk of answers `[J]` under an attack `[2, J]`, penalty subtracted."""
    length = np.abs(cells.centers[target] - cells.centers)
    cost = length if penalty == "norm" else (length > 0)
    wrong = answers[target] != np.array(CLASSES)[:, None]
    return float(np.sum(cells.masses * (wrong - lam * cost)))


def transported(cells: Lattice, target) -> np.ndarray:
    """`[2, J]` masses of the classes after an attack."""
    return np.stack([np.bincount(t, m, len(m)) for t, m in zip(target, cells.masses, strict=True)])


def linear_response(x, labels, slope, offset, penalty, epsilon):
    """The best attack `[N, D]` on `x @ slope + offset > 0`, in closed form.

    Norm penalty: the projection onto the boundary; mass penalty: the same distance across it, as
    far as `epsilon` allows, in the direction in which the maximum norm gets furthest.
    """
    margin = labels * (x @ slope + offset)
    if penalty == "norm":
        length = np.linalg.norm(slope)
        moves = -(labels * margin / length**2)[:, None] * slope
    else:
        length = np.abs(slope).sum()
        distance = np.minimum(2 * margin / length, epsilon)
        moves = -(labels * distance)[:, None] * np.sign(slope)
    attackable = (margin > 0) & (margin <= epsilon * length)
    return np.where(attackable[:, None], x + moves, x)


def numerical_response(
    score_fn: Callable, x, labels, penalty, epsilon, *, num_rays=128, num_steps=64
):
    """The best attack `[N, 2]` on `score_fn(x) > 0` for any boundary in the plane.

    Looks for the nearest crossing along rays, twice: all around, then around the best ray. The
    distance found is too long by about `distance / num_rays^4`, or more where the boundary turns
    within `epsilon / num_steps`.
    """
    best = np.full(len(x), np.inf)
    angle, spread = np.zeros(len(x)), np.pi
    target = x.copy()
    for _ in range(2):
        angles = angle[:, None] + np.linspace(-spread, spread, num_rays + 1)
        rays = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        if penalty == "mass":
            rays = rays / np.abs(rays).max(axis=-1, keepdims=True)
        length = _crossings(score_fn, x, labels, rays, epsilon, num_steps)
        nearest = length.argmin(axis=1)
        rows = np.arange(len(x))
        closer = length[rows, nearest] < best
        best = np.where(closer, length[rows, nearest], best)
        angle = np.where(closer, angles[rows, nearest], angle)
        found = x + np.where(np.isfinite(best), best, 0)[:, None] * rays[rows, nearest]
        target = np.where(closer[:, None], found, target)
        spread = 2 * spread / num_rays
    wrong_already = labels * score_fn(x) <= 0
    return np.where(wrong_already[:, None], x, target)


def _crossings(score_fn, x, labels, rays, epsilon, num_steps):
    """`[N, K]` distances of the first wrong answers along rays `[N, K, 2]`; infinite if none."""

    def is_wrong(length):
        return labels[:, None] * score_fn(x[:, None] + length[..., None] * rays) <= 0

    high = np.full(rays.shape[:2], np.inf)
    for step in range(num_steps, 0, -1):
        length = np.full(rays.shape[:2], epsilon * step / num_steps)
        high = np.where(is_wrong(length), length, high)
    low, top = high - epsilon / num_steps, high
    reached = np.isfinite(high)
    low, top = np.where(reached, low, 0.0), np.where(reached, top, 0.0)
    for _ in range(50):
        middle = (low + top) / 2
        wrong = is_wrong(middle)
        low, top = np.where(wrong, low, middle), np.where(wrong, middle, top)
    return np.where(reached, top, np.inf)
