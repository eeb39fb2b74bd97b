"""SDAR (JetAstra): Qwen3 continued as block diffusion, blocks counted from the start of the sequence, no shift.

Folders on the hub may lack block size and mask id: those published are 4 and 151669.
"""

from __future__ import annotations

from pipeline.models.families.family import Family, Sampler, without

INERT = (
    "attn_implementation", "debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep",
)  # fmt: skip
"""Settings of its training code."""


FAMILY = Family(
    name="SDAR",
    model_types=("sdar",),
    library="qwen3",
    inputs=("block",),
    fields=lambda raw: without(raw, *INERT),
    mask_token_id=151669,
    block_size=4,
    keeps_name=True,
    sampler=Sampler(counts="even"),
)
