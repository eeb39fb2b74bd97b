"""The run directory: what one run leaves behind (see docs/run_directory.md for every file)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.errors import BadInput
from pipeline.core.log import log


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl in order, without those that a kill has cut or a disk has damaged; the latter are named."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            record["step"], record["kind"]  # what every line has
            records.append(record)
        except (ValueError, RecursionError, KeyError, TypeError):
            if number + 1 < len(lines):
                log.warning(f"{path}: line {number + 1} is damaged and left out")
    return records


def evaluation_folder(run_dir: Path, label: str) -> Path:
    """Where the scores of a step or label are. Raises BadInput for a label that is no plain name: it would lead elsewhere."""
    if not label.isprintable() or "/" in label or label in ("", ".", ".."):
        raise BadInput(f"{label!r} is no label: a label is one name below {run_dir / 'evaluation'}, without slashes")
    return run_dir / "evaluation" / label


def stop_file(run_dir: Path) -> Path:
    """Creating this file asks the distillation that runs there to save and end."""
    return run_dir / "stop"


def best_file(run_dir: Path) -> Path:
    """The step with the best score so far, as `evaluate --watch` found it."""
    return run_dir / "evaluation" / "best.json"
