"""Bytes of one GPU: by part, by phase, and how much fits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.capacity.fake_step import FakeStep, StepTrace
from pipeline.capacity.planned_run import PlannedRun
from pipeline.capacity.zero import Shards


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one GPU."""

    always: dict[str, int]
    """What is there all the time, by part"""
    phases: dict[str, int]
    """What each phase adds"""

    @property
    def total(self) -> int:
        return sum(self.always.values()) + max(self.phases.values())


def gpu_memory(run: PlannedRun, step: FakeStep, shards: Shards, traced: StepTrace) -> GpuMemory:
    """With micro-batches as traced."""
    always, phases = {}, {}
    for teacher, stats, peak, tokens in zip(
        run.plan.recipe.teachers, step.teachers, traced.teachers, traced.teacher_tokens, strict=True
    ):
        size = run.plan.expert_parallel_size[teacher.name]
        always[f"teacher {teacher.name}: dense part"] = stats.dense_bytes
        always[f"teacher {teacher.name}: experts / {size}"] = stats.expert_bytes // size
        # AutoEP's buffers: a layer's tokens for their experts, as sent, as received and in the experts' order
        buffers = 1 + 2 * step.expert_imbalance if size > 1 else 0
        phases[f"teacher {teacher.name}: forward"] = peak + round(buffers * tokens * stats.routed_bytes)
    always |= {
        "student: parameters": shards.parameters,
        "student: gradients": shards.gradients,
        "student: gradient bucket": shards.bucket,
        "student: optimizer": shards.optimizer,
        "batch and teachers' outputs": traced.batch + traced.teacher_outputs,
    }
    phases |= {
        "student: forward and backward": shards.gathered + traced.student,
        "student: reduction of gradients": shards.reducing,
        "student: optimizer step": shards.stepping,
    }
    return GpuMemory({part: size for part, size in always.items() if size}, phases)


def largest_rows(total: Callable[[int], int], limit: float) -> int:
    """How many of the longest rows fit at once, maybe 0. `total`: rows -> bytes of a GPU, asked for small numbers first: large
    ones cost a trace."""
    high = 1
    while total(high) <= limit:
        high *= 2
    return bisect_right(range(1, high), limit, key=total)
