"""95% intervals of a score over problems, and whether the scores of two models differ on the same problems.

scipy is imported where it computes: `status` reads scores and shall start at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean: Wilson's for 0/1 scores, a bootstrap's for graded ones. Raises ValueError for none."""
    if not len(scores):
        raise ValueError("no scores, no interval")
    if all(score in (0, 1) for score in scores):
        return wilson(int(sum(scores)), len(scores))
    return bootstrap(scores)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): sensible at 0, at 1 and for small n.

    Raises ValueError for n < 1 or successes outside 0..n.
    """
    from scipy.stats import binomtest

    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return float(low), float(high)


def bootstrap(scores: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap of the mean (Efron 1979), problems drawn with replacement; the same every time."""
    return ratio_interval(scores, np.ones(len(scores)))


def ratio_interval(parts: Sequence[float] | np.ndarray, wholes: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """As `bootstrap`, of the sum of `parts` over the sum of `wholes`, both a number per problem."""
    # counts of each pair of numbers, not indices: a resample is one multinomial draw, and the sums are one product
    pairs, many = np.unique(np.stack([parts, wholes], axis=1).astype(np.float64), axis=0, return_counts=True)
    counts = np.random.default_rng(0).multinomial(len(parts), many / len(parts), size=10_000)
    ratios = counts @ pairs[:, 0] / (counts @ pairs[:, 1])
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: problems that only one of two models gets right, against a fair coin."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p that paired differences are symmetric about 0: their signs flipped at random (all ways, if few).

    For graded scores; on differences of -1, 0 and 1 it is McNemar's test.
    """
    moved = np.asarray([d for d in differences if d])
    if len(moved) < 2:
        return 1.0
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)
    return float(permutation_test((moved,), np.sum, permutation_type="samples", n_resamples=9_999, rng=rng).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): below 0.05, a difference is significant despite the number tested."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted
