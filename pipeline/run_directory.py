"""The run directory: what one run leaves behind (see docs/run_directory.md for every file).

Files are written to a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.recipe import BadInput

DONE, BAD_INPUT, STOPPED_EARLY = 0, 2, 75


class StoppedEarly(Exception):
    """The stage was asked to stop, saved a checkpoint at `step` and can go on later; exit code 75."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def rank() -> int:
    """Rank of this process as its launcher says, 0 without one."""
    return int(os.environ.get("RANK", 0))


def write_text(path: Path, text: str) -> None:
    """Write and rename; parents are made. Readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's JSON; None where there is no file. Raises BadInput for a file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: not JSON ({error}); delete it and run its stage again") from None


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl in order; a last line cut by a kill is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(lines):
                raise BadInput(f"{path}: line {number + 1} is not JSON") from None
    return records


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint and evaluation."""
    return f"step-{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders that hold COMPLETE, oldest first."""
    return sorted(p.parent for p in (run_dir / "checkpoints").glob("step-*/COMPLETE"))


@contextmanager
def record_status(run_dir: Path, stage: str) -> Iterator[dict[str, Any]]:
    """Writes status/STAGE.json when the stage ends, however it ends; rank 0 only. Bad input makes no new run directory.

    Yields a dict whose entries (`step`, `message`, ...) become part of the file.
    """
    details: dict[str, Any] = {"step": None, "message": ""}
    started = time.time()

    def write(state: str, exit_code: int) -> None:
        if rank() == 0:
            ended = {"state": state, "exit_code": exit_code, **details, "seconds": round(time.time() - started, 2)}
            write_json(run_dir / "status" / f"{stage}.json", ended)

    try:
        yield details
    except StoppedEarly as stop:
        details |= {"message": str(stop), "step": stop.step}
        write("stopped", STOPPED_EARLY)
        raise
    except BaseException as error:
        details["message"] = f"{type(error).__name__}: {error}"
        if run_dir.exists() or not isinstance(error, BadInput):
            write("failed", BAD_INPUT if isinstance(error, BadInput) else 1)
        raise
    write("done", DONE)


def exit_code(stage: str, main: Callable[[], None]) -> int:
    """Runs a stage and turns its outcome into the exit code: 0, 2 (bad input, one line) or 75 (stopped early)."""
    try:
        main()
    except BadInput as error:
        if rank() == 0:
            print(f"{stage}: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    except StoppedEarly as stop:
        if rank() == 0:
            print(f"{stage}: {stop}", flush=True)
        return STOPPED_EARLY
    return DONE
