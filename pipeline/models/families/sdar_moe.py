"""SDAR-MoE (SDAR-30B-A3B): as SDAR, on Qwen3-MoE."""

from __future__ import annotations

from pipeline.models.families.family import Family
from pipeline.models.families.sdar import sdar_fields

FAMILY = Family(
    name="SDAR-MoE",
    model_types=("sdar_moe",),
    library="qwen3_moe",
    inputs=("block",),
    fields=sdar_fields,
    mask_token_id=151669,
    block_size=4,
    keeps_name=True,
    student=False,
)
