"""Blocks of block diffusion: where a sequence is cut, and the document that a model reads of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.aligned_dataset import AlignedRow

Lengths = TypeVar("Lengths", int, npt.NDArray[np.int64])
"""One length, or those of many rows."""


class Blocks(Protocol):
    """Where a sequence is cut into blocks."""

    def cut(self, maskable: Tensor) -> Tensor:
        """Block of each token, rising from 0: bool [L] -> int64 [L]."""

    def missing(self, block: Tensor) -> int:
        """Tokens that would fill the last block: int64 [L] of `cut` -> below the block size."""

    def most_missing(self, length: Lengths) -> Lengths:
        """The most that `missing` can be for a sequence of this length."""

    def most_tokens(self, length: Lengths) -> Lengths:
        """The most tokens of a document of this length."""


@dataclass(frozen=True)
class SequenceBlocks:
    """Blocks counted from the start of the sequence, as the published trainer cuts them."""

    size: int

    def cut(self, maskable: Tensor) -> Tensor:
        return torch.arange(maskable.shape[0]) // self.size

    def missing(self, block: Tensor) -> int:
        return self.size - int((block == block[-1]).sum())

    def most_missing(self, length: Lengths) -> Lengths:
        return -length % self.size

    def most_tokens(self, length: Lengths) -> Lengths:
        return 2 * length


class ResponseBlocks(SequenceBlocks):
    """Every response (run of maskable tokens) opens a block.

    What comes before the first response is cut backwards from there, as the left padding of the published sampler does:
    its first block may be short. So may be the last one before a later response.
    """

    def cut(self, maskable: Tensor) -> Tensor:
        position = torch.arange(maskable.shape[0])
        opens = maskable & ~torch.cat([maskable.new_zeros(1), maskable])[:-1]
        first = int(maskable.long().argmax())
        start = torch.where(opens, position, -1).cummax(0).values  # of the response that a token follows or belongs to
        start = torch.where(start < 0, first, start)
        return ((position - start) % self.size == 0).index_fill(0, position[:1], True).cumsum(0) - 1

    def most_missing(self, length: Lengths) -> Lengths:
        return 0 * length + self.size - 1


@dataclass(frozen=True)
class OneBlock:
    """The whole sequence as one block: xt alone, bidirectional (LLaDA)."""

    def cut(self, maskable: Tensor) -> Tensor:
        return torch.zeros(maskable.shape[0], dtype=torch.int64)

    def missing(self, block: Tensor) -> int:
        return 0

    def most_missing(self, length: Lengths) -> Lengths:
        return 0 * length

    def most_tokens(self, length: Lengths) -> Lengths:
        return length


@dataclass(frozen=True)
class Unread(OneBlock):
    """No block of it is read: a teacher's answers are stored."""

    def most_tokens(self, length: Lengths) -> Lengths:
        return 0 * length


def build_blocks(
    layout: Literal["block", "full", "causal"], size: int, start: Literal["sequence", "response"] = "sequence"
) -> Blocks:
    """The recipe's `input`, `block_size` and `blocks`, bound; a causal input has as many tokens as a full one."""
    return {"sequence": SequenceBlocks, "response": ResponseBlocks}[start](size) if layout == "block" else OneBlock()


@dataclass(frozen=True)
class EosTail:
    """End tokens that fill a row's last block and are trained on, as in the published code.

    A row that was cut in the middle of an answer ends with no end-of-turn token and gets no tail: it would teach the student
    to end there.
    """

    token: int
    """What the block is filled with."""
    ends: frozenset[int]
    """Tokens that may end an answer."""

    def extend(self, row: AlignedRow, blocks: Blocks) -> AlignedRow:
        """The row with its last block filled."""
        count = blocks.missing(blocks.cut(row.maskable)) if int(row.ids[-1]) in self.ends else 0
        teachers = tuple(replace(t, student_chunks=_extend(t.student_chunks, count, -1)) for t in row.teachers)
        return AlignedRow(_extend(row.ids, count, self.token), _extend(row.maskable, count, True), teachers)


def _extend(x: Tensor, count: int, value: int | bool) -> Tensor:
    return torch.cat([x, torch.full((count,), value, dtype=x.dtype)])


@dataclass(frozen=True)
class Document:
    """One sample as one model's input; tensors of its own length D."""

    ids: Tensor
    """int64 [D]"""
    positions: Tensor
    """int64 [D], within the whole sequence"""
    block: Tensor
    """int64 [D]"""
    noisy: Tensor
    """bool [D]: xt or x0"""
    predicting: Tensor
    """int64 [masked tokens], the index of the row that predicts each of them, in their order"""


def lay_out(ids: Tensor, masked: Tensor, block: Tensor, mask_id: int, shifted: bool = False) -> Document:
    """A sample as its model's input [xt, x0], less what nobody reads: int64, bool, int64 [L] each -> Document.

    Left out are noisy blocks without a masked token (they carry no loss, and only their own tokens read them) and clean
    blocks from the last kept noisy one on (only later blocks read them). So one block alone is xt alone, and the document
    of a sample without a masked token is empty. Original positions stay.

    A masked token is predicted by its own row; in a `shifted` model (Dream) by the row of the token before it in xt or,
    if that token's block is left out, in x0: nothing in that block is masked, so rows are equal. The first token has
    only its own row, as in the published samplers.
    """
    xt = torch.where(masked, mask_id, ids)
    noisy = torch.isin(block, block[masked]).nonzero()[:, 0]
    last = block[noisy[-1:]] if noisy.numel() else block.new_zeros(1)
    clean = (block < last).nonzero()[:, 0]
    positions = torch.cat([noisy, clean])
    row = torch.arange(positions.shape[0])
    row_of = torch.zeros_like(ids)  # of each token: in xt where it is there, else in x0
    row_of[clean] = row[noisy.shape[0] :]
    row_of[noisy] = row[: noisy.shape[0]]
    masked_at = masked.nonzero()[:, 0]
    return Document(
        torch.cat([xt[noisy], ids[clean]]),
        positions,
        block[positions],
        row < noisy.shape[0],
        row_of[(masked_at - 1).clamp(min=0) if shifted else masked_at],
    )


def lay_out_causal(ids: Tensor, masked: Tensor) -> Document:
    """A sample as an autoregressive model's input: x0 up to the last masked token, every token a block of its own.

    So a row sees itself and the tokens to its left, and predicts the next. The first token's prediction means nothing.
    """
    masked_at = masked.nonzero()[:, 0]
    positions = torch.arange(max(1, int(masked_at[-1])) if masked_at.numel() else 0)
    noisy = torch.zeros_like(positions, dtype=torch.bool)
    return Document(ids[positions], positions, positions, noisy, (masked_at - 1).clamp(min=0))


def lay_out_unread(masked: Tensor) -> Document:
    """Of a teacher whose answers are stored: no token is read."""
    none = torch.zeros(0, dtype=torch.int64)
    return Document(none, none, none, none.bool(), torch.zeros(int(masked.sum()), dtype=torch.int64))
