"""The model under evaluation: read from its folder when it is first needed, and told apart by its files' hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pipeline.alignment.control_tokens import ControlTokens
from pipeline.alignment.vocabulary import token_bytes
from pipeline.core.errors import BadInput, one_line
from pipeline.core.files import file_sha256
from pipeline.core.machine import cpu_name
from pipeline.decoding.sampler import SpecialTokens
from pipeline.models.chat_template import check_chat_template
from pipeline.models.configs import read_config, read_named_config
from pipeline.models.loading import load_teacher
from pipeline.models.model_files import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES, fetch
from pipeline.models.tokenizer import load_tokenizer

Cut = Literal["training", "reference"]
CUTS: dict[str, Cut] = {"sequence": "training", "response": "reference"}  # student.blocks -> GenerateConfig.blocks


@dataclass(frozen=True)
class CheckpointUnderTest:
    """A folder (or hub name) with config, weights and tokenizer. Merging shards loads no weights."""

    path: str
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, path: str, dtype: str = "auto", index: int = 0) -> CheckpointUnderTest:
        """On the `index`-th GPU (modulo their number), or the CPU; `auto` is bfloat16 on a GPU, else float32."""
        gpus = torch.cuda.device_count()
        device = f"cuda:{index % gpus}" if gpus else "cpu"
        auto = torch.bfloat16 if gpus else torch.float32
        return cls(path, auto if dtype == "auto" else getattr(torch, dtype), device)

    @cached_property
    def config(self) -> Any:
        return read_config(self.path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.path, chat=False)

    @cached_property
    def chat_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, whose chat template can be used."""
        check_chat_template(self.tokenizer, self.path)
        return self.tokenizer

    @cached_property
    def control_tokens(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, complete: bool = False) -> str:
        """The prompt as the tokenizer's chat template writes it, thinking off (as in training); contents are text, with stand-ins
        for the control tokens that they spell (`control_tokens.encode` reads them).

        Args:
            complete: the last message is the beginning of the answer, which goes on.

        Raises BadInput for messages that the template refuses.
        """
        tokenizer, hide = self.chat_tokenizer, self.control_tokens.hide
        try:
            prompt = tokenizer.apply_chat_template(
                [{**message, "content": hide(message["content"])} for message in messages],
                tokenize=False,
                add_generation_prompt=not complete,
                continue_final_message=complete,
                enable_thinking=False,
            )
        except Exception as error:  # a template can raise anything
            raise BadInput(f"{self.path}: its chat template refuses a prompt ({one_line(error)})") from None
        return str(prompt)

    def encode(self, text: str) -> list[int]:
        """Ids of a text rendered from hidden contents. Raises BadInput for those that the model has no embedding of."""
        ids = self.control_tokens.encode(text)
        if ids and max(ids) >= self.config.vocab_size:
            raise BadInput(
                f"{self.path}: token {max(ids)} of its tokenizer is beyond its {self.config.vocab_size} embeddings; resize them "
                "and save the model again"
            )
        return ids

    @cached_property
    def spelled(self) -> list[bytes]:
        """What each token spells."""
        return token_bytes(self.tokenizer)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Frozen, in eval mode, of any architecture."""
        config = read_named_config(self.path, self.tokenizer)
        return load_teacher(self.path, dtype=self.dtype, device=self.device, config=config)

    @cached_property
    def special(self) -> SpecialTokens:
        return SpecialTokens.of(self.model)

    def blocks(self, size: int | None = None) -> tuple[int, Cut]:
        """Block size and cut (as GenerateConfig names it) that config.json says the model was trained with.

        size: where config.json names none. Raises BadInput without either: scored with another block size than its own, a model
        may know nothing.
        """
        named, blocks = getattr(self.config, "block_size", None), getattr(self.config, "blocks", "sequence")
        size = size if named is None else named
        if size is None:
            raise BadInput(
                f"{self.path}: config.json names no block_size, the one that the model was trained with: add it, or take a "
                "preset that names one (paper, fast)"
            )
        if not (isinstance(size, int) and size > 0 and blocks in CUTS):
            raise BadInput(
                f"{self.path}: config.json has block_size {size!r} and blocks {blocks!r}; block_size must be above 0, and "
                f"blocks one of {', '.join(CUTS)}"
            )
        return size, CUTS[blocks]

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over names and contents of config, weights and tokenizer."""
        patterns = [*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHT_FILES]
        folder = fetch(self.path, patterns)
        files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
        if not any(file.suffix == ".safetensors" for file in files):
            raise BadInput(f"{self.path}: no *.safetensors; give the folder of a model")
        total = hashlib.sha256()
        for file in files:
            total.update(f"{file.name} {file_sha256(file)}\n".encode())
        return total.hexdigest()

    def hardware(self) -> dict[str, Any]:
        """What computes here."""
        on_gpu = self.device.startswith("cuda")
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else cpu_name(),
            "cuda": torch.version.cuda if on_gpu else None,
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
