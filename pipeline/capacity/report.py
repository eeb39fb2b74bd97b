"""The answer of `plan` for one number of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.capacity.compute import Arithmetic, Epoch, arithmetic, epoch, traffic
from pipeline.capacity.fake_step import FakeStep, StepMemory
from pipeline.capacity.memory import GpuMemory, gpu_memory, largest_rows
from pipeline.capacity.planned_run import PlannedRun, RowMeans
from pipeline.capacity.zero3 import Shards, ZeroSettings

GB = 1e9


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

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def limit(self) -> float:
        """Bytes that a run may take of a GPU."""
        return self.gpu_bytes * (1 - self.headroom)


@dataclass(frozen=True)
class Option:
    """What would fit with two settings."""

    activation_checkpointing: bool
    optimizer_offload: bool
    total: int
    """Bytes of a GPU with the recipe's micro_tokens"""
    least: int
    """Bytes of a GPU with one row at a time"""
    micro_tokens: int
    """The largest that fits; 0 = not even one row"""
    host: int
    """Bytes of host memory per node"""


@dataclass(frozen=True)
class CapacityReport:
    """Memory in bytes, traffic in bytes per GPU and optimizer step."""

    run: PlannedRun
    machine: Machine
    parameters: int
    """Of the student"""
    memory: GpuMemory
    student: dict[str, int]
    """Parts of the student's forward and backward"""
    host: int
    """Bytes of host memory per node"""
    options: tuple[Option, ...]
    """From no saving to all of them"""
    sent: dict[str, float]
    arithmetic: Arithmetic
    epoch: Epoch | None

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.machine.limit

    def to_json(self) -> dict[str, Any]:
        """Values for scripts, in GB of 10^9 bytes and TFLOP."""
        plan, flops = self.run.plan, self.arithmetic
        return {
            "recipe": plan.recipe.name,
            "strategy": plan.recipe.objective.strategy,
            "nodes": self.machine.nodes,
            "gpus_per_node": self.machine.gpus_per_node,
            "gpu_memory_gb": self.machine.gpu_bytes / GB,
            "limit_gb": self.machine.limit / GB,
            "data": self.run.data.origin,
            "parameters": self.parameters,
            "expert_parallel_size": plan.expert_parallel_size,
            "global_batch": plan.recipe.optim.global_batch,
            "accumulation": plan.accumulation,
            "rows_at_once": self.run.rows,
            "row_tokens": self.run.row_tokens,
            "memory_gb": _gb(self.memory.always),
            "phases_gb": _gb(self.memory.phases),
            "student_gb": _gb(self.student),
            "total_gb": self.memory.total / GB,
            "host_gb_per_node": self.host / GB,
            "fits": self.fits,
            "options": [
                {
                    "activation_checkpointing": option.activation_checkpointing,
                    "optimizer_offload": option.optimizer_offload,
                    "total_gb": option.total / GB,
                    "least_gb": option.least / GB,
                    "micro_tokens": option.micro_tokens,
                    "host_gb_per_node": option.host / GB,
                }
                for option in self.options
            ],
            "sent_gb_per_step": _gb(self.sent),
            "tflop": {
                "student_token": flops.student_token / 1e12,
                "teacher_tokens": {name: value / 1e12 for name, value in flops.teacher_tokens.items()},
                "row": flops.row / 1e12,
            },
            "mfu": self.machine.mfu,
            "gpu_tflops": self.machine.gpu_flops / 1e12,
            "rows": self.epoch and self.epoch.rows,
            "steps_per_epoch": self.epoch and self.epoch.steps,
            "hours_per_epoch": self.epoch and self.epoch.hours,
        }


def _gb(sizes: Mapping[str, float]) -> dict[str, float]:
    return {name: size / GB for name, size in sizes.items()}


def capacity_report(
    run: PlannedRun, step: FakeStep, settings: ZeroSettings, means: Sequence[RowMeans], machine: Machine
) -> CapacityReport:
    """Memory by part and phase, what else would fit, traffic, arithmetic and time. means: of `row_means`."""
    shards, offloaded = (step.shards(s, machine.ranks) for s in (settings, settings.with_offload()))
    checkpointing = run.plan.recipe.student.activation_checkpointing
    traced, flops = step.trace(run.rows, checkpointing), arithmetic(run, step, means)
    return CapacityReport(
        run,
        machine,
        parameters=step.student.parameters,
        memory=gpu_memory(run, step, shards, traced),
        student={
            "gathered parameters": shards.gathered,
            "activations": traced.activations,
            "head chunks and workspace": traced.student - traced.activations,
        },
        host=machine.gpus_per_node * shards.host,
        options=tuple(
            _option(run, step, own, machine, checkpointing=checkpointing, offload=own is offloaded)
            for own in (shards, offloaded)
            for checkpointing in (False, True)
        ),
        sent=traffic(run, step, shards, means),
        arithmetic=flops,
        epoch=epoch(run, flops, machine.ranks * machine.gpu_flops * machine.mfu),
    )


def _option(
    run: PlannedRun, step: FakeStep, shards: Shards, machine: Machine, *, checkpointing: bool, offload: bool
) -> Option:
    def total(rows: int, memory: Callable[[int, bool], StepMemory] = step.estimate) -> int:
        return gpu_memory(run, step, shards, memory(rows, checkpointing)).total

    return Option(
        checkpointing,
        offload,
        total(run.rows, step.trace),
        total(1),
        largest_rows(total, machine.limit) * run.row_tokens,
        machine.gpus_per_node * shards.host,
    )
