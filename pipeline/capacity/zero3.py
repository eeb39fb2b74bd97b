"""ZeRO-3 as DeepSpeed 0.19 runs it: which bytes of the student lie where, and what its collectives send.

Sizes are in elements until they are named bytes. The rules are those of runtime/zero/stage3.py and
partitioned_param_coordinator.py of DeepSpeed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.errors import BadInput
from pipeline.training.engine import student_dtype, zero_stage
from pipeline.training.step import StudentWithLoss

MASTER, MOMENTS = 4, 8
"""Bytes per element of the float32 weights, and of AdamW's two moments."""


_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class ZeroSettings:
    """What an engine config says of memory; defaults are DeepSpeed's."""

    element: int
    """Bytes of a parameter's element; then, of a gradient's while it accumulates and while it is sent"""
    accumulation: int
    communication: int
    reduce_bucket: int
    prefetch: int
    reuse_distance: int
    persistent: int
    offload_optimizer: bool
    offload_parameters: bool

    def with_offload(self) -> ZeroSettings:
        """The same with the optimizer on the host."""
        return replace(self, offload_optimizer=True)


def read_settings(config: dict[str, Any], path: str) -> ZeroSettings:
    """Raises BadInput for a ZeRO stage other than 3."""
    if zero_stage(config) != 3:
        raise BadInput(f"plan counts ZeRO stage 3, and {path} has stage {zero_stage(config)}: give another --deepspeed")
    zero = config["zero_optimization"]
    element = student_dtype(config).itemsize
    return ZeroSettings(
        element=element,
        accumulation=_BYTES.get(config.get("data_types", {}).get("grad_accum_dtype"), element),
        communication=_BYTES.get(config.get("communication_data_type"), element),
        reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        reuse_distance=int(zero.get("stage3_max_reuse_distance", 1e9)),
        persistent=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        offload_parameters=zero.get("offload_param", {}).get("device", "none") != "none",
    )


@dataclass(frozen=True)
class Shards:
    """Bytes of the student's engine on one GPU, and on the host for one GPU."""

    parameters: int
    gradients: int
    bucket: int
    """Gradients on their way to be reduced: taken once, in full"""
    optimizer: int
    gathered: int
    """Most parameters that are whole at once"""
    reducing: int
    """Copy of the bucket while it is reduced"""
    stepping: int
    """Gradients in float32, and AdamW's workspace"""
    host: int
    reduced: int
    """All gradients, as they are sent"""
    persistent: int
    """Parameters too small to be given up: gathered once per optimizer step"""
    gathers: int
    """Other parameters that all-gathers bring together in one micro-step"""


def shards(module: StudentWithLoss, settings: ZeroSettings, ranks: int) -> Shards:
    """Works on parameters without memory."""
    element = settings.element
    sizes = [parameter.numel() for parameter in module.model.parameters()]
    total, shard = sum(sizes), sum(math.ceil(size / ranks) for size in sizes)
    persistent = sum(size for size in sizes if size < settings.persistent)
    most_whole, gathers = gathered_elements(_parameters_in_order(module), settings)
    in_flight = min(settings.prefetch, total - most_whole)
    gathered = persistent + most_whole + 2 * in_flight  # prefetched tensors are copied out of one flat buffer
    master = 0 if element == MASTER else MASTER  # float32 weights are their own master copy
    host = element * shard if settings.offload_parameters else 0
    if settings.offload_optimizer:
        host += (
            settings.accumulation + MASTER + MASTER + MOMENTS
        ) * shard  # gradients twice: as they come and in float32
    on_gpu = 0 if settings.offload_optimizer else 1
    return Shards(
        parameters=0 if settings.offload_parameters else element * shard,
        gradients=on_gpu * settings.accumulation * shard,
        bucket=settings.communication * settings.reduce_bucket,
        optimizer=on_gpu * (master + MOMENTS) * shard,
        gathered=0 if ranks == 1 else element * gathered,  # one rank works on its shard, which is everything
        reducing=settings.communication * min(total, max(settings.reduce_bucket, max(sizes))),
        stepping=on_gpu * 2 * MASTER * shard,
        host=host,
        reduced=settings.communication * total,
        persistent=element * persistent,
        gathers=element * gathers,
    )


def _parameters_in_order(module: StudentWithLoss) -> list[dict[int, int]]:
    """Parameters that each module of the forward has for itself, in order: {parameter: elements}."""
    unused = module.model.get_output_embeddings()  # the head runs as module.head, around the same weight
    modules = [part for part in module.modules() if part is not unused]
    sizes = [{id(p): p.numel() for p in part.parameters(recurse=False)} for part in modules]
    return [parameters for parameters in sizes if parameters]


def gathered_elements(order: Sequence[dict[int, int]], settings: ZeroSettings) -> tuple[int, int]:
    """Most elements that are whole at once, and elements gathered, over a forward and a backward.

    After a module, its parameters are given up unless one of the next modules, up to `reuse_distance` elements away,
    needs them again.
    """
    trace = [*order, *reversed(order)]
    trace = [{p: n for p, n in parameters.items() if n >= settings.persistent} for parameters in trace]
    whole: dict[int, int] = {}
    most = gathered = 0
    for index, parameters in enumerate(trace):
        gathered += sum(n for p, n in parameters.items() if p not in whole)
        whole |= parameters
        most = max(most, sum(whole.values()))
        soon: set[int] = set()
        distance = 0
        for later in trace[index + 1 :]:
            if distance >= settings.reuse_distance:
                break
            soon |= later.keys()
            distance += sum(later.values())
        whole = {p: n for p, n in whole.items() if p not in parameters or p in soon}
    return most, gathered
