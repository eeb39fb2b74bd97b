"""What a manifest says about its rows: counts, tokens and the quality of every alignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table


def summarise(records: Iterable[Mapping[str, Any]], teachers: Iterable[str]) -> dict[str, Any]:
    """The manifest's `rows` by split, and the `tokens` and `statistics` of the training rows."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(record["split"], Counter()).update(record["counts"])
    train = counts["train"]
    tokens = {"student": train["student_tokens"], "maskable": train["maskable_tokens"]}
    return {
        "rows": {split: _rows(count) for split, count in counts.items()},
        "tokens": tokens | {name: train[f"{name}.tokens"] for name in teachers},
        "statistics": {name: _statistics(train, name) for name in teachers},
    }


def _rows(counts: Counter[str]) -> dict[str, Any]:
    dropped = {name.removeprefix("dropped."): n for name, n in sorted(counts.items()) if name.startswith("dropped.")}
    return {"read": counts["kept"] + sum(dropped.values()), "kept": counts["kept"], "dropped": dropped}


def _statistics(counts: Counter[str], teacher: str) -> dict[str, float]:
    own = {name.removeprefix(f"{teacher}."): n for name, n in counts.items() if name.startswith(f"{teacher}.")}
    chunks, rows = max(own.get("chunks", 0), 1), max(counts["kept"], 1)
    return {
        "chunks": own.get("chunks", 0),
        "chunks_per_row": own.get("chunks", 0) / rows,
        "student_tokens_per_chunk": own.get("student_tokens_in_chunks", 0) / chunks,
        "teacher_tokens_per_chunk": own.get("teacher_tokens_in_chunks", 0) / chunks,
        "one_to_one_share": own.get("one_to_one", 0) / chunks,
        "maskable_outside_chunks_share": own.get("maskable_outside_chunks", 0) / max(counts["maskable_tokens"], 1),
        "student_straddling_tokens": own.get("student_straddling", 0),
        "teacher_straddling_tokens": own.get("teacher_straddling", 0),
    }


def table(manifest: Mapping[str, Any]) -> Table:
    """The same for a terminal."""
    result = Table(title=f"aligned dataset {manifest['key'][:12]}", show_header=False)
    for source in manifest["sources"]:
        result.add_row(f"source {source['name']}", f"{source['content']['rows']:,} rows, {source['content']['format']}")
    for split, rows in manifest["rows"].items():
        dropped = "".join(f", {n:,} {reason}" for reason, n in rows["dropped"].items())
        result.add_row(f"{split} rows kept", f"{rows['kept']:,} of {rows['read']:,}{dropped}")
    for name, tokens in manifest["tokens"].items():
        result.add_row(f"{name} tokens", f"{tokens:,}")
    for name, statistics in manifest["statistics"].items():
        result.add_section()
        if vocabulary := manifest["teachers"][name]["shared_vocab"]:
            result.add_row(f"{name}: shared vocabulary", f"{vocabulary:,} ids")
        for key, value in statistics.items():
            label = f"{name}: {key.replace('_', ' ')}"
            result.add_row(label, f"{value:,}" if isinstance(value, int) else f"{value:.3f}")
    return result
