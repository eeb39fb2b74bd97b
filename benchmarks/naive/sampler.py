"""Block-diffusion sampling written plainly, with the work of the published sampler: the yardstick, not a part of the
pipeline.

Rows are padded on the left to whole blocks. Every block reads its whole prefix again into a new cache, every step copies
that cache, logits and probabilities are made for all positions of the block, and rows leave the batch together.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pipeline.decoding.canvas import GenerateConfig, transfer_counts


@torch.no_grad()
def generate(model: nn.Module, prompts: list[list[int]], config: GenerateConfig) -> list[list[int]]:
    """The responses, up to and including the first end token: those of the pipeline's sampler (greedy, `reference`)."""
    size, mask = config.block_size, model.config.mask_token_id
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    length = math.ceil(max(map(len, prompts)) / size) * size
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
    padding = torch.tensor([length - len(prompt) for prompt in prompts])
    blocks = math.ceil(config.max_new_tokens / size)
    for _ in range(blocks):
        start = ids.shape[1]
        ids = torch.cat([ids, torch.full((len(prompts), size), mask)], 1)
        column = torch.arange(ids.shape[1])
        positions = (column - padding[:, None]).clamp(min=0)
        visible = column // size <= column[:, None] // size
        visible = visible & (column >= padding[:, None])[:, None] | torch.eye(len(column), dtype=torch.bool)
        attention = visible.unsqueeze(1)
        prefix = DynamicCache(config=model.config)
        model(ids[:, :start], attention_mask=attention[..., :start, :start], position_ids=positions[:, :start],
              past_key_values=prefix, use_cache=True)  # fmt: skip
        for count in transfer_counts(size, math.ceil(config.steps / blocks)):
            logits = model(
                ids[:, start:], attention_mask=attention[..., start:, :], position_ids=positions[:, start:],
                past_key_values=copy.deepcopy(prefix), use_cache=True,
            ).logits.float()  # fmt: skip
            _commit(ids[:, start:], logits, count, mask, [i for i in (mask, pad) if i != end])
        if (ids[:, length:] == end).any(1).all():
            break
    return [_until_end(row[length:].tolist(), end) for row in ids]


def _commit(block: Tensor, logits: Tensor, count: int, mask: int, suppressed_ids: list[int]) -> None:
    """Decides the `count` most confident masked positions of every row, in place."""
    probabilities = logits.softmax(-1)
    logits[..., suppressed_ids] = -torch.inf
    tokens = logits.argmax(-1)
    confidence = probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    confidence[block != mask] = -torch.inf
    for row in range(len(block)):
        best = confidence[row].topk(count).indices
        block[row, best] = tokens[row, best]


def _until_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
