"""FlexAttention and SDPA under the one predicate: the same hidden states of packed documents (on a CPU, forward only)."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from benchmarks import workload
from pipeline.data.packing import Side, lay_out, pack
from pipeline.method.attention_mask import blocks_for_flex
from pipeline.models.forward import hidden_states, use_flex

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.mark.parametrize("config", [workload.qwen3(600, 64, 2), workload.llada2(600, 64, 2)], ids=["qwen3", "llada2"])
@pytest.mark.parametrize("layout", ["block", "full"])
@torch.no_grad()
def test_flex_equals_sdpa(config, layout):
    model = workload.model(config).eval()
    side = Side(config.mask_token_id, layout, 8)
    documents = [lay_out(torch.arange(2, 2 + n), torch.arange(n) % 5 == 3, side) for n in (150, 90, 70, 30, 9)]
    packed, places = pack(documents)
    expected = hidden_states(model, packed, places)
    use_flex(model)
    assert_close(hidden_states(model, packed, places), expected, rtol=1e-4, atol=1e-5)
    everything = torch.ones(1, 1, 9, 9, dtype=torch.bool)  # the sampler's masks stay boolean
    assert model(torch.arange(9)[None], attention_mask=everything).logits.isfinite().all()


def test_flex_skips_tiles_that_the_mask_hides():
    document = torch.arange(1024)[None] // 256
    mask = blocks_for_flex(document, torch.zeros_like(document), torch.ones(1, 1024, dtype=torch.bool))
    assert mask.sparsity() == 75.0  # four documents: each sees a quarter
