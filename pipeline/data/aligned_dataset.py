"""Reading the aligned dataset that `align` wrote: memory-mapped Arrow shards."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.core.errors import BadInput


@dataclass(frozen=True)
class AlignedTeacher:
    """One teacher's side of a row."""

    ids: Tensor
    """int64 [L_t]"""
    chunks: Tensor
    """int64 [L_t], chunk of each teacher token, -1 = none"""
    student_chunks: Tensor
    """int64 [L_s], chunk of each student token, -1 = none"""


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

    Raises BadInput for a shard that cannot be read.
    """

    def __init__(self, folder: Path, files: Sequence[str], teachers: Sequence[str]):
        import datasets  # a second to import, and only needed from here on

        try:
            tables = [datasets.Dataset.from_file(str(folder / file)) for file in files]
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{folder}: a shard is damaged or missing ({error}): run align again") from None
        self._rows: Any = datasets.concatenate_datasets(tables).with_format("numpy") if tables else []
        self._teachers = list(teachers)
        self.student_lengths = self._lengths("input_ids")
        self.teacher_lengths = [self._lengths(f"{name}_input_ids") for name in teachers]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> AlignedRow:
        row = self._rows[int(index)]
        teachers = tuple(
            AlignedTeacher(
                *(_int64(row[f"{name}_{column}"]) for column in ("input_ids", "chunk_ids", "student_chunk_ids"))
            )
            for name in self._teachers
        )
        return AlignedRow(_int64(row["input_ids"]), torch.from_numpy(np.array(row["maskable"], bool)), teachers)

    def largest_ids(self) -> list[int]:
        """The largest token id of the student and of each teacher; -1 without rows. Reads every id."""
        columns = ["input_ids", *(f"{name}_input_ids" for name in self._teachers)]
        return [
            max((pc.max(part.flatten()).as_py() or 0 for part in self._parts(column)), default=-1) for column in columns
        ]

    def _parts(self, column: str) -> list[pa.Array]:
        return self._rows.data.column(column).chunks if len(self) else []

    def pick(self, places: np.ndarray) -> AlignedRows:
        """The rows at these places alone."""
        picked = copy.copy(self)
        picked._rows = self._rows.select(places)
        picked.student_lengths = self.student_lengths[places]
        picked.teacher_lengths = [lengths[places] for lengths in self.teacher_lengths]
        return picked

    def origin(self, index: int) -> str:
        """Source and row that a row was made of."""
        row = self._rows[int(index)]
        return f"{row['source']} row {row['row']}"

    def _lengths(self, column: str) -> np.ndarray:
        if not len(self):
            return np.zeros(0, np.int64)
        return pc.list_value_length(self._rows.data.column(column)).to_numpy().astype(np.int64)


def _int64(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64))
