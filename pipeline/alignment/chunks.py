"""Chunks: the finest common segmentation of two token sequences over the same bytes.

A token is an interval [begin, end) of byte positions that both sides share. One rule covers whole texts, truncated
sides, tokens that straddle a boundary and text that only one side shows: a chunk lies between two neighbouring edges
that both sides have, and both sides must cover each of its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Intervals(NamedTuple):
    """Tokens as byte intervals, int64 [tokens] each; begin = -1 for a token outside the common text."""

    begin: np.ndarray
    end: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        return self.begin >= 0


def align_chunks(student: Sequence[bytes], teacher: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The chunk of every token, int32 [tokens] per side; ids count up from 0.

    A token that spells nothing joins the chunk before it, or the first. Raises ValueError for unequal byte totals.
    """
    sides = _cumulative(student), _cumulative(teacher)
    sizes = [int(side.end[-1]) if len(side.end) else 0 for side in sides]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the student spells {sizes[0]} bytes, the teacher {sizes[1]}")
    return common_chunks(*sides, sizes[0])


def _cumulative(tokens: Sequence[bytes]) -> Intervals:
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    end = np.cumsum(lengths)
    return Intervals(end - lengths, end)


def common_chunks(student: Intervals, teacher: Intervals, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The chunk of every token, -1 where there is none: int32 [tokens] per side, ids 0, 1, ... in order. O(bytes).

    Args:
        student, teacher: tokens as intervals of byte positions 0..size, in order, without overlap.
    """
    edge = _edges(student, size) & _edges(teacher, size)
    segment = np.cumsum(edge)  # of every byte position; 0 before the first common edge
    length = np.bincount(segment[:size], minlength=segment[-1] + 1)
    whole = (_covered(student, segment) == length) & (_covered(teacher, segment) == length) & (length > 0)
    whole[0] = False
    chunk = np.where(whole, np.cumsum(whole) - 1, -1).astype(np.int32)[segment]
    return _chunk_of_tokens(student, chunk), _chunk_of_tokens(teacher, chunk)


def _edges(side: Intervals, size: int) -> np.ndarray:
    edge = np.zeros(size + 1, bool)
    edge[side.begin[side.inside]] = True
    edge[side.end[side.inside]] = True
    return edge


def _covered(side: Intervals, segment: np.ndarray) -> np.ndarray:
    begin, end = side.begin[side.inside], side.end[side.inside]
    return np.bincount(segment[begin], weights=end - begin, minlength=segment[-1] + 1)


def _chunk_of_tokens(side: Intervals, chunk: np.ndarray) -> np.ndarray:
    ids = np.where(side.inside, chunk[side.begin], np.int32(-1))
    empty = np.flatnonzero(side.inside & (side.begin == side.end))
    before = chunk[np.maximum(side.begin[empty] - 1, 0)]
    ids[empty] = np.where(before >= 0, before, ids[empty])
    return ids
