"""What a manifest says about its rows: counts, tokens and the quality of every alignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

from rich.table import Table

from pipeline.alignment.manifest import ChunkStatistics, Manifest, RowCounts
from pipeline.alignment.shards import ShardRecord

LABELS = {
    "one_to_one_share": "chunks of one token on both sides",
    "maskable_outside_chunks_share": "maskable tokens outside chunks",
    "student_straddling_tokens": "student tokens across the edge of a message",
    "teacher_straddling_tokens": "teacher tokens across the edge of a message",
    "rows_cut": "rows cut at the teacher's length",
}
"""Labels of those fields of ChunkStatistics whose names do not say enough."""


def count_by_split(records: Iterable[ShardRecord]) -> dict[str, Counter[str]]:
    """What the rows of each split count together."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(record.split, Counter()).update(record.counts)
    return counts


def row_counts(counts: Counter[str]) -> RowCounts:
    """Rows read, kept and dropped of what a split counts."""
    dropped = {name.removeprefix("dropped."): n for name, n in sorted(counts.items()) if name.startswith("dropped.")}
    read = counts["kept"] + sum(dropped.values())
    return RowCounts(read, counts["kept"], dropped, counts["rows_cut"], counts["tokens_lost"])


def token_counts(counts: Counter[str], teachers: Iterable[str]) -> dict[str, int]:
    """Tokens of every side, and those of the student that are maskable."""
    tokens = {"student": counts["student_tokens"], "maskable": counts["maskable_tokens"]}
    return tokens | {name: counts[f"{name}.tokens"] for name in teachers}


def chunk_statistics(counts: Counter[str], teacher: str) -> ChunkStatistics:
    """The quality of one teacher's alignment."""
    chunks = counts[f"{teacher}.chunks"]
    divisor = max(chunks, 1)
    return ChunkStatistics(
        chunks=chunks,
        chunks_per_row=chunks / max(counts["kept"], 1),
        student_tokens_per_chunk=counts[f"{teacher}.student_tokens_in_chunks"] / divisor,
        teacher_tokens_per_chunk=counts[f"{teacher}.teacher_tokens_in_chunks"] / divisor,
        one_to_one_share=counts[f"{teacher}.one_to_one"] / divisor,
        maskable_outside_chunks_share=counts[f"{teacher}.maskable_outside_chunks"] / max(counts["maskable_tokens"], 1),
        student_straddling_tokens=counts[f"{teacher}.student_straddling"],
        teacher_straddling_tokens=counts[f"{teacher}.teacher_straddling"],
        rows_cut=counts[f"{teacher}.rows_cut"],
    )


def table(manifest: Manifest) -> Table:
    """The same for a terminal."""
    result = Table(title=f"aligned dataset {manifest.key[:12]}", show_header=False)
    for data in manifest.inputs.sources:
        result.add_row(f"source {data.source.name}", f"{data.known.rows:,} rows, {data.known.format}")
    for split, rows in manifest.rows.items():
        dropped = "".join(f", {n:,} {reason}" for reason, n in rows.dropped.items())
        result.add_row(f"{split} rows kept", f"{rows.kept:,} of {rows.read:,}{dropped}")
        if rows.cut is not None:
            result.add_row(
                f"{split} rows cut", f"{rows.cut:,} of {rows.kept:,}, {rows.tokens_lost:,} maskable tokens lost"
            )
    for name, tokens in manifest.tokens.items():
        result.add_row(f"{name} tokens", f"{tokens:,}")
    for name, statistics in manifest.statistics.items():
        result.add_section()
        if vocabulary := manifest.inputs.teachers[name].shared_vocab:
            result.add_row(f"{name}: shared vocabulary", f"{vocabulary:,} ids")
        for label, value in statistics_rows(asdict(statistics)):
            result.add_row(f"{name}: {label}", value)
    return result


def statistics_rows(statistics: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    """Label and value of each field of ChunkStatistics that is known, for people."""
    for name, value in statistics.items():
        if value is not None:
            digits = "," if isinstance(value, int) else ".1%" if name.endswith("_share") else ".2f"
            yield LABELS.get(name, name.replace("_", " ")), format(value, digits)
