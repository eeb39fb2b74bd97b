"""Data, prompts and metrics of the tasks in this folder."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from datasets import Dataset
from lm_eval.api.samplers import ContextSampler

from pipeline.core.errors import BadInput
from pipeline.core.files import read_json_lines
from pipeline.evaluation.benchmarks import BBH, SOURCES, read
from pipeline.evaluation.code import extract


def chat_rows(path: str, **_metadata: Any) -> dict[str, Dataset]:
    """A local chat JSONL as the test split, read afresh: no cache that could outlive a change of the file."""
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"no file {path}: make the data of this task first (see the README)")
    return {"test": Dataset.from_list(read_json_lines(file))}


def benchmark(name: str, **_metadata: Any) -> dict[str, Dataset]:
    """A prefetched benchmark as the test split, with the columns that its source lists."""
    columns = SOURCES[name].columns
    return {"test": Dataset.from_list([{column: row[column] for column in columns} for row in read(name)])}


# ---- text


def nats_per_byte(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """The bound on the answer's negative log-likelihood, by the bytes of the answer: the same unit for every tokenizer."""
    ((log_likelihood, _),) = results
    return {"nats_per_byte": -log_likelihood / len(doc["messages"][1]["content"].encode())}


# ---- MATH


def math_target(doc: dict[str, Any]) -> str:
    """The answer in the last \\boxed{} of the reference solution, in Minerva's normal form."""
    from lm_eval.tasks.minerva_math import utils as minerva  # needs sympy and antlr: when the task is used

    boxed = minerva.last_boxed_only_string(doc["solution"])
    return minerva.normalize_final_answer(minerva.remove_boxed(boxed)) if boxed else ""


def math_score(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """lm-evaluation-harness's minerva_math."""
    from lm_eval.tasks.minerva_math import utils as minerva

    return minerva.process_results({**doc, "answer": math_target(doc)}, results)


# ---- BBH


@cache
def bbh_task(subtask: str) -> dict[str, Any]:
    """Description, question form and examples of a subtask, from lm-evaluation-harness's bbh_cot_fewshot."""
    folder = Path(lm_eval.tasks.__file__).parent / "bbh" / "cot_fewshot"
    return yaml.safe_load((folder / f"{subtask}.yaml").read_text(encoding="utf-8"))


def bbh_rows(rows: Dataset) -> Dataset:
    """Each row with the description and the question form of its subtask."""

    def told(row: dict[str, Any]) -> dict[str, Any]:
        task = bbh_task(row["subtask"])
        question = task["doc_to_text"].replace("{{input}}", row["input"])
        return {**row, "description": task["description"], "question": question}

    return Dataset.from_list([told(row) for row in rows])


def bbh_examples(_test: Dataset) -> list[dict[str, Any]]:
    """All subtasks' worked examples; `Examples` picks."""
    samples = [{"subtask": name, **sample} for name in BBH for sample in bbh_task(name)["fewshot_config"]["samples"]]
    return list(bbh_rows(samples))


class Examples(ContextSampler):
    """The first examples of the problem's own subtask. Raises BadInput where there are fewer than asked for.

    Without it, the harness would take the test problems themselves where a task brings no examples.
    """

    def sample(self, n: int, eval_doc: dict[str, Any] | None = None, df: Any = None, **_: Any) -> list[dict[str, Any]]:
        examples = [example for example in self.df if eval_doc and example["subtask"] == eval_doc["subtask"]]
        if n > len(examples):
            raise BadInput(f"evaluation.fewshot is {n}, but this task brings {len(examples)} examples")
        return examples[:n]


# ---- multiple choice as text


def hellaswag_rows(rows: Dataset) -> Dataset:
    """Context and endings with WikiHow's marks taken out, as lm-evaluation-harness's hellaswag does."""

    def clean(text: str) -> str:
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    return Dataset.from_list(
        [
            {
                "context": clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"),
                "endings": [clean(ending) for ending in row["endings"]],
                "letter": "abcd"[int(row["label"])],
            }
            for row in rows
        ]
    )


def mmlu_pro_text(doc: dict[str, Any]) -> str:
    """lm-evaluation-harness's mmlu_pro at zero shots."""
    options = [f"{letter}. {option.strip()}" for letter, option in zip("ABCDEFGHIJ", doc["options"], strict=False)]
    return "\n".join(["Question:", doc["question"], "Options:", *options, "Answer: Let's think step by step."])


# ---- code: `evaluate.py score` runs it later


def human_eval_programs(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [extract.program(r, doc["entry_point"], doc["prompt"]) for r in answers]
        for answers, doc in zip(responses, docs, strict=True)
    ]


def mbpp_programs(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [extract.program(r, extract.mbpp_entry_point(doc)) for r in answers]
        for answers, doc in zip(responses, docs, strict=True)
    ]


human_eval_tests, mbpp_tests = extract.human_eval_tests, extract.mbpp_tests


def not_run(_doc: dict[str, Any], _results: list[str]) -> dict[str, float]:
    """No metric yet."""
    return {}
