"""TIDAL: how far the target is moved from the student to the teacher, over training progress p and diffusion time t.

    lambda(p, t) = lambda_train(p) (1 - t)
    TIDAL        r = softmax(((1 - lambda) s + lambda z) / T) of student and teacher logits s, z
    CALM-TIDAL   (1 - lambda) p + lambda q of the chunk probabilities
    on the cross-entropy: the data's token mixed with the student's own distribution

Targets are detached.
"""

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


@torch.no_grad()
def mix_logits(student: Tensor, teacher: Tensor, mix: Tensor) -> Tensor:
    """Logits of TIDAL's target, (1 - lambda) s + lambda z: [..., V] twice, lambda [...] -> [..., V]."""
    return torch.lerp(student, teacher, mix.to(student.dtype).unsqueeze(-1))


@torch.no_grad()
def mix_probabilities(
    log_p: Tensor, log_1mp: Tensor, log_q: Tensor, log_1mq: Tensor, mix: Tensor
) -> tuple[Tensor, Tensor]:
    """Log of CALM-TIDAL's target m = (1 - lambda) p + lambda q and of 1 - m, from the logs of p, 1 - p, q, 1 - q: all [C]."""
    keep, take = torch.log1p(-mix), mix.log()
    return torch.logaddexp(keep + log_p, take + log_q), torch.logaddexp(keep + log_1mp, take + log_1mq)


def mix_cross_entropy(weight: Tensor, mix: Tensor) -> Tensor:
    """Weight of a token's cross-entropy under TIDAL: w lambda.

    Towards the target (1 - lambda) student + lambda data the cross-entropy's gradient is lambda times that of the data's
    token: the student's part, detached, has none.
    """
    return weight * mix
