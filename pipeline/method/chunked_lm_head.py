"""LM heads without [batch, length, vocabulary]: logits exist a chunk of rows at a time, and are made again in backward.

What the losses need of the logits is a *row function*: logits [c, V] in float32 and per-row arguments -> [c, k].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

RowFunction = Callable[..., Tensor]
# Elements of logits at once, in float32, by device type: 20 MiB on the CPU, where larger temporaries cost new pages each
# time, 256 MiB on a GPU, which wants large products and has several such temporaries in backward.
CHUNK_ELEMENTS = {"cpu": 5 << 20, "cuda": 1 << 26}
_planned_device: str | None = None


@contextmanager
def chunks_as_on(device_type: str) -> Iterator[None]:
    """Chunks as another device has them, for whoever counts its memory without it."""
    global _planned_device
    previous, _planned_device = _planned_device, device_type
    try:
        yield
    finally:
        _planned_device = previous


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of the given token in each row: [c, V], int [c] -> [c]."""
    return -F.cross_entropy(logits, tokens, reduction="none")


def head_rows(function: RowFunction, hidden: Tensor, weight: Tensor, *rows: Tensor) -> Tensor:
    """`function(hidden @ weight.T, *rows)` for all rows, computed in chunks: [M, H], [V, H], per-row [M, ...] -> [M, k].

    Gradients of `hidden` and `weight` equal the dense computation's; `rows` get none. M may be 0: the result then still
    depends on `weight`, so that the number of collectives under ZeRO-3 does not depend on the batch.
    """
    return _HeadRows.apply(function, hidden, weight, *rows)


class _HeadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: RowFunction, hidden: Tensor, weight: Tensor, *rows: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(hidden, weight, *rows)
        pieces = [function(_logits(h, weight), *r) for h, *r in _chunks(weight, hidden, *rows)]
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, *rows = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for h, g, out, *r in _chunks(weight, hidden, grad, grad_hidden, *rows):
            logits = _logits(h, weight).requires_grad_()
            with torch.enable_grad():
                value = ctx.function(logits, *r)
            (grad_logits,) = torch.autograd.grad(value, logits, g)
            grad_logits = grad_logits.to(weight.dtype)
            out.copy_(grad_logits @ weight)
            if grad_weight.dtype == weight.dtype:
                grad_weight.addmm_(grad_logits.T, h)
            else:
                grad_weight += grad_logits.T @ h
        return None, grad_hidden, grad_weight.to(weight.dtype), *(None for _ in rows)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).float()


def _chunks(weight: Tensor, *rows: Tensor):
    """Views of `rows` in step, so many at a time that their logits stay below the chunk's elements; at least one."""
    size = max(1, CHUNK_ELEMENTS[_planned_device or weight.device.type] // weight.shape[0])
    return zip(*(r.split(size) for r in rows), strict=True)
