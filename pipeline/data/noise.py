"""The draws of one row. Every draw has a generator keyed by (seed, epoch, row, purpose): noise depends neither on the number
of ranks nor on what was drawn before, and a resumed run repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.core.rng import generator_for
from pipeline.data.aligned_dataset import AlignedRow
from pipeline.method.compdemo import complementary_views
from pipeline.method.masking import TIME_EPSILON, complete_chunks, draw_mask, draw_t, touched_chunks

Key = tuple[int | float | str, ...]
"""What a row's noise is keyed by, the purpose apart: (seed, epoch, row)."""


@dataclass(frozen=True)
class Noise:
    """What is drawn for one row."""

    t: float
    masked: Tensor
    """bool [L_s], completed to whole chunks of every teacher"""
    views: tuple[tuple[Tensor, ...], ...]
    """of each teacher, the chunks that each of its views hides and predicts: bool [chunks + 1], the last entry False"""


def draw(
    row: AlignedRow,
    key: Key,
    *,
    compdemo_ratio: float | None = None,
    by_chunk: bool = False,
    t_range: tuple[float, float] = (TIME_EPSILON, 1.0),
    t: float | None = None,
) -> Noise:
    """The row's noise for this key.

    Args:
        compdemo_ratio: share of the masked chunks in CompDemo's first half; None = one view of each teacher.
        by_chunk: draws whole chunks of the first teacher in place of tokens (`mask_unit: chunk`).
        t_range: range of t, [low, high).
        t: a fixed timestep, for validation.
    """
    chunkings = [teacher.student_chunks for teacher in row.teachers]
    t = draw_t(generator_for(*key, "t"), *t_range) if t is None else t
    units = chunkings[0] if by_chunk and chunkings else None
    drawn = draw_mask(t, row.maskable, generator_for(*key, "mask"), units)
    masked = complete_chunks(drawn, row.maskable, chunkings)
    hidden = [touched_chunks(masked, chunks) for chunks in chunkings]
    if compdemo_ratio is None:
        return Noise(t, masked, tuple((chunks,) for chunks in hidden))
    views = (
        complementary_views(chunks, compdemo_ratio, generator_for(*key, "compdemo", k))
        for k, chunks in enumerate(hidden)
    )
    return Noise(t, masked, tuple(views))
