"""Checks of a side, the student or a teacher, that can fail before a row is tokenized. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pipeline.config.recipe import Student, Teacher
from pipeline.core.errors import BadInput
from pipeline.models.config_file import (
    config_file,
    family_and_fields,
    require_positions,
    require_same_mask,
    require_student,
)
from pipeline.models.families.family import Raw
from pipeline.models.model_files import CONFIG_FILES, fetch, read_raw_config
from pipeline.models.tokenizer import require_mask_token


def check_side(side: Student | Teacher, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
    """Raises BadInput, naming the side, for what `distill` would refuse of its tokenizer, its config, or of both together.

    A side that has a tokenizer and no model yet may be aligned.
    """
    student = isinstance(side, Student)
    with _named(side.role):
        if not side.causal:
            require_mask_token(tokenizer, side.tokenizer, student=student)
        if not _has_config(side):
            return
        file = config_file(side.path)
        family, fields = family_and_fields(read_raw_config(file), str(file), causal=side.causal)
        if student:
            require_student(family, side.path)
            _require_end_token(tokenizer, fields, side.path)
        if size := fields.get("vocab_size"):
            _require_embeddings(tokenizer, size, side.path)
        if positions := fields.get("max_position_embeddings"):
            require_positions("data.student_length" if student else "length", length, positions, side.path)
        if not side.causal and (named := fields.get("mask_token_id")) is not None:
            require_same_mask(side.path, named, tokenizer.mask_token_id)


def _has_config(side: Student | Teacher) -> bool:
    if Path(side.path).exists():
        return True
    return side.path == side.tokenizer and (fetch(side.path, CONFIG_FILES) / "config.json").is_file()


def _require_end_token(tokenizer: PreTrainedTokenizerFast, fields: Raw, path: str) -> None:
    """Raises BadInput where neither config.json nor the tokenizer names one: no answer would ever end."""
    if fields.get("eos_token_id") is None and tokenizer.eos_token_id is None:
        raise BadInput(
            f"{path}: no end token in config.json (eos_token_id) or in its tokenizer (eos_token): name it in both"
        )


def _require_embeddings(tokenizer: PreTrainedTokenizerFast, size: int, path: str) -> None:
    """Raises BadInput for tokens without an embedding. Special ones may lack it: contents never become them (Gemma 3's image)."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= size and index not in special}
    if beyond:
        last = max(beyond)
        raise BadInput(
            f"{path}: its tokenizer has token {last} ({beyond[last]}), the model {size} embeddings: resize them and save the model "
            "again, or take the model's own tokenizer"
        )


@contextmanager
def _named(side: str) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{side}: {error}") from None
