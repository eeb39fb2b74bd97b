"""What a row of the training data is like: of the aligned dataset where there is one, else as long as the recipe allows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.config.recipe import Recipe
from pipeline.core.files import read_json
from pipeline.data.aligned_dataset import AlignedRow, AlignedRows, AlignedTeacher
from pipeline.data.batch import Sample
from pipeline.training.preflight import row_costs


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row: of the student, and of every teacher in the recipe's order."""

    student: int
    teachers: tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """Rows of a run; `costs` are the most tokens that rows take, int64 [any number of rows that are like the data]."""

    longest: Lengths
    mean: Lengths
    maskable: float
    """Share of the student's tokens that may be masked, on average."""
    rows: int | None
    """Training rows; None = unknown."""
    costs: np.ndarray
    shared_vocab: dict[str, int] | None
    """Of each teacher; None = unknown."""
    origin: str


def read_data(recipe: Recipe, rows: int | None, mean_tokens: int | None) -> Data:
    """Data of the recipe's aligned dataset, if that is there and has the recipe's teachers.

    Otherwise: rows of the longest lengths, all maskable; `mean_tokens` (of an average row, on every side) and `rows` as
    given.
    """
    folder, names = Path(recipe.data.aligned), [teacher.name for teacher in recipe.teachers]
    manifest = read_json(folder / "manifest.json")
    if manifest and set(names) <= manifest["teachers"].keys():
        return _aligned(recipe, folder, manifest, names)
    longest = Lengths(recipe.data.student_length, tuple(t.length for t in recipe.teachers))
    mean = mean_tokens or longest.student
    costs = row_costs(recipe, np.array([longest.student]), [np.array([n]) for n in longest.teachers])
    return Data(
        longest,
        mean=Lengths(min(mean, longest.student), tuple(min(mean, n) for n in longest.teachers)),
        maskable=1.0,
        rows=rows,
        costs=costs,
        shared_vocab=None,
        origin=f"no aligned dataset in {folder}: every row as long as the recipe allows and maskable as a whole",
    )


def _aligned(recipe: Recipe, folder: Path, manifest: dict, names: list[str]) -> Data:
    rows = AlignedRows(folder, manifest, "train", names)
    costs = row_costs(recipe, rows.student_lengths, rows.teacher_lengths)
    heaviest = int(costs.argmax())
    tokens = manifest["tokens"]
    return Data(
        Lengths(int(rows.student_lengths[heaviest]), tuple(int(n[heaviest]) for n in rows.teacher_lengths)),
        mean=Lengths(round(rows.student_lengths.mean()), tuple(round(n.mean()) for n in rows.teacher_lengths)),
        maskable=tokens["maskable"] / tokens["student"],
        rows=len(rows),
        costs=costs,
        shared_vocab={name: manifest["teachers"][name]["shared_vocab"] for name in names},
        origin=f"{folder}, {len(rows):,} rows",
    )


def sample(lengths: Lengths, maskable: float) -> Sample:
    """A row of these lengths: its last share is maskable, and has chunks of one token on the shorter side."""
    start = round(lengths.student * (1 - maskable))
    can_mask = torch.arange(lengths.student) >= start
    teachers = tuple(_teacher(lengths.student, n, maskable) for n in lengths.teachers)
    return Sample(AlignedRow(torch.zeros(lengths.student, dtype=torch.int64), can_mask, teachers), (0,))


def _teacher(student: int, teacher: int, maskable: float) -> AlignedTeacher:
    own, theirs = (n - round(n * (1 - maskable)) for n in (student, teacher))
    return AlignedTeacher(
        torch.zeros(teacher, dtype=torch.int64), _chunks(teacher, theirs, own), _chunks(student, own, theirs)
    )


def _chunks(length: int, inside: int, other: int) -> torch.Tensor:
    """Chunk ids of a side: its last `inside` tokens, over as many chunks as the shorter of the two sides has tokens."""
    ids = torch.arange(inside) * min(inside, other) // max(inside, 1)
    return torch.cat([torch.full((length - inside,), -1), ids])
