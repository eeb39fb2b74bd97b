"""Block-diffusion decoding for transformers' `generate`, with nothing but torch and transformers:

    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, max_new_tokens=256, threshold=0.9)

Blocks are decided from left to right. Every token of a block starts as a mask; a forward over the block gives each of
them a token and its probability, and the most probable ones stay. Keys and values of finished blocks are cached.

Shapes: R rows, T columns of all rows, B columns of a block, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

PADDING = torch.iinfo(torch.long).max  # block of a padding column: after every real one, so no real query sees it


@dataclass(frozen=True)
class Settings:
    """How to decode."""

    max_new_tokens: int
    block_size: int
    blocks: str
    """Where blocks are counted from: the start of the `sequence` or of the `response`."""
    steps: int
    """Forwards over max_new_tokens; a threshold takes its place."""
    threshold: float | None
    """Keep every token that is at least this probable, and one per forward in any case."""
    temperature: float
    """0 takes the likeliest token."""
    seed: int


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    streamer: BaseStreamer | None = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    block_size: int | None = None,
    blocks: str | None = None,
    steps: int | None = None,
    threshold: float | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    token_type_ids: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """Prompts and responses, int64 [R, prompt + response], padded on the right behind the first end token.

    inputs or input_ids: [R, L]; attention_mask: [R, L], 0 at padding, on either side. The streamer gets a block at a
    time (one row only). Block size and `blocks` are the model's unless given; steps: max_new_tokens unless given.
    A response depends on its prompt and the seed, never on its batch. Raises ValueError for what it cannot follow.
    """
    if unknown := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"block-diffusion decoding knows no {', '.join(unknown)}")
    ids = inputs if input_ids is None else input_ids
    if ids is None:
        raise ValueError("give input_ids")
    if streamer is not None and len(ids) > 1:
        raise ValueError("a streamer takes one row")
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError("block diffusion needs its own mask: load the model with attn_implementation='sdpa'")
    if max_new_tokens is None:
        max_new_tokens = (generation_config or model.generation_config).max_new_tokens or 256
    settings = Settings(
        max_new_tokens=max_new_tokens,
        block_size=model.config.block_size if block_size is None else block_size,
        blocks=getattr(model.config, "blocks", "sequence") if blocks is None else blocks,
        steps=max_new_tokens if steps is None else steps,
        threshold=threshold,
        temperature=temperature,
        seed=seed,
    )
    if min(settings.max_new_tokens, settings.block_size, settings.steps) < 1:
        raise ValueError("max_new_tokens, block_size and steps must be at least 1")
    if settings.blocks not in ("sequence", "response"):
        raise ValueError(f"blocks {settings.blocks!r} must be 'sequence' or 'response'")

    kept = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends)
    responses = _decode(model, [row[k] for row, k in zip(ids, kept, strict=True)], settings, ends, streamer)
    padding = next(i for i in (model.config.pad_token_id, ends[0]) if i is not None)
    return torch.cat([ids, torch.nn.utils.rnn.pad_sequence(responses, True, padding)], 1)


def _decode(
    model: PreTrainedModel, prompts: list[Tensor], s: Settings, ends: list[int], streamer: BaseStreamer | None
) -> list[Tensor]:
    """The responses, up to and including the first end token. Every row stays until the last one has ended."""
    device, size = model.device, s.block_size
    ahead = int(getattr(model.config, "shifted", False))  # whether a row predicts the next token, instead of its own
    length = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    shift = -length % size if s.blocks == "response" else torch.zeros_like(length)
    start = (length + shift) // size * size - shift  # position where a row's first generated block starts
    end = length + s.max_new_tokens

    # Columns: what lies before each row's first generated block, padded on the left; then the blocks side by side.
    first = int(start.max())
    position = torch.arange(first + int((end - start).max()), device=device) - first + start
    real = (position >= 0) & (position < end)
    block = ((position + shift) // size).masked_fill(~real, PADDING)
    response = real & (position >= length)
    ids = torch.full_like(position, model.config.mask_token_id)
    ids[real & ~response] = torch.cat(prompts)
    masked, position = response.clone(), position.masked_fill(~real, 0)

    end_ids = torch.tensor(ends, device=device)
    special = (model.config.mask_token_id, model.config.pad_token_id)
    suppressed_ids = [i for i in special if i is not None and i not in ends]  # a padding id may be an end token
    generators = [_generator(s.seed, *prompt.tolist()) for prompt in prompts]
    cache = DynamicCache()
    if streamer is not None:
        streamer.put(prompts[0].cpu())
    for left in range(first, ids.shape[1], size):
        right = min(left + size, ids.shape[1])
        counts = zip_longest(*(_schedule(n, s) for n in masked[:, left:right].sum(1).tolist()), fillvalue=0)
        for count in counts:
            if not masked[:, left:right].any() or _ended(ids, masked, response, end_ids).all():
                break
            # What the cache lacks is read with the block: the prompt, later the block before it, and the row that predicts.
            known = cache.get_seq_length()
            hidden = block[:, None, None, :right] > block[:, None, known:right, None]  # [R, 1, new, all]
            logits = model(
                input_ids=ids[:, known:right],
                position_ids=position[:, known:right],
                attention_mask=torch.zeros(hidden.shape, dtype=model.dtype, device=device).masked_fill(
                    hidden, -math.inf
                ),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=right - left + ahead,
            ).logits.float()
            if ahead:  # the very first column has no row but its own
                logits = torch.cat([logits[:, :1], logits], 1)[:, left - right - 1 : -1]
            cache.crop(max(left - ahead, 0) - right)  # this block is not final yet
            tokens, confidence = _choose(logits, masked[:, left:right], suppressed_ids, s.temperature, generators)
            rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            chosen = rank < torch.tensor(count, device=device)[:, None]
            if s.threshold is not None:
                chosen |= confidence >= s.threshold
            chosen &= masked[:, left:right]
            ids[:, left:right] = torch.where(chosen, tokens, ids[:, left:right])
            masked[:, left:right] &= ~chosen
        if streamer is not None:
            streamer.put(_until_end(ids[0, left:right][response[0, left:right]], end_ids).cpu())
        if _ended(ids, masked, response, end_ids).all():
            break
    if streamer is not None:
        streamer.end()
    return [_until_end(row[r], end_ids) for row, r in zip(ids, response, strict=True)]


def _choose(
    logits: Tensor, masked: Tensor, suppressed_ids: list[int], temperature: float, generators: list[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """A token for each position and its probability, -1 where nothing is masked: [R, B, V] -> [R, B] each."""
    allowed = logits.clone()
    allowed[..., suppressed_ids] = -math.inf
    if temperature > 0:  # Gumbel noise, from each row's own generator
        for row, here, generator in zip(allowed, masked, generators, strict=True):
            noise = torch.empty(int(here.sum()), logits.shape[-1]).exponential_(generator=generator)
            row[here] -= temperature * noise.log().to(row.device)
    tokens = allowed.argmax(-1)
    confidence = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return tokens, confidence.masked_fill(~masked, -1.0)


def _schedule(masked: int, s: Settings) -> list[int]:
    """Tokens to keep at each forward of a block with that many masks: going from time t to s, the share 1 - s / t."""
    if s.threshold is not None:
        return [1] * masked
    if s.blocks == "response":
        steps = math.ceil(s.steps / math.ceil(s.max_new_tokens / s.block_size))
    else:
        steps = math.ceil(s.steps * masked / s.max_new_tokens)
    t = 1 - (1 - torch.arange(steps, -1, -1) / steps)
    counts = []
    for share in 1 - t[1:] / t[:-1]:
        counts.append(int((masked * share).round()))
        masked -= counts[-1]
    return [count for count in counts if count]


def _generator(*key: int) -> torch.Generator:
    """For this seed and prompt alone, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _ended(ids: Tensor, masked: Tensor, response: Tensor, ends: Tensor) -> Tensor:
    """Rows with an end token, all before it being decided: bool [R]."""
    return (torch.isin(ids, ends) & response & (masked.cumsum(1) == 0)).any(1)


def _until_end(tokens: Tensor, ends: Tensor) -> Tensor:
    """Up to and including the first end token."""
    at = torch.isin(tokens, ends).nonzero()
    return tokens[: at[0, 0] + 1] if len(at) else tokens
