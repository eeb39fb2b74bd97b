"""Fast-dLLM v2 (NVIDIA): Qwen2.5 continued as block diffusion, every row still predicting the next token."""

from __future__ import annotations

from pipeline.models.families.family import Family, Sampler

FAMILY = Family(
    name="Fast-dLLM v2",
    model_types=("Fast_dLLM_Qwen",),
    library="qwen2",
    inputs=("block",),
    fields=lambda raw: {**raw, "block_size": raw.get("bd_size", 32)},
    shifted=True,
    mask_token_id=151665,
    keeps_name=True,
    sampler=Sampler(first_alone=True),
)
