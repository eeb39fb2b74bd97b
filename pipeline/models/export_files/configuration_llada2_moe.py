"""LLaDA2's configuration for transformers, which knows no LLaDA2: what config.json says, as attributes."""

from transformers import PretrainedConfig


class LLaDA2MoeConfig(PretrainedConfig):
    """Of a LLaDA2 mixture of experts."""

    model_type = "llada2_moe"
