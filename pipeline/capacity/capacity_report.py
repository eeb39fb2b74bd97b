"""The answer of `plan` for one number of GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.capacity.compute import Arithmetic, Epoch, Machine, StepTime, arithmetic, epoch, step_time, traffic
from pipeline.capacity.fake_step import FakeStep, StepTrace
from pipeline.capacity.memory import GpuMemory, gpu_memory, largest_rows
from pipeline.capacity.planned_run import PlannedRun, RowMeans
from pipeline.capacity.zero import Shards, ZeroSettings

GB = 1e9


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
    operations: int
    """Kernels launched per micro-step, DeepSpeed's left out"""
    time: StepTime
    epoch: Epoch | None

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.machine.limit

    @property
    def warning(self) -> str | None:
        """Says so where the GPUs wait for the host or the network, and how many rows per GPU would keep them busy."""
        time, plan = self.time, self.run.plan
        if time.bound_by == "arithmetic":
            return None
        rows = plan.recipe.optim.global_batch / (self.machine.ranks * plan.accumulation)
        enough = math.ceil(rows * max(time.launch / (time.compute - time.waiting), time.network / time.compute))
        return (
            f"{self.machine.nodes} x {self.machine.gpus_per_node} GPUs wait for the "
            f"{'host' if time.bound_by == 'launches' else 'network'}: {rows:g} rows per GPU are "
            f"{1000 * time.compute:.0f} ms of arithmetic, launching {self.operations:,} operations takes "
            f"{1000 * time.launch:.0f} ms, collectives between nodes {1000 * time.network:.0f} ms; {enough} rows or "
            "more would keep them busy"
        )

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
            "operations": self.operations,
            "host_waits": self.time.waits,
            "seconds_per_micro_step": self.time.total,
            "bound_by": self.time.bound_by,
            "warning": self.warning,
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
    sent = traffic(run, step, shards, means)
    time = step_time(run, step, traced, flops, sent, machine)
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
            _option(run, step, option_shards, machine, checkpointing=checkpointing, offload=offload)
            for offload, option_shards in ((False, shards), (True, offloaded))
            for checkpointing in (False, True)
        ),
        sent=sent,
        arithmetic=flops,
        operations=sum(traced.operations),
        time=time,
        epoch=epoch(run, time),
    )


def _option(
    run: PlannedRun, step: FakeStep, shards: Shards, machine: Machine, *, checkpointing: bool, offload: bool
) -> Option:
    def total(rows: int, memory: Callable[[int, bool], StepTrace] = step.estimate) -> int:
        return gpu_memory(run, step, shards, memory(rows, checkpointing)).total

    return Option(
        checkpointing,
        offload,
        total(run.rows, step.trace),
        total(1),
        largest_rows(total, machine.limit) * run.row_tokens,
        machine.gpus_per_node * shards.host,
    )
