"""Mixtures of linear classifiers, whose strongest attack can be computed exactly.

Slow and obvious on purpose: every set of members, every choice of wrong classes, the smallest
perturbation that reaches them all, in double precision. It shares no code with the library.
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy.optimize


class LinearGame(NamedTuple):
    """`N` examples against `L` linear members with logits `slopes @ x + offsets`."""

    slopes: np.ndarray  # [L, C, D]
    offsets: np.ndarray  # [L, C]
    weights: np.ndarray  # [L]
    x: np.ndarray  # [N, D]
    labels: np.ndarray  # [N]
    bounds: tuple[float, float]

    def logits(self, x):
        """`[D] -> [L, C]`, for NumPy and for JAX."""
        return (self.slopes * x[None, None]).sum(-1) + self.offsets

    def risk(self, points):
        """`[N, D] -> [N]`: the weight of the members that err; a tie is an error."""
        margins = np.stack([self._margins(*pair) for pair in zip(points, self.labels, strict=True)])
        return np.sum(self.weights * (margins.min(axis=2) <= 0), axis=1, dtype=np.float64)

    def optimal_risk(self, order, epsilon):
        """`[N]`: the highest risk within `epsilon` of each example, `order` 2 or infinity."""
        subsets = itertools.product([False, True], repeat=len(self.weights))
        by_weight = sorted(map(np.array, subsets), key=lambda s: -float(self.weights @ s))
        return np.array([self._optimum(n, by_weight, order, epsilon) for n in range(len(self.x))])

    def _optimum(self, n, subsets, order, epsilon):
        impossible = []  # sets that no point fools, and so nothing that contains them
        for subset in subsets:
            if not any(np.all(subset[bad]) for bad in impossible):
                if self._smallest_norm(n, np.flatnonzero(subset), order) <= epsilon:
                    return float(self.weights @ subset)
                impossible.append(np.flatnonzero(subset))
        raise AssertionError("the empty set is always possible")

    def _margins(self, x, label):
        """`[L, C - 1]` by how much the label leads each other class, in double precision."""
        logits = self.logits(np.float64(x))
        return logits[:, [label]] - np.delete(logits, label, axis=1)

    def _smallest_norm(self, n, members, order):
        """The norm of the smallest perturbation of example `n` that fools all `members`."""
        smallest = np.inf if len(members) else 0.0
        x, label = np.float64(self.x[n]), self.labels[n]
        slopes = self.slopes[:, [label]] - np.delete(self.slopes, label, axis=1)
        margins = self._margins(x, label)
        low, high = self.bounds[0] - x, self.bounds[1] - x
        for classes in itertools.product(range(margins.shape[1]), repeat=len(members)):
            a, b = slopes[members, classes], -margins[members, classes]
            solve = smallest_l2 if order == 2 else smallest_linf
            smallest = min(smallest, solve(np.float64(a), np.float64(b), low, high))
        return smallest


def smallest_linf(a, b, low, high):
    """`min max|delta|` with `a @ delta <= b` and `low <= delta <= high`: a linear program."""
    dimension = len(low)
    both, minus = np.vstack([np.eye(dimension), -np.eye(dimension)]), -np.ones((2 * dimension, 1))
    result = scipy.optimize.linprog(
        c=[0.0] * dimension + [1.0],
        A_ub=np.block([[a, np.zeros((len(a), 1))], [both, minus]]),
        b_ub=np.concatenate([b, np.zeros(2 * dimension)]),
        bounds=[*zip(low, high, strict=True), (0.0, None)],
    )
    return result.fun if result.status == 0 else np.inf


def smallest_l2(a, b, low, high):
    """The same for `|delta|_2`, by non-negative least squares.

    References:
      Lawson and Hanson, Solving least squares problems, 1974, chapter 23: least distance
      programming.
    """
    dimension = len(low)
    rows = np.vstack([-a, np.eye(dimension), -np.eye(dimension)])
    heights = np.concatenate([-b, low, -high])  # rows @ delta >= heights
    target = np.append(np.zeros(dimension), 1.0)
    solution, residual = scipy.optimize.nnls(np.vstack([rows.T, heights]), target)
    if residual < 1e-9:
        return np.inf
    left = np.vstack([rows.T, heights]) @ solution - target
    return float(np.linalg.norm(left[:-1] / left[-1]))


def two(seed, kind, *, num_examples=60, dimension=12, bounds=(0.0, 1.0)):
    """Two binary members, .9 / .1: the second "steeper" six times, or "opposed" to the first."""
    generator = np.random.default_rng(seed)
    first, own = generator.normal(size=(2, dimension))
    second = 6.0 * own if kind == "steeper" else 0.3 * own - first
    return _game(generator, np.stack([first, second])[:, None], [0.9, 0.1], num_examples, bounds)


def random(seed, num_members, num_classes=2, *, num_examples=60, dimension=12, bounds=(0.0, 1.0)):
    """Members that agree in part, of any steepness and weight."""
    generator = np.random.default_rng(seed)
    shape = (num_members, num_classes - 1, dimension)
    normals = 0.5 * generator.normal(size=shape[1:]) + generator.normal(size=shape)
    normals *= np.exp(generator.normal(size=(num_members, 1, 1)))
    weights = generator.dirichlet(np.full(num_members, 3.0))
    return _game(generator, normals, weights, num_examples, bounds)


def _game(generator, normals, weights, num_examples, bounds):
    """`normals` `[L, C - 1, D]`, away from the boundaries; labels are what most members say."""
    slopes = np.concatenate([0.0 * normals[:, :1], -normals], axis=1)
    middle = np.full(normals.shape[-1], np.mean(bounds))
    x = np.clip(middle + 0.3 * generator.normal(size=(num_examples, len(middle))), *bounds)
    logits = np.einsum("lcd,nd->nlc", slopes, x - middle)
    votes = np.einsum("l,nlc->nc", weights, logits == logits.max(axis=2, keepdims=True))
    return LinearGame(
        slopes=np.float32(slopes),
        offsets=np.float32(-slopes @ middle),
        weights=np.float32(weights),
        x=np.float32(x),
        labels=np.argmax(votes, axis=1).astype(np.int32),
        bounds=bounds,
    )
