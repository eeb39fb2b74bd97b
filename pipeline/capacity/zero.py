"""The student's engine as DeepSpeed 0.19 runs it: what an engine file says of memory, and the bytes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.errors import BadInput
from pipeline.training.engine import student_dtype, zero_stage

MASTER, MOMENTS = 4, 8
"""Bytes per element of the float32 weights, and of AdamW's two moments."""

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class ZeroSettings:
    """What an engine config says of memory; defaults are DeepSpeed's."""

    stage: int
    element: int
    """Bytes per parameter element; the next two: per gradient element while it accumulates and while it is sent"""
    accumulation: int
    communication: int
    reduce_bucket: int
    prefetch: int
    reuse_distance: int
    persistent: int
    offload_optimizer: bool
    offload_parameters: bool

    def with_offload(self) -> ZeroSettings:
        """ZeRO-3 with the optimizer on the host: ds_configs/zero3_offload.json."""
        return replace(self, stage=3, offload_optimizer=True)


def read_settings(config: dict[str, Any], path: str) -> ZeroSettings:
    """Raises BadInput for a ZeRO stage other than 1 and 3, and for offload under ZeRO-1."""
    stage = zero_stage(config)
    if stage not in (1, 3):
        raise BadInput(f"plan counts ZeRO stages 1 and 3, and {path} has stage {stage}: give another --deepspeed")
    zero = config["zero_optimization"]
    element = student_dtype(config).itemsize
    offload = {
        part: zero.get(part, {}).get("device", "none") != "none" for part in ("offload_optimizer", "offload_param")
    }
    if stage == 1 and any(offload.values()):
        raise BadInput(
            f"plan counts offload under ZeRO-3, and {path} has it under ZeRO-1: see ds_configs/zero3_offload.json"
        )
    accumulation = _BYTES.get(str(config.get("data_types", {}).get("grad_accum_dtype")), element)
    if stage == 1 and (element, accumulation) != (2, 4):
        raise BadInput(
            f"plan counts ZeRO-1 with bf16 and grad_accum_dtype fp32, unlike {path}: see ds_configs/zero1_bf16.json"
        )
    return ZeroSettings(
        stage=stage,
        element=element,
        accumulation=accumulation,
        communication=_BYTES.get(str(config.get("communication_data_type")), element),
        reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        reuse_distance=int(zero.get("stage3_max_reuse_distance", 1e9)),
        persistent=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        offload_optimizer=offload["offload_optimizer"],
        offload_parameters=offload["offload_param"],
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
    """Most parameters that are whole at once for a while"""
    reducing: int
    """Copy of the bucket while it is reduced"""
    stepping: int
    """Gradients in float32, and AdamW's workspace"""
    host: int
    exchanged: dict[str, int]
    """What all ranks exchange per optimizer step, by collective; one GPU sends (ranks - 1) / ranks of it"""
