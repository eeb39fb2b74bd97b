"""CompDemo: complementary demasking. A teacher reads a sample twice, each time shown half of what is masked."""

from __future__ import annotations

import torch
from torch import Tensor


def complementary_split(masked: Tensor, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Splits one sample's masked units (chunks or tokens) at random into M_A and M_B: bool [N] -> 2 x bool [N].

    A unit joins M_A with probability `ratio`; the two halves are disjoint and together are `masked`.
    """
    in_a = torch.rand(masked.shape, generator=generator) < ratio
    return masked & in_a, masked & ~in_a


def complementary_views(masked: Tensor, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What each of the two views hides and predicts: view 1 is shown M_A and hides M_B, view 2 the reverse."""
    a, b = complementary_split(masked, ratio, generator)
    return b, a
