"""What a study's results say: scores with intervals, and differences to the baseline, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipeline.evaluation.statistics import holm, sign_flip

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One variant over its seeds."""

    variant: str
    scores: dict[int, float]
    """of each seed"""
    mean: float
    low: float
    high: float
    """95% interval of the mean over seeds (Student's t)"""
    difference: float | None
    """mean difference to the baseline over common seeds; None for the baseline"""
    difference_low: float | None
    difference_high: float | None
    p: float | None
    """two-sided sign-flip test of the differences, exact up to 13 seeds"""
    p_holm: float | None
    """p after Holm's correction over all variants of the table"""
    kl: dict[str, list[float]]
    """teacher -> mean KL(teacher || student) by t"""
    seconds: float
    tokens: float


def lines(results: Sequence[Record], baseline: str) -> list[Line]:
    """A line a variant, in the order of first appearance. Results without the baseline have no differences."""
    by_variant: dict[str, dict[int, Record]] = {}
    for r in results:
        by_variant.setdefault(r["variant"], {})[r["seed"]] = r
    base = {seed: r["score"] for seed, r in by_variant.get(baseline, {}).items()}
    made = {name: _line(name, runs, {} if name == baseline else base) for name, runs in by_variant.items()}
    tested = [name for name, line in made.items() if line["p"] is not None]
    corrected = dict(zip(tested, holm([made[name]["p"] for name in tested]), strict=True))
    return [Line(**line, p_holm=corrected.get(name)) for name, line in made.items()]


def _line(name: str, runs: Mapping[int, Record], base: Mapping[int, float]) -> dict[str, Any]:
    scores = {seed: runs[seed]["score"] for seed in sorted(runs)}
    differences = [scores[seed] - base[seed] for seed in scores if seed in base]
    low, high = t_interval(list(scores.values()))
    d_low, d_high = t_interval(differences) if differences else (None, None)
    kl = {
        teacher: np.mean([r["kl"][teacher] for r in runs.values()], axis=0).tolist()
        for teacher in next(iter(runs.values()))["kl"]
    }
    return {
        "variant": name,
        "scores": scores,
        "mean": float(np.mean(list(scores.values()))),
        "low": low,
        "high": high,
        "difference": float(np.mean(differences)) if differences else None,
        "difference_low": d_low,
        "difference_high": d_high,
        "p": sign_flip(differences) if differences else None,
        "kl": kl,
        "seconds": float(np.mean([r["seconds"] for r in runs.values()])),
        "tokens": float(np.mean([r["tokens"] for r in runs.values()])),
    }


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean; one value, or equal ones, give no width."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5 if spread else 0.0
    return mean - half, mean + half
