"""Micro-batches on their way to the device: one pinned buffer each, copied while the device computes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pipeline.data.batch import Batch

ALIGNMENT = 128
"""Bytes; more than any dtype asks for, and what coalesced reads like."""


@dataclass(frozen=True)
class StagedBatch:
    """A micro-batch on the host, whose copy is on its way to the device."""

    host: Batch
    buffer: Tensor | None = None
    """Its tensors on the device, uint8; None where the host is the device."""
    copied: torch.cuda.Event | None = None

    def on_device(self) -> Batch:
        """The micro-batch on the device. The current stream waits for the copy, the host does not."""
        if self.buffer is None:
            return self.host
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.buffer.device)
            stream.wait_event(self.copied)
            self.buffer.record_stream(stream)  # its memory must not go to the copies' stream while it is read
        return unpack(self.host, self.buffer)


class Transfer:
    """Copies micro-batches to one device. Its methods may be called in another thread than the computation's."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def stage(self, batch: Batch) -> StagedBatch:
        """Begins the copy."""
        if self.stream is None:
            return StagedBatch(batch)
        with torch.cuda.stream(self.stream):
            buffer = pack(batch).pin_memory().to(self.device, non_blocking=True)
            return StagedBatch(batch, buffer, self.stream.record_event())

    def copy(self, tensor: Tensor) -> Tensor:
        """A few numbers of the step, on the device without waiting for it."""
        return tensor if self.stream is None else tensor.pin_memory().to(self.device, non_blocking=True)


def pack(batch: Batch) -> Tensor:
    """All tensors of a micro-batch in one buffer, uint8."""
    tensors = _tensors(batch)
    buffer = torch.empty(_offsets(tensors)[-1], dtype=torch.uint8)
    for tensor, start in zip(tensors, _offsets(tensors), strict=False):
        data = tensor.contiguous().view(-1).view(torch.uint8)
        buffer[start : start + data.numel()] = data
    return buffer


def unpack(batch: Batch, buffer: Tensor) -> Batch:
    """The micro-batch with its tensors in the buffer that `pack` made of it, or in a copy of that on a device."""
    starts = iter(_offsets(_tensors(batch)))

    def view(tensor: Tensor) -> Tensor:
        start = next(starts)
        return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    return batch.map(view)


def _tensors(batch: Batch) -> list[Tensor]:
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    batch.map(keep)
    return tensors


def _offsets(tensors: list[Tensor]) -> list[int]:
    """Where each tensor begins, then where the last one ends: multiples of ALIGNMENT."""
    return list(accumulate((-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors), initial=0))
