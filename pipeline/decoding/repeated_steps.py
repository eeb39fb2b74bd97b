"""The sampler for GPUs: forwards of equal shape, repeated as CUDA graphs, and no look of the host inside a block.

A forward of one token has about a thousand small kernels, and launching them takes longer than running them. So every forward
but the prompt's reads and writes tensors that stay where they are, over all columns of the canvas: those of later blocks
are hidden by the mask. How many forwards a block takes follows from the schedule; a threshold has the host look after each. Rows
leave between blocks. The tokens are those of the plain sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor, nn

from pipeline.core.log import log
from pipeline.decoding.cached_model import CachedModel, choose
from pipeline.decoding.canvas import PADDING, BlockState, Canvas, GenerateConfig, schedule
from pipeline.decoding.kv_cache import StaticColumns, static_buffers

ALIGNMENT = 16  # of the mask's rows, in elements: attention kernels would copy others

Repeat = Callable[[Callable[[], None]], Callable[[], None]]
"""Turns work on tensors that stay in place into a call that can be repeated."""


class CudaGraph:
    """The work as a CUDA graph: run once as it is, to load and choose kernels, recorded at the second call.

    What cannot be recorded (products of float32 experts have the host look at their sizes) goes on as it is, with a warning.
    """

    def __init__(self, work: Callable[[], None]):
        self.work, self.calls = work, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 2:
            self.graph = self._record()
        if self.graph is None:
            self.work()
        else:
            self.graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph | None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.graph(graph, stream=stream):
                self.work()
        except RuntimeError as error:
            torch.cuda.synchronize()
            log.warning(f"decoding without CUDA graphs: {str(error).splitlines()[0]}")
            return None
        torch.cuda.current_stream().wait_stream(stream)
        return graph


def as_it_is(work: Callable[[], None]) -> Callable[[], None]:
    """No graph: every kernel launched each time."""
    return work


@dataclass
class Decoder:
    """What all forwards share: the model over a static cache, and the settings."""

    cached_model: CachedModel
    target: StaticColumns
    columns: int
    """of the cache: the canvas's, rounded up"""
    ends: Tensor
    suppressed_ids: Tensor
    threshold: float
    repeat: Repeat

    @classmethod
    def of(
        cls,
        model: nn.Module,
        canvas: Canvas,
        config: GenerateConfig,
        ends: Tensor,
        suppressed_ids: Tensor,
        repeat: Repeat,
    ) -> Decoder:
        """With an empty cache."""
        columns = -(-canvas.ids.shape[1] // ALIGNMENT) * ALIGNMENT
        target = StaticColumns(torch.arange(columns, device=canvas.ids.device))
        cached_model = CachedModel.of(model, lambda: static_buffers(columns, target))
        return cls(cached_model, target, columns, ends, suppressed_ids, config.least_probability, repeat)

    def inputs(self, canvas: Canvas, rows: Tensor, new: slice, lead: int) -> ForwardInputs:
        """Inputs of the new columns, `lead` of them before the block. Padding attends to everything, to avoid NaN."""
        blocks = canvas.blocks[rows]
        keys = blocks.new_full((blocks.shape[0], self.columns), PADDING)
        keys[:, : blocks.shape[1]] = blocks
        return ForwardInputs(
            canvas.ids[rows, new][:, :lead].clone(),
            canvas.positions[rows, new],
            keys[:, None, None, :] <= blocks[:, None, new, None],
            torch.arange(new.start, new.stop, device=rows.device),
        )

    def forward(self, inputs: ForwardInputs, state: BlockState, count: Tensor) -> None:
        """Reads new columns, of which the block's are the last ones, and decides `count` [R] of its tokens."""
        state.count_forward(self.ends)
        index = state.masked_first()
        self.target.columns = inputs.columns
        ids = torch.cat([inputs.before, state.ids], 1)
        logits = self.cached_model.logits(ids, inputs.positions, inputs.mask, index + inputs.before.shape[1])
        tokens, confidence = choose(logits, self.suppressed_ids)
        state.commit(index, tokens, confidence, count, self.threshold)


@dataclass
class ForwardInputs:
    """What a forward reads beside the block's ids."""

    before: Tensor
    """int64 [R, lead]: ids of the columns before the block"""
    positions: Tensor
    """int64 [R, new columns]"""
    mask: Tensor
    """bool [R, 1, new columns, all columns]"""
    columns: Tensor
    """int64 [new columns]"""


@dataclass
class DecodingBatch:
    """The rows still decoding: their state, and the forwards that are repeated, made anew where rows leave or a block is short."""

    decoder: Decoder
    rows: Tensor
    state: BlockState
    counts: Tensor
    """int64 [forwards, R]: tokens to decide at each forward of the block"""
    turn: Tensor
    """int64 [1]: forwards of the block so far"""
    repeated: dict[int, tuple[ForwardInputs, Callable[[], None]]] = field(default_factory=dict)
    """Forwards by the columns before the block that they read with it"""

    @classmethod
    def of(cls, decoder: Decoder, canvas: Canvas, rows: Tensor, block: slice) -> DecodingBatch:
        """At a block."""
        state = BlockState.of(canvas, rows, block)
        counts = torch.zeros(block.stop - block.start, rows.shape[0], dtype=torch.long, device=rows.device)
        return cls(decoder, rows, state, counts, torch.zeros(1, dtype=torch.long, device=rows.device))

    def load(self, canvas: Canvas, block: slice, counts: Tensor) -> None:
        """Goes on to another block, with the tokens to decide at each forward [forwards, R]."""
        _copy(BlockState.of(canvas, self.rows, block), self.state)
        self.counts.zero_()
        self.counts[: counts.shape[0]].copy_(counts)
        self.turn.zero_()

    def forward(self, inputs: ForwardInputs) -> None:
        """The next one of the block."""
        self.decoder.forward(inputs, self.state, self.counts.index_select(0, self.turn)[0])
        self.turn += 1

    def read_prompt(self, canvas: Canvas, block: slice) -> None:
        """The first forward of all: whatever lies before the first block, and the block."""
        self.forward(self.decoder.inputs(canvas, self.rows, slice(0, block.stop), block.start))

    def at(self, canvas: Canvas, block: slice, lead: int) -> Callable[[], None]:
        """The forward that reads the block and so many columns before it."""
        fresh = self.decoder.inputs(canvas, self.rows, slice(block.start - lead, block.stop), lead)
        if lead not in self.repeated:
            self.repeated[lead] = fresh, self.decoder.repeat(partial(self.forward, fresh))
        inputs, run = self.repeated[lead]
        _copy(fresh, inputs)
        return run


def _copy(fresh: ForwardInputs | BlockState, kept: ForwardInputs | BlockState) -> None:
    """The contents, into tensors that stay where they are."""
    for tensor in fields(kept):
        getattr(kept, tensor.name).copy_(getattr(fresh, tensor.name))


def fill_repeating(
    model: nn.Module, canvas: Canvas, config: GenerateConfig, ends: Tensor, suppressed_ids: Tensor, repeat: Repeat
) -> None:
    """Decides the canvas in place, except blocks behind a row's first end token."""
    decoder = Decoder.of(model, canvas, config, ends, suppressed_ids, repeat)
    rows = torch.arange(canvas.ids.shape[0], device=canvas.ids.device)
    batch: DecodingBatch | None = None
    before = 0  # columns of the block before
    for block in canvas.generated_blocks(config.block_size):
        masked = canvas.masked[rows, block].sum(1).tolist()
        counts = list(zip_longest(*(schedule(n, config) for n in masked), fillvalue=0))
        if counts:
            if batch is None or batch.state.ids.shape[1] != block.stop - block.start:
                batch = DecodingBatch.of(decoder, canvas, rows, block)
            _fill_block(batch, canvas, block, counts, before)
            batch.state.store(canvas, rows, block)
            going = ~batch.state.ended(ends)
            if not going.all():
                rows, batch = rows[going], None
                if not rows.numel():
                    return
                decoder.cached_model.keep(going)
        before = block.stop - block.start


def _fill_block(batch: DecodingBatch, canvas: Canvas, block: slice, counts: list[tuple[int, ...]], before: int) -> None:
    device = canvas.ids.device
    batch.load(canvas, block, torch.tensor(counts).to(device))
    looks = batch.decoder.threshold <= 1
    if before:
        batch.at(canvas, block, before)()
    else:
        batch.read_prompt(canvas, block)
    if len(counts) > 1:
        step = batch.at(canvas, block, 0)
        for _ in counts[1:]:
            if looks and not batch.state.masked.any():
                break
            step()
