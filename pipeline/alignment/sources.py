"""The chat rows behind a source of the recipe: a table, the format of its rows, and how often each row is taken.

A row that is no conversation is an error that names it, or (`data.on_bad_row: drop`) counted; never left out in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.alignment.formats import FORMATS, BadRow, Message, RowFormat, detect, is_tokenized, read_row
from pipeline.alignment.row_tables import DatasetTable, JsonArray, JsonLines, ParquetTable, Table, Unreadable, open_json
from pipeline.config.recipe import OnBadRow, Source, Validation
from pipeline.core.errors import BadInput

FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".zst", ".parquet")


@dataclass(frozen=True)
class ChatRows:
    """The conversations of a table, whose rows have one of the FORMATS."""

    table: Table
    format: str

    def read(self, start: int, stop: int, *, on_bad_row: OnBadRow = "fail") -> list[list[Message] | BadRow]:
        """Rows start..stop; a bad one raises BadInput that names it (`fail`), or stands in its place (`drop`)."""
        shape = FORMATS[self.format]
        rows = self.table.load(start, stop, shape.used(self.table.columns))
        conversations = [_read(row, shape) for row in rows]
        for row, conversation in enumerate(conversations, start):
            if isinstance(conversation, BadRow) and on_bad_row == "fail":
                raise BadInput(conversation.of(self.table.row_label(row)))
        return conversations


def _read(row: Any, shape: RowFormat) -> list[Message] | BadRow:
    if isinstance(row, Unreadable):
        return BadRow("unreadable", str(row))
    try:
        return read_row(row, shape)
    except BadRow as error:
        return error


def open_source(source: Source | Validation) -> ChatRows:
    """The rows of a source. Raises BadInput if there is nothing to read, or nothing that is known to be a chat."""
    table = _open_table(source)
    if not table.count:
        raise BadInput(f"{source.path} is empty")
    rows = ChatRows(table, _format(source, table))
    if isinstance(source, Source) and source.contains and isinstance(table, DatasetTable):
        shape = FORMATS[rows.format]
        table.keep(shape.used(table.columns), partial(_answers_with, source.contains, rows.format))
        if not table.count:
            raise BadInput(f"{source.path}: no row whose last message contains {source.contains!r}")
    return rows


def _open_table(source: Source | Validation) -> Table:
    path, holdout = source.path, source.holdout if isinstance(source, Source) else 0.0
    selected = isinstance(source, Source) and (source.contains or source.holdout)
    if Path(path).is_file() and not selected:
        return ParquetTable(path) if path.endswith(".parquet") else open_json(path)
    if path.endswith(FILE_SUFFIXES) and not Path(path).exists():
        raise BadInput(f"no file {path}: give a JSONL or Parquet file, a saved dataset or a hub name")
    return DatasetTable(path, source.split, source.config, holdout)


def _format(source: Source | Validation, table: Table) -> str:
    """The format that the source names, or that its columns show."""
    columns = ", ".join(table.columns)
    if is_tokenized(table.columns):
        raise BadInput(
            f"{source.path} holds token ids ({columns}), not chats, as the data that the authors of TIDE release: they do "
            "not say which tokenizers and templates made them, and long answers are cut; name the datasets that they were "
            "made of, as recipe llada2_mini does"
        )
    name = detect(table.columns) if source.format == "auto" else source.format
    if isinstance(table, JsonLines | JsonArray):
        return name or "messages"  # rows may differ: each bad one says what it lacks
    if name is None:
        known = "; ".join(", ".join(shape.columns) for shape in FORMATS.values())
        raise BadInput(f"{source.path}: no column `messages`, but {columns} (known columns are {known})")
    missing = [column for column in FORMATS[name].columns if column not in table.columns]
    if missing:
        raise BadInput(f"{source.path}: no column `{missing[0]}`, which format {name} needs, but {columns}")
    return name


def _answers_with(text: str, name: str, row: Any) -> bool:
    """Whether the last message contains the text; bad rows stay, to be named later."""
    conversation = _read(row, FORMATS[name])
    return isinstance(conversation, BadRow) or text in conversation[-1]["content"]


def repeats(weight: float, start: int, stop: int) -> np.ndarray:
    """How often each of the rows start..stop is used, int64: 0.5 takes rows 0, 2, 4, ..., 2.0 takes each row twice."""
    share = Fraction(weight).limit_denominator(1_000_000)
    used = -(-np.arange(start, stop + 1) * share.numerator // share.denominator)  # ceil(row * weight)
    return np.diff(used)
