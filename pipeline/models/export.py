"""Export of a trained model: a folder that plain transformers opens, or one named as the family's published files are."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from pipeline.core.files import read_json, write_json, write_text
from pipeline.models.card import PUBLISHED_USAGE, TRANSFORMERS_USAGE, model_card
from pipeline.models.families.llada2_moe import LLaDA2MoeModelLM
from pipeline.models.families.table import family_of
from pipeline.models.weights import HEAD, checkpoint_views

EXPORT_FILES = Path(__file__).parent / "export_files"


def export(
    model: PreTrainedModel,
    state_dict: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path | str,
    *,
    provenance: dict[str, Any],
) -> None:
    """Writes safetensors, config.json, tokenizer and README.md. One process; the model gives names and config only.

    state_dict: the whole model under its own names, in the dtype to be written; gathered, buffers included.
    provenance: JSON values for config.json and the card; `recipe` is the resolved recipe. Raises ValueError when
    state_dict lacks a tensor.
    """
    folder = Path(folder)
    config = as_exported(model.config, provenance)
    write_model(model, state_dict, config, folder)
    save_tokenizer(tokenizer, folder)
    family, usage = family_of(config), TRANSFORMERS_USAGE
    if family.keeps_name or isinstance(model, LLaDA2MoeModelLM):  # which plain transformers does not open
        usage = PUBLISHED_USAGE.format(family=family.name)
    else:
        write_generate(folder)
    write_text(folder / "README.md", model_card(type(model).__name__, config, usage))


def as_exported(config: PreTrainedConfig, provenance: dict[str, Any]) -> PreTrainedConfig:
    """The configuration that an export has: how blocks were cut in training, and where the model comes from."""
    config = copy.deepcopy(config)
    if "recipe" in provenance:
        student = provenance["recipe"]["student"]
        config.block_size, config.blocks = student["block_size"], student.get("blocks", "sequence")
    config.provenance = provenance
    return config


def write_model(
    model: PreTrainedModel, state_dict: Mapping[str, Tensor], config: PreTrainedConfig, folder: Path
) -> None:
    """Writes safetensors, and config.json of a diffusion model; arguments and errors as of `export`."""
    names = model.state_dict().keys() - ({HEAD} if model.config.tie_word_embeddings else set())
    if missing := names - state_dict.keys():
        raise ValueError(f"state_dict lacks {sorted(missing)[:3]}")
    views = checkpoint_views(model, {name: state_dict[name] for name in sorted(names)})
    save_tensors(views, folder)
    config.dtype = next(iter(views.values())).dtype
    config.is_causal = False
    if family_of(config).keeps_name:
        write_json(folder / "config.json", _published(config))
    else:
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        _say_as_before(folder / "config.json", rope_of_transformers_4)


def _published(config: PreTrainedConfig) -> dict[str, Any]:
    """config.json as the family has it, and what this project adds."""
    roles = [f"{role}_token_id" for role in ("mask", "eos", "pad")]
    added = ("block_size", "blocks", "is_causal", "provenance", *roles)
    values = {name: getattr(config, name, None) for name in added}
    dtype = {"torch_dtype": str(config.dtype).removeprefix("torch.")}
    return {**config.published, **{name: value for name, value in values.items() if value is not None}, **dtype}


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """safetensors under these names, in shards where they are large; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned: parts of a stacked tensor share its storage, which safetensors refuses.
    save_torch_state_dict({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors lets nobody but the owner read


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the tokenizer under the class name that transformers 4 has, too."""
    tokenizer.save_pretrained(folder)
    _say_as_before(folder / "tokenizer_config.json", lambda _: {"tokenizer_class": "PreTrainedTokenizerFast"})


def rope_of_transformers_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of transformers 5 as transformers 4 and most servers read them, who else take another rotary base."""
    rope = config.get("rope_parameters") or {}
    old = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if rope.get("rope_type", "default") != "default":
        old["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return old


def _say_as_before(file: Path, settings: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    content = read_json(file)
    write_json(file, content | settings(content))


def write_generate(folder: Path) -> None:
    """The code that `model.generate(custom_generate=FOLDER)` runs where the user asks for it."""
    (folder / "custom_generate").mkdir(exist_ok=True)
    shutil.copyfile(EXPORT_FILES / "generate.py", folder / "custom_generate" / "generate.py")


def write_sglang_settings(folder: Path, block_size: int) -> None:
    """dllm.yaml, for SGLang's `--dllm-algorithm-config`."""
    write_text(folder / "dllm.yaml", f"threshold: 0.95\nblock_size: {block_size}\n")
