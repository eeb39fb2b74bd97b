"""A model's size and arithmetic, counted on parameters without memory."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from pipeline.models.families.llada2_moe_layers import MoE


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward pass, a multiplication and an addition counting as two."""

    token: int
    """Per token through the layers, attention and head left out: twice the weights that it meets"""
    experts: int
    """Of these, in routed experts"""
    pair: int
    """Per token attending to another one, in all layers"""
    head: int
    """Per row of the LM head"""

    def forward(self, width: float) -> float:
        """Per token that attends to `width` tokens; masked pairs are computed like others."""
        return self.token + self.pair * width


@dataclass(frozen=True)
class ModelStats:
    """Weights of a model, whole, and what passes through it."""

    parameters: int
    dense_bytes: int
    """Weights that every rank holds"""
    expert_bytes: int
    """Weights of all routed experts"""
    moe_layers: int
    routed_bytes: int
    """What one token sends to its experts in one layer; 0 without experts"""
    flops: Flops


def model_stats(model: PreTrainedModel) -> ModelStats:
    """Sizes in the model's dtype."""
    config, element = model.config, model.dtype.itemsize
    mixtures = [module for module in model.modules() if isinstance(module, MoE | Qwen3MoeSparseMoeBlock)]
    parameters = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for module in mixtures for p in module.experts.parameters())
    return ModelStats(
        parameters=parameters,
        dense_bytes=(parameters - experts) * element,
        expert_bytes=experts * element,
        moe_layers=len(mixtures),
        routed_bytes=config.num_experts_per_tok * config.hidden_size * element if mixtures else 0,
        flops=_flops(model, experts),
    )


def _flops(model: PreTrainedModel, experts: int) -> Flops:
    config = model.config
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in ends)
    met = experts * config.num_experts_per_tok // config.num_experts if experts else 0
    matrices += met - experts
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Flops(2 * matrices, 2 * met, 4 * heads * width * layers, 2 * model.get_output_embeddings().weight.numel())
