"""Scores a run's checkpoints while it trains; training never waits, and a restart goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints, damaged_file, step_of
from pipeline.core.errors import StoppedEarly
from pipeline.core.files import read_json, write_json
from pipeline.core.log import log
from pipeline.core.run_directory import best_file, evaluation_folder
from pipeline.core.stage_status import status_file
from pipeline.evaluation.lm_eval_tasks import load_tasks
from pipeline.evaluation.results import Score
from pipeline.evaluation.runner import evaluate, require_tasks


@dataclass(frozen=True)
class Best:
    """evaluation/best.json."""

    step: int
    task: str
    metric: str
    value: float


def watch(recipe: Recipe, every: float) -> None:
    """Scores every checkpoint of the recipe's run on the recipe's tasks, looking for new ones every so many seconds."""
    require_tasks(recipe.evaluation)
    score_checkpoints(Path(recipe.run_dir), list(load_tasks(recipe.evaluation.tasks)), partial(evaluate, recipe), every)


def score_checkpoints(run_dir: Path, tasks: list[str], score: Callable[[str, str], None], every: float) -> None:
    """Calls `score(folder, step's name)` for every complete checkpoint that lacks a score, newest first, until the run
    is done and none is left.

    A checkpoint that is pruned meanwhile is skipped; any other failure is raised.
    """
    skipped: set[str] = set()
    while True:
        done = (read_json(status_file(run_dir, "distill")) or {}).get("state") == "done"
        waiting = [
            p for p in complete_checkpoints(run_dir) if p.name not in skipped and not scored(run_dir, p.name, tasks)
        ]
        if waiting:
            checkpoint = waiting[-1]
            if (reason := _try(checkpoint, score)) is not None:
                log.warning(f"{checkpoint.name}: {reason}: not scored")
                skipped.add(checkpoint.name)
            mark_best(run_dir, tasks[0])
        elif done:
            return
        else:
            time.sleep(every)


def _try(checkpoint: Path, score: Callable[[str, str], None]) -> str | None:
    """Why a checkpoint could not be scored; None when it was."""
    try:
        if damaged := damaged_file(checkpoint):
            return f"{damaged} is damaged" if checkpoint.is_dir() else "pruned"
        score(str(checkpoint / "export"), checkpoint.name)
    except StoppedEarly:
        raise
    except Exception:
        if (checkpoint / "COMPLETE").is_file():
            raise
        return "pruned while it was read"
    return None


def scored(run_dir: Path, step: str, tasks: list[str]) -> bool:
    """Whether every task has its result."""
    return all((evaluation_folder(run_dir, step) / f"{task}.json").is_file() for task in tasks)


def mark_best(run_dir: Path, task: str) -> Best | None:
    """Writes evaluation/best.json: the step with the best score on this task, the earliest of equals."""
    best: Best | None = None
    for path in sorted((run_dir / "evaluation").glob(f"step-*/{task}.json")):
        score = Score.from_json(read_json(path))
        sign = 1 if score.higher_is_better else -1
        if score.value is not None and (best is None or sign * score.value > sign * best.value):
            best = Best(step_of(path.parent), task, score.metric or "", score.value)
    if best:
        write_json(best_file(run_dir), asdict(best))
    return best
