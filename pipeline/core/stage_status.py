"""How a stage ended: status/STAGE.json in the run directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import BAD_INPUT, DONE, STOPPED_EARLY, BadInput, StoppedEarly, of_user
from pipeline.core.files import write_json
from pipeline.core.log import log, rank


def status_file(run_dir: Path, stage: str) -> Path:
    """Where a stage says how it ended."""
    return run_dir / "status" / f"{stage}.json"


def write_status(run_dir: Path, stage: str, state: str, exit_code: int, **details: Any) -> None:
    """Says how a stage ended."""
    write_json(status_file(run_dir, stage), {"state": state, "exit_code": exit_code, **details})


@contextmanager
def record_status(run_dir: Path, stage: str) -> Iterator[dict[str, Any]]:
    """Removes status/STAGE.json and writes it when the stage ends, however it ends; rank 0 only.

    Yields a dict whose entries (`step`, `message`, ...) become part of the file. A killed stage leaves no file. Bad input
    makes no new run directory.
    """
    details: dict[str, Any] = {"step": None, "message": ""}
    started = time.time()

    def write(state: str, code: int) -> None:
        if rank() == 0:
            try:
                write_status(run_dir, stage, state, code, **details, seconds=round(time.time() - started, 2))
            except OSError as error:  # a full disk must not hide why the stage ended
                log.warning(f"cannot write {status_file(run_dir, stage)} ({error.strerror})")

    if rank() == 0:
        status_file(run_dir, stage).unlink(missing_ok=True)
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
