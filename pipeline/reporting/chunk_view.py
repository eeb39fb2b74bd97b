"""One aligned row, drawn: which student tokens spell the same bytes as which teacher tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.reporting.run_record import Record, Run

MAX_CHUNKS = 80
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class Chunk:
    """The tokens of one chunk on both sides, as text with visible spaces."""

    student: list[str]
    teacher: list[str]


def first_row(run: Run) -> Record | None:
    """The first training row of the run's aligned dataset."""
    for shard in run.manifest.get("shards", []):
        path = run.aligned / shard["file"]
        if shard["split"] == "train" and shard["rows"] and path.is_file():
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_stream(source).read_next_batch().slice(0, 1).to_pylist()[0]
    return None


def drawn(run: Run) -> dict[str, list[Chunk]]:
    """{teacher: the first chunks of the first training row}; {} where the dataset is not at hand.

    Raises BadInput when a tokenizer cannot be loaded, ValueError when its tokens do not spell bytes.
    """
    row = first_row(run)
    if row is None:
        return {}
    from pipeline.alignment.vocabulary import token_bytes
    from pipeline.models.loading import load_tokenizer

    student = token_bytes(load_tokenizer(run.recipe["student"]["tokenizer"]))
    found = {}
    for teacher in run.recipe["teachers"]:
        name, table = teacher["name"], token_bytes(load_tokenizer(teacher["tokenizer"]))
        if f"{name}_chunk_ids" in row:
            found[name] = pair(
                by_chunk(row["input_ids"], row[f"{name}_student_chunk_ids"], student),
                by_chunk(row[f"{name}_input_ids"], row[f"{name}_chunk_ids"], table),
            )
    return found


def by_chunk(ids: Sequence[int], chunks: Sequence[int], table: Sequence[bytes]) -> dict[int, list[str]]:
    """{chunk id: its tokens}; tokens outside chunks are left out, parts of a character are escaped."""
    tokens: dict[int, list[str]] = {}
    for token, chunk in zip(ids, chunks, strict=True):
        if 0 <= chunk < MAX_CHUNKS:
            tokens.setdefault(chunk, []).append(table[token].decode("utf-8", "backslashreplace").translate(VISIBLE))
    return tokens


def pair(student: dict[int, list[str]], teacher: dict[int, list[str]]) -> list[Chunk]:
    """Chunks in order."""
    return [Chunk(student[chunk], teacher[chunk]) for chunk in sorted(student)]
