"""All families, and which of them a model belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.errors import BadInput
from pipeline.models.families import (
    dream,
    fast_dllm_v2,
    llada,
    llada2,
    llada_moe,
    llama,
    qwen2,
    qwen3,
    qwen3_moe,
    sdar,
    sdar_moe,
    wedlm,
)
from pipeline.models.families.family import Family, Raw

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES: tuple[Family, ...] = tuple(module.FAMILY for module in (
    llada2, llada, llada_moe, dream, sdar, sdar_moe, wedlm, fast_dllm_v2, qwen3, qwen3_moe, qwen2, llama,
))  # fmt: skip
MODEL_TYPES = frozenset(model_type for family in FAMILIES for model_type in family.model_types)


def find_family(raw: Raw, where: str) -> Family:
    """The family of a config.json, by model_type and, where that is not enough, by class or by a field that only it has.

    Raises BadInput naming the families that there are.
    """
    kind, classes = raw.get("model_type"), raw.get("architectures") or ()
    candidates = [family for family in FAMILIES if kind in family.model_types]
    if len(candidates) > 1:
        named = [family for family in candidates if set(classes) & set(family.architectures)]
        candidates = named or [family for family in candidates if raw.get(family.marker) is not None]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise BadInput(
            f"{where}: model_type {kind!r} is {' or '.join(f.name for f in candidates)}: name the class in `architectures`"
        )
    known = ", ".join(dict.fromkeys(family.model_types[0] for family in FAMILIES))
    written = f" (architectures {', '.join(map(str, classes))})" if classes else ""
    raise BadInput(f"{where}: model_type {kind!r} is none of {known}{written}")


def find_causal(raw: Raw, where: str) -> Family:
    """The family of an autoregressive model: one of the table, or any that transformers has under the same names.

    Raises BadInput for diffusion models, and for what transformers does not know.
    """
    kind = str(raw.get("model_type"))
    if kind in MODEL_TYPES:
        family = find_family(raw, where)
        if "causal" not in family.inputs or raw.get("is_causal") is False:
            raise BadInput(
                f"{where}: {family.name} is a diffusion model here, not an autoregressive one: set `input` to block or full"
            )
        return family
    return _native(kind, where)


def _native(kind: str, where: str) -> Family:
    # here, as it brings torch (see models/tokenizer.py)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BadInput(f"{where}: transformers has no causal language model of model_type {kind!r}")
    return Family(name=kind, model_types=(kind,), library=kind, inputs=("causal",), shifted=True, student=False)


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a loaded model's config, which keeps the config.json of families that the library names otherwise."""
    raw: Raw = getattr(config, "published", None) or {"model_type": config.model_type}
    return find_family(raw, "config") if raw["model_type"] in MODEL_TYPES else _native(config.model_type, "config")


def is_shifted(config: object) -> bool:
    """Whether a diffusion model's row predicts the next token. Under the library's own names only where config.json says so."""
    published = getattr(config, "published", None)
    return bool(getattr(config, "shifted", False)) if published is None else find_family(published, "config").shifted
