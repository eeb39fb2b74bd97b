"""How a stage ended: status/STAGE.json in the run directory; and every start and end so far: status/history.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.errors import BAD_INPUT, DONE, STOPPED_EARLY, BadInput, StoppedEarly, of_user
from pipeline.core.files import read_json, write_json
from pipeline.core.log import log, rank


def status_file(run_dir: Path, stage: str) -> Path:
    """Where a stage says how it ended."""
    return run_dir / "status" / f"{stage}.json"


def write_status(run_dir: Path, stage: str, state: str, exit_code: int, **details: Any) -> None:
    """Says how a stage ended."""
    write_json(status_file(run_dir, stage), {"state": state, "exit_code": exit_code, **details})
    _remember(run_dir, stage, state, exit_code=exit_code, **details)


def history_file(run_dir: Path) -> Path:
    """A line for every start of a stage and for every end that could say so."""
    return run_dir / "status" / "history.jsonl"


def _remember(run_dir: Path, stage: str, event: str, **details: Any) -> None:
    line = {"stage": stage, "event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **details}
    history_file(run_dir).parent.mkdir(exist_ok=True)
    with history_file(run_dir).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of status/history.jsonl; one that a kill has cut is left out."""
    path, lines = history_file(run_dir), []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and {"stage", "event", "time"} <= line.keys()]


@contextmanager
def record_status(run_dir: Path, stage: str, keeps: Callable[[], bool] = lambda: True) -> Iterator[dict[str, Any]]:
    """Removes status/STAGE.json and writes it when the stage ends, however it ends; rank 0 only.

    Yields a dict whose entries (`step`, `message`, ...) become part of the file. A killed stage leaves no file. Bad input
    makes no new run directory. A stage that was done stays done when a later start of it is refused for bad input.

    keeps: whether what the stage had done before is still there, after bad input.
    """
    details: dict[str, Any] = {"step": None, "message": ""}
    started, path = time.monotonic(), status_file(run_dir, stage)
    before = _done_before(path) if rank() == 0 else None

    def write(state: str, code: int) -> None:
        if rank() == 0:
            try:
                write_status(run_dir, stage, state, code, **details, seconds=round(time.monotonic() - started, 2))
                if state == "failed" and code == BAD_INPUT and before and keeps():
                    write_json(path, before)
            except OSError as error:  # a full disk must not hide why the stage ended
                log.warning(f"cannot write {path} ({error.strerror})")

    if rank() == 0:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # no run directory yet, or a full disk
            _remember(run_dir, stage, "started")
    try:
        yield details
    except StoppedEarly as stop:
        details["message"] = str(stop)
        write("stopped", STOPPED_EARLY)
        raise
    except BaseException as error:
        details["message"] = f"{type(error).__name__}: {error}"
        if run_dir.exists() or not isinstance(error, BadInput):
            write("failed", BAD_INPUT if of_user(error) else 1)
        raise
    write("done", DONE)


def _done_before(path: Path) -> dict[str, Any] | None:
    """The status file of a stage that was done."""
    with suppress(BadInput, OSError):
        content = read_json(path)
        if isinstance(content, dict) and content.get("state") == "done":
            return content
    return None
