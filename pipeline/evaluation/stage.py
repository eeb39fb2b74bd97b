"""The stage `evaluate`: which model is scored, for which part of the problems, and how the stage ends."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints, damaged_file, step_name, step_of
from pipeline.core.errors import BadInput
from pipeline.core.run_directory import evaluation_folder
from pipeline.core.stage_status import record_status
from pipeline.distributed.signals import stop_early_on
from pipeline.evaluation.answer_cache import Shard
from pipeline.evaluation.sweep import parse_thresholds


@dataclass(frozen=True)
class Request:
    """What is asked beside the recipe."""

    step: str = "latest"
    """checkpoint of the run: `latest` or a step number"""
    model: str = ""
    """score this instead: a model's folder or hub name, another run (its newest checkpoint), or a checkpoint"""
    label: str = ""
    """name of the scores (default: the step's, or the folder's name)"""
    shard: str = ""
    """answer this part of the problems: 2/8, counting from 0"""
    show: int = 0
    """print this many samples of each task, coloured by filling order"""
    sweep: str = ""
    """score tasks that generate under each of these: threshold=0.7,0.8,0.9,0.95; tokens per forward against score"""
    every: float = 30.0
    """seconds between looks of --watch"""


def run(recipe: Recipe, request: Request, watched: bool = False) -> None:
    """Scores every checkpoint of a watched run, or one model, and leaves a status file.

    Raises BadInput for what is not there, StoppedEarly after SIGTERM.
    """
    shard = Shard.parse(request.shard, dict(os.environ))
    thresholds = parse_thresholds(request.sweep) if request.sweep else []
    stage = "watch" if watched else f"evaluate{shard.suffix}"
    with record_status(Path(recipe.run_dir), stage) as status:
        message = "stopped by SIGTERM; answers so far are kept, the same command goes on"
        stop_early_on(signal.SIGTERM, message=message)
        if watched:
            from pipeline.evaluation.watch import watch

            return watch(recipe, request.every)
        if request.model:
            folder, label = model_folder(request.model), request.label or Path(request.model).resolve().name
        else:
            export = export_of(Path(recipe.run_dir), request.step)
            folder, label = str(export), request.label or export.parent.name
            status["step"] = step_of(export.parent)
            if damaged := damaged_file(export.parent, below="export/"):
                raise BadInput(
                    f"{export.parent} is damaged: {damaged} is not as it was saved; evaluate another --step, or train on from "
                    "the checkpoint before it"
                )
        evaluation_folder(Path(recipe.run_dir), label)  # a bad label is told before anything is loaded
        status["message"] = label
        from pipeline.evaluation import runner  # imports torch: what is not there is told before that

        if thresholds:
            return runner.evaluate_sweep(recipe, folder, label, thresholds, shard)
        runner.evaluate(recipe, folder, label, shard, request.show)


def export_of(run_dir: Path, step: str) -> Path:
    """The exported model of a step. Raises BadInput where there is no complete checkpoint."""
    exports = {checkpoint.name: checkpoint / "export" for checkpoint in complete_checkpoints(run_dir)}
    if not exports:
        raise BadInput(
            f"no complete checkpoint in {run_dir}/checkpoints: run `deepspeed pipeline/distill.py` with the same recipe "
            "first"
        )
    name = max(exports) if step == "latest" else step_name(int(step)) if re.fullmatch("[0-9]{1,8}", step) else step
    if name not in exports:
        raise BadInput(f"no complete checkpoint {name} in {run_dir}/checkpoints: there are {', '.join(exports)}")
    return exports[name]


def model_folder(path: str) -> str:
    """The model of a run directory's newest checkpoint, of a checkpoint, or the folder (or hub name) itself."""
    if Path(path, "checkpoints").is_dir():
        return str(export_of(Path(path), "latest"))
    return str(Path(path, "export")) if Path(path, "export").is_dir() else path
