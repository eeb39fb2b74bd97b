"""Dream-7B (HKU): Qwen2.5 made bidirectional, every row still predicting the next token."""

from __future__ import annotations

from pipeline.models.families.family import Family, Raw, Sampler, only


def _fields(raw: Raw) -> Raw:
    only(raw, use_mrope=False)
    return raw


FAMILY = Family(
    name="Dream",
    model_types=("Dream", "dream"),
    library="qwen2",
    inputs=("full",),
    fields=_fields,
    shifted=True,
    mask_token_id=151666,
    keeps_name=True,
    sampler=Sampler(sees="everything", blocks="none", counts="by_time"),
)
