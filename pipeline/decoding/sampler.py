"""Block-diffusion decoding: blocks from left to right, the masks inside a block resolved by confidence.

Shapes: R rows still decoding, T canvas columns, B columns of a block, N masked positions, V vocabulary.

All columns are laid out before decoding: every row's prompt up to its first generated block, padded on the right to the
longest, then the generated blocks side by side. The first forward of a block also reads the columns decided since the
last block began (the prompt, later the block before), so the key-value cache grows without forwards of its own, and
in place.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from pipeline.core.rng import generator_for
from pipeline.decoding.kv_cache import buffers

PADDING = torch.iinfo(torch.long).max  # block of a padding column: after every real one, so no real query sees it


@dataclass(frozen=True)
class GenerateConfig:
    """How to decode. Raises ValueError for settings that cannot decode."""

    max_new_tokens: int
    """Longest response, in tokens."""
    block_size: int
    """Tokens decoded together; each sees its whole block and all blocks before."""
    steps: int
    """Forwards over max_new_tokens, shared out over the blocks; a threshold takes its place."""
    temperature: float = 0.0
    """0 takes the likeliest token; otherwise tokens are drawn from softmax(logits / temperature)."""
    threshold: float | None = None
    """Commit every token that is at least this probable, and one a forward in any case; None = as `steps` says."""
    blocks: Literal["reference", "training"] = "reference"
    """`reference`: blocks are counted from the response's first token, as the published sampler does. `training`: from
    the start of the sequence, as training cuts them, so the first generated block opens with the prompt's tail."""
    seed: int = 0
    """Seed of sampling; a response depends on the seed and its own prompt, never on its batch."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "block_size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature} must not be negative")
        if self.threshold is not None and self.threshold <= 0:
            raise ValueError(f"threshold {self.threshold} must be positive, or None")
        if self.blocks not in ("reference", "training"):
            raise ValueError(f"blocks {self.blocks!r} must be 'reference' or 'training'")


def generate(model: nn.Module, prompts: list[list[int]], config: GenerateConfig) -> list[list[int]]:
    """The response to each prompt: new tokens only, up to and including the first end token.

    `model(input_ids=, attention_mask=bool [R, 1, Q, K], position_ids=).logits`, in eval mode; a model that also takes
    `past_key_values` decodes with a cache, any other reads the whole sequence at every step. Mask, end and padding ids
    come from `model.config` (`eos_token_id` may be a list). A response holds no mask id, and no padding id unless
    that is an end token too.

    Prompts of any lengths share a batch: padding is told by place, not by id (the published sampler hides every padding
    id, inside prompts too). A row leaves the batch once its response is decided.

    Raises ValueError when model.config names no mask or end token.
    """
    return [response.tokens for response in decode(model, prompts, config)]


@dataclass(frozen=True)
class Response:
    """A response and how it came about."""

    tokens: list[int]
    """Up to and including the first end token."""
    filled: list[int]
    """The forward that decided each token, counted from 1."""
    forwards: int
    """Forwards in all; waiting for the rest of the batch does not count."""


def decode(model: nn.Module, prompts: list[list[int]], config: GenerateConfig) -> list[Response]:
    """`generate`'s responses, with the order in which their positions were filled."""
    if not prompts:
        return []
    special = SpecialTokens.of(model)
    generators = [generator_for(config.seed, *prompt) for prompt in prompts]
    with torch.inference_mode():
        canvas = Canvas.lay_out(prompts, config, special.mask, next(model.parameters()).device)
        _fill(Reader.of(model, canvas.ids.shape[1]), canvas, config, special, generators)
    return [canvas.read(row, special.ends) for row in range(len(prompts))]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of special roles."""

    mask: int
    ends: list[int]
    never: list[int]
    """Ids that are never committed."""

    @classmethod
    def of(cls, model: nn.Module) -> SpecialTokens:
        mask, ends, padding = (getattr(model.config, f"{role}_token_id", None) for role in ("mask", "eos", "pad"))
        if mask is None or ends is None:
            raise ValueError("model.config must name mask_token_id and eos_token_id")
        ends = [ends] if isinstance(ends, int) else list(ends)
        # Models pad with an end token (Qwen3 has two, LLaDA2 one): that must stay possible.
        return cls(mask, ends, [i for i in (mask, padding) if i is not None and i not in ends])


@dataclass
class Canvas:
    """Every column of every row: [R, T] each, but for the last two fields."""

    ids: Tensor
    positions: Tensor
    blocks: Tensor
    """Block of each column; PADDING outside its row."""
    response: Tensor
    """bool: columns of new tokens."""
    masked: Tensor
    """bool: those still to be decided. A mask id inside a prompt is text."""
    filled: Tensor
    """The forward that decided each column; 0 = none."""
    forwards: Tensor
    """[R]: forwards that a row took part in with something to decide."""
    first: int
    """Column of the first generated block."""

    @classmethod
    def lay_out(cls, prompts: list[list[int]], config: GenerateConfig, mask: int, device: torch.device) -> Canvas:
        size = config.block_size
        length = torch.tensor([len(p) for p in prompts], device=device)[:, None]
        shift = -length % size if config.blocks == "reference" else torch.zeros_like(length)
        start = (length + shift) // size * size - shift  # position where the row's first generated block starts
        end = length + config.max_new_tokens
        first = int(start.max())

        column = torch.arange(first + int((end - start).max()), device=device)
        positions = torch.where(column < first, column, column - first + start)
        real = torch.where(column < first, column < start, positions < end)
        ids = torch.full_like(positions, mask)
        ids[real & (positions < length)] = torch.tensor(list(chain(*prompts)), dtype=torch.long, device=device)
        response = real & (positions >= length)
        return cls(
            ids=ids,
            positions=positions.masked_fill(~real, 0),
            blocks=((positions + shift) // size).masked_fill(~real, PADDING),
            response=response,
            masked=response.clone(),
            filled=torch.zeros_like(ids),
            forwards=torch.zeros_like(length[:, 0]),
            first=first,
        )

    def read(self, row: int, ends: list[int]) -> Response:
        """A row's response, once it is decided."""
        tokens, filled = (x[row, self.response[row]].tolist() for x in (self.ids, self.filled))
        stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        return Response(tokens[:stop], filled[:stop], int(self.forwards[row]))


@dataclass
class Reader:
    """The model and, where it takes one, the cache of the columns before the block in work."""

    model: nn.Module
    cache: Cache | None
    selects: bool
    """Whether the model's head can be spared the positions that nobody asks for."""

    @classmethod
    def of(cls, model: nn.Module, columns: int) -> Reader:
        takes = inspect.signature(model.forward).parameters
        cache = buffers(columns) if "past_key_values" in takes else None
        return cls(model, cache, "logits_to_keep" in takes)

    def logits(self, canvas: Canvas, rows: Tensor, block: slice, masked: Tensor) -> Tensor:
        """Float32 logits [N, V] of the masked positions (bool [R, B]) of a block, row by row."""
        known = self.cache.get_seq_length() if self.cache is not None else 0
        new = slice(known, block.stop)
        blocks = canvas.blocks[rows, : block.stop]
        arguments = {
            "input_ids": canvas.ids[rows, new],
            "position_ids": canvas.positions[rows, new],
            # Padding sees everything: a query without a key would turn into NaN.
            "attention_mask": blocks[:, None, None, :] <= blocks[:, None, new, None],
        }
        if self.cache is not None:
            arguments |= {"past_key_values": self.cache, "use_cache": True}
        wanted = F.pad(masked, (block.start - known, 0))
        if self.selects:
            logits = self.model(**arguments, logits_to_keep=wanted).logits
        else:
            logits = self.model(**arguments).logits[wanted]
        if self.cache is not None:
            self.cache.crop(block.start - block.stop)  # this block is not final yet
        return logits.float()

    def keep(self, rows: Tensor) -> None:
        """Forgets the rows that left: bool [R]."""
        if self.cache is not None:
            self.cache.batch_select_indices(rows)


def _fill(
    reader: Reader, canvas: Canvas, config: GenerateConfig, special: SpecialTokens, generators: list[torch.Generator]
) -> None:
    """Decides the canvas in place, except columns behind a row's first end token."""
    width, device = canvas.ids.shape[1], canvas.ids.device
    rows = torch.arange(len(generators), device=device)
    for start in range(canvas.first, width, config.block_size):
        block = slice(start, min(start + config.block_size, width))
        schedules = [_schedule(n, config) for n in canvas.masked[:, block].sum(1).tolist()]
        for counts in zip_longest(*schedules, fillvalue=0):
            masked = canvas.masked[rows, block]
            if not masked.any():
                break
            canvas.forwards[rows] += masked.any(1).long()
            logits = reader.logits(canvas, rows, block, masked)
            noise = None
            if config.temperature > 0:
                noise = config.temperature * _gumbel(masked, logits.shape[1], [generators[i] for i in rows.tolist()])
            tokens, confidence = _choose(logits, special.never, noise)
            count = torch.tensor(counts, device=device)[rows]
            commit = _commit(masked, confidence, count, math.inf if config.threshold is None else config.threshold)
            ids = canvas.ids[rows, block]
            canvas.ids[rows, block] = torch.where(commit, ids.masked_scatter(masked, tokens), ids)
            canvas.masked[rows, block] = masked & ~commit
            canvas.filled[rows, block] = torch.where(commit, canvas.forwards[rows][:, None], canvas.filled[rows, block])

            going = ~_decided(canvas, rows, special.ends)
            if not going.all():
                rows = rows[going]
                if not rows.numel():
                    return
                reader.keep(going)


def _schedule(masked: int, config: GenerateConfig) -> list[int]:
    """Tokens to commit at each forward of a block with that many masked positions."""
    if config.threshold is not None:
        return [1] * masked
    if config.blocks == "reference":
        return transfer_counts(masked, math.ceil(config.steps / math.ceil(config.max_new_tokens / config.block_size)))
    # Blocks hold unequal shares of the response here, so each gets its share of the steps.
    return transfer_counts(masked, math.ceil(config.steps * masked / config.max_new_tokens))


def transfer_counts(masked: int, steps: int) -> list[int]:
    """The published schedule: going from time t to s, commit the share 1 - s / t of what is still masked.

    Its float32 arithmetic and rounding (half to even) are kept; forwards that would commit nothing are left out.
    """
    t = 1 - (1 - torch.arange(steps, -1, -1) / steps)  # masking probability 1 - alpha(t) of the linear schedule
    counts = []
    for share in 1 - t[1:] / t[:-1]:
        counts.append(int((masked * share).round()))
        masked -= counts[-1]
    return [count for count in counts if count]


def _gumbel(masked: Tensor, vocabulary: int, generators: list[torch.Generator]) -> Tensor:
    """Standard Gumbel noise [N, V], each row's from its own generator."""
    counts = masked.sum(1).tolist()
    draws = [torch.empty(n, vocabulary).exponential_(generator=g) for n, g in zip(counts, generators, strict=True)]
    return -torch.cat(draws).to(masked.device).log()


def _choose(logits: Tensor, never: list[int], noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """The token for each position and its probability: [N] each.

    Probabilities are over the whole vocabulary, as published: where the model would rather keep the mask, whatever is
    chosen in its place has little confidence and waits.
    """
    kept = logits[:, never]
    logits[:, never] = -math.inf
    tokens = (logits if noise is None else logits + noise).argmax(1)
    logits[:, never] = kept
    pairs = zip(logits.split(32), tokens.split(32), strict=True)  # all at once would fill memory with temporaries
    return tokens, torch.cat([few.softmax(1).gather(1, chosen[:, None])[:, 0] for few, chosen in pairs])


def _commit(masked: Tensor, confidence: Tensor, count: Tensor, threshold: float) -> Tensor:
    """Masked positions to commit: each row's `count` most confident and all at the threshold or above: bool [R, B]."""
    confidence = torch.full(masked.shape, -1.0, device=masked.device).masked_scatter(masked, confidence)
    rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return masked & ((rank < count[:, None]) | (confidence >= threshold))


def _decided(canvas: Canvas, rows: Tensor, ends: list[int]) -> Tensor:
    """Rows whose response cannot change any more: all before its first end token is decided, or all: bool [R]."""
    masked = canvas.masked[rows]
    is_end = torch.isin(canvas.ids[rows], torch.tensor(ends, device=rows.device)) & canvas.response[rows]
    return (is_end & (masked.cumsum(1) == 0)).any(1) | ~masked.any(1)
