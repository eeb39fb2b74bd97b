"""What fused kernels keep and launch, on tensors without values (of the meta device, or fake ones).

Results have shapes and no values. Each kernel counts as one operation; what autograd would save is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.method.chunked_lm_head import chunks_as_on
from pipeline.models import flex_attention


@contextmanager
def kernels_as_on(device_type: str) -> Iterator[None]:
    """Attention, and the LM heads' chunks, as they are on another device."""
    with (
        chunks_as_on(device_type),
        mock.patch.object(flex_attention, "flex_attention", _attend),
        mock.patch.object(F, "scaled_dot_product_attention", _attend),  # on meta it would be a product and a softmax
    ):
        yield


def count_norms_as_kernels(model: nn.Module) -> None:
    """From here on the model's norms are one kernel each."""
    for module in model.modules():
        if isinstance(module, nn.RMSNorm) or hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_norm, module)


class _RMSNorm(torch.autograd.Function):
    """aten::_fused_rms_norm: keeps its input and a float32 per row."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.zeros_like(hidden)

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor, ...]:
        hidden, weight, _ = ctx.saved_tensors
        return torch.zeros_like(hidden), torch.zeros_like(weight)


def _norm(module: Any, hidden: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden, module.weight)


class _FusedAttention(torch.autograd.Function):
    """flex_attention and SDPA: keeps queries, keys, values, a dense mask, its result and a float32 per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        attended = torch.zeros_like(query)
        log_sum_exp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, attended, log_sum_exp)
        return attended

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_, log_sum_exp = ctx.saved_tensors
        _products = torch.zeros_like(log_sum_exp)  # of results and their gradients, a float32 per query
        return *(torch.zeros_like(x) for x in (query, key, value)), None


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_options: object) -> Tensor:
    return _FusedAttention.apply(query, key, value, attn_mask)
