"""Aligned rows, their order, and the micro-batches made of them."""

from pipeline.data.aligned import AlignedRow, AlignedRows
from pipeline.data.batch import Batch, BatchBuilder, Packed, Sample, Side, TeacherBatch, TeacherSide, row_tokens
from pipeline.data.layout import from_response, from_sequence
from pipeline.data.order import GlobalBatches, Visit, accumulation_steps, assign

__all__ = [
    "AlignedRow",
    "AlignedRows",
    "Batch",
    "BatchBuilder",
    "GlobalBatches",
    "Packed",
    "Sample",
    "Side",
    "TeacherBatch",
    "TeacherSide",
    "Visit",
    "accumulation_steps",
    "assign",
    "from_response",
    "from_sequence",
    "row_tokens",
]
