"""Export of a trained model: a folder that plain transformers opens (LLaDA2: with the names of its published files)."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from pipeline.core.files import write_text
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
    tokenizer.save_pretrained(folder)
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


def write_generate(folder: Path) -> None:
    """The code that `model.generate(custom_generate=FOLDER)` runs where the user asks for it."""
    (folder / "custom_generate").mkdir(exist_ok=True)
    shutil.copyfile(EXPORT_FILES / "generate.py", folder / "custom_generate" / "generate.py")
