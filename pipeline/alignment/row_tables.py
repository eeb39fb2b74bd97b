"""Rows by position: JSON lines (packed or not), a JSON array, Parquet, saved and hub datasets.

Shards can so be built in any order and by any process. A table knows nothing of chats: see formats.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from pipeline.core.errors import BadInput, one_line
from pipeline.core.files import file_sha256

HOLDOUT_SEED = 42
"""Of the split that the published code makes of OpenCoder's rows."""
_SHOWS_COLUMNS = 100


class Unreadable(ValueError):
    """A row that is no row; tables yield it in the row's place."""


class Table(Protocol):
    """Rows of one source. `sha256` covers their content; `columns` are the first row's where a file names none."""

    @property
    def count(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    @property
    def columns(self) -> Sequence[str]: ...

    def row_label(self, row: int) -> str:
        """Names a row for the user."""

    def load(self, start: int, stop: int, columns: Sequence[str]) -> Iterable[Any]:
        """Rows start..stop with at least these columns; an `Unreadable` stands for a row that cannot be read."""


@dataclass
class JsonLines:
    """A file with a JSON object per line, packed (.gz, .zst) or not; blank lines are no rows."""

    path: str
    columns: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        digest, line_starts, filled = hashlib.sha256(), [0], []
        with _unpacked(self.path) as file:
            for line in file:
                digest.update(line)
                filled.append(not line.isspace())
                line_starts.append(line_starts[-1] + len(line))
        self.sha256 = digest.hexdigest()
        self._lines = np.flatnonzero(filled)
        self._starts = np.array(line_starts, np.int64)
        self.count = len(self._lines)
        first = self.load(0, min(self.count, _SHOWS_COLUMNS), ())
        self.columns = next((tuple(row) for row in first if isinstance(row, dict)), ())

    def row_label(self, row: int) -> str:
        return f"{self.path}: row {row} (line {self._lines[row] + 1})"

    def load(self, start: int, stop: int, columns: Sequence[str]) -> Iterable[Any]:
        with _unpacked(self.path) as file:
            for row in range(start, stop):
                begin, end = self._starts[self._lines[row] : self._lines[row] + 2]
                file.seek(begin)
                try:
                    yield json.loads(file.read(end - begin))
                except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
                    yield Unreadable(f"not JSON ({error})")


def _unpacked(path: str) -> IO[bytes]:
    """The file's text in bytes, open for reading."""
    return open(_unpacked_path(path), "rb")


@cache
def _unpacked_path(path: str) -> str:
    """The file itself, or an unpacked copy that lives as long as this process."""
    if not path.endswith((".gz", ".zst")):
        return path
    import pyarrow

    copy = tempfile.NamedTemporaryFile(prefix="align-")  # noqa: SIM115  (kept until the process ends)
    _OPEN_COPIES.append(copy)
    try:
        with pyarrow.input_stream(path, compression="detect") as packed:
            shutil.copyfileobj(packed, copy)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot unpack ({error})") from None
    copy.flush()
    return copy.name


_OPEN_COPIES: list[Any] = []


@dataclass
class JsonArray:
    """A file that holds one JSON array of rows; kept in memory."""

    path: str

    def __post_init__(self) -> None:
        rows = _array(self.path)
        self.count = len(rows)
        self.columns = next((tuple(row) for row in rows[:_SHOWS_COLUMNS] if isinstance(row, dict)), ())
        self.sha256 = file_sha256(Path(self.path))

    def row_label(self, row: int) -> str:
        return f"{self.path}: row {row}"

    def load(self, start: int, stop: int, columns: Sequence[str]) -> Iterable[Any]:
        return _array(self.path)[start:stop]


@lru_cache(maxsize=4)  # forked workers find the parent's
def _array(path: str) -> list[Any]:
    with _unpacked(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}: begins as a JSON array, but is none ({error}); else write one object per line"
            ) from None


def open_json(path: str) -> Table:
    """A JSON file of either kind, by its first character."""
    with _unpacked(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf")  # the byte order mark of UTF-8
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput(f"{path} is UTF-16: write it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)")
    return JsonArray(path) if start.lstrip().startswith(b"[") else JsonLines(path)


@dataclass
class ParquetTable:
    """A Parquet file."""

    path: str

    def __post_init__(self) -> None:
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self.path)
        except pyarrow.ArrowInvalid as error:
            raise BadInput(f"{self.path}: not a Parquet file ({error})") from None
        self.columns = file.schema_arrow.names
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._group_starts = np.cumsum([0, *sizes])
        self.count = sum(sizes)
        self.sha256 = file_sha256(Path(self.path))

    def row_label(self, row: int) -> str:
        return f"{self.path}: row {row}"

    def load(self, start: int, stop: int, columns: Sequence[str]) -> Iterable[Any]:
        first = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        for group in range(first, len(self._group_starts) - 1):
            base = int(self._group_starts[group])
            if base >= stop:
                return
            rows = _row_group(self.path, group, tuple(columns))
            yield from rows.slice(max(start - base, 0), stop - max(start, base)).to_pylist()


@lru_cache(maxsize=1)  # neighbouring batches read the same group
def _row_group(path: str, group: int, columns: tuple[str, ...]) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=list(columns))


class DatasetTable:
    """A split of a dataset that was saved to disk or lies on the hub (there maybe in several configurations).

    Args:
        config: one configuration, or `*` for all of them, one after the other.
        holdout: share of the rows that the published split (seed 42) keeps from training; these are left out.
    """

    def __init__(self, path: str, split: str, config: str = "", holdout: float = 0.0):
        self.path = path
        try:
            self._dataset = _load(path, split, config)
        except BadInput:
            raise
        except Exception as error:  # the library raises what it likes for what is no dataset
            raise BadInput(f"cannot read the dataset {path or repr(path)} ({one_line(error)})") from None
        if holdout:
            self._dataset = self._dataset.train_test_split(test_size=holdout, seed=HOLDOUT_SEED)["train"]
        self.columns = self._dataset.column_names
        self._digest()

    def keep(self, columns: Sequence[str], condition: Callable[[Any], bool]) -> None:
        """Leaves the rows, as dictionaries of these columns, for which the condition holds."""
        self._dataset = self._dataset.select_columns(list(columns)).filter(condition)
        self._digest()

    def _digest(self) -> None:
        self.count = len(self._dataset)
        files = [file_sha256(Path(file["filename"])) for file in self._dataset.cache_files]
        self.sha256 = hashlib.sha256(" ".join(files).encode()).hexdigest()

    def row_label(self, row: int) -> str:
        return f"{self.path}: row {row}"

    def load(self, start: int, stop: int, columns: Sequence[str]) -> Iterable[Any]:
        return self._dataset.select_columns(list(columns)).select(range(start, stop))


def _load(path: str, split: str, config: str) -> Any:
    import datasets

    if Path(path).is_file():
        kind = "parquet" if path.endswith(".parquet") else "json"
        return datasets.load_dataset(kind, data_files=path, split="train")
    if Path(path, "dataset_dict.json").is_file() or Path(path, "state.json").is_file():
        saved = datasets.load_from_disk(path)
        if isinstance(saved, datasets.DatasetDict) and split not in saved:
            raise BadInput(f"{path} has no split {split!r}, but {', '.join(saved)}")
        return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
    if config != "*":
        return datasets.load_dataset(path, config or None, split=split)
    parts = [datasets.load_dataset(path, name, split=split) for name in datasets.get_dataset_config_names(path)]
    common = [column for column in parts[0].column_names if all(column in part.column_names for part in parts)]
    return datasets.concatenate_datasets([part.select_columns(common) for part in parts])
