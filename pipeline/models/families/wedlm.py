"""WeDLM (Tencent): Qwen3 with q/k norms, Qwen2 without. Its mask id stands in its code alone."""

from __future__ import annotations

from pipeline.models.families.family import Family

FAMILY = Family(
    name="WeDLM",
    model_types=("wedlm",),
    library="qwen3",
    inputs=("block",),
    fields=lambda raw: raw if raw.get("qk_norm", True) else {**raw, "library": "qwen2"},
    mask_token_id=151665,
)
