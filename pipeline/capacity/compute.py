"""What a run sends and computes, and how long an epoch takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.capacity.fake_step import FakeStep
from pipeline.capacity.planned_run import PlannedRun, RowMeans
from pipeline.capacity.zero3 import Shards
from pipeline.training.terms import teacher_strategy


def traffic(run: PlannedRun, step: FakeStep, shards: Shards, means: Sequence[RowMeans]) -> dict[str, float]:
    """Bytes that one GPU sends per optimizer step, by collective (ring algorithms)."""
    plan = run.plan
    ranks, micro_steps = plan.topology.world_size, plan.accumulation
    others = (ranks - 1) / ranks
    rows = plan.recipe.optim.global_batch / ranks
    sent = {
        "all-gather: student's parameters": (micro_steps * shards.gathers + shards.persistent) * others,
        "reduce-scatter: student's gradients": micro_steps * shards.full * others,
        "all-reduce: denominators": 2 * 8 * (3 + len(step.teachers)) * others,
    }
    for teacher, stats, mean in zip(plan.recipe.teachers, step.teachers, means[1:], strict=True):
        size = plan.expert_parallel_size[teacher.name]
        if size > 1:
            there_and_back = 2 * rows * mean.tokens * stats.routed_bytes * (size - 1) / size
            sent[f"all-to-all: teacher {teacher.name}'s tokens"] = stats.moe_layers * there_and_back
    return sent


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations."""

    student_token: float
    """Forward and backward of a token through the student's layers"""
    teacher_tokens: dict[str, float]
    """Forward of a token through each teacher's layers"""
    row: float
    """An average row: all models and heads"""


def arithmetic(run: PlannedRun, step: FakeStep, means: Sequence[RowMeans]) -> Arithmetic:
    """FLOPs per token, and of one average row.

    The student's layers run forward (once more with activation checkpointing) and backward, which costs two forwards; its
    head runs in chunks, whose logits are made again in the backward pass. Full distributions of a teacher are made with
    the student's, so twice as well.
    """
    plan, mean = run.plan, means[0]
    passes = 4 if plan.recipe.student.activation_checkpointing else 3
    student = passes * step.student.flops.forward(mean.width)
    row = mean.tokens * student + 4 * mean.predicted * step.student.flops.head
    forwards = {}
    for teacher, shared, stats, mean in zip(
        plan.recipe.teachers, plan.dataset.shared_vocab, step.teachers, means[1:], strict=True
    ):
        forwards[teacher.name] = stats.flops.forward(mean.width)
        heads = 2 if teacher_strategy(plan.recipe.objective, teacher, shared).family == "kl" else 1
        row += mean.tokens * forwards[teacher.name] + heads * mean.predicted * stats.flops.head
    return Arithmetic(student, forwards, row)


@dataclass(frozen=True)
class Epoch:
    """One pass over the rows."""

    rows: int
    steps: int
    hours: float


def epoch(run: PlannedRun, flops: Arithmetic, flops_per_second: float) -> Epoch | None:
    """None where the number of rows is not known. flops_per_second: of all GPUs."""
    rows = run.data.rows
    if rows is None:
        return None
    steps = math.ceil(rows / run.plan.recipe.optim.global_batch)
    return Epoch(rows, steps, rows * flops.row / flops_per_second / 3600)
