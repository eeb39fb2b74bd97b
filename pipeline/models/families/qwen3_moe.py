"""Qwen3-MoE (Qwen3-30B-A3B, 235B-A22B): an autoregressive teacher, or a block-diffusion model made of it."""

from __future__ import annotations

from pipeline.models.families.family import Family

FAMILY = Family(name="Qwen3-MoE", model_types=("qwen3_moe",), library="qwen3_moe", inputs=("causal", "block", "full"))
