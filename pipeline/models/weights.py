"""Checkpoint files: strict loading, seeded initialisation, and the names that a family's published files use.

A model's weights are handled as views: checkpoint name -> the part of one of our tensors that holds it. Loading fills
the views, initialising fills them, exporting writes them: names are mapped once, and a rank touches its experts only.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.core.errors import BadInput
from pipeline.core.rng import generator_for
from pipeline.models.families.family import Family
from pipeline.models.families.table import family_of

Shapes = dict[str, tuple[int, ...]]

HEAD = "lm_head.weight"
FLOATS = ("F32", "BF16", "F16")
# Stacked expert tensors, ours and AutoEP's (w1, w2, w3) -> the projections that they hold, in order.
PROJECTIONS = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
}


def checkpoint_views(
    model: PreTrainedModel, state: Mapping[str, Tensor] | None = None, first_expert: int = 0
) -> dict[str, Tensor]:
    """The weights under their checkpoint names; a tied head is left out, as its embedding stands for it.

    `state` holds other tensors under the model's names (a gathered state dict); default: the model's own, to write to.
    `first_expert` is the number of this rank's first expert.
    """
    state = dict(model.state_dict() if state is None else state)
    if model.config.tie_word_embeddings:
        state.pop(HEAD, None)
    return published_views(state, family_of(model.config), first_expert)


@dataclass(frozen=True)
class TiedHead:
    """An LM head that is the embedding: files may hold it, and need not."""

    name: str
    """in published files"""
    embedding: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel) -> TiedHead | None:
        """None where the head is a matrix of its own."""
        if not model.config.tie_word_embeddings:
            return None
        embedding = cast(nn.Embedding, model.get_input_embeddings()).weight
        return cls(family_of(model.config).published_name(HEAD), embedding)


def published_views(state: Mapping[str, Tensor], family: Family, first_expert: int = 0) -> dict[str, Tensor]:
    """The family's published names, with one tensor per projection of an expert where the model stacks them."""
    views = {}
    for name, tensor in state.items():
        layer, _, stacked = name.partition(".mlp.experts.")
        if not stacked:
            name = name.replace(".mlp.router.gate.", ".mlp.gate.")  # AutoEP's layer holds our gate in its router
            views[family.published_name(name)] = tensor
            continue
        projections = PROJECTIONS[stacked]
        for expert, weight in enumerate(tensor.unbind(), start=first_expert):
            for projection, part in zip(projections, weight.chunk(len(projections)), strict=True):
                views[f"{layer}.mlp.experts.{expert}.{projection}.weight"] = part
    return views


def shapes(views: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(view.shape) for name, view in views.items()}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises BadInput when there are none, when one of them is missing, and for an index that cannot be read.
    """
    names = sorted(set(weight_map.values())) if (weight_map := _weight_map(folder)) else ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: no {name}; weights must be safetensors, one file or shards with their index")
    return [folder / name for name in names]


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, as the index of a sharded checkpoint says; empty without an index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {}
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(Path(name).name == name for name in weight_map.values()):
            raise ValueError("it names files outside of the folder")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{index}: not an index of safetensors files ({error}); fetch it again") from None
    return weight_map


def check_files(folder: Path, expected: Shapes, *, tied_head: TiedHead | None) -> None:
    """Reads the headers only. Raises BadInput naming tensors that are missing, surplus or misshapen, that are no
    floating-point numbers, and that are in two files or in another one than the index says.

    With a tied head, the files may hold the head as well.
    """
    stored = _headers(folder)
    if tied_head:
        stored.pop(tied_head.name, None)
    check_shapes(str(folder), stored, expected)


def check_shapes(where: str, stored: Shapes, expected: Shapes) -> None:
    """Raises BadInput naming tensors that are missing, surplus or misshapen."""
    misshapen = [n for n in sorted(stored.keys() & expected.keys()) if stored[n] != expected[n]]
    if misshapen:
        name = misshapen[0]
        raise BadInput(
            f"{where}: {_listed(misshapen)} misshapen ({name} is {list(stored[name])}, config.json means"
            f" {list(expected[name])}); weights and config.json do not belong together"
        )
    for names, what in ((expected.keys() - stored.keys(), "missing"), (stored.keys() - expected.keys(), "surplus")):
        if names:
            raise BadInput(f"{where}: {_listed(sorted(names))} {what}; weights and config.json do not belong together")


def _headers(folder: Path) -> Shapes:
    """Every tensor of the files and its shape; raises BadInput as `check_files` does for what no model could use."""
    stored: Shapes = {}
    file_of: dict[str, str] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                headers = {name: tensors.get_slice(name) for name in tensors.keys()}
                dtypes = {name: header.get_dtype() for name, header in headers.items()}
                file_shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
        except SafetensorError as error:
            raise BadInput(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
        if twice := sorted(stored.keys() & dtypes.keys()):
            raise BadInput(f"{folder}: {_listed(twice)} in {file_of[twice[0]]} and in {file.name}; remove one of them")
        if other := sorted(name for name, dtype in dtypes.items() if dtype not in FLOATS):
            raise BadInput(
                f"{file}: {_listed(other)} of type {dtypes[other[0]]}; give weights that are not quantized:"
                f" {', '.join(FLOATS)}"
            )
        stored |= file_shapes
        file_of |= dict.fromkeys(file_shapes, file.name)
    weight_map = _weight_map(folder)
    if weight_map and (astray := sorted({name for name, _ in weight_map.items() ^ file_of.items()})):
        raise BadInput(f"{folder}: {_listed(astray)} not where model.safetensors.index.json says; fetch both again")
    return stored


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read(folder: Path, wanted: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors, one at a time and in the order of the files; the bytes of others are not read.

    They are read, not mapped: a mapped file stays in the process's memory until it is closed, whole shards of it.
    """
    for file in weight_files(folder):
        with safe_open(file, framework="pt", backend="pread") as tensors:
            for name in tensors.offset_keys():
                if name in wanted:
                    yield name, tensors.get_tensor(name)


def fill(folder: Path, views: Mapping[str, Tensor], *, tied_head: TiedHead | None = None) -> None:
    """Copies each view's tensor from the files, already checked. Memory beside the views: one tensor of the files.

    Raises BadInput when the files hold a head that differs from the embedding that `tied_head` says it is.
    """
    head = None
    for name, tensor in read(folder, views.keys() | ({tied_head.name} if tied_head else set())):
        if name in views:
            views[name].copy_(tensor)
        else:
            head = tensor
    if (
        head is not None
        and tied_head is not None
        and not torch.equal(head.to(tied_head.embedding), tied_head.embedding)
    ):
        raise BadInput(
            f"{folder}: {tied_head.name} differs from the embedding; set tie_word_embeddings to false in config.json"
        )


def init_weights(views: Mapping[str, Tensor], *, seed: int, std: float) -> None:
    """Random weights that depend on (seed, checkpoint name) alone, so every rank count and layout gets the same.

    Matrices are normal, norms 1, biases 0.
    """
    for name, view in views.items():
        if name.endswith("bias"):
            view.zero_()
        elif view.ndim == 1:
            view.fill_(1)
        else:
            view.copy_(torch.randn(view.shape, generator=generator_for(seed, name)) * std)
