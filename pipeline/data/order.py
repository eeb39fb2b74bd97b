"""Which rows form which global batch, and which rank takes which of them.

Both are pure functions of the seed and the step: the content of a global batch does not depend on the number of ranks,
and a resumed run needs no more than its step number.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core.errors import BadInput


@dataclass(frozen=True)
class SampleRef:
    """A row in an epoch: what its noise is keyed by."""

    epoch: int
    row: int


class GlobalBatches:
    """The global batches of a run, each shuffled epoch following the last without a gap."""

    def __init__(self, rows: int, batch: int, seed: int):
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def steps(self, epochs: float) -> int:
        """Optimizer steps that visit every row `epochs` times."""
        return max(1, math.ceil(self.rows * epochs / self.batch))

    def __getitem__(self, step: int) -> list[SampleRef]:
        """The rows of one optimizer step, counted from 0."""
        first = step * self.batch
        epochs = (divmod(position, self.rows) for position in range(first, first + self.batch))
        return [SampleRef(epoch, int(self._permutation(epoch)[index])) for epoch, index in epochs]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return self._order


def balance(costs: Sequence[int] | np.ndarray, parts: int) -> list[list[int]]:
    """Splits items into exactly `parts` groups of similar cost, some maybe empty; largest first, to the least loaded.

    No group costs more than sum(costs) / parts + max(costs).
    """
    loads = [(0, part) for part in range(parts)]
    groups: list[list[int]] = [[] for _ in range(parts)]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, part = heapq.heappop(loads)
        groups[part].append(item)
        heapq.heappush(loads, (load + int(costs[item]), part))
    return groups


def accumulation_steps(costs: np.ndarray, batch: int, ranks: int, budget: int) -> int:
    """The fewest micro-batches per rank into which `balance` fits every possible global batch.

    Args:
        costs: [rows], tokens that each row takes.
        batch: rows of a global batch.
        budget: `optim.micro_tokens`.
    Raises BadInput for a budget that no number of micro-batches can keep.
    """
    longest = int(costs.max())
    heaviest = int(np.sort(costs)[-batch:].sum()) * math.ceil(batch / len(costs))
    if longest > budget:
        raise BadInput(
            f"optim.micro_tokens {budget} cannot hold the longest row, {longest} tokens over the student's [xt, x0] and "
            f"all teacher views: raise it to {longest} or more, or shorten data.student_length"
        )
    one_row_each = math.ceil(batch / ranks)
    by_bound = math.ceil(heaviest / (ranks * (budget - longest))) if budget > longest else one_row_each
    return max(1, min(one_row_each, by_bound))
