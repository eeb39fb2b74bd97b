"""Weights over diffusion time t and training progress p."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def tidal_lambda(
    progress: float,
    t: Tensor,
    *,
    init: float = 0.1,
    maximum: float = 0.9,
    axes: Literal["both", "training", "timestep"] = "both",
    schedule: Literal["cosine", "linear"] = "cosine",
) -> Tensor:
    """TIDAL's share of the teacher in the target, lambda(p, t) = lambda_train(p) (1 - t), of t's shape.

    lambda_train = init + (max - init) g(p), g = (1 - cos(pi p)) / 2 or p. One axis alone: `training` is lambda_train(p),
    `timestep` is max (1 - t). Raises KeyError for an unknown axis mode or schedule.
    """
    growth = {"cosine": (1 - math.cos(math.pi * progress)) / 2, "linear": progress}[schedule]
    train = init + (maximum - init) * growth
    return {
        "both": lambda: train * (1 - t),
        "training": lambda: torch.full_like(t, train),
        "timestep": lambda: maximum * (1 - t),
    }[axes]()


def midrange_weight(t: Tensor) -> Tensor:
    """w(t) = exp(-(t - 0.5)^2 / (2 0.15^2)): rows near t = 0.5 count most. Never part of a denominator."""
    return torch.exp(-((t - 0.5) ** 2) / (2 * 0.15**2))


def cross_entropy_weight(t: Tensor) -> Tensor:
    """w(t) = 1 / (t + 1e-6), the linear schedule's weight of the cross-entropy (the bound on the likelihood)."""
    return 1 / (t + 1e-6)
