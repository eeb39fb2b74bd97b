"""SDAR's format, which SGLang and LMDeploy serve: a Qwen3-shaped student as SDARForCausalLM.

Read from the servers' sources (sglang 0.5.23, InternLM/lmdeploy 1263d5c): both take sizes and `rope_theta` from the top level
of config.json, need the head's own tensor, fill blocks with id 151669, and count blocks from the start of the sequence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from pipeline.core.files import read_json, write_json, write_text
from pipeline.models.export import EXPORT_FILES, save_tensors, save_tokenizer, write_sglang_settings
from pipeline.models.weights import HEAD

MASK_ID = 151669  # in both servers' code
EMBEDDING = "model.embed_tokens.weight"
KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias", "attention_dropout",
    "initializer_range", "block_size", "blocks",
)  # fmt: skip
"""Fields of Qwen3's configuration that SDAR has, too."""

USAGE = """\
## Serving

    python -m sglang.launch_server --model-path FOLDER --trust-remote-code --dllm-algorithm LowConfidence \\
      --dllm-algorithm-config FOLDER/dllm.yaml --max-running-requests 8

    lmdeploy serve api_server FOLDER --backend pytorch --trust-remote-code --dllm-block-length {block_size} \\
      --dllm-denoising-steps {block_size} --dllm-unmasking-strategy low_confidence_dynamic --dllm-confidence-threshold 0.9

The folder was checked against both servers' sources (sglang 0.5.23, lmdeploy 1263d5c); neither was started.

## Transformers

```python
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
model = Qwen3ForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
chat = [{{"role": "user", "content": "2 + 3?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
# runs custom_generate/generate.py of the folder, which is yours to read first
ids = model.generate(**inputs, custom_generate=folder, trust_remote_code=True, max_new_tokens=256, threshold=0.9)
print(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
```"""


def obstacles(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Why a student cannot be served as SDAR; nothing where it can."""
    if config.model_type != "qwen3":
        yield f"{config.model_type}'s shape is not Qwen3's, which SDAR has (norms of queries and keys)"
        return
    if config.hidden_act != "silu":
        yield f"hidden_act is {config.hidden_act}, the servers compute silu"
    if config.use_sliding_window:
        yield "use_sliding_window is on, the servers attend to everything before"
    if (kind := config.rope_parameters["rope_type"]) != "default":
        yield f"rope_type {kind} was not compared with the servers'"
    if config.vocab_size <= MASK_ID:
        yield (
            f"the servers' mask id is {MASK_ID}, of Qwen3's tokenizer, and there are {config.vocab_size} embeddings:"
            f" another tokenizer, whose mask id is {config.mask_token_id}"
        )
    elif tokenizer.vocab_size > MASK_ID:
        yield f"the servers' mask id {MASK_ID} is the word {tokenizer.convert_ids_to_tokens(MASK_ID)!r} of its tokenizer"
    elif config.mask_token_id < tokenizer.vocab_size:
        yield f"its mask token {tokenizer.convert_ids_to_tokens(config.mask_token_id)!r} is a word of its tokenizer"


def write(
    config: PreTrainedConfig, state_dict: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Weights, config.json and its class, tokenizer, and the servers' settings. The rows of the mask and of 151669 change places."""
    mask = config.mask_token_id
    head = state_dict[EMBEDDING if config.tie_word_embeddings else HEAD]
    rows = torch.arange(config.vocab_size)
    rows[[mask, MASK_ID]] = rows[[MASK_ID, mask]]
    moved = {EMBEDDING: state_dict[EMBEDDING][rows], HEAD: head[rows]}
    save_tensors({**state_dict, **moved}, folder)

    save_tokenizer(tokenizer, folder)
    move_mask_token(folder, mask, len(tokenizer))
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    special = {
        "bos_token_id": ends[0] if config.bos_token_id is None else config.bos_token_id,
        "eos_token_id": ends[0],
        "pad_token_id": ends[0] if config.pad_token_id is None else config.pad_token_id,
    }
    # By hand: transformers' classes would write rope_parameters, and no pad_token_id where it is none.
    written = {
        "architectures": ["SDARForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_sdar.SDARConfig"},
        "model_type": "sdar",
        **{name: getattr(config, name) for name in KEPT},
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "is_causal": False,
        "mask_token_id": MASK_ID,
        **special,
        "torch_dtype": str(head.dtype).removeprefix("torch."),
    }
    write_json(folder / "config.json", written)
    every = list(dict.fromkeys([*ends, tokenizer.eos_token_id]))
    write_json(folder / "generation_config.json", {**special, "eos_token_id": every})
    write_sglang_settings(folder, config.block_size)
    shutil.copyfile(EXPORT_FILES / "configuration_sdar.py", folder / "configuration_sdar.py")


def move_mask_token(folder: Path, mask: int, length: int) -> None:
    """Gives the mask token of tokenizer.json the id 151669, and its own to the token that stood there, if one did.

    Ids of added tokens have no gaps: tokens that no text holds fill them. `length`: ids of the tokenizer.
    """
    rules = read_json(folder / "tokenizer.json")
    added = {token["id"]: token for token in rules["added_tokens"]}
    mask_token, there = added.pop(mask), added.pop(MASK_ID, None)
    added[MASK_ID] = {**mask_token, "id": MASK_ID}
    if there is not None:
        added[mask] = {**there, "id": mask}
    for unused in {mask, *range(length, MASK_ID)} - added.keys():
        added[unused] = {**mask_token, "id": unused, "content": f"<|unused_{unused}|>"}
    rules["added_tokens"] = [added[number] for number in sorted(added)]
    write_text(folder / "tokenizer.json", json.dumps(rules, ensure_ascii=False))
