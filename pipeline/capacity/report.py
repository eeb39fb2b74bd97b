"""The answer of `plan` for one number of GPUs, as JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.capacity.compute import arithmetic, epoch, traffic
from pipeline.capacity.inputs import Facts, Means
from pipeline.capacity.memory import Held, interpolate, largest_rows, memory
from pipeline.capacity.zero3 import Shards

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """The GPUs."""

    nodes: int
    gpus_per_node: int
    memory: float
    """Of one GPU, in GB of 10^9 bytes"""
    headroom: float
    """Share of it that is left to the CUDA context, NCCL and fragmentation"""
    tflops: float
    """Peak of one GPU"""
    mfu: float
    """Share of the peak that a run reaches"""

    @property
    def limit(self) -> float:
        """Bytes that a run may take of a GPU."""
        return self.memory * GB * (1 - self.headroom)


def report(facts: Facts, held: dict[bool, tuple[Held, Held]], means: list[Means], machine: Machine) -> dict[str, Any]:
    """Memory by part and phase, what else would fit, traffic, arithmetic and time. `held`: of `count_held`; `means`: of
    `row_means`."""
    recipe, rows = facts.plan.recipe, facts.rows_at_once
    own = held[recipe.student.activation_checkpointing]
    now, at = memory(facts, facts.shards, own, rows), interpolate(own, rows)
    flops = arithmetic(facts, means)
    return {
        "recipe": recipe.name,
        "strategy": recipe.objective.strategy,
        "nodes": machine.nodes,
        "gpus_per_node": machine.gpus_per_node,
        "gpu_memory_gb": machine.memory,
        "limit_gb": machine.limit / GB,
        "data": facts.data.origin,
        "parameters": facts.parameters,
        "expert_parallel_size": facts.plan.expert_parallel_size,
        "global_batch": recipe.optim.global_batch,
        "accumulation": facts.plan.accumulation,
        "rows_at_once": rows,
        "row_tokens": facts.row_cost,
        "memory_gb": _gb(now.always),
        "phases_gb": _gb(now.phases),
        "student_gb": _gb(
            {
                "gathered parameters": facts.shards.gathered,
                "activations": at.activations,
                "head chunks and workspace": at.student - at.activations,
            }
        ),
        "total_gb": now.total / GB,
        "host_gb_a_node": machine.gpus_per_node * facts.shards.host / GB,
        "fits": now.total <= machine.limit,
        "options": [
            _option(facts, shards, held[checkpointing], machine, checkpointing=checkpointing, offload=offload)
            for offload, shards in ((False, facts.shards), (True, facts.offloaded))
            for checkpointing in (False, True)
        ],
        "sent_gb_a_step": _gb(traffic(facts, means)),
        "tflop": {name: value / 1e12 for name, value in flops.items()},
        "mfu": machine.mfu,
        "gpu_tflops": machine.tflops,
        **epoch(facts, flops, machine.nodes * machine.gpus_per_node * machine.tflops * 1e12 * machine.mfu),
    }


def _option(
    facts: Facts, shards: Shards, held: tuple[Held, Held], machine: Machine, *, checkpointing: bool, offload: bool
) -> dict[str, Any]:
    """What would fit with these two settings: as many longest rows as possible, and the least that a run needs."""
    rows = largest_rows(facts, shards, held, machine.limit)
    return {
        "activation_checkpointing": checkpointing,
        "optimizer_offload": offload,
        "total_gb": memory(facts, shards, held, facts.rows_at_once).total / GB,
        "least_gb": memory(facts, shards, held, 1).total / GB,
        "micro_tokens": rows * facts.row_cost,
        "host_gb_a_node": machine.gpus_per_node * shards.host / GB,
    }


def _gb(sizes: dict[str, float]) -> dict[str, float]:
    return {name: size / GB for name, size in sizes.items()}
