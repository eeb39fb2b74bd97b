"""One run of a study: train, score, measure, and leave result.json. A run with a result of the same settings is done.

An interrupted run goes on from its newest checkpoint, as `distill` does.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.alignment.manifest import load_manifest
from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import BadInput
from pipeline.core.files import json_sha256, read_json, write_json
from pipeline.core.run_directory import read_metrics
from pipeline.distributed.signals import StopSignals
from pipeline.distributed.topology import Topology, start
from pipeline.evaluation.results import read_samples, read_scores
from pipeline.evaluation.runner import evaluate
from pipeline.experiments.grid import START, Study
from pipeline.experiments.results import RunResult, Scores, TaskResult
from pipeline.models.loading import load_teacher
from pipeline.training.build import fixed_noise_rows, frozen_teacher
from pipeline.training.held_out import cloze_accuracy, kl_terms, teacher_kl
from pipeline.training.preflight import prepare
from pipeline.training.run import distill
from pipeline.training.step import StudentWithLoss

TIMEOUT_MINUTES = 30.0
MOST_ROUNDS = 5
"""Of a start's training."""


def is_done(study: Study, variant: str, seed: int) -> bool:
    """Whether a run has its result. Raises BadInput for one of other settings or data, which must not pass for this run's."""
    result = read_json(study.run_dir(variant, seed) / "result.json")
    if result and result.get("digest") != digest(study.run(variant, seed)):
        raise BadInput(
            f"{study.run_dir(variant, seed)} was made with other settings or data: delete it, or give the study another name"
        )
    return bool(result)


def digest(recipe: Recipe) -> str:
    """Of everything that a run is made from. A field that a later version adds changes no digest while it is left alone."""
    return json_sha256({"recipe": _chosen(recipe), "data": load_manifest(recipe.data.aligned).key})


def _chosen(value: Any) -> Any:
    """A recipe's fields that are not at their defaults, and below them the same."""
    if isinstance(value, list):
        return [_chosen(item) for item in value]
    if not is_dataclass(value):
        return value
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(value)}
    return {n: _chosen(set_to) for n, default in defaults.items() if (set_to := getattr(value, n)) != default}


def run_one(study: Study, variant: str, seed: int, stop: StopSignals) -> None:
    """Does one run of the study. Raises StoppedEarly after a signal; what was saved by then is not done again."""
    run_dir = study.run_dir(variant, seed)
    if variant == START:
        write_json(run_dir / "result.json", asdict(_sound_start(study, seed, stop)))
        return
    start_dir = study.start_dir(seed)
    if study.start is not None and not (start_dir / "result.json").is_file():
        raise BadInput(f"{start_dir} is not done: run the study that it belongs to first")
    initial = None if study.start is None else _trained(start_dir)
    write_json(run_dir / "result.json", asdict(_train_and_score(study, variant, seed, initial, stop)))
    shutil.rmtree(run_dir / "checkpoints")  # a study's disk is its runs times this


def _sound_start(study: Study, seed: int, stop: StopSignals) -> RunResult:
    """A seed's start, in as many rounds as it takes to reach `start_bar`; those before the last are left in start-ROUND.

    Raises BadInput where MOST_ROUNDS do not.
    """
    run_dir, initial = study.run_dir(START, seed), None
    for n in range(1, MOST_ROUNDS + 1):
        weak = study.run_dir(f"{START}-{n}", seed)
        if not weak.is_dir():
            result = _train_and_score(study, START, seed, initial, stop)
            if result.score >= study.start_bar:
                return replace(result, rounds=n)
            weak.parent.mkdir(exist_ok=True)
            run_dir.rename(weak)
        initial = _trained(weak)
    raise BadInput(f"{run_dir}: still below start_bar {study.start_bar} after {MOST_ROUNDS} rounds")


def _trained(run_dir: Path) -> str:
    return str(complete_checkpoints(run_dir)[-1] / "export")


def _train_and_score(study: Study, variant: str, seed: int, initial: str | None, stop: StopSignals) -> RunResult:
    """One run, from the recipe's student or the weights in the folder `initial`, to its result."""
    began = time.perf_counter()
    recipe = study.run(variant, seed, initial)
    run_dir = Path(recipe.run_dir)
    distill(recipe, Path(study.engine), stop, TIMEOUT_MINUTES)
    stop.settle()
    checkpoint = complete_checkpoints(run_dir)[-1]
    evaluate(recipe, str(checkpoint / "export"), checkpoint.name)
    scores = _scores(run_dir / "evaluation" / checkpoint.name)
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    topology = start(timedelta(minutes=TIMEOUT_MINUTES))
    student = load_teacher(str(checkpoint / "export"), dtype=torch.float32, device=topology.device)
    return RunResult(
        variant=variant,
        seed=seed,
        digest=digest(study.run(variant, seed)),
        score=scores.score,
        tasks=scores.tasks,
        kl=_teacher_kl(study, student, topology),
        accuracy=_accuracy(recipe, study.engine, student, topology),
        steps=lines[-1]["step"],
        tokens=sum(line["tokens"] for line in lines),
        seconds=round(sum(line["seconds"] for line in lines), 1),
        loss=lines[-1]["loss"],
        wall_seconds=round(time.perf_counter() - began, 1),
        environment=read_json(run_dir / "environment.json"),
    )


def score_teachers(study: Study) -> None:
    """Scores every teacher of the base recipe on its tasks: STUDY/teachers.json."""
    path, recipe = study.folder / "teachers.json", study.base
    if path.is_file() or not recipe.teachers:
        return
    scores: dict[str, Scores] = {}
    for teacher in recipe.teachers:
        evaluate(recipe, teacher.path, teacher.name)
        scores[teacher.name] = _scores(Path(recipe.run_dir) / "evaluation" / teacher.name)
    write_json(path, {name: asdict(of_teacher) for name, of_teacher in scores.items()})


def _scores(folder: Path) -> Scores:
    """Of one model's results."""
    tasks = {}
    for score in read_scores(folder).values():
        if score.value is None:
            raise BadInput(f"{folder}: {score.task} runs programs, which a study does not do")
        samples = sorted(read_samples(folder, score), key=lambda sample: sample.id or 0)
        correct = "".join({True: "1", False: "0", None: "-"}[sample.correct] for sample in samples)
        tasks[score.task] = TaskResult(score.metric, score.value, score.n, score.low, score.high, correct)
    return Scores(sum(task.value for task in tasks.values()) / len(tasks), tasks)


def _accuracy(recipe: Recipe, engine: str, student: PreTrainedModel, topology: Topology) -> list[float]:
    if not recipe.data.validation:
        return []
    rows = fixed_noise_rows(prepare(replace(recipe, teachers=[]), Path(engine)), "validation", topology)
    return [round(share, 5) for share in cloze_accuracy(student, rows).values()]


def _teacher_kl(study: Study, student: PreTrainedModel, topology: Topology) -> dict[str, list[float]]:
    base = study.base
    if not base.teachers or not base.data.validation:
        return {}
    plan = prepare(base, Path(study.engine))
    teachers = [frozen_teacher(plan, teacher, topology) for teacher in plan.recipe.teachers]
    module = StudentWithLoss(student, (), torch.ones_like).eval()
    terms = kl_terms(plan.recipe.teachers, plan.dataset.shared_vocab, teachers)
    rows = fixed_noise_rows(plan, "validation", topology)
    kl = teacher_kl(module, list(zip(terms, teachers, strict=True)), rows)
    return {name: [round(value, 5) for value in by_t.values()] for name, by_t in kl.items()}
