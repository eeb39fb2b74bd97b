"""config.json as its family reads it. Nothing here brings torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import BadInput, one_line
from pipeline.models.families.family import Family, Raw
from pipeline.models.families.table import find_causal, find_family
from pipeline.models.model_files import CONFIG_FILES, fetch

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings",
)  # fmt: skip


def config_file(path: str) -> Path:
    """config.json of a model's folder or hub name, or that file itself. Raises BadInput where there is none."""
    file = Path(path) if Path(path).is_file() else fetch(path, CONFIG_FILES) / "config.json"
    if not file.is_file():
        raise BadInput(f"{path}: no config.json; give the folder of a model")
    return file


def family_and_fields(raw: Raw, where: str, *, causal: bool = False) -> tuple[Family, Raw]:
    """The family of a config.json, and the arguments that the library's config takes.

    causal: of an autoregressive model, which may be any that transformers knows. Raises BadInput for other families, for
    quantized weights, and for settings that the family has not.
    """
    family = find_causal(raw, where) if causal else find_family(raw, where)
    if raw.get("quantization_config"):
        raise BadInput(f"{where}: the model is quantized (quantization_config); give the one that is not")
    try:
        fields = family.fields(raw)
    except KeyError as error:
        raise BadInput(f"{where}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BadInput(f"{where}: {one_line(error)}") from None
    for name in SIZES:
        if (size := fields.get(name)) is not None and not (type(size) is int and size > 0):
            raise BadInput(f"{where}: {name} is {str(size)[:40]!r}, must be a whole number above 0")
    return family, fields


def require_student(family: Family, path: str) -> None:
    """Raises BadInput for a family that can only teach."""
    if not family.student:
        raise BadInput(f"{path}: {family.name} can be a teacher, not a student")


def require_same_mask(path: str, named: int | None, known: int | None) -> None:
    """Raises BadInput where the tokenizer's mask token, if it has one, is not the model's."""
    if known is not None and known != named:
        raise BadInput(
            f"{path}: mask token {named}, but {known} in its tokenizer, which is another family's: fetch the model's own"
        )


def require_positions(field: str, length: int, positions: int, path: str) -> None:
    """Raises BadInput for rows of more tokens than the model has positions."""
    if length > positions:
        raise BadInput(f"{field} {length} is beyond the {positions} positions of {path}: lower it")
