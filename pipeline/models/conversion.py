"""Turns an autoregressive model into a block-diffusion student: a mask token, its embedding row, and no causal mask.

Weights stay as they are. Under a causal mask the student gives the source's logits for every token that the source has.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from pipeline.config.recipe import Student
from pipeline.core.errors import BadInput
from pipeline.core.files import file_sha256
from pipeline.models.configs import read_config
from pipeline.models.export import save_tokenizer, write_model
from pipeline.models.loading import build
from pipeline.models.model_files import CONFIG_FILES, WEIGHT_FILES, fetch, read_raw_config
from pipeline.models.tokenizer import MASK_TOKEN, read_tokenizer
from pipeline.models.weights import TiedHead, check_files, check_shapes, checkpoint_views, fill, shapes, weight_files

SOURCES = ("llama", "qwen2", "qwen3")
ROUND_TO = 64  # rows of resized embeddings: matrix products of GPUs want multiples


@dataclass(frozen=True)
class Conversion:
    """What was done: `conversion` in the student's config.json."""

    source: str
    weights_sha256: dict[str, str]
    mask_token: str
    mask_token_added: bool
    vocab_size: list[int]
    """Before and after."""
    date: str
    versions: dict[str, str]


def convert(source: str, output: Path, *, gguf: str = "") -> Conversion:
    """Writes the student's folder.

    `source` is a folder or a name of the hub, `gguf` a file in it whose weights are dequantized to float32. Written
    to a temporary name and renamed. Raises BadInput for a source that is no autoregressive Llama, Qwen2 or Qwen3 with a chat template,
    for weights that do not fit, and for an output that exists.
    """
    if output.exists():
        raise BadInput(f"{output} exists already: choose another --output or delete it")
    model, tokenizer, files = _read_gguf(source, gguf) if gguf else _read_folder(source)
    before, added = model.config.vocab_size, add_mask_token(model, tokenizer)
    conversion = Conversion(
        source=source,
        weights_sha256={file.name: file_sha256(file) for file in files},
        mask_token=tokenizer.mask_token,
        mask_token_added=added,
        vocab_size=[before, model.config.vocab_size],
        date=datetime.now(UTC).date().isoformat(),
        versions={name: version(name) for name in ("torch", "transformers")},
    )
    model.config.conversion = asdict(conversion)
    model.config.block_size = Student.block_size  # to be scored with; an export has the one that it was trained with
    tmp_dir = output.with_name(f".writing-{output.name}")
    shutil.rmtree(tmp_dir, ignore_errors=True)
    write_model(model, model.state_dict(), model.config, tmp_dir)
    save_tokenizer(tokenizer, tmp_dir)
    os.rename(tmp_dir, output)
    return conversion


@torch.no_grad()
def add_mask_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Gives both a mask token and an end token; returns whether the mask token is a new one.

    A mask token that the tokenizer has is taken, else `<|mask|>` is added. Rows that are new or that no token used
    become the mean of the used ones, in the embedding and in the head: the mean of all logits is never the largest.
    The end token becomes the one that the chat template puts behind an answer, as generation has to stop there.
    """
    config, used, before = model.config, min(len(tokenizer), model.config.vocab_size), model.config.vocab_size
    added = tokenizer.mask_token is None
    if added:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    mask = tokenizer.mask_token_id
    if mask >= before:
        model.resize_token_embeddings(-(-len(tokenizer) // ROUND_TO) * ROUND_TO, mean_resizing=False)
    fresh = [*([mask] if added and mask < before else []), *range(before, config.vocab_size)]
    for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        weight[fresh] = weight[:used].float().mean(0).to(weight.dtype)
    config.mask_token_id = mask
    if (end := end_of_turn(tokenizer)) is not None:
        tokenizer.eos_token, config.eos_token_id = tokenizer.convert_ids_to_tokens(end), end
    if config.pad_token_id is None:
        config.pad_token_id = config.eos_token_id
    return added


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template puts right behind an answer, if it does."""
    answer = "\ue000"  # occurs in no template
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False))
    behind = tokenizer(text.rpartition(answer)[2], add_special_tokens=False).input_ids
    return behind[0] if behind and behind[0] in tokenizer.added_tokens_decoder else None


def _read_folder(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[Path]]:
    given = Path(source)
    files = [given] if given.suffix.lower() == ".gguf" else sorted(given.glob("*.gguf"))
    if files and not (given / "config.json").is_file():
        raise BadInput(
            f"{source}: a GGUF file, no config.json: `--source '{files[0].parent}' --gguf '{files[0].name}'`"
        )
    folder = fetch(source, [*CONFIG_FILES, *WEIGHT_FILES])
    config = read_config(source)
    _check_source(source, read_raw_config(folder / "config.json"))
    tokenizer = read_tokenizer(source)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    model = build(config, dtype=dtype, device="cpu")
    views, tied = checkpoint_views(model), TiedHead.of(model)
    check_files(folder, shapes(views), tied_head=tied)
    fill(folder, views, tied_head=tied)
    return model, tokenizer, weight_files(folder)


def _read_gguf(source: str, file: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[Path]]:
    try:
        import gguf  # noqa: F401  transformers asks for it late, and its message is long
    except ImportError:
        raise BadInput("--gguf needs the package gguf: `pip install gguf`") from None
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = fetch(source, [file]) / file
    if not path.is_file():
        raise BadInput(f"{source}: no {file}; --gguf names a file in it")
    try:
        raw = load_gguf_checkpoint(str(path))["config"]
    except (KeyError, ValueError) as error:
        raise BadInput(f"{path}: not a GGUF file of a known architecture ({error})") from None
    _check_source(str(path), raw)
    config = AutoConfig.for_model(**{k: v for k, v in raw.items() if k != "_model_name_or_path"})
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if not tokenizer.chat_template:
        raise BadInput(f"{path}: no chat template; convert a model that was trained on chats")
    model = build(config, dtype=torch.float32, device="cpu")
    stored: dict[str, Tensor] = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    views = checkpoint_views(model)
    check_shapes(str(path), shapes(stored), shapes(views))
    for name, view in views.items():
        view.copy_(stored[name])
    return model, cast(PreTrainedTokenizerFast, tokenizer), [path]


def _check_source(where: str, raw: dict[str, Any]) -> None:
    kind = raw.get("model_type")
    if kind not in SOURCES:
        raise BadInput(f"{where}: model_type {kind!r} is no autoregressive model of {', '.join(SOURCES)}")
    if raw.get("mask_token_id") is not None or raw.get("is_causal") is False:
        raise BadInput(f"{where} is a diffusion model already: use it as student.path")
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        raise BadInput(f"{where} attends to a sliding window: a student attends to all that its block may see")
