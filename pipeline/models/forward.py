"""Models under packed rows' masks: boolean ones, or FlexAttention's (recipe: `attention: flex`), which skip hidden tiles.

FlexAttention is compiled on a GPU; elsewhere it is the plain computation, without gradients, for comparisons.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.data.packing import Packed
from pipeline.method.attention_mask import attention_mask, blocks_for_flex
from pipeline.method.chunked_lm_head import RowFunction, head_rows, token_log_prob

NAME = "mask_in_blocks"


def hidden_states(model: nn.Module, packed: Packed, places: Tensor) -> Tensor:
    """Final hidden states at the flat `places` of packed rows: [places, H]."""
    build_mask = getattr(model, "build_mask", attention_mask)  # set by `use_flex`
    mask = build_mask(packed.document, packed.block, packed.noisy)
    output = model.model(input_ids=packed.ids, attention_mask=mask, position_ids=packed.positions)
    return output.last_hidden_state.flatten(0, 1)[places]


def score_tokens(
    model: nn.Module, packed: Packed, indices: Tensor, tokens: Tensor, score: RowFunction = token_log_prob
) -> Tensor:
    """`score(logits, tokens)` at the flat `indices` of packed rows, whose logits exist a chunk at a time: [N] or [N, k]."""
    hidden = hidden_states(model, packed, indices)
    return head_rows(score, hidden, model.get_output_embeddings().weight, tokens)


def log_prob_and_hit(logits: Tensor, tokens: Tensor) -> Tensor:
    """A score: log-probability of the token, and 1 where it is the likeliest: [c, V], int [c] -> [c, 2]."""
    return torch.stack([token_log_prob(logits, tokens), (logits.argmax(-1) == tokens).float()], 1)


def use_flex(model: PreTrainedModel) -> None:
    """From here on the model is trained under masks in blocks; boolean ones still work."""
    model.set_attn_implementation(NAME)
    model.build_mask = blocks_for_flex


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor,
    scaling: float | None = None,
    **_options: object,
) -> tuple[Tensor, None]:
    """transformers' attention: [B, heads, L, D] (fewer heads in key and value) -> [B, L, heads, D], no weights."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, is_causal=False)
    run = _compiled() if query.is_cuda else flex_attention
    attended = run(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2).contiguous(), None


@cache
def _compiled():
    return torch.compile(flex_attention, dynamic=True)  # rows of packed micro-batches have many lengths


AttentionInterface.register(NAME, attend)
