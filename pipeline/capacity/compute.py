"""What a run sends and computes, and how long an epoch takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.capacity.fake_step import FakeStep, StepTrace
from pipeline.capacity.planned_run import PlannedRun, RowMeans
from pipeline.capacity.zero import Shards
from pipeline.training.terms import teacher_strategy


@dataclass(frozen=True)
class Machine:
    """The GPUs."""

    nodes: int
    gpus_per_node: int
    gpu_bytes: float
    headroom: float
    """Share of the memory that is left to the CUDA context, NCCL and fragmentation"""
    gpu_flops: float
    """Peak of one GPU, per second"""
    mfu: float
    """Share of the peak that a run reaches"""
    seconds_per_operation: float
    """Host time to launch one operation"""
    network: float
    """Bytes per second that one GPU sends to other nodes"""

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def limit(self) -> float:
        """Bytes that a run may take of a GPU."""
        return self.gpu_bytes * (1 - self.headroom)


def traffic(run: PlannedRun, step: FakeStep, shards: Shards, means: Sequence[RowMeans]) -> dict[str, float]:
    """Bytes that one GPU sends per optimizer step, by collective (ring algorithms)."""
    plan = run.plan
    ranks = plan.topology.world_size
    others = (ranks - 1) / ranks
    rows = plan.recipe.optim.global_batch / ranks
    sent = {name: size * others for name, size in shards.exchanged.items()}
    sent["all-reduce: denominators"] = 2 * 8 * (3 + len(step.teachers)) * others
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
    student_row: float
    """The student's part of an average row, heads included"""
    teacher_rows: dict[str, float]

    @property
    def row(self) -> float:
        """An average row: all models and heads."""
        return self.student_row + sum(self.teacher_rows.values())


def arithmetic(run: PlannedRun, step: FakeStep, means: Sequence[RowMeans]) -> Arithmetic:
    """FLOPs per token, and of one average row; of the busiest rank where experts are shared out unevenly.

    The student's layers run forward (once more with activation checkpointing) and backward, which costs two forwards; its
    head runs in chunks, whose logits are made again in the backward pass. Full distributions of a teacher are made with
    the student's, so twice as well.
    """
    plan, mean = run.plan, means[0]
    passes = 4 if plan.recipe.student.activation_checkpointing else 3
    student = passes * step.student.flops.forward(mean.width)
    student_row = mean.tokens * student + 4 * mean.predicted * step.student.flops.head
    tokens, rows = {}, {}
    teachers = zip(plan.recipe.teachers, plan.dataset.shared_vocab, step.teachers, means[1:], strict=True)
    for teacher, shared, stats, mean in teachers:
        extra = (step.expert_imbalance - 1) * stats.flops.experts
        tokens[teacher.name] = stats.flops.forward(mean.width) + extra
        heads = 2 if teacher_strategy(plan.recipe.objective, teacher, shared).family == "kl" else 1
        rows[teacher.name] = mean.tokens * tokens[teacher.name] + heads * mean.predicted * stats.flops.head
    return Arithmetic(student, tokens, student_row, rows)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a micro-step on one GPU.

    The host launches operations ahead of the GPU, so the longer of the two counts; but a teacher with shared-out experts
    makes the host wait in every MoE layer (it reads how many tokens go where), and there both add up.
    """

    compute: float
    launch: float
    waiting: float
    """The part of `compute` in teachers that the host waits for"""
    waits: int
    """Times that the host waits for the GPU"""
    network: float
    """What ZeRO's collectives take between nodes, beside the arithmetic"""

    @property
    def total(self) -> float:
        return max(self.compute, self.launch + self.waiting, self.network)

    @property
    def bound_by(self) -> str:
        """What limits the step: `arithmetic`, `launches` or `network`."""
        return {self.compute: "arithmetic", self.launch + self.waiting: "launches", self.network: "network"}[self.total]


def step_time(
    run: PlannedRun, step: FakeStep, trace: StepTrace, flops: Arithmetic, sent: Mapping[str, float], machine: Machine
) -> StepTime:
    """trace: of the run's micro-batch; sent: bytes per optimizer step, of `traffic`."""
    plan = run.plan
    rows = plan.recipe.optim.global_batch / (machine.ranks * plan.accumulation)
    shared_out = [
        (name, stats.moe_layers)
        for (name, size), stats in zip(plan.expert_parallel_size.items(), step.teachers, strict=True)
        if size > 1
    ]
    speed = machine.gpu_flops * machine.mfu
    zero = sum(size for name, size in sent.items() if "student" in name) if machine.nodes > 1 else 0
    return StepTime(
        compute=rows * flops.row / speed,
        launch=sum(trace.operations) * machine.seconds_per_operation,
        waiting=sum(rows * flops.teacher_rows[name] / speed for name, _ in shared_out),
        waits=sum(layers for _, layers in shared_out),
        network=zero / plan.accumulation / machine.network,
    )


@dataclass(frozen=True)
class Epoch:
    """One pass over the rows."""

    rows: int
    steps: int
    hours: float


def epoch(run: PlannedRun, time: StepTime) -> Epoch | None:
    """None where the number of rows is not known."""
    rows = run.data.rows
    if rows is None:
        return None
    steps = math.ceil(rows / run.plan.recipe.optim.global_batch)
    return Epoch(rows, steps, steps * run.plan.accumulation * time.total / 3600)
