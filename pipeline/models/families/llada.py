"""LLaDA-8B (GSAI-ML): Llama under OLMo's names, bidirectional over the whole sequence.

`ff_out` is two things in its files: the head, and every layer's down projection.
"""

from __future__ import annotations

from pipeline.models.families.family import Family, Raw, Sampler, only

SIZES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_sequence_length": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "weight_tying": "tie_word_embeddings",
    "mask_token_id": "mask_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
    "torch_dtype": "dtype",
    "dtype": "dtype",
}


def _fields(raw: Raw) -> Raw:
    only(
        raw,
        activation_type="silu",
        alibi=False,
        attention_layer_norm=False,
        bias_for_layer_norm=False,
        block_group_size=1,
        block_type="llama",
        include_bias=False,
        input_emb_norm=False,
        layer_norm_type="rms",
        layer_norm_with_affine=True,
        rope=True,
        scale_logits=False,
    )
    if raw.get("clip_qkv") is not None:
        raise ValueError(f"clip_qkv={raw['clip_qkv']!r} is not supported")
    fields = {ours: raw[theirs] for theirs, ours in SIZES.items() if raw.get(theirs) is not None}
    heads = raw["n_heads"]
    fields["vocab_size"] = raw.get("embedding_size") or raw["vocab_size"]  # padded to a round number of rows
    fields["intermediate_size"] = raw.get("mlp_hidden_size") or int(raw.get("mlp_ratio", 4) * raw["d_model"])
    fields["num_key_value_heads"] = raw.get("n_kv_heads") or (1 if raw.get("multi_query_attention") else heads)
    # Qwen2 is Llama with biases of queries, keys and values.
    return {**fields, "library": "qwen2" if raw.get("include_qkv_bias") else "llama"}


FAMILY = Family(
    name="LLaDA",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    marker="d_model",
    library="llama",
    inputs=("full",),
    fields=_fields,
    names=(
        ("model.embed_tokens.", "model.transformer.wte."),
        ("model.norm.", "model.transformer.ln_f."),
        ("lm_head.", "model.transformer.ff_out."),
        ("model.layers.", "model.transformer.blocks."),
        (".self_attn.o_proj.", ".attn_out."),
        (".self_attn.", "."),
        (".input_layernorm.", ".attn_norm."),
        (".post_attention_layernorm.", ".ff_norm."),
        (".mlp.gate_proj.", ".ff_proj."),
        (".mlp.up_proj.", ".up_proj."),
        (".mlp.down_proj.", ".ff_out."),
    ),
    mask_token_id=126336,
    keeps_name=True,
    sampler=Sampler(sees="everything", blocks="response", counts="even"),
)
