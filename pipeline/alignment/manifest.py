"""The manifest of an aligned dataset: what it was made from, what it holds, and whether it fits a recipe.

It is written last: without it there is no dataset.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from pipeline.alignment.fingerprint import FORMAT, Inputs, SourceInputs, fingerprint_inputs, source_key
from pipeline.alignment.sources import open_source
from pipeline.config.recipe import Data, Recipe, Source, Validation
from pipeline.core.checksums import FileEntry, add_checksum, checksum_fits, damaged_files
from pipeline.core.errors import BadInput
from pipeline.core.files import differences, json_sha256, read_json
from pipeline.core.log import rank

AnyInputs = SourceInputs[Source] | SourceInputs[Validation]


@dataclass(frozen=True)
class RowCounts:
    """Rows of a split, repeats included; `dropped` by reason."""

    read: int
    kept: int
    dropped: dict[str, int]
    cut: int | None = None
    """Of the kept: rows with tokens to learn behind data.student_length. None in a manifest of an older program."""
    tokens_lost: int | None = None
    """Maskable tokens of the student behind that length, in the kept rows."""


@dataclass(frozen=True)
class ChunkStatistics:
    """The quality of a teacher's alignment, over the training rows."""

    chunks: int
    chunks_per_row: float
    student_tokens_per_chunk: float
    teacher_tokens_per_chunk: float
    one_to_one_share: float
    maskable_outside_chunks_share: float
    student_straddling_tokens: int
    teacher_straddling_tokens: int
    rows_cut: int | None = None
    """Kept rows with tokens to learn behind this teacher's length. None in a manifest of an older program."""


@dataclass(frozen=True)
class ShardEntry(FileEntry):
    """A shard's file in the dataset's folder."""

    split: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a complete dataset says of itself; `tokens` of the training rows by side, and `maskable` ones."""

    inputs: Inputs
    key: str
    """Hash of the inputs' identity."""
    rows: dict[str, RowCounts]
    """by split"""
    tokens: dict[str, int]
    statistics: dict[str, ChunkStatistics]
    """by teacher"""
    shards: tuple[ShardEntry, ...]

    def files(self, split: str) -> list[str]:
        """A split's shards, in the order of its rows."""
        return [shard.file for shard in self.shards if shard.split == split]

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        results = {
            "key": self.key,
            "rows": {split: asdict(counts) for split, counts in self.rows.items()},
            "tokens": self.tokens,
            "statistics": {name: asdict(statistics) for name, statistics in self.statistics.items()},
            "shards": [asdict(shard) for shard in self.shards],
        }
        return add_checksum(self.inputs.to_json() | results)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        return cls(
            inputs=Inputs.from_json(value),
            key=value["key"],
            rows={split: RowCounts(**counts) for split, counts in value["rows"].items()},
            tokens=value["tokens"],
            statistics={name: ChunkStatistics(**one) for name, one in value["statistics"].items()},
            shards=tuple(ShardEntry(**shard) for shard in value["shards"]),
        )


def load_manifest(folder: Path | str) -> Manifest:
    """The manifest of a complete aligned dataset. Raises BadInput naming the align command if there is none."""
    record = read_json(Path(folder) / "manifest.json")
    if record is None:
        raise BadInput(f"no aligned dataset in {folder}: run `{align_command()}` first")
    try:
        return parse_manifest(record)
    except ValueError as error:
        raise BadInput(f"{folder} {error}: run `{align_command()}`") from None


def parse_manifest(record: Any) -> Manifest:
    """The manifest from manifest.json's parsed content. Raises ValueError saying what the folder has instead."""
    if not checksum_fits(record):
        raise ValueError("has a damaged manifest.json")
    if record["format"] != FORMAT:
        raise ValueError(f"has format {record['format']}, not {FORMAT}")
    try:
        return Manifest.from_json(record)
    except (KeyError, TypeError):
        raise ValueError("has a manifest.json of another version of this program") from None


def require_dataset(recipe: Recipe, *, every_byte: bool) -> Manifest:
    """The manifest of the recipe's dataset. Raises BadInput unless there is one that fits (`every_byte`: and whose shards are intact)."""
    folder = Path(recipe.data.aligned)
    manifest = load_manifest(folder)
    check_manifest(manifest, recipe)
    if every_byte and (damaged := damaged_files(folder, manifest.shards)):
        raise BadInput(f"{folder}: missing or damaged {', '.join(damaged)}: run `{align_command()}`")
    return manifest


def check_manifest(manifest: Manifest, recipe: Recipe) -> None:
    """Raises BadInput, naming what differs and both keys, unless the dataset fits the recipe.

    It fits with the same tokenizers, lengths and data; it may hold more teachers, or validation rows that the recipe
    does not ask for. Data are read again (by rank 0) only where the recipe has another path for them than when they
    were aligned; a local file that has not moved must have kept its size.
    """
    data = _by_order(manifest.inputs, recipe.data)
    wanted = fingerprint_inputs(recipe, {source_key(source): there.content for source, there in data}).identity
    aligned = restrict_to(manifest.inputs.identity, wanted)
    if changed := changes(aligned, wanted):
        raise BadInput(
            f"the aligned dataset in {recipe.data.aligned} has key {json_sha256(aligned)[:12]}, the recipe "
            f"{json_sha256(wanted)[:12]}; they differ in {'; '.join(changed)}: run `{align_command()}`"
        )
    for source, there in data:
        if _has_changed(source, there):
            raise BadInput(
                f"{source.path} holds other rows than the aligned dataset in {recipe.data.aligned} was made from: run "
                f"`{align_command()}`"
            )


def _by_order(inputs: Inputs, data: Data) -> list[tuple[Source | Validation, AnyInputs]]:
    """The recipe's sources, and what was aligned as the first, second, ... of them; validation rows likewise."""
    pairs: list[tuple[Source | Validation, AnyInputs]] = list(zip(data.sources, inputs.sources, strict=False))
    return [*pairs, (data.validation, inputs.validation)] if data.validation and inputs.validation else pairs


def _has_changed(source: Source | Validation, there: AnyInputs) -> bool:
    if source.path != there.source.path:
        return rank() == 0 and open_source(source).table.sha256 != there.known.sha256
    path = Path(source.path)
    return path.is_file() and path.stat().st_size != there.known.bytes


def restrict_to(identity: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's identity without the teachers and validation rows that are not wanted."""
    teachers = {name: side for name, side in identity["teachers"].items() if name in wanted["teachers"]}
    return {**identity, "teachers": teachers, "validation": identity["validation"] if wanted["validation"] else None}


def changes(aligned: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words: the name of an entry, and both values."""
    pairs = sorted(differences(aligned, wanted), key=itemgetter(0))
    return [f"{name} (aligned: {_short(there)}, recipe: {_short(here)})" for name, there, here in pairs]


def _short(value: Any) -> str:
    if value is None or isinstance(value, Mapping):
        return "no" if value is None else "yes"
    return str(value)[:12] if len(str(value)) == 64 else str(value)  # a digest


def align_command(argv: Sequence[str] | None = None) -> str:
    """The align command for the recipe and overrides of this process's command line."""
    sections = {"recipe", *Recipe.__dataclass_fields__}
    words, keep, kept = list(sys.argv[1:] if argv is None else argv), False, []
    for word in words:
        if word.startswith("--"):
            keep = word[2:].split("=")[0].split(".")[0] in sections
        if keep or Path(word, "recipe.yaml").is_file():  # RUN
            kept.append(word)
    return shlex.join(["python", "pipeline/align.py", *kept])
