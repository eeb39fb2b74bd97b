"""A frozen teacher's experts shared out over ranks by DeepSpeed AutoEP, without an engine.

AutoEP gives the exchange of tokens and the experts' products; routing stays with our gate, so that every size chooses
alike (AutoEP's router would work in the model's dtype, and forgets a selection bias whose name it does not know).
Collectives a forward: three all-to-alls a MoE layer, whatever the tokens of a rank.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models.experts import Gate, MoE
from pipeline.models.llada2_moe import LLaDA2MoeModelLM
from pipeline.models.weights import Shapes, checkpoint_views, shapes
from pipeline.recipe import BadInput


def resolve_expert_parallel_size(
    requested: int | Literal["auto"], *, experts: int, world_size: int, local_world_size: int
) -> int:
    """Ranks that share one set of experts; `auto` = the largest that divides the experts and the ranks of a node.

    A dense model has one expert. Raises BadInput for a size that does not divide ranks and experts.
    """
    largest = math.gcd(experts, world_size, local_world_size)
    if requested == "auto":
        return largest
    if requested < 1 or world_size % requested or experts % requested:
        raise BadInput(
            f"expert_parallel_size {requested} must divide the ranks ({world_size}) and the experts ({experts});"
            f" auto would take {largest}"
        )
    return requested


class Router(nn.Module):
    """Our gate where AutoEP's layer calls its router, with the tokens and a bias that is not used here."""

    def __init__(self, gate: Gate):
        super().__init__()
        self.gate = gate

    def forward(self, tokens: Tensor, _bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.gate(tokens)


def share_experts(model: LLaDA2MoeModelLM, *, size: int, device: torch.device | str) -> int:
    """Replaces the MoE layers of a model on the meta device and gives it memory on `device`, without values.

    Each rank holds experts [first, first + experts / size); returns `first`. Collective: it makes process groups.
    """
    # Imported here: DeepSpeed is slow to import, and only this needs it.
    import deepspeed
    from deepspeed.module_inject.auto_ep import AutoEP
    from deepspeed.module_inject.auto_ep_config import parse_autoep_config
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    deepspeed.init_distributed()
    config = model.config
    settings = {
        "enabled": True,
        "autoep_size": size,
        "preset_model": "deepseek_v3",
        "num_experts_attr": "num_experts",
        "routed_scaling_factor": config.routed_scaling_factor,
        "use_grouped_mm": torch.device(device).type == "cuda",
    }
    expected = shapes(checkpoint_views(model))
    gates = {name: module.gate for name, module in model.named_modules() if isinstance(module, MoE)}
    rank = dist.get_rank() % size
    with torch.device("meta"):  # else AutoEP's own tensors would be real and refuse to copy ours
        auto_ep = AutoEP(model, parse_autoep_config(settings))
        auto_ep.replace_moe_layers(auto_ep.ep_parser(), ep_size=size, ep_rank=rank)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, AutoEPMoELayer)}
        for name, layer in layers.items():
            layer.router = Router(gates[name])
    model.to_empty(device=device)
    model.tie_weights()
    for name, layer in layers.items():
        layer.set_deepspeed_parallelism()
        layer.tokens_per_expert.zero_()
        gates[name].tokens_per_expert.zero_()
        if dist.get_rank(layer.ep_group) != rank:
            raise RuntimeError(f"AutoEP's group for {name} has rank {dist.get_rank(layer.ep_group)} here, not {rank}")
    first = rank * (config.num_experts // size)
    _check_takeover(model, expected, range(first, first + config.num_experts // size))
    return first


def _check_takeover(model: LLaDA2MoeModelLM, expected: Shapes, local: range) -> None:
    """Raises RuntimeError unless every tensor is there, and of the experts the local ones: AutoEP would only log it."""
    wanted = {name: shape for name, shape in expected.items() if _expert(name, default=local.start) in local}
    held = shapes(checkpoint_views(model, first_expert=local.start))
    if held != wanted:
        changed = sorted(name for name, _ in held.items() ^ wanted.items())
        raise RuntimeError(f"AutoEP did not take over the model as it should: {changed[:3]}")


def _expert(name: str, *, default: int) -> int:
    """Number of the expert that a checkpoint name belongs to."""
    number = re.search(r"\.mlp\.experts\.(\d+)\.", name)
    return int(number[1]) if number else default
