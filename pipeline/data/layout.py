"""Model inputs: a sample laid out as [xt, x0] (or xt alone) without what nobody reads, and documents packed into rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


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


def lay_out(ids: Tensor, masked: Tensor, side: Side) -> Document:
    """A sample as its model's input, less what nobody reads.

    `full` is xt, one bidirectional block. `block` is [xt, x0] without the noisy blocks that hold no masked token (they
    carry no loss, and only their own tokens read them) and without the clean blocks from the last kept noisy one on
    (only later blocks read them). The document of a sample without a masked token is empty. Original positions stay.
    """
    position = torch.arange(ids.shape[0])
    xt = torch.where(masked, side.mask_id, ids)
    if not masked.any():
        position, xt, masked = position[:0], xt[:0], masked[:0]
    if side.input == "full":
        return Document(xt, position, torch.zeros_like(position), torch.ones_like(masked), masked.nonzero()[:, 0])
    block = position // side.block_size
    kept = torch.isin(block, block[masked])
    noisy = kept.nonzero()[:, 0]
    clean = (block < block[noisy[-1:]]).nonzero()[:, 0]
    place = torch.cat([noisy, clean])
    is_noisy = torch.arange(place.shape[0]) < noisy.shape[0]
    return Document(torch.cat([xt[noisy], ids[clean]]), place, block[place], is_noisy, masked[noisy].nonzero()[:, 0])


def pack(documents: Sequence[Document]) -> tuple[Packed, Tensor]:
    """First-fit-decreasing into rows as long as the longest document: the rows, and the flat places of all masked
    tokens, in the documents' order.

    Without any token there is one row of padding, so that every rank runs the same forwards.
    """
    capacity = max((d.ids.shape[0] for d in documents), default=0) or 1
    free: list[int] = []
    start = [0] * len(documents)
    for d in sorted(range(len(documents)), key=lambda i: -documents[i].ids.shape[0]):
        length = documents[d].ids.shape[0]
        row = next((r for r, room in enumerate(free) if room >= length), len(free))
        if row == len(free):
            free.append(capacity)
        start[d] = row * capacity + capacity - free[row]
        free[row] -= length
    size = max(1, len(free)) * capacity
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
