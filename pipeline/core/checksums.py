"""Digests in records: of a record itself, and of the files that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.files import file_sha256, json_sha256


def add_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a digest of its content, by which a reader sees damage."""
    written = json.loads(json.dumps(record))
    return {**written, "digest": json_sha256(written)}


def checksum_fits(record: Any) -> bool:
    """Whether a record is as `add_checksum` made it."""
    return isinstance(record, dict) and record == add_checksum({k: v for k, v in record.items() if k != "digest"})


class FileEntry(Protocol):
    """What a record says of a file in its folder: name and digest."""

    @property
    def file(self) -> str: ...

    @property
    def sha256(self) -> str: ...


def damaged_files(folder: Path, entries: Sequence[FileEntry]) -> list[str]:
    """Files that are not there or do not have their digest. Hashing in threads, at the speed of the disk."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        intact = pool.map(lambda entry: is_intact(folder, entry), entries)
        return [entry.file for entry, good in zip(entries, intact, strict=True) if not good]


def is_intact(folder: Path, entry: FileEntry) -> bool:
    """Whether a file is there and has its digest."""
    path = folder / entry.file
    return path.is_file() and file_sha256(path) == entry.sha256
