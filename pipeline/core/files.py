"""Files: written to a temporary name and renamed, so that a reader never sees half of one; digests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import BadInput


def write_text(path: Path, text: str) -> None:
    """Write, flush to the disk and rename; parents are made. Readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk; it is read from there next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def lock(file: IO[Any], *, wait: bool = False) -> None:
    """Locks an open file for this process, until it is closed.

    Raises BlockingIOError where another process holds it (but for `wait`), BadInput where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise BadInput(
            f"{file.name}: its file system has no locks ({error.strerror}): mount it with flock, or choose another folder"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's JSON; None where there is no file. Raises BadInput for a file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise BadInput(f"{path}: not JSON ({error}); delete it and run its stage again") from None


def read_json_lines(path: Path) -> list[Any]:
    """Rows of a JSONL file; [] where there is none. Only a line break ends a row: texts may hold other separators."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write and rename, as `write_text`; one row per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def json_sha256(value: Any) -> str:
    """Digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(first: Any, second: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted name and both values of everything that differs in two JSON values; items of equally long lists by number."""
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if not isinstance(first, dict) or not isinstance(second, dict):
        return [] if first == second else [(name, first, second)]
    keys = {**first, **second}
    return [d for key in keys for d in differences(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))]


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
