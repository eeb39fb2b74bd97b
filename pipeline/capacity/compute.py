"""What a run sends and computes, and how long an epoch takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.capacity.inputs import Facts, Means
from pipeline.training.terms import teacher_strategy

ROW = "an average row: all models and heads"


def traffic(facts: Facts, means: Sequence[Means]) -> dict[str, float]:
    """Bytes that one GPU sends in an optimizer step, by collective (ring algorithms)."""
    plan, shards = facts.plan, facts.shards
    ranks, micro_steps = plan.topology.world_size, plan.accumulation
    others = (ranks - 1) / ranks
    rows = plan.recipe.optim.global_batch / ranks
    sent = {
        "all-gather: student's parameters": (micro_steps * shards.gathers + shards.persistent) * others,
        "reduce-scatter: student's gradients": micro_steps * shards.full * others,
        "all-reduce: denominators": 2 * 8 * (3 + len(facts.teachers)) * others,
    }
    for (name, teacher), mean in zip(facts.teachers.items(), means[1:], strict=True):
        if teacher.expert_parallel_size > 1:
            away = (teacher.expert_parallel_size - 1) / teacher.expert_parallel_size
            there_and_back = 2 * rows * mean.tokens * teacher.routed * away
            sent[f"all-to-all: teacher {name}'s tokens"] = teacher.mixture_layers * there_and_back
    return sent


def arithmetic(facts: Facts, means: Sequence[Means]) -> dict[str, float]:
    """FLOPs a token, and of one average row.

    The student's layers run forward (once more with activation checkpointing) and backward, which costs two forwards; its
    head runs in chunks, whose logits are made again in the backward pass. Full distributions of a teacher are made with
    the student's, so twice as well.
    """
    recipe, mean = facts.plan.recipe, means[0]
    student = (4 if recipe.student.activation_checkpointing else 3) * facts.student.forward(mean.width)
    found = {"student: forward and backward, a token": student}
    row = mean.tokens * student + 4 * mean.predicted * facts.student.head
    for teacher, shared, mean in zip(recipe.teachers, facts.plan.shared_vocab, means[1:], strict=True):
        own = facts.teachers[teacher.name].flops
        forward = own.forward(mean.width)
        found[f"teacher {teacher.name}: forward, a token"] = forward
        heads = 2 if teacher_strategy(recipe.objective, teacher, shared).family == "kl" else 1
        row += mean.tokens * forward + heads * mean.predicted * own.head
    return {**found, ROW: row}


def epoch(facts: Facts, flops: Mapping[str, float], flops_a_second: float) -> dict[str, Any]:
    """Steps and hours of one pass over the rows; None where the number of rows is not known."""
    rows = facts.data.rows
    seconds = flops[ROW] / flops_a_second
    return {
        "rows": rows,
        "steps_an_epoch": rows and math.ceil(rows / facts.plan.recipe.optim.global_batch),
        "hours_an_epoch": rows and rows * seconds / 3600,
    }
