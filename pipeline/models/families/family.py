"""What there is to know of a family of published models, as one object per family; the families: table.py.

A family is computed by a class of transformers (LLaDA2: by our own) wherever that is equal, which the golden vectors in
tests/data/families show: then it is a translation of config.json, and of the names of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Raw = Mapping[str, Any]
"""What config.json says."""
Input = Literal["full", "block", "causal"]
"""The masks of the recipe's `teachers.input`."""


@dataclass(frozen=True)
class Sampler:
    """The sampler of a family's published code (`pipeline/decoding/rules.py` makes functions of it)."""

    sees: Literal["blocks", "everything"] = "blocks"
    """What a forward reads: the blocks up to the one in work, or the later ones, still masked, as well."""
    counts: Literal["linear", "even", "by_time"] = "linear"
    """Tokens decided at each forward: by the linear schedule or a threshold, equal shares of a block, or Dream's share of time."""
    blocks: Literal["sequence", "response", "none"] = "sequence"
    """Where blocks are counted from; `none`: a response is one block."""
    first_alone: bool = False
    """Whether a block's first token is decided before the others."""


@dataclass(frozen=True)
class Family:
    """One family. Add one: CONTRIBUTING.md."""

    name: str
    """In messages and tables."""
    model_types: tuple[str, ...]
    """Of config.json."""
    library: str
    """model_type of the class that computes it."""
    inputs: tuple[Input, ...]
    """Masks that it was trained with, the usual one first."""
    architectures: tuple[str, ...] = ()
    """Classes of config.json, by which families of one model_type are told apart."""
    marker: str = ""
    """A field of config.json that tells them apart where the class is not named."""
    fields: Callable[[Raw], Raw] = dict
    """config.json -> arguments of the library's config; `library` in it overrules the family's. Raises ValueError naming an option
    that the class cannot compute."""
    names: tuple[tuple[str, str], ...] = ()
    """(part of a tensor's name in the library, the same in published files), replaced in this order"""
    shifted: bool = False
    """Whether the row of a token predicts the next one (Dream), instead of itself."""
    mask_token_id: int | None = None
    """Published; counts where config.json names none."""
    block_size: int | None = None
    """Likewise, of block diffusion."""
    keeps_name: bool = False
    """Whether an export is a model of this family again, instead of one of the library's class."""
    sampler: Sampler | None = None
    """Of its published code, where that is not the block diffusion of this project's students."""
    student: bool = True
    """Whether it can be trained here."""

    def published_name(self, name: str) -> str:
        """A tensor's name in published files, of its name in the library's class."""
        for ours, published in self.names:
            name = name.replace(ours, published)
        return name


def only(raw: Raw, **values: object) -> None:
    """Raises ValueError naming an option of config.json that has another value than the one that is computed; null is no value."""
    for name, value in values.items():
        given = raw.get(name)
        if given is not None and given != value:
            raise ValueError(f"{name}={given!r} is not supported, only {value!r}")


def without(raw: Raw, *names: str) -> Raw:
    """The fields but for these, which change nothing that is computed here."""
    return {name: value for name, value in raw.items() if name not in names}
