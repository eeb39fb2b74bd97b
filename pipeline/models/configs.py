"""A model's configuration as its class in transformers has it, with the ids of special roles."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from pipeline.core.errors import BadInput, one_line
from pipeline.models.config_file import config_file, family_and_fields, require_same_mask
from pipeline.models.families import llada2_moe  # noqa: F401  # tells transformers of its config
from pipeline.models.families.family import Raw
from pipeline.models.families.table import family_of
from pipeline.models.model_files import TOKENIZER_FILES, fetch, read_raw_config
from pipeline.models.tokenizer import load_tokenizer

NOT_FIELDS = ("auto_map", "architectures", "library", "model_type", "transformers_version")  # of the library's configs


def read_config(path: str, *, causal: bool = False) -> PreTrainedConfig:
    """A model's configuration as its family's class in transformers reads it, of its folder, hub name or config file.

    causal: of an autoregressive model, which may be any that transformers knows. Raises BadInput for other families, for
    quantized weights and for settings that do not fit.
    """
    file = config_file(path)
    return library_config(read_raw_config(file), str(file), causal=causal)


def library_config(raw: Raw, where: str, *, causal: bool = False) -> PreTrainedConfig:
    """Of the content of a config.json. Raises BadInput as `read_config` does."""
    family, fields = family_and_fields(raw, where, causal=causal)
    try:
        arguments = {name: value for name, value in fields.items() if name not in NOT_FIELDS}
        config = AutoConfig.for_model(fields.get("library", family.library), **arguments)
    except KeyError as error:
        raise BadInput(f"{where}: {error.args[0]} is missing") from None
    except (StrictDataclassError, TypeError, ValueError, ArithmeticError) as error:
        raise BadInput(f"{where}: {one_line(error)}") from None
    if family.block_size and getattr(config, "block_size", None) is None:
        config.block_size = family.block_size
    if family.keeps_name:
        config.published = dict(raw)
    return config


def read_named_config(
    path: str, tokenizer: PreTrainedTokenizerFast | None = None, *, causal: bool = False
) -> PreTrainedConfig:
    """As `read_config`, and with the ids of special roles: config.json's, else the tokenizer's (default: the model's own, if any).

    An autoregressive model's stay as they are. Raises BadInput, too, for ids that cannot be, and for another family's tokenizer.
    """
    config = read_config(path, causal=causal)
    if not causal:
        name_special_tokens(config, path, tokenizer)
    return config


def name_special_tokens(config: PreTrainedConfig, path: str, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Sets mask_token_id, eos_token_id and pad_token_id where config.json is silent; None without a tokenizer."""
    names = [f"{role}_token_id" for role in ("mask", "eos", "pad")]
    silent = [name for name in names if getattr(config, name, None) is None]
    if silent and tokenizer is None and (fetch(path, TOKENIZER_FILES) / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(path, chat=False)
    for name in names[:2]:
        value = getattr(config, name, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(index, int) and index >= 0 for index in ids):
            raise BadInput(f"{path}: {name} {value!r} in config.json is no token id")
    for name in silent:
        setattr(config, name, getattr(tokenizer, name, None))
    if (
        config.mask_token_id is None
        and (published := family_of(config).mask_token_id or config.vocab_size) < config.vocab_size
    ):
        config.mask_token_id = published
    require_same_mask(path, config.mask_token_id, getattr(tokenizer, "mask_token_id", None))
    if config.pad_token_id is None:
        config.pad_token_id = getattr(tokenizer, "eos_token_id", None)
    if config.mask_token_id is not None and config.mask_token_id >= config.vocab_size:
        raise BadInput(
            f"{path}: mask token {config.mask_token_id} is outside its {config.vocab_size} embeddings; resize them and"
            " save the model again"
        )
