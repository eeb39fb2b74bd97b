"""Reading the aligned dataset that `align` wrote: memory-mapped Arrow shards."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.data.arrow_files import open_arrow
from pipeline.data.teacher_answers import StoredAnswers, TeacherAnswers


@dataclass(frozen=True)
class AlignedTeacher:
    """One teacher's side of a row."""

    ids: Tensor
    """int64 [L_t]"""
    chunks: Tensor
    """int64 [L_t], chunk of each teacher token, -1 = none"""
    student_chunks: Tensor
    """int64 [L_s], chunk of each student token, -1 = none"""
    answers: TeacherAnswers | None = None
    """Of its L_t tokens, where they are stored."""


@dataclass(frozen=True)
class AlignedRow:
    """One row: the student's tokens and every teacher's, tied by chunk ids."""

    ids: Tensor
    """int64 [L_s]"""
    maskable: Tensor
    """bool [L_s]"""
    teachers: tuple[AlignedTeacher, ...]


class AlignedRows:
    """Rows of one split (`train` or `validation`), by position in the split, from its files in the dataset's folder.

    Attributes:
        student_lengths: int64 [rows].
        teacher_lengths: one int64 [rows] for each of `teachers`.

    `answers` are those of teachers whose answers are stored. Raises BadInput for a shard that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        teachers: Sequence[str],
        answers: Mapping[str, StoredAnswers] | None = None,
    ):
        self._rows = open_arrow(folder, files, "arrow", stage="align")
        self._teachers, self._answers = list(teachers), dict(answers or {})
        self.student_lengths = self._lengths("input_ids")
        self.teacher_lengths = [self._lengths(f"{name}_input_ids") for name in teachers]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> AlignedRow:
        row = self._rows[int(index)]  # a table of one row: as arrays of numpy, a row takes `datasets` a millisecond
        teachers = tuple(self._teacher(name, row, index) for name in self._teachers)
        return AlignedRow(_values(row, "input_ids", np.int64), _values(row, "maskable", np.bool_), teachers)

    def largest_ids(self) -> list[int]:
        """The largest token id of the student and of each teacher; -1 without rows. Reads every id."""
        columns = ["input_ids", *(f"{name}_input_ids" for name in self._teachers)]
        if not len(self):
            return [-1] * len(columns)
        parts = (self._rows.data.column(column).chunks for column in columns)
        return [max(pc.max(part.flatten()).as_py() or 0 for part in column) for column in parts]

    def _teacher(self, name: str, row: pa.Table, index: int) -> AlignedTeacher:
        columns = [f"{name}_{column}" for column in ("input_ids", "chunk_ids", "student_chunk_ids")]
        ids, chunks, student_chunks = (_values(row, column, np.int64) for column in columns)
        stored = self._answers.get(name)
        return AlignedTeacher(ids, chunks, student_chunks, None if stored is None else stored.row(index, len(ids)))

    def pick(self, indices: np.ndarray) -> AlignedRows:
        """The rows of these indices alone."""
        picked = copy.copy(self)
        picked._rows = self._rows.select(indices)
        picked._answers = {name: stored.pick(indices) for name, stored in self._answers.items()}
        picked.student_lengths = self.student_lengths[indices]
        picked.teacher_lengths = [lengths[indices] for lengths in self.teacher_lengths]
        return picked

    def origin(self, index: int) -> str:
        """Source and row that a row was made of."""
        row = self._rows[int(index)]
        return f"{row['source'][0]} row {row['row'][0]}"

    def _lengths(self, column: str) -> np.ndarray:
        if not len(self):
            return np.zeros(0, np.int64)
        return pc.list_value_length(self._rows.data.column(column)).to_numpy().astype(np.int64)


def _values(row: pa.Table, column: str, dtype: type[np.generic]) -> Tensor:
    """A copy of the list that a table of one row has in this column."""
    return torch.from_numpy(row[column][0].values.to_numpy(zero_copy_only=False).astype(dtype))
