"""LM heads without [batch, length, vocabulary]: logits exist a chunk of tokens at a time, and are made again in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PerTokenLoss = Callable[[Tensor, slice], Tensor]
"""What is wanted of the logits: float32 [c, V], and which of the M tokens they are -> [c, ...]."""

# Elements of logits at once, in float32, by device type: 20 MiB on the CPU, where larger temporaries cost new pages each
# time, 256 MiB on a GPU, which wants large products and has several such temporaries in backward.
CHUNK_ELEMENTS = {"cpu": 5 << 20, "cuda": 1 << 26}
_planned_device: str | None = None


@contextmanager
def chunks_as_on(device_type: str) -> Iterator[None]:
    """Chunks as on another type of device, to count its memory without one."""
    global _planned_device
    previous, _planned_device = _planned_device, device_type
    try:
        yield
    finally:
        _planned_device = previous


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of the given token in each row: [c, V], int [c] -> [c]."""
    return -F.cross_entropy(logits, tokens, reduction="none")


def chunked_lm_head(per_token_loss: PerTokenLoss, hidden: Tensor, weight: Tensor) -> Tensor:
    """`per_token_loss` of the logits `hidden @ weight.T`, computed in chunks: [M, H], [V, H] -> [M, ...].

    Gradients of `hidden` and `weight` equal the dense computation's; what else `per_token_loss` reads gets none. M may be 0:
    the result then still depends on `weight`, so that the number of collectives under ZeRO-3 does not depend on the batch.
    """
    return _ChunkedLMHead.apply(per_token_loss, hidden, weight)


class _ChunkedLMHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, per_token_loss: PerTokenLoss, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.per_token_loss = per_token_loss
        ctx.save_for_backward(hidden, weight)
        first, *others = _chunks(hidden, weight)
        values = per_token_loss(_logits(hidden[first], weight), first)
        # One tensor for all: small results that stay between the logits of two chunks keep the allocator from reusing their memory.
        whole = values.new_empty(len(hidden), *values.shape[1:])
        whole[first] = values
        for chunk in others:
            whole[chunk] = per_token_loss(_logits(hidden[chunk], weight), chunk)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for chunk in _chunks(hidden, weight):
            logits = _logits(hidden[chunk], weight).requires_grad_()
            with torch.enable_grad():
                value = ctx.per_token_loss(logits, chunk)
            (grad_logits,) = torch.autograd.grad(value, logits, grad[chunk])
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[chunk] = grad_logits @ weight
            if grad_weight.dtype == weight.dtype:
                grad_weight.addmm_(grad_logits.T, hidden[chunk])
            else:
                grad_weight += grad_logits.T @ hidden[chunk]
        return None, grad_hidden, grad_weight.to(weight.dtype)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).float()


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """So many tokens at a time that their logits stay below the chunk's elements; one empty slice of no tokens."""
    size = max(1, CHUNK_ELEMENTS[_planned_device or weight.device.type] // weight.shape[0])
    return (slice(start, min(start + size, len(hidden))) for start in range(0, max(1, len(hidden)), size))
