"""Checkpoints on disk: their names, which are complete, and whether every file is as it was written."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.core.checksums import FileEntry, damaged_files
from pipeline.core.files import file_sha256


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint and evaluation."""
    return f"step-{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders that hold COMPLETE, oldest first."""
    return sorted(p.parent for p in (run_dir / "checkpoints").glob("step-*/COMPLETE"))


def step_of(path: Path) -> int:
    """The step of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))


def saved_step(run_dir: Path) -> int:
    """Steps that the newest complete checkpoint holds, 0 without one."""
    return max(map(step_of, complete_checkpoints(run_dir)), default=0)


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a checkpoint's folder, COMPLETE and the model card (scores come later) apart."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("COMPLETE", "README.md"))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(file_sha256, files)
        return {
            str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": digest}
            for file, digest in zip(files, digests, strict=True)
        }


def damaged_file(path: Path, below: str = "") -> str | None:
    """The first file of a checkpoint that is missing or not as COMPLETE says; None for an intact checkpoint.

    Reads every byte of the files whose names begin with `below`, at the speed of the disk.
    """
    try:
        complete = json.loads((path / "COMPLETE").read_text(encoding="utf-8"))
        if step_name(complete["step"]) != path.name:
            return "COMPLETE"
        written = {name: entry for name, entry in complete["files"].items() if name.startswith(below)}
        sizes = {name: entry["bytes"] for name, entry in written.items()}
        entries = [FileEntry(name, entry["sha256"]) for name, entry in written.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "COMPLETE"
    for name, size in sizes.items():  # costs nothing, and finds most damage
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            return name
    return next(iter(damaged_files(path, entries)), None)
