"""Answers of a model, kept one by one as they come: what a killed evaluation goes on from, and what shards are merged by.

FOLDER/TASK.answers.jsonl (TASK.answers-2-of-8.jsonl for a shard) has a line per answer, with the hash of its request and of
everything that the answer depends on. Opening a cache reads all of a task's files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import BadInput
from pipeline.core.files import json_sha256, lock

Json = dict[str, Any]
"""A JSON object."""

MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class Shard:
    """Every `of`-th request from `index` on. Raises BadInput for an index outside 0..of-1."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise BadInput(f"shard {self.index}/{self.of}: the first number counts from 0 and stays below the second")
        if self.of > MOST_SHARDS:
            raise BadInput(f"a shard of more than {MOST_SHARDS:,}: there are fewer problems than that")

    @classmethod
    def parse(cls, text: str, environment: dict[str, str]) -> Shard:
        """`2/8`; without a text, the index of a Slurm array's task, or everything."""
        if text:
            if not (match := re.fullmatch(r"(\d+)/(\d+)", text)):
                raise BadInput(f"--shard {text}: write it as 2/8, counting from 0")
            return cls(int(match[1]), int(match[2]))
        if not {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"} <= environment.keys():
            return cls()
        task, first, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1))
        )
        return cls((task - first) // step, int(environment["SLURM_ARRAY_TASK_COUNT"]))

    @property
    def suffix(self) -> str:
        """What tells a shard's files from those of others."""
        return "" if self.of == 1 else f"-{self.index}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


EVERYTHING = Shard()


def request_key(*parts: Any) -> str:
    """24 hex digits of a request and all that its answer depends on (JSON values)."""
    return json_sha256(parts)[:24]


class AnswerCache:
    """A task's answers in a folder; without a folder, in memory. Close it (or use `with`) to let others write.

    `kind` names the files, and what is kept so. Raises BadInput when another process writes the same shard.
    """

    def __init__(
        self, folder: Path | None = None, task: str = "", shard: Shard = EVERYTHING, kind: str = "answers"
    ) -> None:
        self.shard = shard
        self._known: dict[str, Json] = {}
        self._file: IO[bytes] | None = None
        self._folder: Path | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{task}.{kind}{self.shard.suffix}.jsonl"
        self._file = path.open("ab+")
        try:
            lock(self._file)
        except BlockingIOError:
            self._file.close()
            raise BadInput(
                f"{path} is being written by another process: wait for it, or give it another --shard"
            ) from None
        _drop_torn_line(self._file)
        self._folder, self._names = folder, f"{task}.{kind}*.jsonl"
        self.refresh()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file:
            self._file.close()

    def refresh(self) -> None:
        """Reads what all shards have written by now."""
        for path in sorted(self._folder.glob(self._names)) if self._folder else []:
            self._known |= {record.pop("key"): record for record in _read(path)}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Json:
        return self._known[key]

    def add(self, key: str, record: Json) -> None:
        """Keeps an answer; it is on its way to the disk when this returns."""
        self._known[key] = record
        if self._file:
            self._file.write(json.dumps({"key": key, **record}, ensure_ascii=False).encode() + b"\n")
            self._file.flush()


def _drop_torn_line(file: IO[bytes]) -> None:
    """Cuts off what a killed writer left after the last newline."""
    file.seek(0)
    text = file.read()
    file.truncate(text.rfind(b"\n") + 1)


def _read(path: Path) -> Iterator[Json]:
    """The whole lines of a file that another process may be writing."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            raise BadInput(f"{path}: a line is not JSON; delete the file and evaluate again") from None
