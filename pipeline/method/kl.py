"""KL, reverse KL and TIDAL between full distributions over a shared vocabulary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.method.tidal import mix_logits


def kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    direction: Literal["forward", "reverse"] = "forward",
    mix: Tensor | None = None,
) -> Tensor:
    """Divergence of each position times T^2, [...], in float32; no gradient reaches the teacher.

    forward: KL(target || student). reverse: KL(student || target). The target is the teacher's softmax at temperature T,
    or with `mix` = lambda TIDAL's r = softmax(((1 - lambda) s + lambda z) / T), detached.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V], over the same vocabulary.
        mix: [...], TIDAL's lambda of each position.
    """
    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    student, target = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    if mix is not None:
        target = mix_logits(student, target, mix)
    log_s = torch.log_softmax(student / temperature, -1)
    log_r = torch.log_softmax(target / temperature, -1)
    if direction == "forward":
        first, second = log_r, log_s
    elif direction == "reverse":
        first, second = log_s, log_r
    else:
        raise ValueError(f"direction {direction!r}: forward or reverse")
    return F.kl_div(second, first, reduction="none", log_target=True).sum(-1) * temperature**2
