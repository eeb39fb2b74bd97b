"""FlexAttention and SDPA under the one predicate: the same hidden states of packed documents (on a CPU, forward only)."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close

from benchmarks import workload
from pipeline.data.blocks import OneBlock, SequenceBlocks, lay_out
from pipeline.data.packing import pack
from pipeline.method.attention_mask import attention_mask
from pipeline.models.flex_attention import TILE, block_mask, flex_inputs, use_flex, visible_tiles
from pipeline.models.forward import hidden_states

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
LENGTHS = (150, 90, 70, 30, 9)


BLOCKS = {"block": SequenceBlocks(8), "full": OneBlock()}


def documents(layout: str, lengths=LENGTHS, mask_id: int = 1):
    masks = [torch.arange(n) % 5 == 3 for n in lengths]
    return [lay_out(torch.arange(2, 2 + len(m)), m, BLOCKS[layout].cut(m), mask_id) for m in masks]


@pytest.mark.parametrize("config", [workload.qwen3(600, 64, 2), workload.llada2(600, 64, 2)], ids=["qwen3", "llada2"])
@pytest.mark.parametrize("layout", ["block", "full"])
@torch.no_grad()
def test_flex_equals_sdpa(config, layout):
    model = workload.model(config).eval()
    packed, places = pack(documents(layout, mask_id=config.mask_token_id))
    expected = hidden_states(model, packed, places)
    use_flex(model)
    assert_close(hidden_states(model, packed, places), expected, rtol=1e-4, atol=1e-5)
    everything = torch.ones(1, 1, 9, 9, dtype=torch.bool)  # the sampler's masks stay boolean
    assert model(torch.arange(9)[None], attention_mask=everything).logits.isfinite().all()


@pytest.mark.parametrize("layout", ["block", "full"])
def test_tiles_name_what_the_mask_shows(layout):
    packed, _ = pack(documents(layout, (700, 500, 300, 40, 30, 20)), row_multiple=TILE)
    flat = [x.flatten() for x in (packed.document, packed.block, packed.noisy)]
    document = (flat[0].diff(prepend=flat[0][:1]) != 0).cumsum(0)
    truth = attention_mask(document[None], *(x[None] for x in flat[1:]))[0, 0]
    truth = truth.unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE))  # [tiles, TILE, tiles, TILE]
    some, every = visible_tiles(document, *flat[1:])
    assert not (truth.any(3).any(1) & ~some).any(), "a visible pair must be in a tile that is computed"
    assert not (every & ~truth.all(3).all(1)).any(), "a tile without a mask must be all visible"
    assert int(some.sum()) <= 1.2 * int(truth.any(3).any(1).sum())
    assert int(every.sum()) >= 0.8 * int(truth.all(3).all(1).sum()) > 0


def test_flex_skips_tiles_that_the_mask_hides():
    document = torch.arange(1024) // 256
    mask = block_mask(document, torch.zeros_like(document), torch.ones(1024, dtype=torch.bool))
    assert mask.sparsity() == 75.0  # four documents: each sees a quarter


def test_lengths_compile_nothing_new(monkeypatch):
    """One graph with gradients and one without, whatever the rows: beyond its limit, dynamo would go on uncompiled."""
    monkeypatch.setattr(
        "torch.nn.attention.flex_attention._validate_device", lambda *_: None
    )  # refuses a CPU's gradients
    torch._dynamo.reset()
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=count)
    for lengths in ((700, 500), (300, 300, 40), (60,), (1,), (130, 90, 80, 7)):
        packed, _ = pack(documents("block", lengths))
        inputs = flex_inputs(packed)
        length = inputs["input_ids"].shape[1]
        for gradients in (True, False):
            q = torch.randn(1, 4, length, 16, requires_grad=gradients)
            k, v = (torch.randn(1, 2, length, 16, requires_grad=gradients) for _ in range(2))
            with torch.set_grad_enabled(gradients):
                compiled(q, k, v, block_mask=inputs["attention_mask"], scale=0.1, enable_gqa=True)
    assert len(graphs) == 2
