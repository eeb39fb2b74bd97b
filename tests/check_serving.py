"""Checks a folder against serving_contract.json: can sglang and lmdeploy serve it as SDARForCausalLM / SDARMoeForCausalLM?

Standard library only; reads config, tokenizer files and the headers of the safetensors files, never the weights.
`python check_serving.py FOLDER` prints the findings and exits 1 when there is an error.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

MASK_ID = 151669  # fixed by architecture in both servers, whatever config.json says
DEFAULT_BLOCK = 4
ARCHITECTURES = {"SDARForCausalLM": "sdar", "SDARMoeForCausalLM": "sdar_moe"}
SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
]
MOE_SIZES = ["num_experts", "num_experts_per_tok", "moe_intermediate_size"]
FLOATS = {"BF16", "F16", "F32"}
OTHER_FILES = ("consolidated", "adapter")


def check_export(folder: Path | str) -> dict[str, list[str]]:
    """Findings by kind: `errors` (a server refuses the folder or answers wrongly) and `warnings` (depends on the launch)."""
    folder = Path(folder)
    found: dict[str, list[str]] = {"errors": [], "warnings": []}
    config = _read_json(folder / "config.json", found)
    if config is None:
        return found
    architecture = _check_architecture(config, folder, found)
    _check_settings(config, architecture, found)
    _check_rope(config, found)
    _check_block(config, folder, found)
    if not any(line.startswith("config.json: size") for line in found["errors"]):
        _check_weights(config, architecture, folder, found)
    _check_tokenizer(config, folder, found)
    return found


def expected_weights(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint holds, with its shape; lm_head is always one of them."""
    hidden, heads, groups = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    width, vocab = config["head_dim"], config["vocab_size"]
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (heads * width, hidden),
            f"{at}.self_attn.k_proj.weight": (groups * width, hidden),
            f"{at}.self_attn.v_proj.weight": (groups * width, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, heads * width),
            f"{at}.self_attn.q_norm.weight": (width,),
            f"{at}.self_attn.k_norm.weight": (width,),
        }
        if config.get("attention_bias"):
            shapes |= {
                f"{at}.self_attn.{name}_proj.bias": shapes[f"{at}.self_attn.{name}_proj.weight"][:1] for name in "qkvo"
            }
        if (config.get("architectures") or [None])[0] != "SDARMoeForCausalLM":
            shapes |= _gated(f"{at}.mlp", config["intermediate_size"], hidden)
            continue
        shapes[f"{at}.mlp.gate.weight"] = (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            shapes |= _gated(f"{at}.mlp.experts.{expert}", config["moe_intermediate_size"], hidden)
    return shapes


def _gated(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def _check_architecture(config: dict, folder: Path, found: dict) -> str | None:
    names = config.get("architectures") or []
    architecture = names[0] if names else None
    if architecture not in ARCHITECTURES:
        found["errors"].append(f"config.json: architectures is {names}; the servers know {', '.join(ARCHITECTURES)}")
        return None
    wanted, kind = ARCHITECTURES[architecture], config.get("model_type")
    if kind != wanted:
        found["errors"].append(
            f"config.json: model_type is {kind!r}, not {wanted!r}: lmdeploy then decodes it as an autoregressive model, and sglang"
            " (transformers 5) finds no rope_theta on a library config class and takes 10000"
        )
    code = config.get("auto_map", {})
    target = code.get("AutoConfig")
    if target is None:
        found["errors"].append(
            "config.json: no auto_map.AutoConfig: sglang cannot read a model_type that transformers lacks"
        )
    elif not (folder / f"{target.split('.')[0]}.py").is_file():
        found["errors"].append(
            f"auto_map.AutoConfig names {target}, but {target.split('.')[0]}.py is not in the folder"
        )
    model = code.get("AutoModelForCausalLM")
    if model is not None and model.split(".")[-1] != architecture:
        found["errors"].append(
            f"auto_map.AutoModelForCausalLM is {model}: lmdeploy picks the class by it, before architectures"
        )
    return architecture


def _check_settings(config: dict, architecture: str | None, found: dict) -> None:
    sizes = SIZES + (MOE_SIZES if architecture == "SDARMoeForCausalLM" else [])
    for name in sizes:
        if type(config.get(name)) is not int or config[name] <= 0:
            extra = " (transformers 5 writes num_local_experts instead)" if name == "num_experts" else ""
            found["errors"].append(f"config.json: size {name} is {config.get(name)!r}{extra}")
    for name in ("attention_bias", "sliding_window", "pad_token_id", "bos_token_id", "eos_token_id"):
        if name not in config:
            found["errors"].append(f"config.json: {name} is missing; lmdeploy reads the attribute without a default")
    if not isinstance(config.get("rms_norm_eps"), float):
        found["errors"].append(f"config.json: rms_norm_eps is {config.get('rms_norm_eps')!r}")
    if config.get("tie_word_embeddings") is not False:
        found["errors"].append(
            f"config.json: tie_word_embeddings is {config.get('tie_word_embeddings')!r}: with true, sglang's dense class looks up"
            " lm_head.weight, which a shared module does not have (KeyError at tp 1); write false and the head itself"
        )
    if config.get("hidden_act") != "silu":
        found["errors"].append(
            f"config.json: hidden_act is {config.get('hidden_act')!r}; both servers compute silu whatever it says"
        )
    if config.get("sliding_window") is not None or config.get("use_sliding_window"):
        found["errors"].append(
            "config.json: sliding windows are on; write sliding_window null and use_sliding_window false"
        )
    if config.get("torch_dtype", config.get("dtype")) is None:
        found["warnings"].append("config.json: neither torch_dtype nor dtype; pass --dtype at launch")
    if config.get("mask_token_id", MASK_ID) != MASK_ID:
        found["errors"].append(
            f"config.json: mask_token_id is {config['mask_token_id']}; both servers fill blocks with {MASK_ID}"
        )
    if type(config.get("vocab_size")) is int and config["vocab_size"] <= MASK_ID:
        found["errors"].append(
            f"config.json: vocab_size {config['vocab_size']} has no row {MASK_ID} for the mask token"
        )
    if architecture == "SDARMoeForCausalLM":
        if config.get("mlp_only_layers") != [] or config.get("decoder_sparse_step") != 1:
            found["errors"].append(
                "config.json: mlp_only_layers must be [] and decoder_sparse_step 1: sglang makes every layer sparse"
            )
        if "norm_topk_prob" not in config:
            found["errors"].append("config.json: norm_topk_prob is missing")


def _check_rope(config: dict, found: dict) -> None:
    theta, inner = config.get("rope_theta"), config.get("rope_parameters") or {}
    if type(theta) not in (int, float):
        found["errors"].append(
            "config.json: no top-level rope_theta: sglang reads it there and takes 10000 without a word"
        )
    elif "rope_theta" in inner and inner["rope_theta"] != theta:
        found["errors"].append(
            f"config.json: rope_theta {theta} and rope_parameters.rope_theta {inner['rope_theta']} differ"
        )
    kind = (config.get("rope_scaling") or inner).get("rope_type", "default")
    if kind != "default":
        found["warnings"].append(f"config.json: rope_type {kind!r} was not compared between training and the servers")


def _check_block(config: dict, folder: Path, found: dict) -> None:
    block = config.get("block_size")
    if block is None:
        found["warnings"].append(f"config.json: no block_size; the servers take {DEFAULT_BLOCK} unless told otherwise")
    elif block != DEFAULT_BLOCK:
        found["warnings"].append(
            f"config.json: block_size {block} is read by neither server: sglang needs a YAML with `block_size: {block}` in"
            f" --dllm-algorithm-config, lmdeploy --dllm-block-length {block}"
        )


def _check_weights(config: dict, architecture: str | None, folder: Path, found: dict) -> None:
    held: dict[str, tuple[tuple[int, ...], str, str]] = {}
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith(OTHER_FILES))
    if not files:
        found["errors"].append("no *.safetensors in the folder")
        return
    for file in files:
        for name, (shape, dtype) in _header(file, found).items():
            if name in held:
                found["errors"].append(f"{name} is in {held[name][2]} and in {file.name}")
            held[name] = (shape, dtype, file.name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = (_read_json(index, found) or {}).get("weight_map", {})
        wrong = [
            name for name in listed.keys() | held.keys() if listed.get(name) != held.get(name, (None, None, None))[2]
        ]
        if wrong:
            found["errors"].append(f"{index.name} and the files disagree on {len(wrong)} tensors, e.g. {min(wrong)}")
    elif len(files) > 1:
        found["errors"].append(f"{len(files)} weight files and no {index.name}")
    if architecture is None:
        return
    wanted = expected_weights(config)
    _sum_up(sorted(wanted.keys() - held.keys()), "missing weights", found["errors"])
    _sum_up(
        sorted(held.keys() - wanted.keys()), "unknown weights (lmdeploy: KeyError; sglang: skipped)", found["errors"]
    )
    shapes = [
        f"{n} {held[n][0]} instead of {wanted[n]}"
        for n in sorted(wanted.keys() & held.keys())
        if held[n][0] != wanted[n]
    ]
    _sum_up(shapes, "wrong shapes", found["errors"])
    _sum_up(
        sorted({f"{dtype}" for _, dtype, _ in held.values()} - FLOATS),
        "dtypes that are not plain floats",
        found["errors"],
    )


def _check_tokenizer(config: dict, folder: Path, found: dict) -> None:
    data = _read_json(folder / "tokenizer.json", found)
    settings = _read_json(folder / "tokenizer_config.json", found) or {}
    if data is None:
        return
    added = {token["id"]: token["content"] for token in data.get("added_tokens", [])}
    vocabulary = data.get("model", {}).get("vocab", {})
    base = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    named = settings.get("mask_token")
    named = named.get("content") if isinstance(named, dict) else named
    if MASK_ID not in added:
        taken = (
            next((text for text, number in vocabulary.items() if number == MASK_ID), None)
            if isinstance(vocabulary, dict)
            else None
        )
        found["errors"].append(
            f"tokenizer.json: no added token has id {MASK_ID}" + (f"; it is the word {taken!r}" if taken else "")
        )
    elif named is not None and named != added[MASK_ID]:
        found["errors"].append(f"tokenizer_config.json: mask_token {named!r}, but id {MASK_ID} is {added[MASK_ID]!r}")
    elif named is None:
        found["warnings"].append(f"tokenizer_config.json: mask_token is not named (id {MASK_ID} is {added[MASK_ID]!r})")
    highest = max([*added, *base], default=0)
    if type(config.get("vocab_size")) is int and highest >= config["vocab_size"]:
        found["errors"].append(f"tokenizer.json: id {highest} is outside the {config['vocab_size']} embeddings")
    ends = config.get("eos_token_id")
    ends = set(ends) if isinstance(ends, list) else {ends}
    generation = folder / "generation_config.json"
    more = (_read_json(generation, found) or {}).get("eos_token_id") if generation.is_file() else None
    ends |= set(more) if isinstance(more, list) else {more}
    eos = settings.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    at = next((number for number, text in added.items() if text == eos), None)
    if at is None or at not in ends:
        found["errors"].append(
            f"eos token {eos!r} (id {at}) is none of {sorted(e for e in ends if e is not None)} in the configs"
        )
    if MASK_ID in ends:
        found["errors"].append("the mask token is an end-of-sequence token")
    if not (folder / "chat_template.jinja").is_file() and not settings.get("chat_template"):
        found["warnings"].append("no chat template: chat requests will fail, plain completions work")
    turn = next((number for number, text in added.items() if text == "<|im_end|>"), None)
    if turn is not None and turn not in ends:
        found["warnings"].append(
            f"<|im_end|> ({turn}) ends a turn but is in no eos_token_id; list it in generation_config.json"
        )


def _header(file: Path, found: dict) -> dict[str, tuple[tuple[int, ...], str]]:
    with file.open("rb") as stream:
        try:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
        except (struct.error, ValueError, OverflowError, MemoryError):
            found["errors"].append(f"{file.name}: no safetensors header")
            return {}
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if file.stat().st_size != 8 + size + end:
        found["errors"].append(f"{file.name}: {file.stat().st_size} bytes, its header says {8 + size + end}")
    return {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in tensors.items()}


def _read_json(file: Path, found: dict) -> dict | None:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found["errors"].append(f"{file.name} is missing")
        return None
    except ValueError as error:
        found["errors"].append(f"{file.name}: not JSON ({error})")
        return None
    if not isinstance(data, dict):
        found["errors"].append(f"{file.name}: not a JSON object")
        return None
    return data


def _sum_up(items: list[str], what: str, lines: list[str]) -> None:
    if items:
        lines.append(f"{len(items)} {what}: {', '.join(items[:3])}{', ...' if len(items) > 3 else ''}")


if __name__ == "__main__":
    result = check_export(sys.argv[1])
    for level, lines in result.items():
        for line in lines:
            print(f"{level[:-1]}: {line}")
    print("servable" if not result["errors"] else f"not servable: {len(result['errors'])} errors")
    sys.exit(bool(result["errors"]))
