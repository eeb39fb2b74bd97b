"""Shards of an aligned dataset: planned from the sources, built in any order, kept over restarts.

A shard holds the rows of a stretch of one source. Its record (shard-00000.json) is written after its data
(shard-00000.arrow, an Arrow IPC stream); both get their names only once they are complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.alignment.chat import Messages
from pipeline.alignment.fingerprint import Inputs, source_key
from pipeline.alignment.formats import BadRow
from pipeline.alignment.rows import AlignedBatch, align_rows
from pipeline.alignment.sides import Side
from pipeline.alignment.sources import ChatRows, repeats
from pipeline.config.recipe import Maskable, OnBadRow
from pipeline.core.checksums import FileEntry, record_file, write_record
from pipeline.core.files import file_sha256, json_sha256
from pipeline.data.arrow_files import write_arrow

BATCH_ROWS, BATCH_CHARACTERS = 256, 1_000_000
"""Rows that are rendered and tokenized together, and written as one record batch: as many as both limits allow."""


@dataclass(frozen=True)
class PlannedShard:
    """Rows start..stop of the data behind `source_key`, each taken as often as the weight says."""

    file: str
    split: str
    source: str
    source_key: str
    start: int
    stop: int
    weight: float

    def key(self, settings: Mapping[str, Any], content: str) -> str:
        """Hash of all that determines the shard: the inputs' settings, and the digest of the source's content."""
        return json_sha256([settings, content, self.source, self.start, self.stop, self.weight])


@dataclass(frozen=True)
class ShardRecord(FileEntry):
    """What a shard's record file says: its data file, and what its rows count."""

    split: str
    rows: int
    counts: dict[str, int]


def plan(inputs: Inputs, shard_rows: int) -> list[PlannedShard]:
    """All shards of a dataset, training sources in order, then validation. The sources' contents are known."""
    shards: list[PlannedShard] = []
    for data in inputs.sources:
        for start, stop in _stretches(data.known.rows, shard_rows):
            file = f"shard-{len(shards):05d}.arrow"
            source = data.source
            shards.append(PlannedShard(file, "train", source.name, source_key(source), start, stop, source.weight))
    if held_out := inputs.validation:
        rows, key = min(held_out.source.rows, held_out.known.rows), source_key(held_out.source)
        for number, (start, stop) in enumerate(_stretches(rows, shard_rows)):
            shards.append(
                PlannedShard(f"validation-{number:05d}.arrow", "validation", "validation", key, start, stop, 1.0)
            )
    return shards


def _stretches(rows: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


@dataclass(frozen=True)
class Aligner:
    """What makes rows of the dataset out of chats."""

    student: Side
    teachers: Mapping[str, Side]
    maskable: Maskable
    on_bad_row: OnBadRow


def build(folder: Path, shard: PlannedShard, key: str, rows: ChatRows, aligner: Aligner) -> ShardRecord:
    """Aligns a shard's rows and writes data and record; returns the record."""
    counts: Counter[str] = Counter()
    path = folder / shard.file
    write_arrow(path, schema(aligner.teachers), _batches(shard, rows, aligner, counts))
    record = ShardRecord(shard.file, file_sha256(path), shard.split, counts["kept"], dict(counts))
    write_record(folder, key, record)
    return record


def remove_stale(folder: Path, shards: Iterable[PlannedShard]) -> int:
    """Deletes shards and records that are none of these, and what killed runs left; returns the number of shards."""
    keep = {name for shard in shards for name in (shard.file, record_file(shard.file))}
    kinds = ("shard", "validation", ".shard", ".validation")  # with a dot: temporary
    stale = [path for kind in kinds for path in folder.glob(f"{kind}-*.*") if path.name not in keep]
    for path in stale:
        path.unlink()
    return sum(path.suffix == ".arrow" for path in stale)


def schema(teachers: Iterable[str]) -> pa.Schema:
    """Columns of the dataset."""
    ids = pa.list_(pa.int32())
    fields = [("input_ids", ids), ("maskable", pa.list_(pa.bool_())), ("source", pa.string()), ("row", pa.int64())]
    columns = ("input_ids", "chunk_ids", "student_chunk_ids")
    return pa.schema([*fields, *((f"{name}_{column}", ids) for name in teachers for column in columns)])


def _batches(shard: PlannedShard, rows: ChatRows, aligner: Aligner, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    for positions, times, conversations in _portions(shard, rows, aligner.on_bad_row, counts):
        aligned = align_rows(aligner.student, aligner.teachers, conversations, aligner.maskable)
        kept = np.array([reason is None for reason in aligned.dropped])
        for reason, n in zip(aligned.dropped, times, strict=True):
            counts[f"dropped.{reason}" if reason else "kept"] += int(n)
        for name, values in aligned.counts.items():
            counts[name] += int((values * times)[kept].sum())
        taken = np.repeat(np.arange(len(times)), times * kept)
        if len(taken):
            yield _record_batch(shard, positions, aligned, aligner.teachers).take(pa.array(taken))


def _portions(
    shard: PlannedShard, rows: ChatRows, on_bad_row: OnBadRow, counts: Counter[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[Messages]]]:
    """Positions, repeats (above 0) and conversations of the shard's rows, a batch at a time; bad rows are counted."""
    for start in range(shard.start, shard.stop, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, shard.stop)
        times = repeats(shard.weight, start, stop)
        conversations: list[Messages] = []
        for index, conversation in enumerate(rows.read(start, stop, on_bad_row=on_bad_row)):
            if isinstance(conversation, BadRow):
                counts[f"dropped.{conversation.reason}"] += int(times[index])
                times[index], conversation = 0, []
            conversations.append(conversation)
        used = np.flatnonzero(times)
        sizes = [sum(len(message["content"]) for message in conversations[i]) for i in used]
        portion = np.cumsum(sizes) // BATCH_CHARACTERS
        for n in np.unique(portion):
            chosen = used[portion == n]
            yield start + chosen, times[chosen], [conversations[i] for i in chosen]


def _record_batch(
    shard: PlannedShard, positions: np.ndarray, aligned: AlignedBatch, teachers: Iterable[str]
) -> pa.RecordBatch:
    columns = schema(teachers)
    values = {"source": pa.array([shard.source] * len(positions), pa.string()), "row": pa.array(positions, pa.int64())}
    for name, (flat, lengths) in aligned.columns.items():
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
        values[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, columns.field(name).type.value_type))
    return pa.record_batch([values[name] for name in columns.names], schema=columns)
