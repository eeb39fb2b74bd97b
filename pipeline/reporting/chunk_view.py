"""One aligned row, chunk by chunk: which student tokens spell the same bytes as which teacher tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.alignment.vocabulary import token_bytes
from pipeline.core.errors import BadInput, one_line
from pipeline.models.tokenizer import load_tokenizer
from pipeline.reporting.run_record import RunRecord

MAX_CHUNKS = 80
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class Chunk:
    """The tokens of one chunk on both sides, as text with visible spaces."""

    student: list[str]
    teacher: list[str]


def first_row_chunks(run: RunRecord) -> dict[str, list[Chunk]]:
    """{teacher: the first chunks of the first training row}; {} where the dataset is not at hand.

    Raises BadInput when a tokenizer or a shard cannot be read, ValueError when its tokens do not spell bytes.
    """
    path = next((shard for shard in run.alignment.shards if shard.is_file()), None) if run.alignment else None
    if path is None:
        return {}
    try:
        with pa.memory_map(str(path)) as source:
            row = pa.ipc.open_stream(source).read_next_batch().slice(0, 1).to_pylist()[0]
    except (OSError, StopIteration, IndexError, pa.ArrowException) as error:
        raise BadInput(f"{path} is damaged ({one_line(error)}): run align again") from None
    student = token_bytes(load_tokenizer(run.student_tokenizer, chat=False))
    return {
        name: pair(
            by_chunk(row["input_ids"], row[f"{name}_student_chunk_ids"], student),
            by_chunk(
                row[f"{name}_input_ids"],
                row[f"{name}_chunk_ids"],
                token_bytes(load_tokenizer(tokenizer, chat=False, needs_mask=False)),
            ),
        )
        for name, tokenizer in run.teachers.items()
        if f"{name}_chunk_ids" in row
    }


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
