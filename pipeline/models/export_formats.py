"""Formats of exports: `transformers`, which plain transformers opens, and those that servers of block diffusion read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from pipeline.config.recipe import ExportFormat
from pipeline.core.errors import BadInput
from pipeline.core.files import read_json, write_json, write_text
from pipeline.models import sdar_export
from pipeline.models.card import LLADA2_USAGE, copy_scores, model_card
from pipeline.models.configs import read_named_config
from pipeline.models.export import EXPORT_FILES, as_exported, export, write_generate, write_sglang_settings
from pipeline.models.families.table import is_shifted
from pipeline.models.loading import load_student
from pipeline.models.tokenizer import load_tokenizer

LLADA2_MASK_ID = 156895  # in SGLang's code
LLADA2_CLASS = "configuration_llada2_moe"


class Exported(NamedTuple):
    """What `export` writes."""

    model: PreTrainedModel
    state_dict: Mapping[str, Tensor]
    tokenizer: PreTrainedTokenizerFast


@dataclass(frozen=True)
class Exporter:
    """One format."""

    obstacles: Callable[[PreTrainedConfig, PreTrainedTokenizerFast], Iterator[str]]
    """Why a model, with the configuration of its export, cannot have it."""
    write: Callable[[Exported, Path, dict[str, Any]], None]
    """As `export`, into a folder and with its provenance, what `check_format` has not refused."""


def check_format(name: ExportFormat, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """Raises BadInput with every reason why a model cannot be exported so. `config`: see `as_exported`."""
    if reasons := list(FORMATS[name].obstacles(config, tokenizer)):
        raise BadInput(f"{where} cannot be exported as {name}: {'; '.join(reasons)}")


def export_again(source: str, name: ExportFormat, folder: Path) -> None:
    """Writes a model in a folder (or of a hub name) in a format, with the scores that its card has.

    Written to a temporary name and renamed. Raises BadInput for what the format cannot hold, and for a folder that exists.
    """
    if folder.exists():
        raise BadInput(f"{folder} exists already: choose another --output or delete it")
    tokenizer = load_tokenizer(source)
    config = read_named_config(source, tokenizer)
    provenance = getattr(config, "provenance", None) or {"source": source}
    check_format(name, as_exported(config, provenance), tokenizer, source)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    model = load_student(source, dtype=dtype, config=config)
    tmp_dir = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(tmp_dir, ignore_errors=True)
    FORMATS[name].write(Exported(model, model.state_dict(), tokenizer), tmp_dir, provenance)
    if (Path(source) / "README.md").is_file():
        copy_scores(Path(source), tmp_dir)
    os.rename(tmp_dir, folder)


def _write_sdar(exported: Exported, folder: Path, provenance: dict[str, Any]) -> None:
    config = as_exported(exported.model.config, provenance)
    sdar_export.write(config, exported.state_dict, exported.tokenizer, folder)
    write_generate(folder)
    config.mask_token_id = sdar_export.MASK_ID
    usage = sdar_export.USAGE.format(block_size=config.block_size)
    write_text(folder / "README.md", model_card("SDARForCausalLM", config, usage))


def _write_llada2(exported: Exported, folder: Path, provenance: dict[str, Any]) -> None:
    """As every export of LLaDA2, and the class of config.json, which transformers lacks."""
    export(*exported, folder, provenance=provenance)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"auto_map": {"AutoConfig": f"{LLADA2_CLASS}.LLaDA2MoeConfig"}})
    shutil.copyfile(EXPORT_FILES / f"{LLADA2_CLASS}.py", folder / f"{LLADA2_CLASS}.py")
    card = model_card(type(exported.model).__name__, as_exported(exported.model.config, provenance), LLADA2_USAGE)
    write_text(folder / "README.md", card)
    write_sglang_settings(folder, config["block_size"])


def _write_transformers(exported: Exported, folder: Path, provenance: dict[str, Any]) -> None:
    """As the class of transformers that computes it, whatever the family calls it; `shifted` in config.json says what it predicts."""
    config, shifted = exported.model.config, is_shifted(exported.model.config)
    published = config.__dict__.pop("published", None)
    if shifted:
        config.shifted = True
    try:
        export(*exported, folder, provenance=provenance)
    finally:
        if published is not None:
            config.published = published


def _no_transformers(config: PreTrainedConfig, _tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    if config.model_type == "llada2_moe":
        yield "transformers has no class that computes LLaDA2: take llada2"
    yield from _no_block_size(config)


def _no_sdar(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    yield from sdar_export.obstacles(config, tokenizer)
    yield from _trained_otherwise(config)


def _no_llada2(config: PreTrainedConfig, _tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    if config.model_type != "llada2_moe":
        yield f"it is no LLaDA2, but {config.model_type}"
        return
    if config.mask_token_id != LLADA2_MASK_ID:
        yield f"the server's mask id is {LLADA2_MASK_ID}, its own is {config.mask_token_id}"
    yield from _trained_otherwise(config)


def _trained_otherwise(config: PreTrainedConfig) -> Iterator[str]:
    """Whatever servers would decode otherwise than it was trained."""
    yield from _no_block_size(config)
    if getattr(config, "blocks", "sequence") != "sequence":
        yield "student.blocks response: servers count blocks from the start of the sequence"
    recipe = config.provenance.get("recipe", {})
    if recipe.get("student", {}).get("input", "block") != "block":
        yield "student.input full: servers hide later blocks"


def _no_block_size(config: PreTrainedConfig) -> Iterator[str]:
    if getattr(config, "block_size", None) is None:
        yield "its config.json names no block_size"


FORMATS: dict[ExportFormat, Exporter] = {
    "transformers": Exporter(_no_transformers, _write_transformers),
    "sdar": Exporter(_no_sdar, _write_sdar),
    "llada2": Exporter(_no_llada2, _write_llada2),
}
