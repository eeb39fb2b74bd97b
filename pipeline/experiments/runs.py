"""One run of a study: train, score, measure, and leave result.json. A run with a result of the same settings is done.

An interrupted run goes on from its newest checkpoint, as `distill` does.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from pipeline.alignment.manifest import load_manifest
from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import BadInput
from pipeline.core.files import json_sha256, read_json, read_json_lines, write_json
from pipeline.core.run_directory import read_metrics
from pipeline.distributed.signals import StopSignals
from pipeline.distributed.topology import start
from pipeline.evaluate import evaluate
from pipeline.experiments.grid import START, Study
from pipeline.models.loading import load_teacher
from pipeline.training.build import fixed_noise_rows, frozen_teacher
from pipeline.training.held_out import kl_terms, teacher_kl
from pipeline.training.preflight import prepare
from pipeline.training.run import distill
from pipeline.training.step import StudentWithLoss

TIMEOUT_MINUTES = 30.0


def is_done(study: Study, variant: str, seed: int) -> bool:
    """Whether a run has its result. Raises BadInput for one of other settings or data, which must not pass for this run's."""
    result = read_json(study.run_dir(variant, seed) / "result.json")
    if result and result.get("digest") != digest(study.run(variant, seed)):
        raise BadInput(
            f"{study.run_dir(variant, seed)} was made with other settings or data: delete it, or give the study another name"
        )
    return bool(result)


def digest(recipe: Recipe) -> str:
    """Of everything that a run is made from."""
    return json_sha256({"recipe": asdict(recipe), "data": load_manifest(recipe.data.aligned).key})


def run_one(study: Study, variant: str, seed: int, stop: StopSignals) -> None:
    """Does one run of the study. Raises StoppedEarly after a signal; what was saved by then is not done again."""
    began = time.perf_counter()
    initial = None
    if study.start is not None and variant != START:
        if not (study.start_dir(seed) / "result.json").is_file():
            raise BadInput(f"{study.start_dir(seed)} is not done: run the study that it belongs to first")
        initial = str(complete_checkpoints(study.start_dir(seed))[-1] / "export")
    recipe = study.run(variant, seed, initial)
    run_dir = Path(recipe.run_dir)
    distill(recipe, Path(study.engine), stop, TIMEOUT_MINUTES)
    stop.settle()
    place = complete_checkpoints(run_dir)[-1]
    evaluate(recipe, str(place / "export"), place.name)
    result = {
        "variant": variant,
        "seed": seed,
        "digest": digest(study.run(variant, seed)),
        **_scores(run_dir / "evaluation" / place.name),
        "kl": _distances(study, str(place / "export")),
        **_cost(run_dir),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "environment": read_json(run_dir / "environment.json"),
    }
    write_json(run_dir / "result.json", result)
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
    teachers = [frozen_teacher(plan, teacher, topology) for teacher in plan.recipe.teachers]
    student = load_teacher(folder, dtype=torch.float32, device=topology.device)
    module = StudentWithLoss(student, (), torch.ones_like).eval()
    terms = kl_terms(plan.recipe.teachers, plan.dataset.shared_vocab, teachers)
    rows = fixed_noise_rows(plan, "validation", student.config, [t.config for t in teachers], topology)
    kl = teacher_kl(module, list(zip(terms, teachers, strict=True)), rows)
    return {name: [round(value, 5) for value in by_t.values()] for name, by_t in kl.items()}
