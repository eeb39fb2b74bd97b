"""Scores a run's checkpoints while it trains; training never waits, and a restart goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.core.checkpoint_files import complete_checkpoints, damaged_file, step_of
from pipeline.core.errors import StoppedEarly
from pipeline.core.files import read_json, write_json
from pipeline.core.run_directory import best_file
from pipeline.evaluation.answer_cache import Record


def watch(run_dir: Path, tasks: list[str], evaluate: Callable[[str, str], None], every: float) -> None:
    """Calls `evaluate(folder, step's name)` for every complete checkpoint that lacks a score, newest first, until the run
    is done and none is left.

    A checkpoint that is pruned meanwhile is skipped; any other failure is raised.
    """
    console, skipped = Console(), set()
    while True:
        done = (read_json(run_dir / "status" / "distill.json") or {}).get("state") == "done"
        places = [
            p for p in complete_checkpoints(run_dir) if p.name not in skipped and not scored(run_dir, p.name, tasks)
        ]
        if places:
            place = places[-1]
            if (reason := _try(place, evaluate)) is not None:
                console.print(f"{place.name}: {reason}: not scored", markup=False)
                skipped.add(place.name)
            mark_best(run_dir, tasks[0])
        elif done:
            return
        else:
            time.sleep(every)


def _try(place: Path, evaluate: Callable[[str, str], None]) -> str | None:
    """Why a checkpoint could not be scored; None when it was."""
    try:
        if damaged := damaged_file(place):
            return f"{damaged} is damaged" if place.is_dir() else "pruned"
        evaluate(str(place / "export"), place.name)
    except StoppedEarly:
        raise
    except Exception:
        if (place / "COMPLETE").is_file():
            raise
        return "pruned while it was read"
    return None


def scored(run_dir: Path, step: str, tasks: list[str]) -> bool:
    """Whether every task has its result."""
    return all((run_dir / "evaluation" / step / f"{task}.json").is_file() for task in tasks)


def mark_best(run_dir: Path, task: str) -> Record | None:
    """Writes evaluation/best.json: the step with the best score on this task, the earliest of equals."""
    best = None
    for path in sorted((run_dir / "evaluation").glob(f"step-*/{task}.json")):
        score = read_json(path)
        sign = 1 if score.get("higher_is_better", True) else -1
        if score["value"] is not None and (best is None or sign * score["value"] > sign * best["value"]):
            step = step_of(path.parent)
            best = {"step": step, "task": task, "metric": score["metric"], "value": score["value"]}
    if best:
        write_json(best_file(run_dir), best)
    return best
