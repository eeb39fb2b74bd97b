"""How the step grows with masked tokens, rows, length and vocabulary, and the alignment with the length of a row.

`python benchmarks/scaling.py`: Reverse CALM's step on the shapes of step.py, one size changed at a time (vocabulary
32,768 unless it is what changes; half of the response masked), and single rows of 10,000 to 1,000,000 tokens through the
alignment (`make code-data` fetches the tokenizers). `growth` is the exponent between the smallest and the largest size:
1 = linear, below 1 = a fixed part weighs in.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import math
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import measure, workload
from benchmarks import step as step_benchmark
from pipeline.alignment.rows import align_rows
from pipeline.alignment.sides import Side
from pipeline.core.errors import exit_code
from pipeline.models.tokenizer import load_tokenizer

BASE = step_benchmark.SMALL.but(student=workload.qwen3(32768), teacher=workload.llada2(32768))


LINEAR = ("masked tokens", "rows", "tokens of one aligned row")
"""Attention is quadratic in the length; the vocabulary is no choice of the user's."""


def step_cases(quick: bool) -> dict[str, list[tuple[int, Any, float]]]:
    """What grows: (size, shape, share of the response that is masked)."""
    base = step_benchmark.QUICK if quick else BASE
    vocabularies = (512, 1024) if quick else (37984, 75968, 151936)
    length = base.student_length
    lengths = [length // 2, length] if quick else [length // 2, length, 2 * length]
    longer = {
        n: base.but(rows=2, student_length=n, teacher_length=n * base.teacher_length // length, response=n * 2 // 3)
        for n in lengths
    }
    others = {
        v: base.but(
            student=workload.qwen3(v, base.student.hidden_size, base.student.num_hidden_layers),
            teacher=workload.llada2(v, base.teacher.hidden_size, base.teacher.num_hidden_layers),
        )
        for v in vocabularies
    }
    return {
        "masked tokens": [(round(t * base.rows * base.response), base, t) for t in (0.25, 0.5, 0.999)],
        "rows": [(n, base.but(rows=n), 0.5) for n in ((1, 2) if quick else (1, 2, 4, 8))],
        "student length": [(n, shape, 0.5) for n, shape in longer.items()],
        "vocabulary": [(v, shape, 0.5) for v, shape in others.items()],
    }


def step_growth(options: Namespace) -> list[dict]:
    """One row for each size."""
    rows = []
    for name, cases in step_cases(options.quick).items():
        by_size = []
        for size, shape, t in cases:
            run = partial(step_benchmark.ours, shape, "reverse_calm", False, fixed_t=t)
            by_size.append((size, measure.take_turns({"step": run}, options)["step"]))
        rows += grown(name, by_size)
    return rows


def grown(name: str, by_size: list[tuple[int, measure.Turns]]) -> list[dict]:
    """Sizes with their time, memory and growth: the exponent from the last size but one to the last, where the part that
    does not grow weighs least."""
    (first, least), (last, most) = by_size[-2:]
    times, sizes = math.log(most.seconds / least.seconds), math.log(last / first)
    return [
        {"what grows": name, "size": size, "s": taken.seconds, "CPU s": taken.cpu_seconds, "peak GB": taken.peak_gb}
        | {"growth of time": times / sizes, "growth of memory": math.log(most.peak_gb / least.peak_gb) / sizes}
        for size, taken in by_size
    ]


def aligning(names: tuple[str, str], text: str) -> Callable[[int], int]:
    """One row with one long answer, aligned."""
    student, teacher = (Side(load_tokenizer(name), 1 << 30) for name in names)
    row = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]
    return lambda _turn: len(align_rows(student, {"teacher": teacher}, [row]).columns["input_ids"][0])


def align_growth(options: Namespace) -> list[dict]:
    """One row for each length."""
    names, source = workload.tokenizers_and_text(options.quick)
    text = "\n".join(m["content"] for chat in workload.mixed_chats(source, 500) for m in chat)
    sizes = (1000, 4000) if options.quick else (40_000, 400_000, 4_000_000)  # about 4 characters per token
    by_size = []
    for size in sizes:
        long = (text * (size // len(text) + 1))[:size]
        turns = measure.take_turns({"align": partial(aligning, names, long)}, options)["align"]
        by_size.append((turns.results[0], turns))
    return grown("tokens of one aligned row", by_size)


def main(argv: list[str] | None = None) -> None:
    options = measure.arguments(__doc__, turns=1).parse_args(argv)
    rows = [*step_growth(options), *align_growth(options)]
    growths = {row["what grows"]: row for row in rows if row["what grows"] in LINEAR}
    targets = [
        measure.at_most(f"{growth} with {name}", row[growth], 1.15)
        for name, row in growths.items()
        for growth in ("growth of time", "growth of memory")
    ]
    measure.report("scaling", options, {"scaling": rows}, targets)


if __name__ == "__main__":
    sys.exit(exit_code("benchmark", main))
