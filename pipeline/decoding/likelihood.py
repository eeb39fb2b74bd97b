"""Log-likelihoods: an unbiased estimate of the block-diffusion bound, with its variance.

A block-diffusion model has no closed-form likelihood. Under the linear schedule, with blocks b of a continuation after a
context (BD3LM, arXiv 2503.09573; with a number of masked tokens in place of t: LLaDA, arXiv 2502.09992):

    log p(continuation | context)  >=  sum_b E_t [ 1/t sum_{i masked in b} log p(x_i | x_t of b, blocks before b) ]

Given t, every token of a block is masked with probability t. Integrating t out leaves a number l of masked tokens that is
uniform on 1..L and a uniform set of that size, weighed by L / l (L: tokens of the continuation in the block), which has
the same mean and less variance: no draw is empty. Sets come in antithetic pairs, one of l tokens and one of L + 1 - l that
shares one token with it, and l is stratified. Where all 2^L - 1 sets are no more than the samples asked for (a
continuation of one token, a choice's letter, always is), they are summed up and the bound is exact.

One forward of [xt, x0] serves one draw of every block at once, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.core.rng import generator_for
from pipeline.data.blocks import Document, ResponseBlocks, SequenceBlocks, lay_out
from pipeline.data.packing import pack
from pipeline.models.families.table import is_shifted
from pipeline.models.forward import log_prob_and_hit, score_tokens

BLOCKS = {"training": SequenceBlocks, "reference": ResponseBlocks}


@dataclass(frozen=True)
class Estimate:
    """Of one continuation."""

    value: float
    """The bound, in nats."""
    variance: float
    """Of `value` over draws; 0 where it is exact. Collapsed strata: never too small on average."""
    greedy: bool
    """Whether decoding every block in one forward, likeliest tokens first, gives the continuation."""


@dataclass(frozen=True)
class Draws:
    """Masked sets of one block of L tokens; the first has every token, for `greedy`, and may weigh nothing."""

    masks: Tensor
    """bool [N, L]"""
    weights: Tensor
    """float64 [N]; the bound is the weighted sum of each set's log-probability"""
    exact: bool

    @classmethod
    def of(cls, length: int, samples: int, generator: torch.Generator) -> Draws:
        """All sets where they are few, else a sample: a full set and `samples` others.

        Raises ValueError for samples that are no positive multiple of 4 (two pairs in two strata give a variance).
        """
        if samples < 4 or samples % 4:
            raise ValueError(f"likelihood samples {samples} must be a positive multiple of 4")
        if 2**length - 1 <= samples:
            sets = torch.arange(2**length - 1, 0, -1)
            masks = (sets[:, None] >> torch.arange(length) & 1).bool()
            size = masks.sum(1)
            return cls(masks, 1 / (size * binomial(length, size)), exact=True)
        pairs = samples // 2
        u = (torch.arange(pairs) + torch.rand(pairs, generator=generator, dtype=torch.float64)) / samples  # below 1/2
        size = 1 + (length * u).long()[:, None]
        rank = torch.rand(pairs, length, generator=generator).argsort(1)
        masks = torch.stack([rank < size, rank >= size - 1], 1).flatten(0, 1)
        weights = length / masks.sum(1).double() / samples
        full = torch.ones(1, length, dtype=torch.bool)
        return cls(torch.cat([full, masks]), torch.cat([weights.new_zeros(1), weights]), exact=False)

    def estimate(self, log_probs: Tensor) -> tuple[float, float]:
        """Bound and variance from the log-probability of each set: float64 [N]."""
        values = self.weights * log_probs
        if self.exact:
            return float(values.sum()), 0.0
        pairs = values[1:].view(-1, 2).sum(1)  # each the estimate of one stratum, over the number of strata
        return float(pairs.sum()), float(pairs.view(-1, 2).diff(dim=1).square().sum())


def binomial(n: int, k: Tensor) -> Tensor:
    """n over k, float64."""
    n_ = torch.tensor(float(n), dtype=torch.float64)
    return (torch.lgamma(n_ + 1) - torch.lgamma(k.double() + 1) - torch.lgamma(n_ - k + 1)).exp()


@dataclass(frozen=True)
class Continuation:
    """A context and what follows it, with the draws of every block that holds some of it."""

    ids: Tensor
    """int64 [T]"""
    block: Tensor
    """int64 [T]"""
    draws: dict[int, Draws]
    """By block."""

    @classmethod
    def of(
        cls, context: Sequence[int], continuation: Sequence[int], *, size: int, blocks: str, samples: int, seed: int
    ) -> Continuation:
        """Blocks of `size` tokens, cut as the sampler's `blocks`; draws depend on the seed and the tokens alone."""
        ids = torch.tensor([*context, *continuation])
        maskable = torch.arange(len(ids)) >= len(context)
        block = BLOCKS[blocks](size).cut(maskable)
        lengths = torch.bincount(block[maskable])
        draws = {
            b: Draws.of(int(lengths[b]), samples, generator_for(seed, "likelihood", b, len(context), *ids.tolist()))
            for b in lengths.nonzero()[:, 0].tolist()
        }
        return cls(ids, block, draws)

    def masked(self) -> Iterator[Tensor]:
        """The masked tokens of each forward, bool [T]: the next draw of every block that still has one."""
        ends = {b: int((self.block <= b).sum()) for b in self.draws}
        for n in range(max(draws.masks.shape[0] for draws in self.draws.values())):
            mask = torch.zeros(len(self.ids), dtype=torch.bool)
            for b, draws in self.draws.items():
                if n < draws.masks.shape[0]:
                    mask[ends[b] - draws.masks.shape[1] : ends[b]] = draws.masks[n]
            yield mask

    def estimate(self, masks: list[Tensor], log_probs: list[Tensor], right: list[Tensor]) -> Estimate:
        """From each forward's mask (of `masked`), and log-probabilities and right guesses at its masked tokens, in order."""
        sums = [
            torch.zeros(int(self.block[-1]) + 1, dtype=torch.float64).index_add(0, self.block[mask], logp.double())
            for mask, logp in zip(masks, log_probs, strict=True)
        ]
        parts = [d.estimate(torch.stack([s[b] for s in sums[: d.masks.shape[0]]])) for b, d in self.draws.items()]
        return Estimate(sum(v for v, _ in parts), sum(v for _, v in parts), bool(right[0].all()))


@torch.inference_mode()
def log_likelihoods(model: PreTrainedModel, continuations: Sequence[Continuation], batch_size: int) -> list[Estimate]:
    """The bound of each continuation; `batch_size` inputs share a forward."""
    masks, shifted = [list(c.masked()) for c in continuations], is_shifted(model.config)
    inputs = [(c, mask) for c, draws in zip(continuations, masks, strict=True) for mask in draws]
    scores: list[Tensor] = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        documents = [lay_out(c.ids, mask, c.block, model.config.mask_token_id, shifted) for c, mask in batch]
        scores += _scores(model, documents, [c.ids[mask] for c, mask in batch])
    by_input = iter(scores)
    estimates = []
    for c, draws in zip(continuations, masks, strict=True):
        rows = [next(by_input) for _ in draws]
        estimates.append(c.estimate(draws, [r[:, 0] for r in rows], [r[:, 1] for r in rows]))
    return estimates


def _scores(model: PreTrainedModel, documents: list[Document], targets: list[Tensor]) -> list[Tensor]:
    """Log-probability of each masked token's truth, and whether it is the likeliest: [M, 2] per document, on the CPU."""
    device = next(model.parameters()).device
    packed, indices = pack(documents)
    scores = score_tokens(model, packed.to(device), indices.to(device), torch.cat(targets).to(device), log_prob_and_hit)
    return list(scores.cpu().split([len(t) for t in targets]))
