"""The model as the sampler reads it: logits of the positions that are looked at, and what they choose (shapes: canvas.py)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pipeline.decoding.canvas import PADDING, Canvas
from pipeline.models.families.table import is_shifted

SOFTMAX_ROWS = {"cpu": 32, "cuda": 1024}


@dataclass
class CachedModel:
    """The model and, where it takes one, the cache of the columns before the block in work."""

    model: nn.Module
    cache: Cache | None
    selects: bool
    """Whether the model's head can be spared the positions that nobody asks for."""
    shift: int
    """Columns between a row and what it predicts: 1 for a shifted family (Dream), else 0."""

    @classmethod
    def of(cls, model: nn.Module, make_cache: Callable[[], Cache]) -> CachedModel:
        """`make_cache` makes an empty cache, for a model that takes one."""
        cache = make_cache() if takes_cache(model) else None
        return cls(model, cache, _selects(model), int(is_shifted(model.config)))

    def open_block(self, canvas: Canvas, rows: Tensor, block: slice, index: Tensor) -> Tensor:
        """Logits of the `index` [R, P] of a block, float32 [R, P, V], reading whatever the cache does not hold.

        The column before the block is read again where it predicts the block's first one.
        """
        known = self.cache.get_seq_length() if self.cache is not None else 0
        new, blocks = slice(known, block.stop), canvas.blocks[rows, : block.stop]
        # Padding sees everything: a query without a key would turn into NaN.
        mask = blocks[:, None, None, :] <= blocks[:, None, new, None]
        predicting = (index + (block.start - known - self.shift)).clamp(min=0)
        logits = self.logits(canvas.ids[rows, new], canvas.positions[rows, new], mask, predicting)
        if self.cache is not None:
            self.cache.crop(max(block.start - self.shift, 0) - block.stop)  # this block is not final yet
        return logits

    def logits(self, ids: Tensor, positions: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        """Float32 logits [R, P, V] at the `index` [R, P] of new columns."""
        arguments: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        if self.cache is not None:
            arguments |= {"past_key_values": self.cache, "use_cache": True}
        if self.selects:
            return self.model(**arguments, logits_to_keep=index).logits.float()
        return self.model(**arguments).logits.take_along_dim(index[..., None], dim=1).float()

    def keep(self, rows: Tensor) -> None:
        """Forgets the rows that left: bool [R]."""
        if self.cache is not None:
            self.cache.batch_select_indices(rows)


@dataclass
class BidirectionalModel(CachedModel):
    """A model that reads the whole canvas at every forward, later blocks too: nothing can be kept of it."""

    guidance: float = 0.0
    """Weight of the step away from what the model says when the prompt is masked (classifier-free guidance, as in LLaDA)."""

    @classmethod
    def guided(cls, guidance: float, model: nn.Module, make_cache: Callable[[], Cache]) -> CachedModel:
        """`make_cache` is not called."""
        return cls(model, None, _selects(model), int(is_shifted(model.config)), guidance)

    def open_block(self, canvas: Canvas, rows: Tensor, block: slice, index: Tensor) -> Tensor:
        """As in CachedModel."""
        ids, real = canvas.ids[rows], canvas.blocks[rows] != PADDING
        mask = real[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        predicting = (index + block.start - self.shift).clamp(min=0)
        logits = self.logits(ids, canvas.positions[rows], mask, predicting)
        if not self.guidance:
            return logits
        blank = torch.where(canvas.response[rows], ids, self.model.config.mask_token_id)  # type: ignore[union-attr, arg-type]
        unguided = self.logits(blank, canvas.positions[rows], mask, predicting)
        return unguided + (1 + self.guidance) * (logits - unguided)


def _selects(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def takes_cache(model: nn.Module) -> bool:
    """Whether the model can read from a key-value cache."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def token_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """float32 [N, V], int64 [N] -> [N]."""
    return logits.softmax(1).gather(1, tokens[:, None])[:, 0]


def choose(
    logits: Tensor,
    suppressed_ids: Tensor,
    noise: Tensor | None = None,
    confidence_of: Callable[[Tensor, Tensor], Tensor] = token_probability,
) -> tuple[Tensor, Tensor]:
    """The token for each position and how sure the model is of it: [R, P, V] -> [R, P] each.

    Probabilities are over the whole vocabulary, as published: where the model would rather keep the mask, whatever is
    chosen in its place has little confidence and waits.
    """
    logits, shape = logits.flatten(0, 1), logits.shape[:2]
    kept = logits.index_select(1, suppressed_ids)
    logits.index_fill_(1, suppressed_ids, -math.inf)
    tokens = (logits if noise is None else logits + noise.flatten(0, 1)).argmax(1)
    logits.index_copy_(1, suppressed_ids, kept)
    pieces = SOFTMAX_ROWS[logits.device.type]  # all at once would fill memory with temporaries
    pairs = zip(logits.split(pieces), tokens.split(pieces), strict=True)
    confidence = torch.cat([confidence_of(few, chosen) for few, chosen in pairs])
    return tokens.view(shape), confidence.view(shape)
