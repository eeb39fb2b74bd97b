"""The sampler's key-value cache: buffers over all columns of a canvas, written in place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class BufferLayer(DynamicLayer):
    """Keys and values of one layer, [rows, heads, columns, width], of which the first `length` columns are filled.

    transformers' own layer joins old and new columns into a new tensor at every forward; here old columns stay put.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.length = columns, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            x.new_empty(*x.shape[:2], self.columns, x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds columns; all columns so far, as views of the buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last columns; given as a negative number, as in transformers."""
        self.length += tokens_to_remove

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows: the only time that columns are moved."""
        self.keys, self.values = self.keys[indices], self.values[indices]


def buffers(columns: int) -> Cache:
    """An empty cache for that many columns; layers and rows are known at the first forward."""
    return Cache(layer_class_to_replicate=partial(BufferLayer, columns))  # type: ignore[arg-type]  # called, not subclassed


class StaticLayer(BufferLayer):
    """Writes its new columns where a tensor says and gives all columns: the same tensors at every forward, as a CUDA graph
    needs them. Masks hide what is not decided; it starts as zeros, as what is hidden must be numbers."""

    def __init__(self, columns: int, target: StaticColumns) -> None:
        super().__init__(columns)
        self.target = target

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys.zero_()
        self.values.zero_()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the target's columns; all columns there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self.target.columns, key_states)
        self.values.index_copy_(2, self.target.columns, value_states)
        return self.keys, self.values


@dataclass
class StaticColumns:
    """Where the layers of a static cache write the columns of the next forward."""

    columns: Tensor
    """int64 [new columns]"""


def static_buffers(columns: int, target: StaticColumns) -> Cache:
    """An empty cache of that many columns, written where `target` says."""
    return Cache(layer_class_to_replicate=partial(StaticLayer, columns, target))  # type: ignore[arg-type]
