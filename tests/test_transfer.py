"""Micro-batches travel in one buffer and arrive as they were."""

from __future__ import annotations

import torch

from pipeline.data.aligned_dataset import AlignedRow, AlignedTeacher
from pipeline.data.batch import BatchBuilder, InputLayout, Sample, TeacherLayout
from pipeline.data.blocks import OneBlock, SequenceBlocks
from pipeline.training.transfer import ALIGNMENT, Transfer, pack, unpack


def batch(rows: int):
    ids = torch.arange(2, 22)
    chunks = torch.arange(20) // 2
    row = AlignedRow(ids, torch.arange(20) > 4, (AlignedTeacher(ids + 30, chunks, chunks),))
    builder = BatchBuilder(InputLayout(1, SequenceBlocks(4)), (TeacherLayout(0, OneBlock()),), compdemo_ratio=0.5)
    return builder([Sample(row, (0, n)) for n in range(rows)])


def tensors(value) -> list[torch.Tensor]:
    found = []
    value.map(lambda tensor: found.append(tensor) or tensor)
    return found


def test_a_packed_micro_batch_is_unpacked_as_it_was():
    for rows in (3, 0):  # a rank may have none
        original = batch(rows)
        buffer = pack(original)
        arrived = unpack(original, buffer.clone())
        assert buffer.numel() % ALIGNMENT == 0
        assert (arrived.maskable, arrived.tokens) == (original.maskable, original.tokens)
        pairs = list(zip(tensors(original), tensors(arrived), strict=True))
        assert len(pairs) > 10 and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
        assert len({b.untyped_storage().data_ptr() for _, b in pairs}) == 1


def test_on_the_cpu_nothing_is_copied():
    original = batch(2)
    assert Transfer(torch.device("cpu")).stage(original).on_device() is original
