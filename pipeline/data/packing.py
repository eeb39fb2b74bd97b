"""Model inputs: a sample laid out as [xt, x0] (or xt alone) without what nobody reads, and documents packed into rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from pipeline.data.order import assign

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


@dataclass(frozen=True)
class Side:
    """How one model's input is laid out."""

    mask_id: int
    input: Literal["block", "full"]
    block_size: int


@dataclass(frozen=True)
class Document:
    """One sample as one model's input; tensors of its own length, as in `Packed`."""

    ids: Tensor
    positions: Tensor
    block: Tensor
    noisy: Tensor
    masked_at: Tensor
    """places of the masked tokens in the document, in order"""


def from_sequence(maskable: Tensor, size: int) -> Tensor:
    """Block of each token, counted from the start of the sequence: bool [L] -> int64 [L]."""
    return torch.arange(maskable.shape[0]) // size


def from_response(maskable: Tensor, size: int) -> Tensor:
    """Block of each token where every response (run of maskable tokens) opens a block: bool [L] -> int64 [L].

    What comes before the first response is cut backwards from there, as the left padding of the published sampler does:
    its first block may be short. So may be the last one before a later response.
    """
    position = torch.arange(maskable.shape[0])
    opens = maskable & ~torch.cat([maskable.new_zeros(1), maskable])[:-1]
    first = int(maskable.long().argmax())
    start = torch.where(opens, position, -1).cummax(0).values  # of the response that a token follows or belongs to
    start = torch.where(start < 0, first, start)
    return ((position - start) % size == 0).index_fill(0, position[:1], True).cumsum(0) - 1


def lay_out(ids: Tensor, masked: Tensor, side: Side, block: Tensor | None = None) -> Document:
    """A sample as its model's input, less what nobody reads.

    `full` is xt, one bidirectional block. `block` is [xt, x0] without the noisy blocks that hold no masked token (they
    carry no loss, and only their own tokens read them) and without the clean blocks from the last kept noisy one on
    (only later blocks read them). The document of a sample without a masked token is empty. Original positions stay.

    block: of each token, int64 [L], rising; by default counted from the start of the sequence.
    """
    position = torch.arange(ids.shape[0])
    xt = torch.where(masked, side.mask_id, ids)
    if not masked.any():
        position, xt, masked = position[:0], xt[:0], masked[:0]
    if side.input == "full":
        return Document(xt, position, torch.zeros_like(position), torch.ones_like(masked), masked.nonzero()[:, 0])
    block = (position // side.block_size if block is None else block)[position]
    kept = torch.isin(block, block[masked])
    noisy = kept.nonzero()[:, 0]
    clean = (block < block[noisy[-1:]]).nonzero()[:, 0]
    place = torch.cat([noisy, clean])
    is_noisy = torch.arange(place.shape[0]) < noisy.shape[0]
    return Document(torch.cat([xt[noisy], ids[clean]]), place, block[place], is_noisy, masked[noisy].nonzero()[:, 0])


def pack(documents: Sequence[Document], row_multiple: int = 1) -> tuple[Packed, Tensor]:
    """Documents side by side in rows of equal length: the rows, and the flat places of all masked tokens, in the
    documents' order. At most MOST_PADDING of the tokens are padding, or one row's length is rounded up.

    row_multiple: of which every row's length is a multiple: few shapes, and tensors aligned for a GPU's kernels.

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
        place = slice(s, s + doc.ids.shape[0])
        ids[place], positions[place], document[place] = doc.ids, doc.positions, d
        block[place], noisy[place] = doc.block, doc.noisy
    predict = [doc.masked_at + s for doc, s in zip(documents, start, strict=True)]
    packed = Packed(*(x.view(-1, capacity) for x in (ids, positions, document, block, noisy)))
    return packed, torch.cat(predict) if predict else torch.zeros(0, dtype=torch.int64)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _rows(lengths: Sequence[int], multiple: int) -> list[list[int]]:
    """Which documents share a row: as many rows of similar length as the padding allows, as attention's cost grows with
    the square of a row's length; one row has none."""
    total, longest = sum(lengths), max(lengths, default=0)
    for count in range(total // max(1, longest), 1, -1):
        rows = assign(lengths, count)
        capacity = _round_up(max(sum(lengths[d] for d in row) for row in rows), multiple)
        if total >= (1 - MOST_PADDING) * count * capacity:
            return rows
    return [list(range(len(lengths)))]
