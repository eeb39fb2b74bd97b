"""CALM: binary cross-entropies between the probabilities that student and teacher give to a whole chunk.

With a and b the log-probabilities of a chunk's true tokens, summed, p = exp(a / T) and q = exp(b / T):

    CALM           -[q log p + (1 - q) log(1 - p)]
    Reverse CALM   -[p log q + (1 - p) log(1 - q)]     gradient in p: -log(q / (1 - q)), from the fixed teacher alone
    reverse KL     Reverse CALM minus the student's entropy, KL_Bern(p || q)
    CALM-TIDAL     CALM towards the detached target (1 - lambda) p + lambda q

No T^2 factor. Everything stays in log space: an unlikely chunk keeps its gradient, where the published clamp has none.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pipeline.method.tidal import mix_probabilities

_EDGE = -1e-7  # log1mexp is continued linearly above: p = 1 exactly then has a finite loss and gradient


def calm(
    student_logp: Tensor,
    teacher_logp: Tensor,
    *,
    temperature: float,
    direction: Literal["forward", "reverse", "reverse_kl"] = "forward",
    mix: Tensor | None = None,
    teacher_floor: float | None = 1e-7,
) -> Tensor:
    """Loss of each chunk, [C], in float32 (float64 for float64 input). The gradient flows through `student_logp` only.

    Args:
        student_logp: [C], log-probability of each chunk's true tokens under the student, summed.
        teacher_logp: [C], the same under the teacher.
        temperature: T, dividing both.
        direction: `forward` is CALM, `reverse` is Reverse CALM, `reverse_kl` the true KL_Bern(p || q).
        mix: [C], TIDAL's lambda per chunk; None takes the teacher alone as target.
        teacher_floor: keeps q in [floor, 1 - floor], which bounds Reverse CALM's gradient by log((1 - floor) / floor);
            None for the exact value. The student is never clamped.
    """
    dtype = torch.float64 if student_logp.dtype == torch.float64 else torch.float32
    log_p = student_logp.to(dtype) / temperature
    log_1mp = log1mexp(log_p)
    log_q, log_1mq = _target(log_p, log_1mp, teacher_logp.to(dtype) / temperature, mix, teacher_floor)
    if direction == "forward":
        return -(log_q.exp() * log_p + log_1mq.exp() * log_1mp)
    p, one_minus_p = log_p.exp(), -torch.expm1(log_p)
    cross = -(p * log_q + one_minus_p * log_1mq)
    if direction == "reverse":
        return cross
    if direction == "reverse_kl":
        return cross + p * log_p + one_minus_p * log_1mp
    raise ValueError(f"direction {direction!r}: forward, reverse or reverse_kl")


@torch.no_grad()
def _target(
    log_p: Tensor, log_1mp: Tensor, log_q: Tensor, mix: Tensor | None, floor: float | None
) -> tuple[Tensor, Tensor]:
    """log q and log(1 - q) of the target, mixed with the student's own probability for TIDAL."""
    if floor is not None:
        log_q = log_q.clamp(math.log(floor), math.log1p(-floor))
    log_1mq = _log1mexp(log_q)
    if mix is None:
        return log_q, log_1mq
    return mix_probabilities(log_p, log_1mp, log_q, log_1mq, mix)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, continued linearly above -1e-7 (finite value and slope at 0)."""
    inside = x.clamp(max=_EDGE)
    return _log1mexp(inside) - (x - _EDGE).clamp(min=0) / math.expm1(-_EDGE)


def _log1mexp(x: Tensor) -> Tensor:
    """Two branches for accuracy: Maechler, "Accurately Computing log(1 - exp(-|a|))" (the Rmpfr vignette)."""
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))
