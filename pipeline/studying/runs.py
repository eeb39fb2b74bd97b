"""One run of a study: train, score, measure, and leave result.json. A run with a result is done.

An interrupted run goes on from its newest checkpoint, as `distill` does.
"""

from __future__ import annotations

import shutil
import time
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.distill import distill
from pipeline.evaluate import evaluate
from pipeline.models import load_teacher
from pipeline.recipe import BadInput
from pipeline.run_directory import complete_checkpoints, read_json, read_json_lines, read_metrics, write_json
from pipeline.studying.grid import START, Study
from pipeline.training.distance import distance_terms, teacher_student_kl
from pipeline.training.plan import prepare
from pipeline.training.run import aligned_rows, batch_builder
from pipeline.training.signals import StopSignals
from pipeline.training.step import StudentWithLoss
from pipeline.training.topology import start

TIMEOUT_MINUTES = 30.0


def result_path(study: Study, variant: str, seed: int) -> Path:
    """Where a run's result is, once it is done."""
    return study.run_dir(variant, seed) / "result.json"


def run_one(study: Study, variant: str, seed: int, stop: StopSignals) -> None:
    """Does one run of the study. Raises StoppedEarly after a signal; what was saved by then is not done again."""
    began = time.perf_counter()
    initial = None
    if study.start is not None and variant != START:
        initial = str(_newest(study.start_dir(seed)) / "export")
    recipe = study.run(variant, seed, initial)
    run_dir = Path(recipe.run_dir)
    distill(recipe, study.engine, stop, TIMEOUT_MINUTES)
    stop.settle()
    place = _newest(run_dir)
    evaluate(recipe, str(place / "export"), place.name)
    result = {
        "variant": variant,
        "seed": seed,
        **_scores(run_dir / "evaluation" / place.name),
        "kl": _distances(study, str(place / "export")),
        **_cost(run_dir),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "environment": read_json(run_dir / "environment.json"),
    }
    write_json(result_path(study, variant, seed), result)
    if variant != START:  # a study's disk is its runs times this
        shutil.rmtree(run_dir / "checkpoints")


def score_teachers(study: Study) -> None:
    """Scores every teacher of the base recipe on its tasks: STUDY/teachers.json."""
    path, recipe = study.folder / "teachers.json", study.base()
    if path.is_file() or not recipe.teachers:
        return
    scores = {}
    for teacher in recipe.teachers:
        evaluate(recipe, teacher.path, teacher.name)
        scores[teacher.name] = _scores(Path(recipe.run_dir) / "evaluation" / teacher.name)
    write_json(path, scores)


def _newest(run_dir: Path) -> Path:
    if found := complete_checkpoints(run_dir):
        return found[-1]
    raise BadInput(f"no complete checkpoint in {run_dir}: if it is another study's start, run that study first")


def _scores(folder: Path) -> dict[str, Any]:
    """Each task's value, n, interval and right problems; `score` is the mean of the values."""
    kept = ("metric", "value", "n", "low", "high")
    scores = [read_json(path) for path in sorted(folder.glob("*.json"))]
    tasks = {s["task"]: {k: s[k] for k in kept} | {"correct": _correct(folder, s["task"])} for s in scores}
    return {"score": sum(task["value"] for task in tasks.values()) / len(tasks), "tasks": tasks}


def _correct(folder: Path, task: str) -> str:
    """A character a problem, in the task's order: 1 right, 0 wrong, - for scores that are neither."""
    rows = read_json_lines(folder / f"{task}.samples.jsonl")
    return "".join(
        {True: "1", False: "0", None: "-"}[row["correct"]] for row in sorted(rows, key=lambda row: row["id"])
    )


def _cost(run_dir: Path) -> dict[str, Any]:
    """Steps, tokens and seconds of training, and the last line's loss."""
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    return {
        "steps": lines[-1]["step"],
        "tokens": sum(line["tokens"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "loss": lines[-1]["loss"],
    }


def _distances(study: Study, folder: str) -> dict[str, list[float]]:
    base = study.base()
    if not base.teachers or not base.data.validation:
        return {}
    plan, topology = prepare(base, Path(study.engine)), start(timedelta(minutes=TIMEOUT_MINUTES))
    teachers = [_teacher(t.path, t.dtype, topology.device) for t in base.teachers]
    student = load_teacher(folder, dtype=torch.float32, device=topology.device)
    terms = distance_terms(base.teachers, plan.shared_vocab, teachers)
    kl = teacher_student_kl(
        StudentWithLoss(student, terms, torch.ones_like).eval(),
        list(zip(terms, teachers, strict=True)),
        aligned_rows(plan, "validation", base.teachers),
        batch_builder(plan, student.config, [model.config for model in teachers], None),
        topology,
        base.optim.micro_tokens,
    )
    return {name: [round(value, 5) for value in by_t.values()] for name, by_t in kl.items()}


@lru_cache
def _teacher(path: str, dtype: str, device: torch.device) -> nn.Module:
    return load_teacher(path, dtype=getattr(torch, dtype), device=device)
