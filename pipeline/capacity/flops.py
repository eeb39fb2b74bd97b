"""Floating-point operations of a model, a multiplication and an addition counting as two."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from pipeline.models.experts import MoE


@dataclass(frozen=True)
class Flops:
    """Of one forward pass."""

    token: int
    """Of one token through the layers, attention and head left out: twice the weights that it meets"""
    pair: int
    """Of one token attending to another, in all layers"""
    head: int
    """Of one row of the LM head"""

    def forward(self, width: float) -> float:
        """Of one token that attends to so many; masked pairs are computed like others."""
        return self.token + self.pair * width


def flops(model: nn.Module) -> Flops:
    """Works on parameters without memory."""
    config: PreTrainedConfig = model.config
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in ends)
    for module in model.modules():
        if isinstance(module, MoE):
            experts = sum(p.numel() for p in module.experts.parameters())
            matrices -= experts - experts * config.num_experts_per_tok // config.num_experts
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Flops(2 * matrices, 4 * heads * width * layers, 2 * model.get_output_embeddings().weight.numel())
