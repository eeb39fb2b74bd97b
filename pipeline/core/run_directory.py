"""The run directory: what one run leaves behind (see docs/run_directory.md for every file).

Files are written to a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import BAD_INPUT, DONE, STOPPED_EARLY, BadInput, StoppedEarly
from pipeline.core.files import file_sha256, write_json
from pipeline.core.log import rank


def code_version() -> str | None:
    """Commit of this program, with `-dirty` where tracked files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or None


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl in order; a last line cut by a kill is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number + 1 < len(lines):
                raise BadInput(f"{path}: line {number + 1} is not JSON") from None
    return records


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint and evaluation."""
    return f"step-{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders that hold COMPLETE, oldest first."""
    return sorted(p.parent for p in (run_dir / "checkpoints").glob("step-*/COMPLETE"))


def step_of(place: Path) -> int:
    """The step of a checkpoint folder."""
    return int(place.name.removeprefix("step-"))


def saved_step(run_dir: Path) -> int:
    """Steps that the newest complete checkpoint holds, 0 without one."""
    return max(map(step_of, complete_checkpoints(run_dir)), default=0)


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a checkpoint's folder, COMPLETE and the model card (scores come later) apart."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("COMPLETE", "README.md")]
    names = sorted(str(p.relative_to(folder)) for p in files)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: file_sha256(folder / name), names)
        return {n: {"bytes": (folder / n).stat().st_size, "sha256": d} for n, d in zip(names, digests, strict=True)}


def damaged_file(place: Path) -> str | None:
    """The first file of a checkpoint that is missing or not as COMPLETE says; None for an intact checkpoint.

    Reads every byte, at the speed of the disk.
    """
    try:
        complete = json.loads((place / "COMPLETE").read_text(encoding="utf-8"))
        if step_name(complete["step"]) != place.name:
            return "COMPLETE"
        written = {str(name): (facts["bytes"], facts["sha256"]) for name, facts in complete["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "COMPLETE"
    for name, (size, _) in written.items():  # costs nothing, and finds most damage
        if not (place / name).is_file() or (place / name).stat().st_size != size:
            return name
    found = inventory(place)
    return next((name for name, (_, digest) in written.items() if found[name]["sha256"] != digest), None)


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
                print(f"{stage}: cannot write {status_file(run_dir, stage)} ({error.strerror})", file=sys.stderr)

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
            write("failed", BAD_INPUT if isinstance(error, BadInput) else 1)
        raise
    write("done", DONE)


def best_file(run_dir: Path) -> Path:
    """The step with the best score so far, as `evaluate --watch` found it."""
    return run_dir / "evaluation" / "best.json"


def status_file(run_dir: Path, stage: str) -> Path:
    """Where a stage says how it ended."""
    return run_dir / "status" / f"{stage}.json"


def write_status(run_dir: Path, stage: str, state: str, exit_code: int, **details: Any) -> None:
    """Says how a stage ended."""
    write_json(status_file(run_dir, stage), {"state": state, "exit_code": exit_code, **details})
