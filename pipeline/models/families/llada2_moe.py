"""LLaDA2-MoE (inclusionAI, arXiv 2512.15745) as a transformers model: non-causal, every mask explicit.

Shapes: B batch, L query positions, K key positions (L without a cache), H hidden, D head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModelForCausalLM, Cache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from pipeline.models.families.llada2_moe_layers import MLP, Gate, MoE
from pipeline.models.flex_attention import attend

# Options of the published config class that change the computation, and the one value that published models use.
FIXED_OPTIONS = {
    "embedding_dropout": 0.0,
    "hidden_act": "silu",
    "moe_router_enable_expert_bias": True,
    "norm_head": False,
    "norm_topk_prob": True,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "use_sliding_window": False,
    "using_split_qkv_in_self_attention": False,
}


@strict
class LLaDA2MoeConfig(PreTrainedConfig):
    """Defaults are LLaDA2.0-mini's. Raises ValueError for sizes that do not divide, and for options not supported."""

    model_type = "llada2_moe"

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    first_k_dense_replace: int = 1
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float | int = 600000
    partial_rotary_factor: float = 0.5
    num_experts: int = 256
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    num_shared_experts: int = 1
    moe_intermediate_size: int = 512
    routed_scaling_factor: float | int = 2.5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.pop("rope_scaling", None) is not None:
            raise ValueError("rope_scaling is not supported")
        for name, value in FIXED_OPTIONS.items():
            if kwargs.setdefault(name, value) != value:
                raise ValueError(f"{name}={kwargs[name]!r} is not supported, only {value!r}")
        if self.num_experts % self.n_group or self.num_experts < 2 * self.n_group:
            raise ValueError(f"{self.num_experts} experts do not form {self.n_group} groups of two or more")
        if self.num_experts_per_tok > self.topk_group * self.num_experts // self.n_group:
            raise ValueError(f"{self.topk_group} groups hold fewer than {self.num_experts_per_tok} experts")
        super().__post_init__(**kwargs)


def check_mask(mask: Tensor | BlockMask | None) -> None:
    """Raises ValueError unless the mask is explicit: bool [B, 1, L, K], True = may attend (or one for FlexAttention)."""
    if isinstance(mask, BlockMask):
        return
    if mask is None or mask.dtype != torch.bool or mask.ndim != 4:
        given = "none" if mask is None else f"{mask.dtype} with {mask.ndim} dimensions"
        raise ValueError(f"attention_mask must be bool [batch, 1, queries, keys], True = may attend; given: {given}")


def rotary_angles(positions: Tensor, theta: float, dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [B, 1, L, dim / 2]; computed anew, as a buffer would not survive the meta device."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    angles = positions[:, None, :, None].float() / theta**exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first dimensions of each head, half-split; the others pass. x [B, heads, L, D]."""
    half = cos.shape[-1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with q/k norms before the rotary embedding."""

    def __init__(self, config: LLaDA2MoeConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=False)
        self.query_layernorm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.key_layernorm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.dense = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor:
        fused = self.query_key_value(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = fused.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(self.query_layernorm(q), cos, sin), rotate(self.key_layernorm(k), cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        if isinstance(mask, BlockMask):
            return self.dense(attend(self, q, k, v, mask)[0].flatten(2))
        # With a mask, grouped heads would fall back to the slow kernel on CUDA: repeat them.
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
        return self.dense(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: LLaDA2MoeConfig, layer: int):
        super().__init__()
        dense = layer < config.first_k_dense_replace
        self.attention = Attention(config, layer)
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, past_key_values: Cache | None = None
    ) -> Tensor:
        hidden = hidden + self.attention(self.input_layernorm(hidden), mask, cos, sin, past_key_values)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LLaDA2MoePreTrainedModel(PreTrainedModel):
    config_class = LLaDA2MoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _input_embed_layer = "word_embeddings"

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers looks for its own registry in this file, and warns; `attend` takes every kind of mask."""
        return True


class LLaDA2MoeModel(LLaDA2MoePreTrainedModel):
    def __init__(self, config: LLaDA2MoeConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,  # what transformers' callers pass; the cache is the one that is given
    ) -> BaseModelOutputWithPast:
        """input_ids [B, L], attention_mask bool [B, 1, L, K] -> last_hidden_state [B, L, H], after the final norm.

        position_ids [B, L] default to those after the cache. Raises ValueError for a missing mask.
        """
        if attention_mask is None:
            check_mask(attention_mask)  # of other kinds, additive ones are right here: loading makes them
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
        rotary_dim = int(self.config.head_dim * self.config.partial_rotary_factor)
        cos, sin = rotary_angles(position_ids, self.config.rope_theta, rotary_dim)
        hidden = self.word_embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask, cos, sin, past_key_values=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class LLaDA2MoeModelLM(LLaDA2MoePreTrainedModel):
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012  as transformers declares it

    def __init__(self, config: LLaDA2MoeConfig):
        super().__init__(config)
        self.model = LLaDA2MoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutputWithPast:
        """As the inner model; logits [B, L, vocabulary], or of the positions that `logits_to_keep` names (as transformers')."""
        check_mask(attention_mask)
        output = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        kept = slice_logits_to_keep(output.last_hidden_state, logits_to_keep)
        return CausalLMOutputWithPast(logits=self.lm_head(kept), past_key_values=output.past_key_values)

    @torch.no_grad()
    def update_selection_bias(self, rate: float) -> None:
        """Balances experts without an auxiliary loss: bias += rate * sign(mean - tokens), then counts start anew.

        Collective when torch.distributed is initialised. Called after an optimizer step (DeepSeek-V3, 2.1.2).
        """
        gates = [module for module in self.modules() if isinstance(module, Gate)]
        if not gates:
            return
        counts = torch.stack([gate.tokens_per_expert for gate in gates])
        if dist.is_initialized():
            dist.all_reduce(counts)
        steps = rate * (counts.float().mean(1, keepdim=True) - counts).sign()
        for gate, step in zip(gates, steps, strict=True):
            gate.e_score_correction_bias += step
            gate.tokens_per_expert.zero_()


AutoConfig.register(LLaDA2MoeConfig.model_type, LLaDA2MoeConfig)
AutoModelForCausalLM.register(LLaDA2MoeConfig, LLaDA2MoeModelLM)
