"""One model, all tasks of a recipe: answers, scores and samples in a folder of the run's evaluation/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from lm_eval.api.task import ConfigurableTask

from pipeline.config.recipe import Evaluation, Recipe
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json, write_json_lines
from pipeline.core.log import log
from pipeline.core.run_directory import evaluation_folder
from pipeline.core.terminal import Console
from pipeline.core.version import code_version
from pipeline.decoding.canvas import GenerateConfig
from pipeline.evaluation.answer_cache import EVERYTHING, AnswerCache, Shard
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest
from pipeline.evaluation.lm_eval_model import BlockDiffusionLM, Unanswered
from pipeline.evaluation.lm_eval_tasks import load_tasks, run_task
from pipeline.evaluation.presets import decoding, preset_hash, shots
from pipeline.evaluation.results import SAMPLES, Provenance, Score
from pipeline.evaluation.scoring import update_card
from pipeline.evaluation.sweep import FOLDER as SWEEP_FOLDER
from pipeline.evaluation.sweep import read_sweep
from pipeline.evaluation.tables import print_samples, print_scores, print_sweep


def require_tasks(wanted: Evaluation) -> None:
    """Raises BadInput where there is nothing to run."""
    if not wanted.tasks:
        raise BadInput(
            "evaluation.tasks is empty: name tasks (gsm8k, humaneval, ...), or a YAML file of yours: docs/evaluation.md"
        )


def evaluate(recipe: Recipe, folder: str, label: str, shard: Shard = EVERYTHING, shown: int = 0) -> None:
    """Runs the recipe's tasks on the model in a folder; a task's files are written as soon as it is done.

    Answers that are there already are not asked for again. A shard writes answers alone, unless they are the last.
    """
    checkpoint, tasks = _prepare(recipe, folder, shard)
    into = evaluation_folder(Path(recipe.run_dir), label)
    configs = {name: decoding(recipe.evaluation, checkpoint, name) for name in tasks}
    if scores := _score(recipe, checkpoint, tasks, configs, label, into, shard, shown):
        update_card(into)
        hashes = ", ".join(dict.fromkeys(score.provenance.preset_hash for score in scores if score.provenance))
        print_scores(Console(), scores, f"preset {recipe.evaluation.preset} ({hashes})")
        log.info(f"written to {into}")


def evaluate_sweep(recipe: Recipe, folder: str, label: str, thresholds: Sequence[float], shard: Shard) -> None:
    """As `evaluate`, the tasks that generate text, once per threshold; scores go below LABEL/sweep.

    Raises BadInput where no task generates.
    """
    checkpoint, every = _prepare(recipe, folder, shard)
    tasks = {name: task for name, task in every.items() if task.OUTPUT_TYPE == "generate_until"}
    if not tasks:
        raise BadInput(f"--sweep: none of {', '.join(every)} generates text: name one in evaluation.tasks")
    into = evaluation_folder(Path(recipe.run_dir), label)
    for threshold in thresholds:
        configs = {name: replace(decoding(recipe.evaluation, checkpoint, name), threshold=threshold) for name in tasks}
        _score(recipe, checkpoint, tasks, configs, label, into / SWEEP_FOLDER / f"threshold-{threshold:g}", shard)
    for name in tasks:
        if points := read_sweep(into, name):
            print_sweep(Console(), points, f"{name}: {label}")
    log.info(f"written to {into / SWEEP_FOLDER}")


def _prepare(recipe: Recipe, folder: str, shard: Shard) -> tuple[CheckpointUnderTest, dict[str, ConfigurableTask]]:
    require_tasks(recipe.evaluation)
    checkpoint = CheckpointUnderTest.of(folder, recipe.evaluation.dtype, shard.index)
    decoding(recipe.evaluation, checkpoint)  # an unknown preset or model is told before anything is loaded
    return checkpoint, load_tasks(recipe.evaluation.tasks)


def _score(
    recipe: Recipe,
    checkpoint: CheckpointUnderTest,
    tasks: Mapping[str, ConfigurableTask],
    configs: Mapping[str, GenerateConfig],
    label: str,
    into: Path,
    shard: Shard,
    shown: int = 0,
) -> list[Score]:
    """Runs tasks, each under its settings; those that wait for other shards have no score."""
    wanted, scores = recipe.evaluation, []
    for name, task in tasks.items():
        with AnswerCache(into, name, shard) as cache:
            lm = BlockDiffusionLM(
                checkpoint,
                configs[name],
                batch_size=wanted.batch_size,
                likelihood_samples=wanted.likelihood_samples,
                cache=cache,
                chat=wanted.chat,
            )
            try:
                fewshot = shots(wanted.preset, name) if wanted.fewshot is None else wanted.fewshot
                score, samples = run_task(name, task, lm, limit=wanted.limit, fewshot=fewshot, chat=wanted.chat)
            except Unanswered as waiting:
                log.info(
                    f"{name}: shard {shard} is answered, {waiting.missing} answers of others are not there yet; the last "
                    "shard scores, or the same command without --shard"
                )
                continue
        score = replace(score, provenance=provenance(recipe, checkpoint, configs[name], label))
        write_json_lines(into / f"{name}{SAMPLES}", [sample.to_json() for sample in samples])
        write_json(into / f"{name}.json", score.to_json())
        scores.append(score)
        print_samples(Console(), samples[:shown])
    return scores


def provenance(recipe: Recipe, checkpoint: CheckpointUnderTest, config: GenerateConfig, label: str) -> Provenance:
    """What a score was made with."""
    wanted = asdict(recipe.evaluation)
    del wanted["tasks"], wanted["preset"]
    packages = ("torch", "transformers", "tokenizers", "lm_eval", "datasets")
    hardware = checkpoint.hardware()
    return Provenance(
        model=checkpoint.path,
        checksum=checkpoint.checksum,
        label=label,
        preset=recipe.evaluation.preset,
        preset_hash=preset_hash(config),
        settings={
            **wanted,
            **asdict(config),
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "device": hardware["device"],
        },
        hardware=hardware,
        versions={"pipeline": code_version(), **{name: version(name) for name in packages}},
    )
