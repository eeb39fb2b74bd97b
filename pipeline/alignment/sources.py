"""Reading chat rows: JSONL, Parquet, folders of `datasets.save_to_disk` and hub datasets.

Every kind of source gives rows by position, so that shards can be built in any order and by any process. A row that is
no conversation is an error that names it, never left out in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.core.errors import BadInput
from pipeline.core.files import file_sha256

ROLES = ("system", "user", "assistant", "tool")


class Rows(Protocol):
    """Rows of one source. `sha256` covers their content; `place` names a row for the user."""

    path: str
    count: int
    sha256: str

    def place(self, row: int) -> str: ...

    def load(self, start: int, stop: int) -> Iterable[Any]: ...


def open_rows(path: str, split: str, config: str = "") -> Rows:
    """The rows behind a path or hub name. Raises BadInput if there is nothing to read."""
    if Path(path).is_file():
        rows = ParquetRows(path) if path.endswith(".parquet") else JsonRows(path)
    elif Path(path).suffix in {".jsonl", ".json", ".parquet"}:
        raise BadInput(f"no file {path}: give a JSONL or Parquet file, a saved dataset or a hub name")
    else:
        rows = DatasetRows(path, split, config)
    if not rows.count:
        raise BadInput(f"{path} is empty")
    return rows


def read_messages(rows: Rows, start: int, stop: int) -> list[list[dict[str, str]]]:
    """The conversations of rows start..stop, reduced to role and content. Raises BadInput naming the first bad row."""
    return [_messages(row, rows.place(start + index)) for index, row in enumerate(rows.load(start, stop))]


def repeats(weight: float, start: int, stop: int) -> np.ndarray:
    """How often each of the rows start..stop is used, int64: 0.5 takes rows 0, 2, 4, ..., 2.0 takes each row twice."""
    share = Fraction(weight).limit_denominator(1_000_000)
    used = -(-np.arange(start, stop + 1) * share.numerator // share.denominator)  # ceil(row * weight)
    return np.diff(used)


def _messages(row: Any, place: str) -> list[dict[str, str]]:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{place}: no `messages`, a list of {{role, content}}")
    return [_message(message, f"{place}, message {index}") for index, message in enumerate(messages)]


def _message(message: Any, place: str) -> dict[str, str]:
    role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
    if role not in ROLES:
        raise BadInput(f"{place}: role {role!r} is not one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise BadInput(f"{place}: content is {type(content).__name__}, not a string")
    if not _is_unicode(content):
        raise BadInput(f"{place}: content holds half a surrogate pair, which no tokenizer can read")
    return {"role": role, "content": content}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class JsonRows:
    """A file with a JSON object a line; blank lines are no rows."""

    path: str

    def __post_init__(self) -> None:
        digest, line_starts, filled = hashlib.sha256(), [0], []
        with open(self.path, "rb") as file:
            for line in file:
                digest.update(line)
                filled.append(not line.isspace())
                line_starts.append(line_starts[-1] + len(line))
        self.sha256 = digest.hexdigest()
        self._lines = np.flatnonzero(filled)
        self._starts = np.array(line_starts, np.int64)
        self.count = len(self._lines)

    def place(self, row: int) -> str:
        return f"{self.path}: row {row} (line {self._lines[row] + 1})"

    def load(self, start: int, stop: int) -> Iterable[Any]:
        with open(self.path, "rb") as file:
            for row in range(start, stop):
                begin, end = self._starts[self._lines[row] : self._lines[row] + 2]
                file.seek(begin)
                try:
                    yield json.loads(file.read(end - begin))
                except ValueError as error:  # UnicodeDecodeError too
                    raise BadInput(f"{self.place(row)}: not JSON ({error})") from None


@dataclass
class ParquetRows:
    """A Parquet file with a column `messages`."""

    path: str

    def __post_init__(self) -> None:
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self.path)
        except pyarrow.ArrowInvalid as error:
            raise BadInput(f"{self.path}: not a Parquet file ({error})") from None
        if "messages" not in file.schema_arrow.names:
            raise BadInput(f"{self.path}: no column `messages`, but {', '.join(file.schema_arrow.names)}")
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._group_starts = np.cumsum([0, *sizes])
        self.count = sum(sizes)
        self.sha256 = file_sha256(Path(self.path))

    def place(self, row: int) -> str:
        return f"{self.path}: row {row}"

    def load(self, start: int, stop: int) -> Iterable[Any]:
        first = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        for group in range(first, len(self._group_starts) - 1):
            base = int(self._group_starts[group])
            if base >= stop:
                return
            column = _row_group(self.path, group)
            for messages in column.slice(max(start - base, 0), stop - max(start, base)).to_pylist():
                yield {"messages": messages}


@lru_cache(maxsize=1)  # neighbouring batches read the same group
def _row_group(path: str, group: int) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=["messages"]).column("messages")


class DatasetRows:
    """A split of a dataset that was saved to disk or lies on the hub (there maybe in several configurations)."""

    def __init__(self, path: str, split: str, config: str = ""):
        import datasets

        self.path = path
        try:
            if Path(path, "dataset_dict.json").is_file() or Path(path, "state.json").is_file():
                found = datasets.load_from_disk(path)
                dataset = found[split] if isinstance(found, datasets.DatasetDict) else found
            else:
                dataset = datasets.load_dataset(path, config or None, split=split)
        except KeyError:
            raise BadInput(f"{path} has no split {split!r}, but {', '.join(found)}") from None
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise BadInput(f"cannot read the dataset {path} ({' '.join(str(error).split())})") from None
        if "messages" not in dataset.column_names:
            raise BadInput(f"{path}: no column `messages`, but {', '.join(dataset.column_names)}")
        self._dataset = dataset.select_columns("messages")
        self.count = len(dataset)
        files = [file_sha256(Path(file["filename"])) for file in dataset.cache_files]
        self.sha256 = hashlib.sha256(" ".join(files).encode()).hexdigest()

    def place(self, row: int) -> str:
        return f"{self.path}: row {row}"

    def load(self, start: int, stop: int) -> Iterable[Any]:
        return self._dataset.select(range(start, stop))
