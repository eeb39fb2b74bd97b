"""The sampler for GPUs: forwards of equal shape, repeated as CUDA graphs, and no look of the host inside a block.

A forward of one token has about a thousand small kernels, and launching them takes longer than running them. So every forward
but the prompt's reads and writes tensors that stay where they are, over all columns of the canvas: those of later blocks
are hidden by the mask. How many forwards a block takes follows from the schedule; a threshold has the host look after each. Rows
leave between blocks. The tokens are those of the plain sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import zip_longest

import torch
from torch import Tensor, nn

from pipeline.core.log import log
from pipeline.decoding.cached_model import CachedModel, choose
from pipeline.decoding.canvas import PADDING, BlockState, Canvas, GenerateConfig, schedule
from pipeline.decoding.kv_cache import StaticColumns, static_buffers

ALIGNMENT = 16  # of the mask's rows, in elements: attention kernels would copy others

Repeat = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes a call that can be repeated of work on tensors that stay in place."""


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

    def mask(self, canvas: Canvas, rows: Tensor, new: slice) -> Tensor:
        """bool [R, 1, new columns, all columns]. Padding sees everything, lest it be NaN."""
        blocks = canvas.blocks[rows]
        keys = blocks.new_full((blocks.shape[0], self.columns), PADDING)
        keys[:, : blocks.shape[1]] = blocks
        return keys[:, None, None, :] <= blocks[:, None, new, None]

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, columns: Tensor, state: BlockState, count: Tensor
    ) -> None:
        """Reads new columns, of which the block's are the last ones, and decides `count` [R] of its tokens."""
        state.count_forward(self.ends)
        index = state.masked_first()
        self.target.columns = columns
        logits = self.cached_model.logits(ids, positions, mask, index + (ids.shape[1] - index.shape[1]))
        tokens, confidence = choose(logits, self.suppressed_ids)
        state.commit(index, tokens, confidence, count, self.threshold)


@dataclass
class Steps:
    """Forwards that read the block, and `lead` columns before it, again and again."""

    decoder: Decoder
    state: BlockState
    counts: Tensor
    """int64 [forwards, R]: tokens to decide at each forward of the block"""
    turn: Tensor
    """int64 [1]: forwards of the block so far"""
    before: Tensor
    """int64 [R, lead]: the ids of those columns"""
    positions: Tensor
    mask: Tensor
    columns: Tensor
    run: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        self.run = self.decoder.repeat(self._once)

    def _once(self) -> None:
        ids = torch.cat([self.before, self.state.ids], 1)
        count = self.counts.index_select(0, self.turn)[0]
        self.decoder.forward(ids, self.positions, self.mask, self.columns, self.state, count)
        self.turn += 1

    def load(self, canvas: Canvas, rows: Tensor, new: slice) -> None:
        """Goes on to another block."""
        lead = self.before.shape[1]
        self.before.copy_(canvas.ids[rows, new.start : new.start + lead])
        self.positions.copy_(canvas.positions[rows, new])
        self.mask.copy_(self.decoder.mask(canvas, rows, new))
        self.columns.copy_(torch.arange(new.start, new.stop, device=self.columns.device))


@dataclass
class Batch:
    """The rows still decoding: their state, and the forwards that are repeated, made anew where rows leave or a block is short."""

    decoder: Decoder
    rows: Tensor
    state: BlockState
    counts: Tensor
    turn: Tensor
    steps: dict[int, Steps] = field(default_factory=dict)
    """by the columns before the block that are read with it"""

    @classmethod
    def of(cls, decoder: Decoder, canvas: Canvas, rows: Tensor, block: slice) -> Batch:
        """At a block."""
        state = BlockState.of(canvas, rows, block)
        counts = torch.zeros(block.stop - block.start, rows.shape[0], dtype=torch.long, device=rows.device)
        return cls(decoder, rows, state, counts, torch.zeros(1, dtype=torch.long, device=rows.device))

    def load(self, canvas: Canvas, block: slice, counts: Tensor) -> None:
        """Goes on to another block, with the tokens to decide at each forward [forwards, R]."""
        fresh = BlockState.of(canvas, self.rows, block)
        for name in fields(BlockState):
            getattr(self.state, name.name).copy_(getattr(fresh, name.name))
        self.counts.zero_()
        self.counts[: counts.shape[0]].copy_(counts)
        self.turn.zero_()

    def read_prompt(self, canvas: Canvas, block: slice) -> None:
        """The first forward of all: whatever lies before the first block, and the block."""
        new = slice(0, block.stop)
        columns = torch.arange(block.stop, device=self.rows.device)
        mask, ids = self.decoder.mask(canvas, self.rows, new), canvas.ids[self.rows, new]
        self.decoder.forward(ids, canvas.positions[self.rows, new], mask, columns, self.state, self.counts[0])
        self.turn += 1

    def at(self, canvas: Canvas, block: slice, lead: int) -> Callable[[], None]:
        """The forward that reads the block and so many columns before it."""
        new = slice(block.start - lead, block.stop)
        if lead not in self.steps:
            self.steps[lead] = Steps(
                self.decoder,
                self.state,
                self.counts,
                self.turn,
                canvas.ids[self.rows, new][:, :lead].clone(),
                canvas.positions[self.rows, new].clone(),
                self.decoder.mask(canvas, self.rows, new),
                torch.arange(new.start, new.stop, device=self.rows.device),
            )
        else:
            self.steps[lead].load(canvas, self.rows, new)
        return self.steps[lead].run


def fill_repeating(
    model: nn.Module, canvas: Canvas, config: GenerateConfig, ends: Tensor, suppressed_ids: Tensor, repeat: Repeat
) -> None:
    """Decides the canvas in place, except blocks behind a row's first end token."""
    decoder = Decoder.of(model, canvas, config, ends, suppressed_ids, repeat)
    rows, batch = torch.arange(canvas.ids.shape[0], device=canvas.ids.device), None
    before = 0  # columns of the block before
    for block in canvas.generated_blocks(config.block_size):
        masked = canvas.masked[rows, block].sum(1).tolist()
        counts = list(zip_longest(*(schedule(n, config) for n in masked), fillvalue=0))
        if counts:
            _fill_block(batch := _batch(batch, decoder, canvas, rows, block), canvas, block, counts, before)
            batch.state.store(canvas, rows, block)
            going = ~batch.state.ended(ends)
            if not going.all():
                rows, batch = rows[going], None
                if not rows.numel():
                    return
                decoder.cached_model.keep(going)
        before = block.stop - block.start


def _batch(batch: Batch | None, decoder: Decoder, canvas: Canvas, rows: Tensor, block: slice) -> Batch:
    """The same batch, where its shapes still hold."""
    if batch is not None and batch.state.ids.shape[1] == block.stop - block.start:
        return batch
    return Batch.of(decoder, canvas, rows, block)


def _fill_block(batch: Batch, canvas: Canvas, block: slice, counts: list[tuple[int, ...]], before: int) -> None:
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
