"""Qwen2 and Qwen2.5: autoregressive, or a block-diffusion student made of it."""

from __future__ import annotations

from pipeline.models.families.family import Family

FAMILY = Family(name="Qwen2", model_types=("qwen2", "a2d-qwen2"), library="qwen2", inputs=("block", "full", "causal"))
