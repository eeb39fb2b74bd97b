"""SDAR-MoE (SDAR-30B-A3B): as SDAR, on Qwen3-MoE."""

from __future__ import annotations

from dataclasses import replace

from pipeline.models.families import sdar

FAMILY = replace(sdar.FAMILY, name="SDAR-MoE", model_types=("sdar_moe",), library="qwen3_moe", student=False)
