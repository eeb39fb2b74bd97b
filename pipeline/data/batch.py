"""Micro-batches: samples noised, laid out and packed, with all the indices that the losses need.

Shapes: M masked student tokens, K predicted teacher tokens, N active chunks (of one teacher) in the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.core.rng import generator_for
from pipeline.data.aligned_dataset import AlignedRow
from pipeline.data.packing import Packed, Side, from_sequence, lay_out, pack
from pipeline.method.compdemo import complementary_split
from pipeline.method.masking import complete_chunks, draw_mask, draw_t, touched_chunks


@dataclass(frozen=True)
class TeacherBatch:
    """One teacher's views of a micro-batch, all in one input, and how its predictions meet the student's."""

    input: Packed
    predict: Tensor
    """int64 [K], flat places in `input` of the tokens to predict"""
    targets: Tensor
    """int64 [K], the true tokens there"""
    chunk: Tensor
    """int64 [K], active chunk of each predicted token"""
    student_chunk: Tensor
    """int64 [M], active chunk of each masked student token; N = in none"""
    chunk_t: Tensor
    """float32 [N], timestep of each active chunk's sample"""
    pair: Tensor
    """int64 [M], which of `predict` is the same single token on the teacher's side; -1 = none"""


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    student: Packed
    predict: Tensor
    """int64 [M], flat places in `student` of the masked tokens"""
    targets: Tensor
    """int64 [M], the true tokens there"""
    t: Tensor
    """float32 [M], timestep of each masked token's sample"""
    teachers: tuple[TeacherBatch, ...]
    maskable: int
    """tokens that the noise could have masked: the denominator of the cross-entropy"""
    tokens: int
    """tokens of all inputs, padding left out"""

    def to(self, device: torch.device | str) -> Batch:
        """The same micro-batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Any]) -> Batch:
        """The same micro-batch with `function` of every tensor in its place."""
        return _map(self, function)


def _map(value, function: Callable[[Tensor], Any]):
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    if isinstance(value, int):
        return value
    return type(value)(*(_map(getattr(value, f.name), function) for f in fields(value)))


@dataclass(frozen=True)
class Sample:
    """A row with the key of its noise."""

    row: AlignedRow
    key: tuple[int | str, ...]


@dataclass(frozen=True)
class TeacherSide(Side):
    """A teacher's layout; `shared_vocab` is the id prefix that it shares with the student, 0 = none."""

    shared_vocab: int = 0


@dataclass(frozen=True)
class _Noised:
    """A sample after its draw; tensors of the student's length."""

    sample: Sample
    ids: Tensor
    maskable: Tensor
    block: Tensor
    chunkings: list[Tensor]
    masked: Tensor
    t: float


def row_tokens(sides: Sequence[tuple[Literal["block", "full"], int, int]]):
    """The most tokens that a row can take: over (input, length, views) of every model; lengths may be arrays of rows."""
    return sum(length * views * (2 if layout == "block" else 1) for layout, length, views in sides)


class BatchBuilder:
    """Makes micro-batches of samples: draws their noise, lays every model's input out, and ties the two sides together.

    Args:
        student, teachers: how each model's input is laid out; teachers in the order of the rows' teachers.
        compdemo_ratio: CompDemo's split; None gives each teacher one view.
        mask_unit: draw tokens and complete chunks, or draw (the first teacher's) chunks.
        eos_tail: end token that fills the last block and is trained on; None leaves the row as it is.
        blocks: where the student's blocks are cut: (maskable [L], block size) -> block of each token [L].
        row_multiple: of which the lengths of packed rows are multiples (see `pack`).
    """

    def __init__(
        self,
        student: Side,
        teachers: Sequence[TeacherSide] = (),
        *,
        compdemo_ratio: float | None = None,
        mask_unit: Literal["token", "chunk"] = "token",
        eos_tail: int | None = None,
        blocks: Callable[[Tensor, int], Tensor] = from_sequence,
        row_multiple: int = 1,
    ):
        self.student, self.teachers = student, tuple(teachers)
        self.compdemo_ratio, self.by_chunk, self.eos_tail = compdemo_ratio, mask_unit == "chunk", eos_tail
        self.blocks, self.row_multiple = blocks, row_multiple

    def tokens(self, student_length, teacher_lengths: Sequence):
        """The most tokens that a row can take over all inputs: lengths in, integers or arrays of them."""
        sides = [(self.student.input, student_length, 1)]
        views = 1 if self.compdemo_ratio is None else 2
        sides += [(side.input, n, views) for side, n in zip(self.teachers, teacher_lengths, strict=True)]
        return row_tokens(sides)

    def __call__(self, samples: Sequence[Sample], t: float | None = None) -> Batch:
        """The micro-batch of these samples (none is fine); `t` fixes the timestep, for validation."""
        noised = [self._noise(sample, t) for sample in samples]
        packed, predict = pack([lay_out(n.ids, n.masked, self.student, n.block) for n in noised], self.row_multiple)
        targets = _cat([n.ids[n.masked] for n in noised])
        teachers = tuple(self._teacher(k, noised, targets) for k in range(len(self.teachers)))
        return Batch(
            packed,
            predict,
            targets,
            t=_cat([torch.full((int(n.masked.sum()),), n.t) for n in noised], torch.float32),
            teachers=teachers,
            maskable=sum(int(n.maskable.sum()) for n in noised),
            tokens=sum(int((x.document >= 0).sum()) for x in (packed, *(teacher.input for teacher in teachers))),
        )

    def _noise(self, sample: Sample, t: float | None) -> _Noised:
        ids, maskable = sample.row.ids, sample.row.maskable
        block = self.blocks(maskable, self.student.block_size)
        chunkings = [teacher.student_chunks for teacher in sample.row.teachers]
        if self.eos_tail is not None:
            tail = self.student.block_size - int((block == block[-1]).sum())
            ids, maskable = _extend(ids, tail, self.eos_tail), _extend(maskable, tail, True)
            block = _extend(block, tail, int(block[-1]))
            chunkings = [_extend(c, tail, -1) for c in chunkings]
        t = draw_t(generator_for(*sample.key, "t")) if t is None else t
        units = chunkings[0] if self.by_chunk and chunkings else None
        drawn = draw_mask(t, maskable, generator_for(*sample.key, "mask"), units)
        return _Noised(sample, ids, maskable, block, chunkings, complete_chunks(drawn, maskable, chunkings), t)

    def _views(self, hidden: Tensor, sample: Sample, k: int) -> list[Tensor]:
        """Which chunks each view hides (and predicts): bool [chunks + 1] -> one or two of them."""
        if self.compdemo_ratio is None:
            return [hidden]
        a, b = complementary_split(hidden, self.compdemo_ratio, generator_for(*sample.key, "compdemo", k))
        return [b, a]

    def _teacher(self, k: int, noised: Sequence[_Noised], student_targets: Tensor) -> TeacherBatch:
        side, chunks = self.teachers[k], 0
        documents, targets, chunk, student_chunk, chunk_t = [], [], [], [], []
        for n in noised:
            teacher, student_ids = n.sample.row.teachers[k], n.chunkings[k]
            hidden = touched_chunks(n.masked, student_ids)
            # a chunk that reaches into the prompt is only hidden
            active = hidden & ~touched_chunks(~n.maskable, student_ids)
            number = torch.where(active, chunks + active.cumsum(0) - 1, -1)
            chunks += int(active.sum())
            for view in self._views(hidden, n.sample, k):
                masked = view[teacher.chunks]
                documents.append(lay_out(teacher.ids, masked, side))
                targets.append(teacher.ids[masked])
                chunk.append(number[teacher.chunks[masked]])
            student_chunk.append(number[student_ids[n.masked]])
            chunk_t.append(torch.full((int(active.sum()),), n.t))
        packed, places = pack(documents, self.row_multiple)
        chunk, student_chunk, targets = _cat(chunk), _cat(student_chunk), _cat(targets)
        predicted = chunk >= 0
        chunk, targets = chunk[predicted], targets[predicted]
        student_chunk = torch.where(student_chunk >= 0, student_chunk, chunks)
        return TeacherBatch(
            packed,
            places[predicted],
            targets,
            chunk,
            student_chunk,
            _cat(chunk_t, torch.float32),
            _pairs(chunk, targets, student_chunk, student_targets, chunks, side.shared_vocab),
        )


def _pairs(
    chunk: Tensor, targets: Tensor, student_chunk: Tensor, student_targets: Tensor, n: int, vocab: int
) -> Tensor:
    """Masked student tokens that are a chunk alone on both sides, with the same id below `vocab`: see TeacherBatch.pair."""
    single = (torch.bincount(chunk, minlength=n + 1) == 1) & (torch.bincount(student_chunk, minlength=n + 1) == 1)
    single[n] = False
    place = torch.full((n + 1,), -1)
    place[chunk] = torch.arange(chunk.shape[0])
    pair = torch.where(single[student_chunk], place[student_chunk], -1)
    same = (_pad(targets)[pair] == student_targets) & (student_targets < vocab)
    return torch.where(same, pair, -1)


def _pad(x: Tensor) -> Tensor:
    """One more entry, for index -1."""
    return torch.cat([x, x.new_full((1,), -1)])


def _extend(x: Tensor, count: int, value: int | bool) -> Tensor:
    return torch.cat([x, torch.full((count,), value, dtype=x.dtype)])


def _cat(pieces: Sequence[Tensor], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=dtype)
