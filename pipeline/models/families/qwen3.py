"""Qwen3: autoregressive, or a block-diffusion student made of it (BD3LM, `convert`), whose published name is a2d-qwen3."""

from __future__ import annotations

from pipeline.models.families.family import Family

FAMILY = Family(name="Qwen3", model_types=("qwen3", "a2d-qwen3"), library="qwen3", inputs=("block", "full", "causal"))
