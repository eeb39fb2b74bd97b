"""Loads lm-evaluation-harness tasks and runs them: one score, one set of samples a task."""

from __future__ import annotations

import logging
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from pipeline.evaluation.harness import NO_LIKELIHOOD, BlockDiffusionLM, Generation
from pipeline.evaluation.statistics import interval
from pipeline.recipe import BadInput

TASKS = Path(__file__).parent / "tasks"
MANY_TRUNCATED = 0.2


def load_tasks(names: list[str]) -> dict[str, ConfigurableTask]:
    """The tasks by name: of this project, of the harness (a group is its tasks), or of a YAML file of the user.

    Raises BadInput for a name that nobody knows, for data that cannot be read, and for tasks that need log-likelihoods
    or run generated code.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about other people's task files
    manager = TaskManager(include_path=TASKS, include_defaults=False)
    ours = manager.all_tasks
    if _unknown(names, manager):
        manager = TaskManager(include_path=TASKS)  # seconds, for thousands of files
    if unknown := _unknown(names, manager):
        raise BadInput(
            f"evaluation.tasks: unknown {', '.join(unknown)}; here are {', '.join(ours)}, and `lm-eval ls tasks` lists "
            "the harness's own"
        )
    try:
        tasks = manager.load(names)["tasks"]
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"data of {', '.join(names)}: {reason}; without a network, fetch it beforehand") from None
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise BadInput(f"task {name}: {NO_LIKELIHOOD}")
        if getattr(task, "UNSAFE_CODE", False):
            raise BadInput(f"task {name} runs generated code, which evaluate does not do")
    return tasks


def _unknown(names: list[str], manager: TaskManager) -> list[str]:
    return [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]


def run_task(
    name: str, task: ConfigurableTask, model: BlockDiffusionLM, limit: int | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score and samples of a task. The score's headline is the task's first metric (and first filter).

    `model` must not have run another task: its generations are taken to be this one's.
    """
    task.set_fewshot_seed(seed=0)
    results = evaluate(
        model,
        {"tasks": {name: task}},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    samples = results["samples"][name]
    metrics = _metrics(results["results"][name], samples)
    headline, filtered_by = next(iter(metrics)).split(",")
    generations = {generation.doc_id: generation for generation in model.generations}
    rows = [_sample(s, headline, generations[s["doc_id"]]) for s in samples if s["filter"] == filtered_by]
    score = {
        "task": name,
        "metric": headline,
        **metrics[f"{headline},{filtered_by}"],
        "metrics": metrics,
        **_generation_facts(model),
    }
    score["alarms"] = _alarms(score)
    if score["alarms"]:
        score["raw_outputs"] = [{"prompt": row["prompt"], "response": row["response"]} for row in rows[:5]]
    return score, rows


def _metrics(results: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{"METRIC,FILTER": value, n and 95% interval}; no interval where the value is no mean over problems."""
    scores: dict[str, list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            scores.setdefault(f"{metric},{sample['filter']}", []).append(sample[metric])
    table = {}
    for key, values in scores.items():
        value = results[key]
        is_mean = all(isinstance(v, Real) for v in values) and abs(fmean(values) - value) < 1e-9
        low, high = interval([float(v) for v in values]) if is_mean else (None, None)
        table[key] = {"value": float(value), "n": len(values), "low": low, "high": high}
    return table


def _sample(sample: dict[str, Any], metric: str, generation: Generation) -> dict[str, Any]:
    score = sample[metric]
    return {
        "id": sample["doc_id"],
        "prompt": generation.prompt,
        "response": generation.response,
        "answer": sample["filtered_resps"][0],
        "target": sample["target"],
        metric: score,
        "correct": bool(score) if score in (0, 1) else None,
        "tokens": generation.tokens,
        "ended": generation.ended,
    }


def _generation_facts(model: BlockDiffusionLM) -> dict[str, Any]:
    """Length, speed and cost; prompt tokens, end tokens and what follows them never count."""
    generations = model.generations
    tokens = sum(g.tokens for g in generations)
    return {
        "truncated": sum(not g.ended for g in generations) / len(generations),
        "masks_left": sum(g.masks for g in generations),
        "tokens": tokens,
        "seconds": round(model.seconds, 3),
        "tokens_per_second": tokens / model.seconds,
        "forwards_per_token": sum(g.forwards for g in generations) / tokens if tokens else None,
    }


def _alarms(score: dict[str, Any]) -> list[str]:
    """What must not pass for a result without a look at the outputs."""
    alarms = []
    if score["value"] == 0:
        alarms.append(f"{score['metric']} is 0: more often a wrong template, stop string or filter than a weak model")
    if score["truncated"] > MANY_TRUNCATED:
        alarms.append(f"{score['truncated']:.0%} of the responses reach the length limit without an end token")
    if score["masks_left"]:
        alarms.append(f"{score['masks_left']} mask tokens are left in the responses: the sampler is broken")
    return alarms
