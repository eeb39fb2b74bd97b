"""A frozen teacher's experts shared out over ranks by DeepSpeed AutoEP, without an engine.

AutoEP gives the exchange of tokens and the experts' products; routing stays with the model's own gate (LLaDA2's, or the softmax of
Qwen3-MoE), so that every size chooses alike (AutoEP's router would work in the model's dtype, normalise weights that LLaDA-MoE does
not, and forget a selection bias whose name it does not know).
Collectives per forward: three all-to-alls per MoE layer, whatever the tokens of a rank.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock, Qwen3MoeTopKRouter

from pipeline.core.errors import BadInput
from pipeline.distributed.launcher_env import spare_inference_op
from pipeline.models.families.llada2_moe import LLaDA2MoeConfig
from pipeline.models.families.llada2_moe_layers import Gate, MoE
from pipeline.models.weights import Shapes, checkpoint_views, read, shapes

REMEDY = "use the DeepSpeed of requirements.txt, or expert_parallel_size 1"


def expert_count(config: PreTrainedConfig) -> int:
    """Experts that can be spread over ranks: 1 for a dense model, and for a mixture whose layers are all dense."""
    return config.num_experts if moe_layers(config) else 1


def moe_layers(config: PreTrainedConfig) -> int:
    """Number of layers that are mixtures of experts."""
    if isinstance(config, LLaDA2MoeConfig):
        return max(0, config.num_hidden_layers - config.first_k_dense_replace)
    if isinstance(config, Qwen3MoeConfig):
        layers = set(range(config.num_hidden_layers)) - set(config.mlp_only_layers or ())
        return sum((layer + 1) % config.decoder_sparse_step == 0 for layer in layers)
    return 0


def resolve_expert_parallel_size(
    requested: int | Literal["auto"], *, experts: int, world_size: int, local_world_size: int
) -> int:
    """Ranks that share one set of experts; `auto` = the largest that divides the experts and the ranks of a node.

    `experts` is the model's `expert_count`. Raises BadInput for a size that does not divide ranks and experts.
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
    """LLaDA2's gate where AutoEP's layer calls its router, with the tokens and a bias that is not used here."""

    def __init__(self, gate: Gate):
        super().__init__()
        self.gate = gate

    def forward(self, tokens: Tensor, _bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.gate(tokens)


class SoftmaxRouter(nn.Module):
    """Qwen3-MoE's gate in the same place."""

    def __init__(self, gate: Qwen3MoeTopKRouter):
        super().__init__()
        self.gate = gate

    def forward(self, tokens: Tensor, _bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        _, weights, experts = self.gate(tokens)
        routed = experts.flatten()
        counts = routed.new_zeros(self.gate.num_experts).scatter_add_(0, routed, torch.ones_like(routed))
        return weights, experts, counts.int()


def split_experts(model: PreTrainedModel, *, size: int, device: torch.device | str) -> int:
    """Replaces the MoE layers of a model on the meta device and gives it memory on `device`, without values.

    Each rank holds experts [first, first + experts / size); returns `first`. Collective: it makes process groups.
    """
    # Imported here: DeepSpeed is slow to import, and only this needs it.
    import deepspeed
    from deepspeed.module_inject.auto_ep import AutoEP
    from deepspeed.module_inject.auto_ep_config import parse_autoep_config
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    spare_inference_op()
    deepspeed.init_distributed()
    config = model.config
    settings = {
        "enabled": True,
        "autoep_size": size,
        # For its patterns; the router is our own. The preset of Qwen3-MoE would rewire transformers' output recorders, which fails.
        "preset_model": "deepseek_v3",
        "num_experts_attr": "num_experts",
        "routed_scaling_factor": getattr(config, "routed_scaling_factor", 1.0),
        "use_grouped_mm": torch.device(device).type == "cuda",
    }
    expected = shapes(checkpoint_views(model))
    routers = {
        name: Router(module.gate) if isinstance(module, MoE) else SoftmaxRouter(module.gate)
        for name, module in model.named_modules()
        if isinstance(module, MoE | Qwen3MoeSparseMoeBlock)
    }
    rank = dist.get_rank() % size
    auto_ep = AutoEP(model, parse_autoep_config(settings))
    specs = auto_ep.ep_parser()
    with torch.device("meta"):  # else AutoEP's own tensors would be real and refuse to copy ours
        auto_ep.replace_moe_layers(specs, ep_size=size, ep_rank=rank)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, AutoEPMoELayer)}
        for name, layer in layers.items():
            layer.router = routers[name]
    model.to_empty(device=device)
    model.tie_weights()
    if hasattr(model.model, "rotary_emb"):  # its frequencies are a buffer that no file holds
        with torch.device(device):
            model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for name, layer in layers.items():
        layer.set_deepspeed_parallelism()
        layer.tokens_per_expert.zero_()
        if isinstance(layer.router, Router):
            layer.router.gate.tokens_per_expert.zero_()
        if dist.get_rank(layer.ep_group) != rank:
            raise RuntimeError(f"AutoEP's group for {name} has rank {dist.get_rank(layer.ep_group)} here, not {rank}")
    first = rank * (config.num_experts // size)
    _check_takeover(model, expected, range(first, first + config.num_experts // size))
    return first


def _check_takeover(model: PreTrainedModel, expected: Shapes, local: range) -> None:
    """Raises BadInput unless every tensor is there, and of the experts the local ones: AutoEP would only log it."""
    wanted = {name: shape for name, shape in expected.items() if _expert(name, default=local.start) in local}
    local_shapes = shapes(checkpoint_views(model, first_expert=local.start))
    if local_shapes != wanted:
        changed = sorted({name for name, _ in local_shapes.items() ^ wanted.items()})
        raise BadInput(f"AutoEP lost or changed {', '.join(changed[:3])}; {REMEDY}")


def verify_experts(model: PreTrainedModel, folder: Path | None, *, size: int) -> None:
    """Compares the loaded mixtures with the config and the files: layers, local experts, routing bias (random: zero).

    Raises BadInput for whatever was lost on the way. Every rank looks at its own part.
    """
    config = model.config
    gates = {name: module for name, module in model.named_modules() if isinstance(module, Gate | Qwen3MoeTopKRouter)}
    if len(gates) != moe_layers(config):
        raise BadInput(f"{len(gates)} of {moe_layers(config)} layers route tokens to experts; {REMEDY}")
    biases = {
        f"{name.replace('.router', '')}.expert_bias": gate for name, gate in gates.items() if isinstance(gate, Gate)
    }
    stored = dict(read(folder, biases.keys())) if folder else {}
    for name, gate in biases.items():
        bias = gate.e_score_correction_bias.cpu()
        if not torch.equal(bias, stored.get(name, torch.zeros_like(bias)).to(bias)):
            raise BadInput(f"{name} differs from the file after loading: the routing would be another; {REMEDY}")
    if size > 1:
        local = [experts.w1.shape[0] for name, experts in model.named_modules() if name.endswith(".mlp.experts")]
        if local != [config.num_experts // size] * moe_layers(config):
            raise BadInput(f"layers hold {local} experts here, not {config.num_experts} / {size} each; {REMEDY}")


def _expert(name: str, *, default: int) -> int:
    """Number of the expert that a checkpoint name belongs to."""
    number = re.search(r"\.mlp\.experts\.(\d+)\.", name)
    return int(number[1]) if number else default
