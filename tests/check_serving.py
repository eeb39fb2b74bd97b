"""Can sglang and lmdeploy serve a folder as SDARForCausalLM or SDARMoeForCausalLM? What their loaders and samplers ask of it.

`python tests/check_serving.py FOLDER` prints the findings and exits 1 when there is an error; it reads no weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

MASK_ID = 151669  # fixed by architecture in both servers, whatever config.json says
DEFAULT_BLOCK = 4
MOE = "SDARMoeForCausalLM"
ARCHITECTURES = {"SDARForCausalLM": "sdar", MOE: "sdar_moe"}
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
MOE_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")  # transformers 5 writes num_local_experts
WITHOUT_DEFAULT = ("attention_bias", "sliding_window", "pad_token_id", "bos_token_id", "eos_token_id")  # in lmdeploy
SETTINGS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("rms_norm_eps", lambda value: isinstance(value, float), "must be a number"),
    ("tie_word_embeddings", lambda value: value is False,
     "with true, sglang's dense class looks up lm_head.weight, which a shared module does not have (KeyError at tp 1)"),
    ("hidden_act", lambda value: value == "silu", "both servers compute silu whatever it says"),
    ("sliding_window", lambda value: value is None, "must be null"),
    ("use_sliding_window", lambda value: not value, "must be false"),
    ("mask_token_id", lambda value: value in (None, MASK_ID), f"both servers fill blocks with {MASK_ID}"),
    ("rope_theta", lambda value: isinstance(value, int | float),
     "sglang reads it at the top level and takes 10000 without a word"),
)  # fmt: skip
MOE_SETTINGS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("mlp_only_layers", lambda value: value == [], "sglang makes every layer sparse"),
    ("decoder_sparse_step", lambda value: value == 1, "sglang makes every layer sparse"),
    ("norm_topk_prob", lambda value: value is not None, "is needed"),
)
"""Entries of config.json, what they must be, and why."""


def check_export(folder: Path | str) -> dict[str, list[str]]:
    """Findings by kind: `errors` (a server refuses the folder or answers wrongly) and `warnings` (depends on the launch)."""
    folder = Path(folder)
    errors: list[str] = []
    config = read_json(folder / "config.json", errors)
    if errors:
        return {"errors": errors, "warnings": []}
    tokenizer = read_json(folder / "tokenizer.json", errors)
    settings = read_json(folder / "tokenizer_config.json", errors)
    generation = folder / "generation_config.json"
    defaults = read_json(generation, errors) if generation.is_file() else {}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    words = tokenizer.get("model", {}).get("vocab", {})
    ids = words.values() if isinstance(words, dict) else range(len(words))  # Unigram has a list of pairs
    ends = {end for entries in (config, defaults) for end in as_list(entries.get("eos_token_id"))}
    errors += config_errors(config, folder)
    errors += weight_errors(config, folder)
    errors += tokenizer_errors(config, settings, added, max([*added.values(), *ids], default=0), ends)
    return {"errors": errors, "warnings": [*warnings(config, settings, added, ends, folder)]}


def read_json(file: Path, errors: list[str]) -> dict[str, Any]:
    """A file's JSON object; {} and an error where it has none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        errors.append(f"{file.name} is missing")
        return {}
    except ValueError as error:
        errors.append(f"{file.name}: not JSON ({error})")
        return {}
    if not isinstance(value, dict):
        errors.append(f"{file.name}: not a JSON object")
        return {}
    return value


def architecture_of(config: dict) -> Any:
    return next(iter(as_list(config.get("architectures"))), None)


def size_names(config: dict) -> tuple[str, ...]:
    return SIZES + MOE_SIZES if architecture_of(config) == MOE else SIZES


def is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def content(token: Any) -> Any:
    """A token's text, which tokenizer_config.json may wrap."""
    return token.get("content") if isinstance(token, dict) else token


def config_errors(config: dict, folder: Path) -> Iterator[str]:
    architecture, kind = architecture_of(config), config.get("model_type")
    code = config.get("auto_map") or {}
    if architecture not in ARCHITECTURES:
        yield f"architectures is {architecture}; the servers know {', '.join(ARCHITECTURES)}"
        return
    if kind != ARCHITECTURES[architecture]:
        yield (
            f"model_type is {kind!r}, not {ARCHITECTURES[architecture]!r}: lmdeploy then decodes it as an autoregressive model, "
            "and sglang (transformers 5) finds no rope_theta on a library config class and takes 10000"
        )
    if not (folder / f"{code.get('AutoConfig', '').split('.')[0]}.py").is_file():
        yield "auto_map.AutoConfig names no file: sglang cannot read a model_type that transformers lacks"
    if (model := code.get("AutoModelForCausalLM", architecture).split(".")[-1]) != architecture:
        yield f"auto_map.AutoModelForCausalLM is {model}: lmdeploy picks the class by it, before architectures"
    for name in size_names(config):
        if not is_size(config.get(name)):
            yield f"{name} is {config.get(name)!r}"
    yield from (
        f"{name} is missing: lmdeploy reads it without a default" for name in WITHOUT_DEFAULT if name not in config
    )
    for name, right, why in SETTINGS + MOE_SETTINGS * (architecture == MOE):
        if not right(config.get(name)):
            yield f"{name} is {config.get(name)!r}: {why}"
    if is_size(vocab := config.get("vocab_size")) and vocab <= MASK_ID:
        yield f"vocab_size {vocab} has no row {MASK_ID} for the mask token"
    inner = config.get("rope_parameters") or {}
    if inner.get("rope_theta", config.get("rope_theta")) != config.get("rope_theta"):
        yield f"rope_theta {config.get('rope_theta')} and rope_parameters.rope_theta {inner['rope_theta']} differ"


def expected_weights(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint holds, with its shape; lm_head is always one of them."""
    hidden, heads, groups = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    width, vocab = config["head_dim"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
    }
    shapes["model.norm.weight"] = (hidden,)
    rows = {"q": heads * width, "k": groups * width, "v": groups * width, "o": hidden}
    for layer in (f"model.layers.{n}" for n in range(config["num_hidden_layers"])):
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}.self_attn.{name}_norm.weight": (width,) for name in "qk"}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (rows[name], hidden) for name in "qkv"}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, heads * width)
        if config.get("attention_bias"):
            shapes |= {f"{layer}.self_attn.{name}_proj.bias": (size,) for name, size in rows.items()}
        experts = {f"{layer}.mlp": config["intermediate_size"]}
        if architecture_of(config) == MOE:
            shapes[f"{layer}.mlp.gate.weight"] = (config["num_experts"], hidden)
            names = (f"{layer}.mlp.experts.{n}" for n in range(config["num_experts"]))
            experts = dict.fromkeys(names, config["moe_intermediate_size"])
        for name, size in experts.items():
            shapes |= {f"{name}.{part}_proj.weight": (size, hidden) for part in ("gate", "up")}
            shapes[f"{name}.down_proj.weight"] = (hidden, size)
    return shapes


def weight_errors(config: dict, folder: Path) -> list[str]:
    errors: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    held_in: dict[str, str] = {}
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():
                    if name in held_in:
                        errors.append(f"{name} is in {held_in[name]} and in {file.name}")
                    part = weights.get_slice(name)
                    shapes[name], held_in[name] = tuple(part.get_shape()), file.name
                    if part.get_dtype() not in ("BF16", "F16", "F32"):
                        errors.append(f"{name} is {part.get_dtype()}, no plain float")
        except SafetensorError as error:
            errors.append(f"{file.name}: no whole safetensors file ({error})")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        if read_json(index, errors).get("weight_map") != held_in:
            errors.append(f"{index.name} and the files disagree")
    elif len(files) > 1:
        errors.append(f"{len(files)} weight files and no {index.name}")
    if architecture_of(config) in ARCHITECTURES and all(is_size(config.get(name)) for name in size_names(config)):
        errors += shape_errors(config, shapes)
    return errors


def shape_errors(config: dict, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    wanted = expected_weights(config)
    for difference, names in (
        ("missing weights", wanted.keys() - shapes.keys()),
        ("unknown weights (lmdeploy: KeyError; sglang: skipped)", shapes.keys() - wanted.keys()),
        ("wrong shapes", {name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name]}),
    ):
        if names:
            yield f"{len(names)} {difference}, {min(names)} among them"


def tokenizer_errors(config: dict, settings: dict, added: dict, highest: int, ends: set) -> Iterator[str]:
    mask = next((text for text, number in added.items() if number == MASK_ID), None)
    if mask is None:
        yield f"tokenizer.json: no added token has id {MASK_ID}"
    elif (named := content(settings.get("mask_token", mask))) != mask:
        yield f"tokenizer_config.json: mask_token {named!r}, but id {MASK_ID} is {mask!r}"
    if is_size(vocab := config.get("vocab_size")) and highest >= vocab:
        yield f"tokenizer.json: id {highest} is outside the {vocab} embeddings"
    if added.get(eos := content(settings.get("eos_token"))) not in ends - {None}:
        yield f"eos token {eos!r} is none of {ends} in the configs"
    if MASK_ID in ends:
        yield "the mask token is an end-of-sequence token"


def warnings(config: dict, settings: dict, added: dict, ends: set, folder: Path) -> Iterator[str]:
    if config.get("torch_dtype", config.get("dtype")) is None:
        yield "neither torch_dtype nor dtype; pass --dtype at launch"
    kind = (config.get("rope_scaling") or config.get("rope_parameters") or {}).get("rope_type", "default")
    if kind != "default":
        yield f"rope_type {kind!r} was not compared between training and the servers"
    if (block := config.get("block_size")) is None:
        yield f"no block_size; the servers take {DEFAULT_BLOCK} unless told otherwise"
    elif block != DEFAULT_BLOCK:
        yield (
            f"block_size {block} is read by neither server: sglang needs a YAML with `block_size: {block}` in "
            f"--dllm-algorithm-config, lmdeploy --dllm-block-length {block}"
        )
    if "mask_token" not in settings:
        yield "tokenizer_config.json: mask_token is not named"
    if not (folder / "chat_template.jinja").is_file() and not settings.get("chat_template"):
        yield "no chat template: chat requests will fail, plain completions work"
    if added.get("<|im_end|>") not in ends | {None}:
        yield "<|im_end|> ends a turn but is in no eos_token_id; list it in generation_config.json"


if __name__ == "__main__":
    findings = check_export(sys.argv[1])
    for level, lines in findings.items():
        for line in lines:
            print(f"{level[:-1]}: {line}")
    sys.exit(bool(findings["errors"]))
