"""CompDemo: complementary demasking."""

from __future__ import annotations

import torch
from torch import Tensor


def complementary_split(masked: Tensor, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CompDemo: splits one sample's masked units (chunks or tokens) at random into M_A and M_B: bool [N] -> 2 x bool [N].

    A unit joins M_A with probability `ratio`; the two halves are disjoint and together are `masked`.
    """
    in_a = torch.rand(masked.shape, generator=generator) < ratio
    return masked & in_a, masked & ~in_a
