"""A tiny random model with a byte-level tokenizer, and a task of four sums: what the tests of evaluation ask."""

from __future__ import annotations

from pathlib import Path

from pipeline.decoding.sampler import GenerateConfig, Response
from pipeline.evaluation import lm_eval_model
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest
from pipeline.evaluation.lm_eval_model import BlockDiffusionLM
from pipeline.evaluation.lm_eval_tasks import load_tasks, run_task
from pipeline.evaluation.results import Score, TaskSample

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "pipeline" / "evaluation" / "tasks"
CHAT = "{% for m in messages %}<u>{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
SUMS = ["12", "7", "100", "31"]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"How much is {int(total) - 1} and 1?"},
            {"role": "assistant", "content": f"It is {total}."},
        ],
        "answer": total,
    }
    for total in SUMS
]
SMOKE = GenerateConfig(max_new_tokens=8, block_size=4, steps=4, blocks="training")


def says(monkeypatch, tokenizer, texts: list[str]) -> None:
    """Makes the sampler say these texts, matched to prompts by the number that the question holds."""

    def say(_model, prompts, _config):
        asked = [tokenizer.decode(prompt) for prompt in prompts]
        said = [next(t for t, total in zip(texts, SUMS, strict=True) if f"is {int(total) - 1} and" in a) for a in asked]
        tokens = [tokenizer.encode(text, add_special_tokens=False) for text in said]
        return [Response(t, list(range(1, len(t) + 1)), 3) for t in tokens]

    monkeypatch.setattr(lm_eval_model, "decode", say)


def language_model(folder: Path, config: GenerateConfig = SMOKE, **settings) -> BlockDiffusionLM:
    return BlockDiffusionLM(CheckpointUnderTest.of(str(folder)), config, **{"batch_size": 3, **settings})


def run_file(
    folder: Path, task_file: Path, config: GenerateConfig = SMOKE, **settings
) -> tuple[Score, list[TaskSample]]:
    """Of the only task in a file."""
    ((name, task),) = load_tasks([str(task_file)]).items()
    return run_task(name, task, language_model(folder, config, **settings))
