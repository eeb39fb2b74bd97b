"""Models under packed rows: one mask per forward, hidden states and scores where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.packing import Packed
from pipeline.method.attention_mask import attention_mask
from pipeline.method.chunked_lm_head import chunked_lm_head, token_log_prob


def hidden_states(model: nn.Module, packed: Packed, indices: Tensor) -> Tensor:
    """Final hidden states at the flat `indices` of packed rows: [N, H]."""
    as_inputs: Callable[..., dict[str, Any]] = getattr(model, "packed_inputs", dense_inputs)  # set by `use_flex`
    output = cast(nn.Module, model.model)(**as_inputs(packed))
    return output.last_hidden_state.flatten(0, 1)[indices]


def head_weight(model: nn.Module) -> Tensor:
    """Of the LM head: [V, H]."""
    return cast(PreTrainedModel, model).get_output_embeddings().weight


def head_of(model: PreTrainedModel | None) -> Tensor | None:
    """`head_weight` of a model that may not be there, as its answers are stored."""
    return None if model is None else head_weight(model)


def dense_inputs(packed: Packed) -> dict[str, Any]:
    """The model's arguments for packed rows, with a dense mask."""
    mask = attention_mask(packed.document, packed.block, packed.noisy)
    return {"input_ids": packed.ids, "position_ids": packed.positions, "attention_mask": mask}


def windowed_inputs(window: int, by_layer: bool, packed: Packed) -> dict[str, Any]:
    """As `dense_inputs`, for layers that see no further back than a window (Mistral), or some layers (Gemma 3)."""
    inputs = dense_inputs(packed)
    everything, position = inputs["attention_mask"], packed.positions
    near = everything & (position[:, None, :, None] - position[:, None, None, :] < window)
    return inputs | {"attention_mask": {"full_attention": everything, "sliding_attention": near} if by_layer else near}


def score_tokens(
    model: nn.Module,
    packed: Packed,
    indices: Tensor,
    tokens: Tensor,
    score: Callable[[Tensor, Tensor], Tensor] = token_log_prob,
) -> Tensor:
    """`score(logits, tokens)` at the flat `indices` of packed rows, whose logits exist a chunk at a time: [N] or [N, k]."""
    hidden = hidden_states(model, packed, indices)
    return chunked_lm_head(lambda logits, chunk: score(logits, tokens[chunk]), hidden, head_weight(model))


def log_prob_and_hit(logits: Tensor, tokens: Tensor) -> Tensor:
    """A score: log-probability of the token, and 1 where it is the likeliest: [c, V], int [c] -> [c, 2]."""
    return torch.stack([token_log_prob(logits, tokens), (logits.argmax(-1) == tokens).float()], 1)
