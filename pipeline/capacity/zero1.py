"""ZeRO-1 under bf16 with float32 sums of gradients: all weights and gradients on every rank, a shard of the optimizer.

Sizes are in elements until they are named bytes. The rules are those of runtime/bf16_optimizer.py of DeepSpeed, which runs
this combination.
"""

from __future__ import annotations

import math

from pipeline.capacity.zero import MASTER, MOMENTS, Shards, ZeroSettings
from pipeline.training.step import StudentWithLoss

REDUCED_AT_ONCE = 500_000_000
"""Elements after which a bucket of gradients is closed."""


def shards(module: StudentWithLoss, settings: ZeroSettings, ranks: int, _micro_steps: int) -> Shards:
    """Works on parameters without memory."""
    sizes = [parameter.numel() for parameter in module.model.parameters()]
    total, shard = sum(sizes), math.ceil(sum(sizes) / ranks)
    return Shards(
        parameters=settings.element * total,
        gradients=settings.accumulation * total,
        bucket=0,
        optimizer=(MASTER + MOMENTS) * shard,
        gathered=0,
        # those of one micro-step are whole when its activations are gone; then a flat copy of the sums
        reducing=settings.element * total + settings.accumulation * min(total, REDUCED_AT_ONCE + max(sizes)),
        stepping=MASTER * shard,
        host=0,
        exchanged={
            "all-reduce: student's gradients": 2 * settings.communication * total,
            "all-gather: student's parameters": settings.element * total,
        },
    )
