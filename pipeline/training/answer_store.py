"""Stored answers of a causal teacher: `answers/NAME/` in the aligned dataset's folder, a file for each of its shards.

Written by `precompute`, read by `distill`. The manifest is written last; its key is a hash of the dataset, the teacher's weights and what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.alignment.manifest import Manifest, align_command
from pipeline.config.recipe import Recipe, Teacher
from pipeline.core.checksums import FileEntry, add_checksum, checksum_fits, damaged_files
from pipeline.core.errors import BadInput
from pipeline.core.files import file_sha256, read_json, write_json
from pipeline.data.teacher_answers import StoredAnswers, TeacherAnswers
from pipeline.models.model_files import CONFIG_FILES, WEIGHT_FILES, fetch
from pipeline.models.weights import weight_files
from pipeline.training.terms import stored_temperatures

FORMAT = 1


@dataclass(frozen=True)
class StoredShard(FileEntry):
    """A file of answers."""

    rows: int
    nats: float
    """Sum of the negative log-likelihoods of its tokens"""
    tokens: int


def store_folder(recipe: Recipe, name: str) -> Path:
    """Of a teacher's answers."""
    return Path(recipe.data.aligned) / "answers" / name


def kept_tokens(teacher: Teacher, shared_vocab: int) -> int:
    """Likeliest tokens that are kept of a prediction: none across tokenizers, whose events are chunks."""
    return min(teacher.top_k, shared_vocab)


def store_identity(recipe: Recipe, teacher: Teacher, manifest: Manifest) -> dict[str, Any]:
    """All that the answers depend on, weights apart."""
    shared = manifest.inputs.teachers[teacher.name].shared_vocab or 0
    return {
        "format": FORMAT,
        "dataset": manifest.key,
        "shards": {shard.file: shard.sha256 for shard in manifest.shards},
        "config": file_sha256(fetch(teacher.path, CONFIG_FILES) / "config.json"),
        "weights": "random" if teacher.weights == "random" else "pretrained",
        "seed": recipe.data.seed if teacher.weights == "random" else None,
        "dtype": teacher.dtype,
        "shared_vocab": shared,
        "top_k": kept_tokens(teacher, shared),
        "temperatures": list(stored_temperatures(recipe.objective.temperature, shared)),
    }


def weight_digests(teacher: Teacher) -> dict[str, str]:
    """Digest of every file of weights; reads every byte."""
    if teacher.weights == "random":
        return {}
    files = weight_files(fetch(teacher.path, CONFIG_FILES + WEIGHT_FILES))
    return {file.name: file_sha256(file) for file in files}


def write_store(folder: Path, key: str, identity: Mapping[str, Any], shards: Sequence[StoredShard]) -> None:
    """Writes the manifest of a teacher's answers; the key is a hash of the identity."""
    entries = [asdict(shard) for shard in shards]
    record = {"key": key, "identity": identity, "top_k": identity["top_k"], "shards": entries}
    write_json(folder / "manifest.json", add_checksum(record))


def check_store(recipe: Recipe, teacher: Teacher, manifest: Manifest, *, every_byte: bool) -> None:
    """Raises BadInput, naming the command that computes them, unless there are the teacher's answers as this recipe needs them.

    every_byte: whether to compare the files with their digests. The weights are not read again.
    """
    folder, command = store_folder(recipe, teacher.name), align_command().replace("align.py", "precompute.py", 1)
    record = read_json(folder / "manifest.json")
    if not checksum_fits(record):
        raise BadInput(f"no stored answers of teacher {teacher.name} in {folder}: run `{command}` first")
    wanted = store_identity(recipe, teacher, manifest)
    if changed := sorted(name for name in wanted if record["identity"].get(name) != wanted[name]):
        raise BadInput(
            f"the stored answers in {folder} were computed with another {', '.join(changed)}: run `{command}` again"
        )
    shards = [StoredShard(**shard) for shard in record["shards"]]
    if every_byte and (damaged := damaged_files(folder, shards)):
        raise BadInput(f"{folder}: missing or damaged {', '.join(damaged)}: run `{command}` again")


def no_answers(recipe: Recipe, teacher: Teacher, shared_vocab: int) -> TeacherAnswers:
    """Of no token."""
    temperatures = stored_temperatures(recipe.objective.temperature, shared_vocab)
    return TeacherAnswers.empty(kept_tokens(teacher, shared_vocab), len(temperatures))


def read_answers(recipe: Recipe, teacher: Teacher, shared_vocab: int, files: Sequence[str]) -> StoredAnswers:
    """Of the rows in these shards."""
    return StoredAnswers(store_folder(recipe, teacher.name), files, no_answers(recipe, teacher, shared_vocab))
