"""The mixture of experts of LLaDA2: router, routed experts, shared expert.

Shapes: B batch, L positions, T = B * L tokens, H hidden, E experts, k experts per token, F expert width, N = T * k rows.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MoEConfig(Protocol):
    """What the layers here read of a model's configuration."""

    hidden_size: int
    initializer_range: float
    moe_intermediate_size: int
    n_group: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    routed_scaling_factor: float | int
    topk_group: int


class MLP(nn.Module):
    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Sigmoid router in float32. The selection bias chooses experts and never weighs them (DeepSeek-V3, 2.1.2)."""

    def __init__(self, config: MoEConfig):
        super().__init__()
        self.top_k, self.groups, self.top_groups = config.num_experts_per_tok, config.n_group, config.topk_group
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts, dtype=torch.float32))
        self.tokens_per_expert: Tensor
        self.register_buffer("tokens_per_expert", torch.zeros(config.num_experts, dtype=torch.int64), persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, H] -> weights float32 [T, k], experts int64 [T, k], tokens of each expert int32 [E]."""
        scores = F.linear(tokens.float(), self.weight.float()).sigmoid()
        experts = self.select(scores.detach() + self.e_score_correction_bias)
        weights = scores.gather(1, experts)
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20) * self.scale
        routed = experts.flatten()
        counts = routed.new_zeros(scores.shape[1]).scatter_add_(0, routed, torch.ones_like(routed))
        if self.training:
            self.tokens_per_expert += counts
        return weights, experts, counts.int()

    def select(self, scores: Tensor) -> Tensor:
        """The k best experts inside the best groups, a group counting as its two best: [T, E] -> [T, k]."""
        grouped = scores.unflatten(1, (self.groups, -1))
        best = grouped.topk(2, dim=2).values.sum(2).topk(self.top_groups, dim=1).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, False)
        return grouped.masked_fill(outside[..., None], -torch.inf).flatten(1).topk(self.top_k, dim=1).indices


def grouped_linear(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """rows [N, in] in order of their experts, weight [E, out, in], counts [E] -> [N, out]."""
    if rows.is_cuda:
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    # The CPU's grouped_mm is no faster, and wants widths of a multiple of 16 bytes.
    return torch.cat([F.linear(x, w) for x, w in zip(rows.split(counts.tolist()), weight.unbind(), strict=True)])


class Experts(nn.Module):
    def __init__(self, config: MoEConfig):
        super().__init__()
        count, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=config.initializer_range)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        gate, up = grouped_linear(rows, self.gate_up_proj, counts).chunk(2, dim=1)
        return grouped_linear(F.silu(gate) * up, self.down_proj, counts)


class MoE(nn.Module):
    """Routed experts and one shared expert. Child names are those of transformers' DeepSeek-V3, which AutoEP knows."""

    def __init__(self, config: MoEConfig):
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.num_shared_experts)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, 1)
        weights, experts, counts = self.gate(tokens)
        order = experts.flatten().argsort(stable=True)
        routed = self.experts(tokens[order // experts.shape[1]], counts)
        routed = routed[order.argsort()].unflatten(0, experts.shape) * weights[..., None]
        return routed.sum(1).to(hidden.dtype).view_as(hidden) + self.shared_experts(hidden)
