"""Bytes that are alive while code runs on the meta device: allocations are counted, none is made.

Its tensors have shapes, dtypes and an autograd graph, and no memory; so a whole training step of an 8B teacher runs in
seconds, and what it keeps for the backward pass is counted from the code itself, not from a formula beside it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WITHOUT_KERNEL = ("empty", "new_empty", "_unsafe_view")


class MemoryTracker(TorchDispatchMode):
    """Counts bytes of storages that operations make, until they are freed, and the operations that a device would run.

    (torch.distributed._tools.MemTracker gives the same numbers, in thirty times the time.)

    Args:
        existing: tensors that do not count.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.current = self.peak = self.operations = 0
        self._sizes: dict[int, int] = {}
        self._existing = list(existing)  # kept alive, so that no other storage takes their address
        self._ignored = {tensor.untyped_storage()._cdata for tensor in self._existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and not func.__name__.startswith(_WITHOUT_KERNEL):
            self.operations += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def reset_peak(self) -> None:
        self.peak = self.current

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._ignored or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.current += self._sizes[key]
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.current -= self._sizes.pop(key)
