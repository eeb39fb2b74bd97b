"""What `plan` reads: the models' configs, and what rows of the training data are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from pipeline.alignment.manifest import Manifest, load_manifest
from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput
from pipeline.data.aligned_dataset import AlignedRow, AlignedRows, AlignedTeacher
from pipeline.data.batch import Sample
from pipeline.models.configs import read_config
from pipeline.training.preflight import row_costs

PUBLISHED = Path(__file__).parent / "published"


def read_configs(recipe: Recipe, given: Sequence[str]) -> tuple[PreTrainedConfig, dict[str, PreTrainedConfig]]:
    """Configs of the student and of every teacher: given, local, published with this project, or from the hub.

    Special tokens that only a tokenizer would name get id 0: sizes do not depend on them.

    given: NAME=FILE, NAME being `student` or a teacher's name.

    Raises BadInput for a model without a config anywhere, and for a name that the recipe does not have.
    """
    paths = {"student": recipe.student.path, **{teacher.name: teacher.path for teacher in recipe.teachers}}
    files = _parse_given(given, paths)
    causal = {teacher.name for teacher in recipe.teachers if teacher.causal}
    configs = {name: _read_config(name, path, files, name in causal) for name, path in paths.items()}
    for config in configs.values():
        config.mask_token_id = config.eos_token_id = config.pad_token_id = 0
    return configs.pop("student"), configs


def _parse_given(given: Sequence[str], paths: Mapping[str, str]) -> dict[str, str]:
    files = dict(text.partition("=")[::2] for text in given)
    for name, file in files.items():
        if name not in paths or not Path(file).exists():
            raise BadInput(
                f"--config {name}={file}: give NAME=FILE with a name of {', '.join(paths)} and its config.json"
            )
    return files


def _read_config(name: str, path: str, files: Mapping[str, str], causal: bool) -> PreTrainedConfig:
    if name in files:
        return read_config(files[name], causal=causal)
    if not Path(path).is_dir() and (PUBLISHED / path).is_dir():
        return read_config(str(PUBLISHED / path), causal=causal)
    try:
        return read_config(path, causal=causal)
    except BadInput as error:
        raise BadInput(f"{error}: give it with --config {name}=FILE") from None


@dataclass(frozen=True)
class RowLengths:
    """Tokens of a row: of the student, and of every teacher in the recipe's order."""

    student: int
    teachers: tuple[int, ...]


@dataclass(frozen=True)
class DataStats:
    """Rows of a run."""

    longest: RowLengths
    mean: RowLengths
    maskable: float
    """Share of the student's tokens that may be masked, on average"""
    rows: int | None
    """Training rows; None = unknown"""
    costs: np.ndarray
    """int64 [n], the most tokens that each row takes over all inputs; n rows that are like the data"""
    shared_vocab: tuple[int, ...] | None
    """Id prefix that the student shares with each teacher, 0 = none; None = unknown"""
    origin: str


def read_data(recipe: Recipe, rows: int | None, mean_tokens: int | None) -> DataStats:
    """Statistics of the recipe's aligned dataset, if that exists and has the recipe's teachers.

    Otherwise: rows of the longest lengths, all maskable; `mean_tokens` (of an average row, on every side) and `rows` as
    given.
    """
    folder, names = Path(recipe.data.aligned), [teacher.name for teacher in recipe.teachers]
    if (folder / "manifest.json").is_file():
        manifest = load_manifest(folder)
        if set(names) <= manifest.inputs.teachers.keys():
            return _aligned(recipe, folder, manifest, names)
    longest = RowLengths(recipe.data.student_length, tuple(t.length for t in recipe.teachers))
    mean = mean_tokens or longest.student
    costs = row_costs(recipe, np.array([longest.student]), [np.array([n]) for n in longest.teachers])
    return DataStats(
        longest,
        mean=RowLengths(min(mean, longest.student), tuple(min(mean, n) for n in longest.teachers)),
        maskable=1.0,
        rows=rows,
        costs=costs,
        shared_vocab=None,
        origin=f"no aligned dataset in {folder}: every row as long as the recipe allows and maskable as a whole",
    )


def _aligned(recipe: Recipe, folder: Path, manifest: Manifest, names: list[str]) -> DataStats:
    rows = AlignedRows(folder, manifest.files("train"), names)
    costs = row_costs(recipe, rows.student_lengths, rows.teacher_lengths)
    heaviest = int(costs.argmax())
    tokens = manifest.tokens
    return DataStats(
        RowLengths(int(rows.student_lengths[heaviest]), tuple(int(n[heaviest]) for n in rows.teacher_lengths)),
        mean=RowLengths(round(rows.student_lengths.mean()), tuple(round(n.mean()) for n in rows.teacher_lengths)),
        maskable=tokens["maskable"] / tokens["student"],
        rows=len(rows),
        costs=costs,
        shared_vocab=tuple(manifest.inputs.teachers[name].shared_vocab or 0 for name in names),
        origin=f"{folder}, {len(rows):,} rows",
    )


def synthetic_row(lengths: RowLengths, maskable: float) -> Sample:
    """A row of these lengths: its last share is maskable, and has chunks of one token on the shorter side."""
    start = lengths.student - _tail(lengths.student, maskable)
    can_mask = torch.arange(lengths.student) >= start
    teachers = tuple(_synthetic_teacher(lengths.student, n, maskable) for n in lengths.teachers)
    return Sample(AlignedRow(torch.zeros(lengths.student, dtype=torch.int64), can_mask, teachers), (0,))


def _synthetic_teacher(student_length: int, length: int, maskable: float) -> AlignedTeacher:
    student_tail, tail = _tail(student_length, maskable), _tail(length, maskable)
    chunks = min(student_tail, tail)
    return AlignedTeacher(
        torch.zeros(length, dtype=torch.int64),
        _chunk_ids(length, tail, chunks),
        _chunk_ids(student_length, student_tail, chunks),
    )


def _tail(length: int, share: float) -> int:
    return length - round(length * (1 - share))


def _chunk_ids(length: int, tail: int, chunks: int) -> Tensor:
    """Chunk of each of `length` tokens: none (-1), but for the last `tail` of them, spread over `chunks` chunks."""
    ids = torch.arange(tail) * chunks // max(tail, 1)
    return torch.cat([torch.full((length - tail,), -1), ids])
