"""The align stage beside what nobody can leave out, rendering and tokenizing, and beside a plain implementation.

`python benchmarks/align.py`: 2,000 mixed chats, the real Qwen3 and Llama-3.1 tokenizers (`make code-data` fetches them).
The stage does everything it does for a user: reads the JSONL, writes shards with checksums and the manifest; only the
loading of the tokenizers is left out on all sides. One process and one thread each.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial

from benchmarks import measure, workload
from benchmarks.naive import align as naive_align
from pipeline.alignment.build import align
from pipeline.config.recipe import Data, Optim, Recipe, Source, Student, Teacher
from pipeline.core.errors import exit_code
from pipeline.core.files import read_json_lines
from pipeline.distributed.mpi_ranks import Ranks
from pipeline.models.tokenizer import load_tokenizer

BATCH = 256


def read(file: Path) -> list[list[dict[str, str]]]:
    """The conversations of a JSONL file."""
    return [row["messages"] for row in read_json_lines(file)]


def tokenizing(file: Path, names: tuple[str, str]) -> Callable[[int], int]:
    """Both templates rendered and both sides tokenized, in batches: the tokens."""
    rows, sides = read(file), [load_tokenizer(name) for name in names]

    def run(_turn: int) -> int:
        tokens = 0
        for start in range(0, len(rows), BATCH):
            for side in sides:
                texts = side.apply_chat_template(rows[start : start + BATCH], tokenize=False, enable_thinking=False)
                encoded = side.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                tokens += sum(len(one.ids) for one in encoded)
        return tokens

    return run


def ours(file: Path, names: tuple[str, str], folder: Path) -> Callable[[int], int]:
    """The whole stage, on an empty folder: the chunks."""
    recipe = recipe_for(file, names, folder, length=4096)

    def run(_turn: int) -> int:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            manifest, _ = align(recipe, Ranks(), processes=1, shard_rows=4096)
        return manifest.statistics["teacher"].chunks

    return run


def recipe_for(file: Path, names: tuple[str, str], folder: Path, length: int) -> Recipe:
    """A recipe with what the align stage reads."""
    student, teacher = names
    return Recipe(
        name="benchmark",
        student=Student("none", tokenizer=student),  # tokenizers alone: rows may be longer than a model has positions
        data=Data([Source(str(file), "chats")], student_length=length, aligned=str(folder)),
        teachers=[Teacher("teacher", "none", tokenizer=teacher, length=length)],
        optim=Optim(steps=1),
    )


def naive(file: Path, names: tuple[str, str]) -> Callable[[int], int]:
    """Row by row: the chunks."""
    rows, sides = read(file), [load_tokenizer(name) for name in names]
    return lambda _turn: sum(naive_align.align(messages, sides) for messages in rows)


def main(argv: list[str] | None = None) -> None:
    options = measure.arguments(__doc__, threads=1).parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    names, source = workload.tokenizers_and_text(options.quick)
    count = 64 if options.quick else 2000
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "chats.jsonl")
        workload.write_chats(file, source, count)
        contestants = {
            "render + tokenize": partial(tokenizing, file, names),
            "align stage": partial(ours, file, names, Path(scratch, "aligned")),
            "naive": partial(naive, file, names),
        }
        taken = measure.take_turns(contestants, options)
    least, chunks = taken["render + tokenize"], taken["align stage"].results[0]
    if chunks != taken["naive"].results[0]:
        raise SystemExit(f"chunks differ: {chunks} and {taken['naive'].results[0]}")
    rows = [
        {
            "align": name,
            "rows/s": count / turns.seconds,
            "seconds": turns.seconds,
            "CPU s": turns.cpu_seconds,
            "against render + tokenize": turns.seconds / least.seconds,
        }
        for name, turns in taken.items()
    ]
    stage = taken["align stage"]
    sizes = {"rows": count, "tokens of both sides": least.results[0], "chunks": chunks}
    targets = [
        measure.at_most("align stage against render + tokenize", stage.seconds / least.seconds, 1.5, "x"),
        measure.at_least("naive against align stage", taken["naive"].seconds / stage.seconds, 10, "x"),
    ]
    measure.report("align", options, {"align": rows}, targets, sizes)


if __name__ == "__main__":
    sys.exit(exit_code("benchmark", main))
