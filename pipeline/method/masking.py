"""Noise of one sample: the timestep, the masked set, its completion to whole chunks, CompDemo's split.

Every draw comes from a generator keyed by (seed, epoch, sample, purpose), so noise depends neither on the world size nor
on what was drawn before, and a resumed run repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TIME_EPSILON = 1e-3


def draw_t(generator: torch.Generator, low: float = TIME_EPSILON, high: float = 1.0) -> float:
    """Timestep in [low, high): under the linear schedule, the probability that a token is masked.

    Other bounds than the whole range are BD3-LM's clipped schedule (arXiv 2503.09573, section 5.3).
    """
    return low + (high - low) * float(torch.rand((), generator=generator))


def draw_mask(t: float, maskable: Tensor, generator: torch.Generator, units: Tensor | None = None) -> Tensor:
    """Masks maskable tokens with probability t: bool [L] -> bool [L].

    `units` [L] (chunk ids, -1 = a unit of its own) draws whole chunks instead of tokens (`mask_unit: chunk`).
    """
    u = torch.rand(maskable.shape[0], generator=generator)
    if units is not None:
        u = u[_first_of_unit(units)]
    return (u < t) & maskable


def _first_of_unit(units: Tensor) -> Tensor:
    """Index of the first token that shares each token's unit: int [L] -> int [L]."""
    index = torch.arange(units.shape[0])
    first = torch.full((int(units.max()) + 2,), units.shape[0])
    slot = units % first.shape[0]  # -1 goes to the last slot
    first.scatter_reduce_(0, slot, index, "amin")
    return torch.where(units >= 0, first[slot], index)


def complete_chunks(masked: Tensor, maskable: Tensor, chunkings: Sequence[Tensor]) -> Tensor:
    """Grows the masked set until no chunk of any teacher is masked in part: bool [L] -> bool [L].

    A chunk with one masked token has all its maskable tokens masked. With several teachers, whose chunks overlap
    differently, this repeats to a fixed point. `chunkings`: int [L] per teacher, -1 = outside chunks.
    """
    while True:
        grown = masked
        for ids in chunkings:
            grown = grown | (touched_chunks(grown, ids)[ids] & maskable)
        if torch.equal(grown, masked):
            return masked
        masked = grown


def touched_chunks(masked: Tensor, ids: Tensor) -> Tensor:
    """Which chunks hold a masked token: bool [chunks + 1]; the last entry serves id -1 and is False."""
    touched = torch.zeros(int(ids.max()) + 2 if ids.numel() else 1, dtype=torch.bool)
    touched[ids[masked]] = True
    touched[-1] = False
    return touched


def predictable(maskable: Tensor, student_chunks: Tensor, teacher_chunks: Tensor) -> Tensor:
    """Teacher tokens that a loss may ask about, those of chunks that can be masked whole: bool [L], int [L], int [L_t] -> bool [L_t]."""
    whole = ~touched_chunks(~maskable, student_chunks)
    return whole[teacher_chunks] & (teacher_chunks >= 0)
