"""Export of a trained model: a folder that plain transformers opens (LLaDA2: with the names of its published files)."""

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
from pipeline.models.card import model_card
from pipeline.models.families.llada2_moe import LLaDA2MoeModelLM
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
    config = copy.deepcopy(model.config)
    config.block_size = provenance["recipe"]["student"]["block_size"]
    config.blocks = provenance["recipe"]["student"].get("blocks", "sequence")
    config.provenance = provenance
    write_model(model, state_dict, config, folder)
    save_tokenizer(tokenizer, folder)
    if not isinstance(model, LLaDA2MoeModelLM):  # which plain transformers does not open
        write_generate(folder)
    write_text(folder / "README.md", model_card(model, config, provenance))


def write_model(
    model: PreTrainedModel, state_dict: Mapping[str, Tensor], config: PreTrainedConfig, folder: Path
) -> None:
    """Writes safetensors, and config.json of a diffusion model; arguments and errors as of `export`."""
    names = model.state_dict().keys() - ({HEAD} if model.config.tie_word_embeddings else set())
    if missing := names - state_dict.keys():
        raise ValueError(f"state_dict lacks {sorted(missing)[:3]}")
    views = checkpoint_views(model, {name: state_dict[name] for name in sorted(names)})
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned: parts of a stacked tensor share its storage, which safetensors refuses.
    save_torch_state_dict({name: view.detach().cpu().clone() for name, view in views.items()}, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors lets nobody but the owner read
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(views.values())).dtype
    config.is_causal = False
    config.save_pretrained(folder)
    _say_as_before(folder / "config.json", rope_of_transformers_4)


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
