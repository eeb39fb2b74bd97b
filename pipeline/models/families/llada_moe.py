"""LLaDA-MoE (inclusionAI, LLaDA-MoE-7B-A1B): Qwen3-MoE whose expert weights are not normalised, bidirectional.

Its published model_type is LLaDA-8B's. `norm_topk_prob` and `routed_scaling_factor` are read by its code and not used.
"""

from __future__ import annotations

from pipeline.models.families.family import Family, Raw, Sampler, only, without

RENAMED = {"expert_intermediate_size": "moe_intermediate_size", "dense_intermediate_size": "intermediate_size"}
UNUSED = ("moe_layer_freq", "routed_scaling_factor", "shared_expert_intermediate_size", "partial_rotary_factor")


def _fields(raw: Raw) -> Raw:
    only(
        raw,
        moe_router_enable_expert_bias=False,
        moe_router_score_function="softmax",
        partial_rotary_factor=1,
        qk_layernorm=True,
        shared_expert_intermediate_size=0,
    )
    for name in ("clip_qkv", "router_num_group", "router_topk_group"):
        if raw.get(name) is not None:
            raise ValueError(f"{name}={raw[name]!r} is not supported")
    fields = {RENAMED.get(name, name): value for name, value in without(raw, *UNUSED).items()}
    frequency = raw.get("moe_layer_freq") or [1] * raw["num_hidden_layers"]
    if isinstance(frequency, int):
        raise ValueError(f"moe_layer_freq={frequency} is not supported, only a list of 0 (dense) and 1 for each layer")
    fields["mlp_only_layers"] = [layer for layer, is_moe in enumerate(frequency) if not is_moe]
    fields["norm_topk_prob"] = False
    fields.setdefault("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    return fields


FAMILY = Family(
    name="LLaDA-MoE",
    model_types=("llada", "lladamoe"),
    architectures=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    marker="expert_intermediate_size",
    library="qwen3_moe",
    inputs=("full",),
    fields=_fields,
    mask_token_id=156895,
    keeps_name=True,
    sampler=Sampler(sees="everything", blocks="response", counts="even"),
    student=False,
)
