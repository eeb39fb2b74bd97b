"""Llama: autoregressive, or a block-diffusion student made of it."""

from __future__ import annotations

from pipeline.models.families.family import Family

FAMILY = Family(name="Llama", model_types=("llama", "a2d-llama"), library="llama", inputs=("block", "full", "causal"))
