"""Loads lm-evaluation-harness tasks and runs them: one score, one set of samples per task."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from pipeline.core.errors import BadInput, one_line
from pipeline.evaluation import scoring
from pipeline.evaluation.answers import GeneratedAnswer, LikelihoodAnswer
from pipeline.evaluation.benchmarks import TASKS
from pipeline.evaluation.lm_eval_model import BlockDiffusionLM
from pipeline.evaluation.results import Score, TaskSample


def load_tasks(names: list[str]) -> dict[str, ConfigurableTask]:
    """The tasks by name: of this project, of the harness (a group is its tasks), or of a YAML file of the user.

    Raises BadInput for a name that nobody knows, for data that cannot be read, and for tasks that run generated code.
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
    except Exception as error:  # the harness raises what it likes for files that are no tasks
        raise BadInput(f"evaluation.tasks {', '.join(names)}: not tasks of the harness ({one_line(error)})") from None
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise BadInput(f"task {name} runs generated code, which evaluate does not do")
    return tasks


def _unknown(names: list[str], manager: TaskManager) -> list[str]:
    return [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]


def _as_text(sample: dict[str, Any], model: BlockDiffusionLM) -> dict[str, Any]:
    """A sample of the harness, with the letters of control tokens that its prompt spells."""
    show = model.checkpoint.control_tokens.show
    shown = [tuple(show(a) if isinstance(a, str) else a for a in args) for args in sample["arguments"]]
    return sample | {"arguments": shown}


def run_task(
    name: str,
    task: ConfigurableTask,
    model: BlockDiffusionLM,
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    chat: bool = True,
) -> tuple[Score, list[TaskSample]]:
    """Score and samples of a task. The score's headline is the task's first metric (and first filter).

    `model` must not have run another task: its answers are taken to be this one's. `fewshot` overrides the task's own
    number of shots. Raises Unanswered when the answers of other shards are not there yet.
    """
    if fewshot and (there := len(list(task.fewshot_docs()))) <= fewshot:
        raise BadInput(
            f"evaluation.fewshot {fewshot}: {name} has {there} examples to draw from, one of them the problem"
        )
    if fewshot is not None:
        task.set_config(key="num_fewshot", value=fewshot)
    task.set_fewshot_seed(seed=model.config.seed)
    evaluated = evaluate(
        model,
        {"tasks": {name: task}},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=False,  # examples and question are one turn of the user, as in the published runs
    )
    samples = [_as_text(sample, model) for sample in evaluated["samples"][name]]
    table = scoring.metrics(evaluated["results"][name], samples)
    headline, filtered_by = next(iter(table)).split(",") if table else (None, samples[0]["filter"])
    first = [sample for sample in samples if sample["filter"] == filtered_by]
    answers = [answer for repeats in model.answers.values() for answer in repeats]
    score = Score(
        name,
        headline,
        None,
        len(first),
        higher_is_better=task.higher_is_better().get(headline, True),
        metrics=table,
        seconds=round(sum(answer.seconds for answer in answers), 3),
        fewshot=task.config.num_fewshot or 0,
        prompts_hash=scoring.prompts_hash(first),
        devices=sorted({answer.device for answer in answers}),
    )
    if mean := table.get(f"{headline},{filtered_by}"):
        score = replace(score, value=mean.value, n=mean.n, low=mean.low, high=mean.high)
    if task.OUTPUT_TYPE == "generate_until":
        responses = model.answers_of(GeneratedAnswer)
        rows = [scoring.generated_sample(s, headline, responses[s["doc_id"], 0][0]) for s in first]
        score = replace(score, generation=scoring.generation([a for repeats in responses.values() for a in repeats]))
    else:
        estimates = model.answers_of(LikelihoodAnswer)
        choices = [[estimates[s["doc_id"], i][0] for i in range(len(s["arguments"]))] for s in first]
        rows = [scoring.likelihood_sample(s, headline, c) for s, c in zip(first, choices, strict=True)]
        score = replace(score, likelihood=scoring.likelihood([a for of in estimates.values() for a in of], rows))
    return scoring.with_alarms(score, rows), rows
