"""What is decoded: settings, the columns of every row, one block of them, and how many tokens each forward decides.

Shapes: R rows still decoding, T canvas columns, B columns of a block, P positions of it that are looked at, V vocabulary.

All columns are laid out before decoding: every row's prompt up to its first generated block, padded on the left to the
longest, then the generated blocks side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

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
    """Commit every token that is at least this probable, and one per forward in any case; None = as `steps` says."""
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

    @property
    def least_probability(self) -> float:
        """Probability from which a token is committed whatever the schedule says; infinite without a threshold."""
        return math.inf if self.threshold is None else self.threshold


@dataclass(frozen=True)
class Response:
    """A response and how it came about."""

    tokens: list[int]
    """Up to and including the first end token."""
    filled: list[int]
    """The forward that decided each token, counted from 1."""
    forwards: int
    """Forwards in all; waiting for the rest of the batch does not count."""


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
        positions = column - first + start
        real = (positions >= 0) & (positions < end)
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

    def generated_blocks(self, size: int) -> Iterator[slice]:
        """Columns of each generated block; the last one may be short."""
        width = self.ids.shape[1]
        return (slice(start, min(start + size, width)) for start in range(self.first, width, size))

    def read(self, row: int, ends: list[int]) -> Response:
        """A row's response, once it is decided."""
        tokens, filled = (x[row, self.response[row]].tolist() for x in (self.ids, self.filled))
        stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        return Response(tokens[:stop], filled[:stop], int(self.forwards[row]))


@dataclass
class BlockState:
    """One block of the rows still decoding: [R, B] each, but for the forwards. Decided in place."""

    ids: Tensor
    response: Tensor
    masked: Tensor
    filled: Tensor
    forwards: Tensor
    """[R]"""

    @classmethod
    def of(cls, canvas: Canvas, rows: Tensor, block: slice) -> BlockState:
        """A copy of that part of the canvas."""
        ids, response, masked, filled = (
            x[rows, block] for x in (canvas.ids, canvas.response, canvas.masked, canvas.filled)
        )
        return cls(ids, response, masked, filled, canvas.forwards[rows])

    def store(self, canvas: Canvas, rows: Tensor, block: slice) -> None:
        """Back into the canvas."""
        for name in ("ids", "masked", "filled"):
            getattr(canvas, name)[rows, block] = getattr(self, name)
        canvas.forwards[rows] = self.forwards

    def masked_first(self) -> Tensor:
        """Columns, the masked ones first, in order: int64 [R, B]."""
        return self.masked.int().argsort(dim=1, descending=True, stable=True)

    def count_forward(self, ends: Tensor) -> None:
        """Before a forward: it counts for every row that still has something to decide."""
        self.forwards += self.masked.any(1) & ~self.ended(ends)

    def ended(self, ends: Tensor) -> Tensor:
        """Rows that end in this block, all before their first end token being decided: bool [R]."""
        is_end = torch.isin(self.ids, ends) & self.response
        return (is_end & (self.masked.cumsum(1) == 0)).any(1)

    def commit(self, index: Tensor, tokens: Tensor, confidence: Tensor, count: Tensor, threshold: float) -> None:
        """Decides each row's `count` most confident masked positions of `index` [R, P], and all from `threshold` up."""
        masked = self.masked.gather(1, index)
        confidence = confidence.masked_fill(~masked, -math.inf)
        rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = masked & ((rank < count[:, None]) | (confidence >= threshold))
        self.ids.scatter_(1, index, torch.where(chosen, tokens, self.ids.gather(1, index)))
        filled = torch.where(chosen, self.forwards[:, None], self.filled.gather(1, index))
        self.filled.scatter_(1, index, filled)
        self.masked.scatter_(1, index, masked & ~chosen)


def schedule(masked: int, config: GenerateConfig) -> list[int]:
    """Tokens to commit at each forward of a block with that many masked positions."""
    if config.threshold is not None:
        return [1] * masked
    if config.blocks == "reference":
        return transfer_counts(masked, steps_of_block(config))
    # Blocks hold unequal shares of the response here, so each gets its share of the steps.
    return transfer_counts(masked, math.ceil(config.steps * masked / config.max_new_tokens))


def steps_of_block(config: GenerateConfig) -> int:
    """Forwards over a whole block."""
    return math.ceil(config.steps / math.ceil(config.max_new_tokens / config.block_size))


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
