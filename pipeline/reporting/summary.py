"""summary.json: the run in numbers, for scripts."""

from __future__ import annotations

from typing import Any

from pipeline.reporting.run_record import Record, Run, by_label

FIELDS = ("task", "metric", "value", "n", "low", "high")


def scores(run: Run, baseline: Run | None, teacher_label: str) -> dict[str, dict[str, Record]]:
    """{task: {"teacher" | "undistilled" | "distilled": TASK.json}}, tasks in the recipe's order.

    A run's score is that of its newest evaluated step. A task or a model without a score has no entry.
    """
    found = {"teacher": run.evaluations.get(teacher_label, {})}
    found |= {label: r.evaluations.get(r.last_step, {}) for label, r in by_label(run, baseline).items()}
    tasks = run.recipe.get("evaluation", {}).get("tasks", [])
    others = sorted({task for results in found.values() for task in results} - set(tasks))
    by_task = {
        task: {model: results[task] for model, results in found.items() if task in results}
        for task in [*tasks, *others]
    }
    return {task: models for task, models in by_task.items() if models}


def summary(run: Run, baseline: Run | None, teacher_label: str) -> Record:
    """Scores of the first task and the facts of the run; only what is known has an entry."""
    first = next(iter(scores(run, baseline, teacher_label).values()), {})
    seconds = dict(run.seconds)
    if baseline:
        seconds |= {f"undistilled_{stage}": value for stage, value in baseline.seconds.items()}
    entries: dict[str, Any] = {
        "scores": {model: {f: result[f] for f in FIELDS if f in result} for model, result in first.items()},
        "world_size": run.environment.get("world_size"),
        "expert_parallel_size": _one_or_all(run.environment.get("expert_parallel_size") or {}),
        "zero_stage": run.environment.get("zero_stage"),
        "strategy": run.strategy or None,
        "seconds": seconds,
    }
    return {name: value for name, value in entries.items() if value is not None}


def interval(score: Record) -> str:
    """A score's 95% interval; empty where the metric has none."""
    return "" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"


def _one_or_all(sizes: dict[str, int]) -> int | dict[str, int] | None:
    """A single number where all teachers agree."""
    return next(iter(sizes.values())) if len(set(sizes.values())) == 1 else sizes or None
