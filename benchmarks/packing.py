"""Useful tokens: how much of the models' inputs is no padding, on chats of mixed lengths, packed and padded.

`python benchmarks/packing.py`: 2,000 mixed chats, the real tokenizers, student length 512, teacher length 1,024, global
batches of 64 rows on 8 ranks. `padded` is what rows padded to the longest of each micro-batch would give.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tempfile
from collections.abc import Iterator

from benchmarks import align as align_benchmark
from benchmarks import measure, workload
from pipeline.alignment.build import align
from pipeline.core.errors import exit_code
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import Batch, BatchBuilder, InputLayout, Sample, TeacherLayout
from pipeline.data.blocks import OneBlock, SequenceBlocks
from pipeline.data.order import GlobalBatches, accumulation_steps, balance
from pipeline.distributed.mpi_ranks import Ranks

RANKS, GLOBAL_BATCH = 8, 64
BUDGETS = (4096, 8192, 16384)


def micro_batches(rows: AlignedRows, build: BatchBuilder, budget: int, steps: int) -> Iterator[tuple[list, Batch]]:
    """What the ranks would hold in the first steps: samples and micro-batch."""
    batches = GlobalBatches(len(rows), GLOBAL_BATCH, seed=0)
    costs = build.tokens(rows.student_lengths, rows.teacher_lengths)
    each = accumulation_steps(costs, GLOBAL_BATCH, RANKS, budget)
    for step in range(steps):
        visits = batches[step]
        for group in balance(costs[[v.row for v in visits]], RANKS * each):
            samples = [Sample(rows[visits[i].row], (0, visits[i].epoch, visits[i].row)) for i in group]
            if samples:
                yield samples, build(samples)


def share(rows: AlignedRows, build: BatchBuilder, budget: int, steps: int) -> dict:
    """One row of the table."""
    useful, allocated, padded_useful, padded = [0, 0], [0, 0], [0, 0], [0, 0]
    for samples, batch in micro_batches(rows, build, budget, steps):
        for side, packed in enumerate((batch.student, batch.teachers[0].input)):
            useful[side] += int((packed.document >= 0).sum())
            allocated[side] += packed.document.numel()
        for side, lengths in enumerate(
            ([len(s.row.ids) for s in samples], [len(s.row.teachers[0].ids) for s in samples])
        ):
            padded_useful[side] += sum(lengths)
            padded[side] += max(lengths) * len(lengths)
    return {
        "micro_tokens": budget,
        "student useful": useful[0] / allocated[0],
        "teacher useful": useful[1] / allocated[1],
        "both useful": sum(useful) / sum(allocated),
        "both padded": sum(padded_useful) / sum(padded),
    }


def main(argv: list[str] | None = None) -> None:
    options = measure.arguments(__doc__, turns=1).parse_args(argv)
    quick = options.quick
    names, source = workload.tokenizers_and_text(quick)
    with tempfile.TemporaryDirectory() as scratch:
        file, folder = Path(scratch, "chats.jsonl"), Path(scratch, "aligned")
        workload.write_chats(file, source, 128 if quick else 2000)
        recipe = align_benchmark.recipe_for(file, names, folder, length=512)
        recipe.teachers[0].length = 1024
        manifest, _ = align(recipe, Ranks(), processes=1, shard_rows=4096)
        rows = AlignedRows(folder, manifest.files("train"), ["teacher"])
        build = BatchBuilder(InputLayout(1, SequenceBlocks(32)), (TeacherLayout(1, OneBlock()),))
        table = [share(rows, build, budget, steps=2 if quick else 20) for budget in BUDGETS]
    worst = min(row["both useful"] for row in table)
    targets = [measure.at_least("useful tokens", worst, 0.95)]
    measure.report("packing", options, {"packing": table}, targets, {"ranks": RANKS, "global_batch": GLOBAL_BATCH})


if __name__ == "__main__":
    sys.exit(exit_code("benchmark", main))
