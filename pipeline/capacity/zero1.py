"""ZeRO-1: every rank has all weights and gradients, and a shard of the optimizer.

Sizes are in elements until they are named bytes. The rules are those of runtime/zero/stage_1_and_2.py of DeepSpeed.
"""

from __future__ import annotations

import math

from pipeline.capacity.zero import MASTER, MOMENTS, Shards, ZeroSettings
from pipeline.training.step import StudentWithLoss


def shards(module: StudentWithLoss, settings: ZeroSettings, ranks: int, micro_steps: int) -> Shards:
    """Works on parameters without memory."""
    element = settings.element
    total = sum(parameter.numel() for parameter in module.model.parameters())
    shard = math.ceil(total / ranks)
    master = 0 if element == MASTER else MASTER
    # the last micro-step's gradients move into the buckets as they are made; earlier ones accumulate outside
    accumulated = settings.accumulation * total if micro_steps > 1 else 0
    return Shards(
        parameters=element * total,
        gradients=accumulated + settings.accumulation * shard,
        bucket=settings.accumulation * settings.reduce_bucket * (2 if settings.overlap else 1),
        optimizer=(master + MOMENTS) * shard,
        gathered=0,
        reducing=0
        if settings.communication == settings.accumulation
        else settings.communication * settings.reduce_bucket,
        stepping=MASTER * shard,
        host=0,
        exchanged={
            "all-reduce: student's gradients": 2 * settings.communication * total,
            "all-gather: student's parameters": element * total,
        },
    )
