"""Who owns a run directory: one process at a time, and one recipe for good."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import yaml

from pipeline.alignment.manifest import load_manifest
from pipeline.config.recipe import Recipe, dump, without_idle_teachers
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import BadInput
from pipeline.core.files import differences, lock, read_json
from pipeline.core.log import rank
from pipeline.core.run_directory import stop_file
from pipeline.core.stage_status import status_file


def finished(recipe: Recipe) -> bool:
    """Whether this very run is done already."""
    status = read_json(status_file(Path(recipe.run_dir), "distill")) or {}
    return status.get("state") == "done" and bool(complete_checkpoints(Path(recipe.run_dir)))


def run_lock(recipe: Recipe) -> TextIO | None:
    """Takes the run directory for this process, until the returned file is closed (rank 0 alone holds the lock).

    Data and dataset may have moved since its last start: it is the dataset's key that must be the same. Raises BadInput
    when another process holds it, or when it belongs to a recipe that would train otherwise.
    """
    run_dir = Path(recipe.run_dir)
    recipe_file = run_dir / "recipe.yaml"
    if recipe_file.is_file():
        try:
            stored = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            raise BadInput(f"{recipe_file} is damaged: put a copy back, or choose another --run_dir") from None
        wanted = yaml.safe_load(dump(without_idle_teachers(recipe)))
        differing = [name for name, *_ in differences(stored, wanted) if name.partition(".")[0] not in _FREE]
        if not all(map(_PATHS.fullmatch, differing)):
            raise BadInput(
                f"{run_dir} belongs to another recipe (it differs in {', '.join(differing)}): "
                "choose another --run_dir or delete it"
            )
        if differing and not _was_trained_on(recipe.data.aligned, run_dir):
            raise BadInput(
                f"{run_dir} was trained on another dataset than {recipe.data.aligned} ({', '.join(differing)} changed): "
                "name the former, or choose another --run_dir"
            )
    if rank() != 0:
        return None
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = (run_dir / ".lock").open("w")
        _lock(handle)
    except BlockingIOError:
        raise BadInput(f"{run_dir} is in use by another process: wait for it or choose another --run_dir") from None
    except OSError as error:
        raise BadInput(f"cannot write to {run_dir} ({error.strerror}): choose another --run_dir") from None
    return handle


def _lock(handle: TextIO) -> None:
    try:
        lock(handle)
    except BlockingIOError:
        time.sleep(0.5)  # the status command holds it for a moment, to see whether anybody does
        lock(handle)


@contextmanager
def stop_requests(run_dir: Path) -> Iterator[Callable[[], bool]]:
    """Yields whether somebody has asked this start of the run to stop, by `stop_file`. Rank 0 alone looks."""
    if rank() != 0:
        yield lambda: False
        return
    file = stop_file(run_dir)
    file.unlink(missing_ok=True)  # one that came too late for the start before
    try:
        yield file.exists
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


# sections that do not change what is trained
_FREE = ("checkpoint", "evaluation", "logging", "run_dir")
_PATHS = re.compile(r"data\.(aligned|sources\.\d+\.path|validation\.path)")


def _was_trained_on(folder: str, run_dir: Path) -> bool:
    """Whether it is this aligned dataset that the run's newest checkpoint, if there is one, was trained on."""
    if not (checkpoints := complete_checkpoints(run_dir)):
        return True
    config = read_json(checkpoints[-1] / "export" / "config.json") or {}
    return bool(config.get("provenance", {}).get("manifest_key") == load_manifest(folder).key)
