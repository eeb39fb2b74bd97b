"""Arrow files of rows: written whole or not at all, and read memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.core.errors import BadInput


def write_arrow(path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes to a temporary name and renames."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, columns) as writer:
            for batch in batches:
                writer.write_batch(batch)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_arrow(folder: Path, files: Sequence[str], form: str, *, stage: str) -> Any:
    """The rows of all files, in a format of `datasets`. Raises BadInput, naming the stage that writes them, for a file that cannot be read."""
    import datasets  # a second to import, and only needed from here on

    try:
        tables = [datasets.Dataset.from_file(str(folder / file)) for file in files]
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{folder}: a file is damaged or missing ({error}): run {stage} again") from None
    return datasets.concatenate_datasets(tables).with_format(form) if tables else []
