"""All families, and which of them a model belongs to."""

from __future__ import annotations

from transformers import PreTrainedConfig

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

FAMILIES: tuple[Family, ...] = tuple(
    module.FAMILY
    for module in (
        llada2,
        llada,
        llada_moe,
        dream,
        sdar,
        sdar_moe,
        wedlm,
        fast_dllm_v2,
        qwen3,
        qwen3_moe,
        qwen2,
        llama,
    )
)  # fmt: skip


def find_family(raw: Raw, where: str) -> Family:
    """The family of a config.json, by model_type and, where that is not enough, by class or by a field that only it has.

    Raises BadInput naming the families that there are.
    """
    kind, classes = raw.get("model_type"), raw.get("architectures") or ()
    found = [family for family in FAMILIES if kind in family.model_types]
    if len(found) > 1:
        named = [family for family in found if set(classes) & set(family.architectures)]
        found = named or [family for family in found if raw.get(family.marker) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(
            f"{where}: model_type {kind!r} is {' or '.join(f.name for f in found)}: name the class in `architectures`"
        )
    known = ", ".join(dict.fromkeys(family.model_types[0] for family in FAMILIES))
    written = f" (architectures {', '.join(map(str, classes))})" if classes else ""
    raise BadInput(f"{where}: model_type {kind!r} is none of {known}{written}")


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a loaded model's config, which keeps the config.json of families that the library names otherwise."""
    raw: Raw = getattr(config, "published", None) or {"model_type": config.model_type}
    return find_family(raw, "config")
