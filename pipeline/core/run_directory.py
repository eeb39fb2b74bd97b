"""The run directory: what one run leaves behind (see docs/run_directory.md for every file)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.errors import BadInput


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl in order; a last line cut by a kill is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            if number + 1 < len(lines):
                raise BadInput(f"{path}: line {number + 1} is not JSON") from None
    return records


def evaluation_folder(run_dir: Path, label: str) -> Path:
    """Where the scores of a step or label are. Raises BadInput for a label that is no plain name: it would lead elsewhere."""
    if not label.isprintable() or "/" in label or label in ("", ".", ".."):
        raise BadInput(f"{label!r} is no label: a label is one name below {run_dir / 'evaluation'}, without slashes")
    return run_dir / "evaluation" / label


def best_file(run_dir: Path) -> Path:
    """The step with the best score so far, as `evaluate --watch` found it."""
    return run_dir / "evaluation" / "best.json"
