"""Records with digests: of the record itself, and of the files that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import BadInput
from pipeline.core.files import file_sha256, json_sha256, read_json, write_json


def add_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a digest of its content, by which a reader sees damage."""
    written = json.loads(json.dumps(record))
    return {**written, "digest": json_sha256(written)}


def checksum_fits(record: Any) -> bool:
    """Whether a record is as `add_checksum` made it."""
    return isinstance(record, dict) and record == add_checksum({k: v for k, v in record.items() if k != "digest"})


@dataclass(frozen=True)
class FileEntry:
    """What a record says of a file in its folder."""

    file: str
    sha256: str


Entry = TypeVar("Entry", bound=FileEntry)


def damaged_files(folder: Path, entries: Sequence[FileEntry]) -> list[str]:
    """Files that are not there or do not have their digest. Hashing in threads, at the speed of the disk."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        intact = pool.map(lambda entry: _is_intact(folder, entry), entries)
        return [entry.file for entry, good in zip(entries, intact, strict=True) if not good]


def _is_intact(folder: Path, entry: FileEntry) -> bool:
    path = folder / entry.file
    return path.is_file() and file_sha256(path) == entry.sha256


def record_file(file: str) -> str:
    """Beside a file, its record."""
    return str(Path(file).with_suffix(".json"))


def write_record(folder: Path, key: str, entry: FileEntry) -> None:
    """Says what a file holds, and what it was made for: the mark of its completion."""
    write_json(folder / record_file(entry.file), add_checksum({"key": key, **asdict(entry)}))


def read_record(folder: Path, file: str, key: str, kind: type[Entry]) -> Entry | None:
    """The entry of a file that was made for the same key and is intact."""
    try:
        record = read_json(folder / record_file(file))
    except BadInput:
        return None
    if not checksum_fits(record) or record["key"] != key:
        return None
    entry = kind(**{field.name: record[field.name] for field in fields(kind)})
    return entry if _is_intact(folder, entry) else None
