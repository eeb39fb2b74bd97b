"""LLaDA2.0 and 2.1 (inclusionAI, arXiv 2512.15745), mini and flash: our own class (llada2_moe.py). 2.1 differs in its sampler alone."""

from __future__ import annotations

from pipeline.models.families.family import Family, Raw


def _fields(raw: Raw) -> Raw:
    if raw.get("num_key_value_heads") == 0:  # 2.1: as many as heads
        return {**raw, "num_key_value_heads": raw["num_attention_heads"]}
    return raw


FAMILY = Family(
    name="LLaDA2",
    model_types=("llada2_moe", "llada2_moe_veomni", "llada21_moe"),
    library="llada2_moe",
    inputs=("block", "full"),
    fields=_fields,
    names=((".gate.e_score_correction_bias", ".gate.expert_bias"),),
    mask_token_id=156895,
)
