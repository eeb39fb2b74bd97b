"""Documents packed into rows of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pipeline.data.blocks import Document
from pipeline.data.order import balance

MOST_PADDING = 0.05


@dataclass(frozen=True)
class Packed:
    """Documents packed into rows and isolated by the mask; padding is a document of its own (-1)."""

    ids: Tensor
    """int64 [R, C]"""
    positions: Tensor
    """int64 [R, C], within the document's original sequence"""
    document: Tensor
    """int64 [R, C]"""
    block: Tensor
    """int64 [R, C]"""
    noisy: Tensor
    """bool [R, C]: xt or x0"""

    def to(self, device: torch.device | str) -> Packed:
        """The same rows on another device."""
        return Packed(*(x.to(device) for x in (self.ids, self.positions, self.document, self.block, self.noisy)))


def pack(documents: Sequence[Document], row_multiple: int = 1) -> tuple[Packed, Tensor]:
    """Packs documents into rows of equal length: the rows, and the flat indices of the positions that predict masked
    tokens, in the documents' order. At most MOST_PADDING of the tokens are padding, or one row's length is rounded up.

    row_multiple: every row's length is a multiple of it: few shapes, and tensors aligned for a GPU's kernels.

    Without any token there is one row of padding, so that every rank runs the same forwards.
    """
    rows = _rows([d.ids.shape[0] for d in documents], row_multiple)
    capacity = _round_up(max(1, *(sum(documents[d].ids.shape[0] for d in row) for row in rows)), row_multiple)
    start = [0] * len(documents)
    for number, row in enumerate(rows):
        offsets = accumulate((documents[d].ids.shape[0] for d in row), initial=number * capacity)
        for d, offset in zip(row, offsets, strict=False):
            start[d] = offset
    size = len(rows) * capacity
    ids, document = torch.zeros(size, dtype=torch.int64), torch.full((size,), -1)
    positions, block = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
    noisy = torch.ones(size, dtype=torch.bool)
    for d, (doc, s) in enumerate(zip(documents, start, strict=True)):
        span = slice(s, s + doc.ids.shape[0])
        ids[span], positions[span], document[span] = doc.ids, doc.positions, d
        block[span], noisy[span] = doc.block, doc.noisy
    predict = [doc.predicting + s for doc, s in zip(documents, start, strict=True)]
    packed = Packed(*(x.view(-1, capacity) for x in (ids, positions, document, block, noisy)))
    return packed, torch.cat(predict) if predict else torch.zeros(0, dtype=torch.int64)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _rows(lengths: Sequence[int], multiple: int) -> list[list[int]]:
    """Which documents share a row: as many rows of similar length as the padding allows, as attention's cost grows with
    the square of a row's length; one row has none."""
    total, longest = sum(lengths), max(lengths, default=0)
    for count in range(total // max(1, longest), 1, -1):
        rows = balance(lengths, count)
        capacity = _round_up(max(sum(lengths[d] for d in row) for row in rows), multiple)
        if total >= (1 - MOST_PADDING) * count * capacity:
            return rows
    return [list(range(len(lengths)))]
