"""What a causal teacher says of the tokens of a row: computed once, as it depends on no noise, and read with the rows.

Shapes: N tokens, k likeliest tokens, T temperatures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.data.arrow_files import open_arrow


@dataclass(frozen=True)
class TeacherAnswers:
    """Predictions of N tokens, each from the tokens to its left."""

    log_prob: Tensor
    """float32 [N], of the true token"""
    top: Tensor
    """int64 [N, k], the k likeliest tokens of the vocabulary shared with the student; k = 0 without a shared one"""
    top_logit: Tensor
    """float32 [N, k]"""
    log_partition: Tensor
    """float32 [N, T]: log of the sum of exp(logit / temperature) over the shared vocabulary"""

    @classmethod
    def empty(cls, top_k: int, temperatures: int) -> TeacherAnswers:
        """Of no token."""
        top = torch.zeros(0, top_k, dtype=torch.int64)
        return cls(torch.zeros(0), top, top.float(), torch.zeros(0, temperatures))

    @classmethod
    def cat(cls, pieces: Sequence[TeacherAnswers]) -> TeacherAnswers:
        """All tokens in one."""
        return cls(*(torch.cat([getattr(piece, field.name) for piece in pieces]) for field in fields(cls)))

    def at(self, tokens: Tensor) -> TeacherAnswers:
        """Of some tokens: bool [N] or int64 [n]."""
        return TeacherAnswers(*(getattr(self, field.name)[tokens] for field in fields(self)))

    def with_none(self) -> TeacherAnswers:
        """With a placeholder token at the end, whose k tokens and the rest are equally likely."""
        k = self.top.shape[1]
        known = self.log_partition
        return TeacherAnswers(
            torch.cat([self.log_prob, self.log_prob.new_zeros(1)]),
            torch.cat([self.top, torch.arange(k, device=self.top.device)[None]]),
            torch.cat([self.top_logit, self.top_logit.new_zeros(1, k)]),
            torch.cat([known, known.new_full((1, known.shape[1]), math.log(k + 1))]),
        )


def schema() -> pa.Schema:
    """Columns of a file of answers, a row for each of the dataset's: tokens that are answered, and their answers one behind another."""
    floats, ids = pa.list_(pa.float32()), pa.list_(pa.int32())
    columns = {"tokens": ids, "log_prob": floats, "top": ids, "top_logit": floats, "log_partition": floats}
    return pa.schema(columns.items())


def to_columns(tokens: Tensor, answers: TeacherAnswers) -> dict[str, np.ndarray]:
    """A row of a file. tokens: int64 [N], positions of the answered tokens in the teacher's row."""
    values = {field.name: getattr(answers, field.name).flatten() for field in fields(answers)}
    return {name: value.cpu().numpy() for name, value in ({"tokens": tokens} | values).items()}


class StoredAnswers:
    """Of all rows of a split, memory-mapped; `none` are answers of no token. Raises BadInput for a file that cannot be read."""

    def __init__(self, folder: Path, files: Sequence[str], none: TeacherAnswers):
        self._rows, self.none = open_arrow(folder, files, "numpy", stage="precompute"), none

    def row(self, index: int, length: int) -> TeacherAnswers:
        """Of a row of that many teacher tokens; those that are not answered are never asked for."""
        row, none = self._rows[int(index)], self.none
        tokens = torch.from_numpy(np.array(row["tokens"], np.int64))

        def spread(name: str, like: Tensor) -> Tensor:
            values = torch.from_numpy(np.array(row[name])).to(like.dtype).view(len(tokens), *like.shape[1:])
            return like.new_zeros(length, *like.shape[1:]).index_copy_(0, tokens, values)

        return TeacherAnswers(*(spread(field.name, getattr(none, field.name)) for field in fields(none)))

    def pick(self, indices: np.ndarray) -> StoredAnswers:
        """Of the rows of these indices alone."""
        picked = copy.copy(self)
        picked._rows = self._rows.select(indices)
        return picked
