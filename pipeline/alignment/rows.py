"""Rows of the aligned dataset: the student's tokens, every teacher's, and the chunks that tie them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.alignment.chat import Messages
from pipeline.alignment.chunks import common_chunks
from pipeline.alignment.sides import Conversations, Side, SideBatch
from pipeline.config.recipe import Maskable


@dataclass(frozen=True)
class AlignedBatch:
    """A batch of aligned rows, dropped ones included."""

    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    """for every column of lists: the values of all rows, and how many each row has, int64 [rows]"""
    counts: dict[str, np.ndarray]
    """what each row adds to the statistics, int64 [rows]"""
    dropped: list[str | None]
    """for every row, why it is dropped"""


def align_rows(
    student: Side, teachers: Mapping[str, Side], rows: Sequence[Messages], maskable: Maskable = "all"
) -> AlignedBatch:
    """Aligns a batch of rows with all teachers; `maskable`: the answers that may be masked, all or the last."""
    batch = Conversations(rows, maskable)
    student_batch = student.encode(batch)
    tokens, learnt = _per_row(student_batch.row, rows), _per_row(student_batch.row[student_batch.maskable], rows)
    columns = {"input_ids": (student_batch.ids, tokens), "maskable": (student_batch.maskable, tokens)}
    counts = {
        "student_tokens": tokens,
        "maskable_tokens": learnt,
        "rows_cut": student_batch.cut.astype(np.int64),
        "tokens_lost": student_batch.lost,
    }
    dropped = [
        problem or _nothing_to_learn(*row)
        for problem, *row in zip(student_batch.problems, rows, batch.targets, learnt, strict=True)
    ]
    for name, side in teachers.items():
        teacher_batch = side.encode(batch)
        student_chunks, teacher_chunks = common_chunks(student_batch.contents, teacher_batch.contents, batch.size)
        teacher_batch, teacher_chunks = _end_with_chunks(teacher_batch, teacher_chunks, student_batch.cut)
        teacher_tokens = _per_row(teacher_batch.row, rows)
        columns[f"{name}_input_ids"] = teacher_batch.ids, teacher_tokens
        columns[f"{name}_chunk_ids"] = _count_from_zero(teacher_chunks, teacher_batch.row, len(rows)), teacher_tokens
        columns[f"{name}_student_chunk_ids"] = _count_from_zero(student_chunks, student_batch.row, len(rows)), tokens
        statistics = _statistics(student_batch, student_chunks, teacher_batch, teacher_chunks, len(rows))
        counts |= {f"{name}.{key}": values for key, values in statistics.items()}
        counts[f"{name}.rows_cut"] = teacher_batch.cut.astype(np.int64)
        useful = _per_row(student_batch.row[student_batch.maskable & (student_chunks >= 0)], rows) > 0
        for index, problem in enumerate(teacher_batch.problems):
            dropped[index] = dropped[index] or problem or (None if useful[index] else "no_aligned_chunk")
    return AlignedBatch(columns, counts, dropped)


def _end_with_chunks(side: SideBatch, chunks: np.ndarray, cut: np.ndarray) -> tuple[SideBatch, np.ndarray]:
    """All rows; those cut on the other side end with their last chunk: the other side lacks the text after it."""
    last = np.full(len(cut), -1)
    np.maximum.at(last, side.row[chunks >= 0], np.flatnonzero(chunks >= 0))
    kept = ~cut[side.row] | (np.arange(len(side.ids)) <= last[side.row])
    return side.take(kept), chunks[kept]


def _per_row(row: np.ndarray, rows: Sequence[Messages]) -> np.ndarray:
    return np.bincount(row, minlength=len(rows))


def _nothing_to_learn(messages: Messages, targets: Sequence[int], learnt: int) -> str | None:
    if learnt:
        return None
    answered = any(messages[number]["content"].strip() for number in targets)
    return "prompt_fills_student_length" if answered else "no_assistant_content"


def _count_from_zero(chunks: np.ndarray, row: np.ndarray, rows: int) -> np.ndarray:
    """Chunk ids of a batch as ids within each row."""
    in_chunk = chunks >= 0
    first = np.zeros(rows, np.int32)
    first[row[in_chunk][::-1]] = chunks[in_chunk][::-1]  # the last assignment wins: the row's first chunk
    return np.where(in_chunk, chunks - first[row], np.int32(-1))


def _statistics(
    student: SideBatch, student_chunks: np.ndarray, teacher: SideBatch, teacher_chunks: np.ndarray, rows: int
) -> dict[str, np.ndarray]:
    in_student, in_teacher = student_chunks >= 0, teacher_chunks >= 0
    # tokens of every chunk
    student_size, teacher_size = np.bincount(student_chunks[in_student]), np.bincount(teacher_chunks[in_teacher])
    chunk_row = np.zeros(len(student_size), np.int64)
    chunk_row[student_chunks[in_student]] = student.row[in_student]
    selected = {
        "tokens": teacher.row,
        "chunks": chunk_row,
        "one_to_one": chunk_row[(student_size == 1) & (teacher_size == 1)],
        "student_tokens_in_chunks": student.row[in_student],
        "teacher_tokens_in_chunks": teacher.row[in_teacher],
        "maskable_outside_chunks": student.row[student.maskable & ~in_student],
        "student_straddling": student.row[student.straddling],
        "teacher_straddling": teacher.row[teacher.straddling],
    }
    return {name: np.bincount(row, minlength=rows) for name, row in selected.items()}
