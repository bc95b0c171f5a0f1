"""Examples whose candidates cost the members the same, merged into one.

Losses of 0 and 1 have few different rows: `N M` candidates make at most `2^L` of them. A candidate
that is no better for the attacker than another one of its example, whichever member is drawn, can
be left out; examples that then have the same set of rows left are one example with a larger mass.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_MAX_ROWS = 1024
_SAMPLE = 4096  # rows that tell a table with too many different ones from the start
_MAX_CODE = 2**62


class Patterns(NamedTuple):
    """A smaller game with the same equilibria.

    Attributes:
      losses: `[U, K, L]` losses of the members at the candidates that matter.
      mass: `[U]` parts of all examples, summing to 1.
      spread: `attack [U, K] -> [N, M]`, the same attack on the examples that were merged.
    """

    losses: np.ndarray
    mass: np.ndarray
    spread: Callable[[np.ndarray], np.ndarray]


def merge(losses: np.ndarray) -> Patterns:
    """The game without equal examples and equal or dominated candidates.

    Args:
      losses: `[N, M, L]` losses of the members at the candidates.

    Returns:
      The smaller game; the same game if the table has over 1024 different rows.
    """
    num_examples, num_candidates, num_members = losses.shape
    flat = losses.reshape(-1, num_members)
    codes = _codes(flat)
    if codes is None:
        mass = np.full(num_examples, 1 / num_examples)
        return Patterns(losses, mass, lambda attack: attack)

    _, first, row = np.unique(codes, return_index=True, return_inverse=True)
    rows, row = flat[first], row.reshape(num_examples, num_candidates)
    examples = np.arange(num_examples)[:, None]
    first_candidate = np.zeros((num_examples, len(rows)), int)
    for candidate in reversed(range(num_candidates)):
        first_candidate[examples[:, 0], row[:, candidate]] = candidate
    has_row = np.zeros((num_examples, len(rows)), bool)
    has_row[examples, row] = True
    # As a matrix product: is any row of the example beaten by another one that it has.
    is_dominated = has_row.astype(np.float32) @ _dominates(rows).astype(np.float32) > 0
    sets, pattern, counts = np.unique(
        np.packbits(has_row & ~is_dominated, axis=1),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    pattern = pattern.reshape(-1)
    sets = np.unpackbits(sets, axis=1, count=len(rows)).astype(bool)
    # The rows of a set come first; what fills it up repeats its first row, and is never played.
    order = np.argsort(~sets, axis=1, kind="stable")[:, : sets.sum(axis=1).max()]
    order = np.where(np.take_along_axis(sets, order, axis=1), order, order[:, :1])

    def spread(attack):
        full = np.zeros((num_examples, num_candidates))
        candidate = np.take_along_axis(first_candidate, order[pattern], axis=1)
        np.add.at(full, (examples, candidate), attack[pattern])
        return full

    return Patterns(rows[order], counts / num_examples, spread)


def _codes(flat):
    """`[R, L] -> [R]` numbers, equal for equal rows; None if too many rows differ."""
    # A table of real-valued losses is recognised by its first rows, before all of them are sorted.
    if len(np.unique(flat[:_SAMPLE], axis=0)) > _MAX_ROWS:
        return None
    codes, size = np.zeros(len(flat), int), 1
    for column in flat.T:
        values = np.unique(column)
        if size * len(values) > _MAX_CODE:
            codes = np.unique(codes, return_inverse=True)[1]
            size = codes.max() + 1
        # Each row as one number in mixed radix: numbers sort ten times as fast as rows.
        codes = codes * len(values) + np.searchsorted(values, column)
        size *= len(values)
    if size <= _MAX_ROWS:
        return codes.astype(np.uint16)  # sorted by their digits, ten times as fast
    return codes if len(np.unique(codes)) <= _MAX_ROWS else None


def _dominates(rows):
    """`[R, L] -> [R, R]`: whether row `r` costs every member at least as much as another, `s`."""
    below = np.ones((len(rows), len(rows)), bool)
    for column in rows.T:
        below &= column[:, None] >= column[None, :]
    return below & ~np.eye(len(rows), dtype=bool)
