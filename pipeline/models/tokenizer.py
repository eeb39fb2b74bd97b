"""Tokenizers as their files say. Nothing here brings torch, whose import takes longer than small data take to align."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pipeline.core.errors import BadInput, one_line
from pipeline.models.chat_template import check_chat_template
from pipeline.models.families.table import MODEL_TYPES, find_family
from pipeline.models.model_files import CONFIG_FILES, TOKENIZER_FILES, fetch, read_raw_config

MASK_TOKEN = "<|mask|>"


def load_tokenizer(
    path: str, *, chat: bool = True, needs_mask: bool = True, student: bool = True
) -> PreTrainedTokenizerFast:
    """The tokenizer of tokenizer.json, unchanged, with a mask token (`needs_mask`: autoregressive models need none), and (unless
    `chat` is False) a chat template. `student`: whether it is a student's or a teacher's.

    Raises BadInput when one of the three is missing or cannot be used.
    """
    tokenizer = read_tokenizer(path, chat=chat)
    if tokenizer.mask_token is None:
        _name_mask_token(tokenizer, fetch(path, [*CONFIG_FILES, *TOKENIZER_FILES]) / "config.json")
    if needs_mask:
        require_mask_token(tokenizer, path, student=student)
    return tokenizer


def require_mask_token(tokenizer: PreTrainedTokenizerFast, path: str, *, student: bool) -> None:
    """Raises BadInput for a tokenizer without one, with what helps a student, or a teacher."""
    remedy = (
        "`python pipeline/convert.py` makes a diffusion student of an autoregressive model"
        if student
        else "a diffusion model names it in its tokenizer, or as mask_token_id in config.json; an autoregressive teacher needs "
        "`input: causal`"
    )
    if tokenizer.mask_token is None:
        raise BadInput(f"{path}: no mask token; {remedy}")


def read_tokenizer(path: str, *, chat: bool = True) -> PreTrainedTokenizerFast:
    """As `load_tokenizer`, of any model: it may have no mask token."""
    folder = fetch(path, TOKENIZER_FILES)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{path}: no tokenizer.json; save the tokenizer as a fast one (`save_pretrained`)")
    try:
        # The class that tokenizer_config.json names may rebuild normalizer and pre-tokenizer its own way.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        if not tokenizer.get_vocab():
            raise BadInput(f"{path}: its tokenizer.json has no tokens")
    except BadInput:
        raise
    except Exception as error:  # the libraries raise what they like for files that are cut or of another kind
        raise BadInput(f"{path}: cannot read its tokenizer files ({one_line(error)}); save them again") from None
    if tokenizer.mask_token is None and MASK_TOKEN in tokenizer.get_vocab():
        tokenizer.mask_token = MASK_TOKEN
    if chat:
        check_chat_template(tokenizer, path)
    return tokenizer


def _name_mask_token(tokenizer: PreTrainedTokenizerFast, config: Path) -> None:
    """Takes the mask token from the model's config or its family, for models whose tokenizer does not know it (WeDLM).

    Raises BadInput where that id is another added token: Qwen3's tool tokens stand where Qwen2's diffusion models have their mask.
    """
    raw = read_raw_config(config) if config.is_file() else {}
    mask = raw.get("mask_token_id")
    if mask is None and raw.get("model_type") in MODEL_TYPES:
        mask = find_family(raw, str(config)).mask_token_id
    if mask is not None and not (isinstance(mask, int) and 0 <= mask < 2**31):
        raise BadInput(f"{config}: mask_token_id {mask!r} is no token id")
    if mask == len(tokenizer):
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    elif mask is not None:
        added = tokenizer.added_tokens_decoder.get(mask)
        if added and not added.special and "mask" not in added.content.lower():
            raise BadInput(
                f"{config.parent}: mask token {mask} is {added.content} in this tokenizer, which is another family's: fetch the"
                " model's own"
            )
        tokenizer.mask_token = tokenizer.convert_ids_to_tokens(mask)
