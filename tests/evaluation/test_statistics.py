"""Intervals and paired tests, by hand."""

from __future__ import annotations

import pytest

from pipeline.evaluation.statistics import bootstrap, holm, interval, mcnemar, sign_flip, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # z = 1.96: z^2 = 3.8415; 0/10: 0 and z^2 / (n + z^2) = 3.8415 / 13.8415; 5/10: 0.5 -+ z / 2 / sqrt(n + z^2)
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (0, 1, 0.0, 0.79346),
        (79, 164, 0.40653, 0.55772),
    ],
)
def test_wilson_by_hand(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-5)


def test_intervals() -> None:
    assert interval([1, 0.0, 1, True]) == wilson(3, 4)
    values = [0.1 * i for i in range(11)]  # mean 0.5, standard error sqrt(0.1 / 11) = 0.0953: +- 1.96 of it
    assert interval(values) == bootstrap(values) == pytest.approx((0.313, 0.687), abs=0.01)
    assert interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="^no scores, no interval$"):
        interval([])


@pytest.mark.parametrize(
    ("successes", "n", "message"),
    [
        (0, 0, "n must be an integer not less than 1"),
        (3, 2, r"k \(3\) must not be greater than n \(2\)"),
        (-1, 2, "k must be an integer not less than 0"),
    ],
)
def test_proportions_that_cannot_be(successes: int, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson(successes, n)


def test_paired_tests_by_hand() -> None:
    assert mcnemar(1, 7) == pytest.approx(18 / 256)  # 2 (C(8,0) + C(8,1)) / 2^8
    assert (mcnemar(0, 0), mcnemar(3, 3)) == (1.0, 1.0)
    assert sign_flip([1, -1, 1, 1, 0, 1, 1, 1, 1]) == pytest.approx(mcnemar(1, 7)), "all 2^8 ways of the signs"
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.1] * 30) < 0.001
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
