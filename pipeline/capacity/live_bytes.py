"""Bytes that are alive while code runs on fake tensors: allocations are counted, none is made.

Fake tensors have shapes, dtypes and an autograd graph, and no memory; so a whole training step of an 8B teacher runs in
a second, and what it keeps for the backward pass is counted from the code itself, not from a formula beside it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages that operations make, until they are freed. `held` tensors do not count.

    (torch.distributed._tools.MemTracker gives the same numbers, in thirty times the time.)
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._held = list(held)  # kept alive, so that no other storage takes their place
        self._free = {tensor.untyped_storage()._cdata for tensor in self._held}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def reset_peak(self) -> None:
        self.peak = self.now

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._free or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
