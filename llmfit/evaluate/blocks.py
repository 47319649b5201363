"""Sums over blocks of neighbouring tokens, the unit that intervals of token figures resample.

Neighbouring tokens' losses are alike, so resampled one by one they would count as more evidence
than they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCK_TOKENS = 128
"""Tokens in a block. A choice: a paragraph's length, and hundreds of blocks in a usual text."""


def block_totals(values: np.ndarray, runs: Sequence[int]) -> tuple[list[float], list[int]]:
    """Sum and number of ``values`` in each block of ``BLOCK_TOKENS`` neighbours.

    ``values`` float[n] are runs of the given lengths, one after the other; no block reaches from
    one run into the next, so a run's last block may be shorter. Raises ValueError where the
    lengths do not add up to n.
    """
    if sum(runs) != len(values):
        raise ValueError(f"runs of {sum(runs)} values do not make {len(values)}.")
    starts: list[int] = []
    first = 0
    for run in runs:
        starts.extend(range(first, first + run, BLOCK_TOKENS))
        first += run
    if not starts:
        return [], []
    totals = np.add.reduceat(values, starts, dtype=np.float64)
    return totals.tolist(), np.diff([*starts, len(values)]).tolist()
