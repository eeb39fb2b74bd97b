"""What published samplers do otherwise than block diffusion: what a forward sees, how many tokens it decides, and which.

A `Rules` is made once, before the first forward; the sampler calls its functions and knows no family.
Shapes: R rows, P positions that are looked at, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pipeline.decoding.cached_model import BidirectionalModel, CachedModel, token_probability
from pipeline.decoding.canvas import GenerateConfig, schedule, steps_of_block
from pipeline.models.families.family import Sampler
from pipeline.models.families.table import family_of

Counts = Callable[[int, GenerateConfig], list[int]]
"""Tokens to decide at each forward, of so many masked positions."""
Confidence = Callable[[Tensor, Tensor], Tensor]
"""How sure the model is of its tokens: float32 logits [N, V], int64 [N] -> [N]; the surest are decided first."""
Read = Callable[[nn.Module, Callable[[], Cache]], CachedModel]
"""(model, function that makes a cache) -> the model as the sampler reads it."""
Order = Literal["probability", "margin", "entropy"]


@dataclass(frozen=True)
class Rules:
    """How blocks are decided."""

    counts: Counts = schedule
    confidence: Confidence = token_probability
    read: Read = CachedModel.of
    """What a forward sees: the blocks so far, or the whole canvas, as a model does that was trained bidirectionally."""
    window: int | None = None
    """Tokens of a block that are decided before the next ones, from left to right; None = a block at once."""
    first_alone: bool = False
    """Whether the first token of a block is decided before the others, as the row before it predicts it."""

    def windows(self, block: slice) -> list[slice]:
        """Columns of a block in the order in which they are decided."""
        starts = {block.start, *range(block.start, block.stop, self.window or block.stop - block.start)}
        if self.first_alone and block.start + 1 < block.stop:
            starts.add(block.start + 1)
        ordered = sorted(starts)
        return [slice(*ends) for ends in pairwise([*ordered, block.stop])]


BLOCK_DIFFUSION = Rules()
"""What students of this project are decoded with."""


def published(
    model: nn.Module, *, window: int | None = None, order: Order = "probability", guidance: float = 0.0
) -> Rules:
    """The rules of the code that a model was published with.

    window: SDAR's `sequential` is as many tokens as a step decides; Fast-dLLM v2's `small_block_size`. order: Dream's `alg`
    (`maskgit_plus` is probability, `topk_margin` margin). guidance: LLaDA's `cfg_scale`. Raises ValueError for a family whose
    published sampler is not here, and for guidance of one that has none.
    """
    sampler = sampler_of(model)
    if guidance and sampler.sees != "everything":
        raise ValueError("guidance needs a model that reads everything at every forward")
    return Rules(
        counts=COUNTS[sampler.counts],
        confidence=CONFIDENCE[order],
        read=partial(BidirectionalModel.guided, guidance) if sampler.sees == "everything" else CachedModel.of,
        window=window,
        first_alone=sampler.first_alone,
    )


def published_blocks(model: nn.Module, config: GenerateConfig) -> GenerateConfig:
    """The settings with blocks cut as in the model's published code. Raises ValueError as `published`."""
    cut = sampler_of(model).blocks
    size = config.max_new_tokens if cut == "none" else config.block_size
    return replace(config, block_size=size, blocks="training" if cut == "sequence" else "reference")


def sampler_of(model: nn.Module) -> Sampler:
    """Of its family. Raises ValueError for a family whose published sampler is not here."""
    family = family_of(model.config)  # type: ignore[arg-type]
    if family.sampler is None:
        raise ValueError(f"{family.name} has no sampler of its own here: decode it by block diffusion")
    return family.sampler


def even_counts(masked: int, config: GenerateConfig) -> list[int]:
    """LLaDA's and SDAR's: equal shares of a whole block, larger ones first, even where the block opens with text."""
    steps = steps_of_block(config)
    share, larger = divmod(config.block_size, steps)
    counts: list[int] = []
    for step in range(steps):
        counts.append(min(share + (step < larger), masked - sum(counts)))
    return [count for count in counts if count]


def counts_by_time(masked: int, config: GenerateConfig) -> list[int]:
    """Dream's: going from time t to s, the share 1 - s / t of what is masked, rounded down; all at the last step."""
    times = torch.linspace(1, 1e-3, config.steps + 1)
    counts: list[int] = []
    for step, (t, s) in enumerate(pairwise(times.tolist()), start=1):
        left = masked - sum(counts)
        counts.append(left if step == config.steps else int(left * (1 - s / t)))
    return [count for count in counts if count]


def margin(logits: Tensor, tokens: Tensor) -> Tensor:
    """Probability of the likeliest token minus that of the next: [N, V], [N] -> [N]."""
    best = logits.softmax(-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def negative_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """[N, V], [N] -> [N]."""
    return (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


COUNTS: dict[str, Counts] = {"linear": schedule, "even": even_counts, "by_time": counts_by_time}
CONFIDENCE: dict[str, Confidence] = {"probability": token_probability, "margin": margin, "entropy": negative_entropy}
