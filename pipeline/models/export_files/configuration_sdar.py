"""SDAR's configuration for transformers, which knows no SDAR: what config.json says, as attributes.

Servers read `rope_theta` and `rope_scaling` there; transformers' own classes keep them in `rope_parameters` alone.
"""

from typing import Any

from transformers import PretrainedConfig


class SDARConfig(PretrainedConfig):
    """Of a block-diffusion model computed as Qwen3."""

    model_type = "sdar"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  as transformers declares it

    def __init__(self, rope_theta: float = 1_000_000.0, rope_scaling: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rope_theta, self.rope_scaling = rope_theta, rope_scaling
