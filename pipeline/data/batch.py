"""Micro-batches: rows under their noise, packed, with all the indices that the losses need.

Shapes: M masked student tokens, K predicted teacher tokens, N active chunks (of one teacher) in the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.data.aligned_dataset import AlignedRow
from pipeline.data.blocks import Blocks, Document, EosTail, Lengths, lay_out, lay_out_causal, lay_out_unread
from pipeline.data.noise import Key, Noise, draw
from pipeline.data.packing import Packed, pack
from pipeline.data.teacher_answers import TeacherAnswers
from pipeline.method.masking import TIME_EPSILON, touched_chunks

T = TypeVar("T")


@dataclass(frozen=True)
class TeacherBatch:
    """One teacher's views of a micro-batch, all in one input, and how its predictions meet the student's."""

    input: Packed
    predict: Tensor
    """int64 [K], flat indices in `input` of the rows that predict"""
    targets: Tensor
    """int64 [K], the true tokens that they predict"""
    chunk: Tensor
    """int64 [K], active chunk of each predicted token"""
    student_chunk: Tensor
    """int64 [M], active chunk of each masked student token; N = in none"""
    chunk_t: Tensor
    """float32 [N], timestep of each active chunk's sample"""
    student_t: Tensor
    """float32 [M], timestep of each masked student token's sample"""
    pair: Tensor
    """int64 [M], which of `predict` is the same single token on the teacher's side; -1 = none"""
    answers: TeacherAnswers | None = None
    """[K], the teacher's, where they are stored"""


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    student: Packed
    predict: Tensor
    """int64 [M], flat indices in `student` of the rows that predict the masked tokens"""
    targets: Tensor
    """int64 [M], the true tokens"""
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


def _map(value: T, function: Callable[[Tensor], Any]) -> T:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return type(value)(_map(item, function) for item in value)
    if isinstance(value, Batch | TeacherBatch | Packed | TeacherAnswers):
        return type(value)(*(_map(getattr(value, f.name), function) for f in fields(value)))
    return value


@dataclass(frozen=True)
class InputLayout:
    """How one model's input is laid out."""

    mask_id: int
    blocks: Blocks
    shifted: bool = field(default=False, kw_only=True)
    """Whether a row predicts the next token (`lay_out`)."""

    def document(self, ids: Tensor, masked: Tensor, maskable: Tensor) -> Document:
        """A sample as the model's input: int64, bool, bool [L]."""
        return lay_out(ids, masked, self.blocks.cut(maskable), self.mask_id, self.shifted)


@dataclass(frozen=True)
class TeacherLayout(InputLayout):
    """A teacher's; `shared_vocab` is the id prefix that it shares with the student, 0 = none."""

    shared_vocab: int = 0
    predicts_first = True
    """Whether it has something to say of a sequence's first token."""
    none: TeacherAnswers | None = None
    """Answers of no token, where they are stored"""

    def view(self, ids: Tensor, masked: Tensor) -> Document:
        """One of its views; blocks count from the start of the sequence."""
        return self.document(ids, masked, torch.zeros_like(masked))


@dataclass(frozen=True)
class CausalLayout(TeacherLayout):
    """An autoregressive teacher's: x0 from left to right."""

    predicts_first = False

    def document(self, ids: Tensor, masked: Tensor, maskable: Tensor) -> Document:
        return lay_out_causal(ids, masked)


@dataclass(frozen=True)
class StoredLayout(CausalLayout):
    """Of an autoregressive teacher whose answers come with the rows."""

    def document(self, ids: Tensor, masked: Tensor, maskable: Tensor) -> Document:
        return lay_out_unread(masked)


@dataclass(frozen=True)
class Sample:
    """A row with the key of its noise."""

    row: AlignedRow
    key: Key


@dataclass(frozen=True)
class BatchBuilder:
    """The recipe's choices, bound: draws the noise of samples and builds their micro-batch."""

    student: InputLayout
    teachers: tuple[TeacherLayout, ...] = ()
    """Of the rows' teachers, in their order."""
    compdemo_ratio: float | None = None
    """CompDemo's split of the masked chunks; None gives every teacher one view."""
    by_chunk: bool = False
    """Draws chunks of the first teacher in place of tokens."""
    t_range: tuple[float, float] = (TIME_EPSILON, 1.0)
    """Range of t: [low, high)."""
    eos_tail: EosTail | None = None
    """What fills the last block of rows; None leaves them as they are."""
    row_multiple: int = 1
    """The length of packed rows is a multiple of this (see `pack`)."""

    def __call__(self, samples: Sequence[Sample], t: float | None = None) -> Batch:
        """The micro-batch of these samples (none is fine); `t` fixes the timestep, for validation."""
        rows = [self.eos_tail.extend(s.row, self.student.blocks) if self.eos_tail else s.row for s in samples]
        noises = [
            draw(row, sample.key, compdemo_ratio=self.compdemo_ratio, by_chunk=self.by_chunk, t_range=self.t_range, t=t)
            for row, sample in zip(rows, samples, strict=True)
        ]
        return build(rows, noises, self.student, self.teachers, self.row_multiple)

    def tokens(self, student_length: Lengths, teacher_lengths: Sequence[Lengths]) -> Lengths:
        """As `row_tokens`, for this builder's models."""
        return row_tokens(
            student_length,
            teacher_lengths,
            student=self.student.blocks,
            teachers=[teacher.blocks for teacher in self.teachers],
            compdemo=self.compdemo_ratio is not None,
            eos_tail=self.eos_tail is not None,
        )


def row_tokens(
    student_length: Lengths,
    teacher_lengths: Sequence[Lengths],
    *,
    student: Blocks,
    teachers: Sequence[Blocks],
    compdemo: bool,
    eos_tail: bool,
) -> Lengths:
    """The most tokens that a row (or each of many) can take over the inputs of all models, in every view."""
    tail = student.most_missing(student_length) if eos_tail else 0
    total = student.most_tokens(student_length + tail)
    for blocks, length in zip(teachers, teacher_lengths, strict=True):
        total = total + (2 if compdemo else 1) * blocks.most_tokens(length)
    return total


def build(
    rows: Sequence[AlignedRow],
    noises: Sequence[Noise],
    student: InputLayout,
    teachers: Sequence[TeacherLayout] = (),
    row_multiple: int = 1,
) -> Batch:
    """The micro-batch of these rows under this noise; no rows are fine. `teachers`: of the rows' teachers, in order."""
    pairs = list(zip(rows, noises, strict=True))
    packed, predict = pack(
        [student.document(row.ids, noise.masked, row.maskable) for row, noise in pairs], row_multiple
    )
    targets = _cat([row.ids[n.masked] for row, n in pairs])
    t = _cat([torch.full((int(n.masked.sum()),), n.t) for n in noises], torch.float32)
    by_teacher = tuple(_teacher_batch(k, layout, pairs, targets, t, row_multiple) for k, layout in enumerate(teachers))
    return Batch(
        packed,
        predict,
        targets,
        t,
        teachers=by_teacher,
        maskable=sum(int(row.maskable.sum()) for row in rows),
        tokens=sum(int((x.document >= 0).sum()) for x in (packed, *(teacher.input for teacher in by_teacher))),
    )


def _teacher_batch(
    k: int,
    layout: TeacherLayout,
    pairs: Sequence[tuple[AlignedRow, Noise]],
    student_targets: Tensor,
    student_t: Tensor,
    row_multiple: int,
) -> TeacherBatch:
    chunks, documents = 0, []
    targets_, chunk_, student_chunk_, chunk_t = [], [], [], []
    answers_ = [] if layout.none is None else [layout.none]
    for row, noise in pairs:
        teacher, views = row.teachers[k], noise.views[k]
        hidden = torch.stack(views).any(0)
        # a chunk that reaches into the prompt is only hidden
        active = hidden & ~touched_chunks(~row.maskable, teacher.student_chunks)
        if not layout.predicts_first:
            active[teacher.chunks[:1]] = False  # of chunk -1 too, whose entry is False
        number = torch.where(active, chunks + active.cumsum(0) - 1, -1)
        chunks += int(active.sum())
        for view in views:
            masked = view[teacher.chunks]
            documents.append(layout.view(teacher.ids, masked))
            targets_.append(teacher.ids[masked])
            chunk_.append(number[teacher.chunks[masked]])
            if layout.none is not None and teacher.answers is not None:
                answers_.append(teacher.answers.at(masked))
        student_chunk_.append(number[teacher.student_chunks[noise.masked]])
        chunk_t.append(torch.full((int(active.sum()),), noise.t))
    packed, indices = pack(documents, row_multiple)
    chunk, student_chunk, targets = _cat(chunk_), _cat(student_chunk_), _cat(targets_)
    predicted = chunk >= 0
    chunk, targets = chunk[predicted], targets[predicted]
    student_chunk = torch.where(student_chunk >= 0, student_chunk, chunks)
    return TeacherBatch(
        packed,
        indices[predicted],
        targets,
        chunk,
        student_chunk,
        _cat(chunk_t, torch.float32),
        student_t,
        _pairs(chunk, targets, student_chunk, student_targets, chunks, layout.shared_vocab),
        TeacherAnswers.cat(answers_).at(predicted) if answers_ else None,
    )


def _pairs(
    chunk: Tensor, targets: Tensor, student_chunk: Tensor, student_targets: Tensor, n: int, vocab: int
) -> Tensor:
    """Masked student tokens that are a chunk alone on both sides, with the same id below `vocab`: see TeacherBatch.pair."""
    single = (torch.bincount(chunk, minlength=n + 1) == 1) & (torch.bincount(student_chunk, minlength=n + 1) == 1)
    single[n] = False
    predicted_at = torch.full((n + 1,), -1)
    predicted_at[chunk] = torch.arange(chunk.shape[0])
    pair = torch.where(single[student_chunk], predicted_at[student_chunk], -1)
    with_none = torch.cat([targets, targets.new_full((1,), -1)])  # one more entry, for index -1
    return torch.where((with_none[pair] == student_targets) & (student_targets < vocab), pair, -1)


def _cat(pieces: Sequence[Tensor], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.cat(list(pieces)) if pieces else torch.zeros(0, dtype=dtype)
