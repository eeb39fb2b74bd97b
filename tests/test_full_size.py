"""The published recipes' training step at full size, in DeepSpeed's own engine, on fake tensors: see distributed/full_size.py."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests import launch

MOE_LAYERS = 19  # of LLaDA2.0-mini: each exchanges counts, tokens, and their results
STUDENT_BYTES = 2 * 596_049_920  # Qwen3-0.6B in bf16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "world", "moe_layers"), [("llada2_mini", 8, MOE_LAYERS), ("two_teachers", 64, MOE_LAYERS)]
)
def test_full_size(recipe, world, moe_layers, tmp_path):
    first, last = (observe(recipe, world, rank, tmp_path / f"{rank}.json") for rank in (0, world - 1))
    for one in (first, last):
        highest = max(one["steps"][1]["peaks"].values())
        assert one["planned"] == pytest.approx(highest, rel=0.05)
        assert one["dtypes"] == first["dtypes"]
        # anything else that the host reads would have raised: a fake tensor has no values
        assert one["steps"][1]["host_reads"] == {"tokens per expert": moe_layers, "gradient norm": 1}
    # ranks call the same collectives in the same order, with as many bytes
    assert [step["collectives"] for step in first["steps"]] == [step["collectives"] for step in last["steps"]]
    count, size = Counter(), Counter()
    for name, sent, _ranks in first["steps"][1]["collectives"]:
        count[name] += 1
        size[name] += sent
    assert count["all_to_all_single"] == 3 * moe_layers
    assert size["reduce_scatter_tensor"] == pytest.approx(STUDENT_BYTES, rel=0.01)
    assert first["dtypes"]["student"] == first["dtypes"]["communication"] == ["torch.bfloat16"]
    assert first["dtypes"]["master"] == first["dtypes"]["optimizer"] == ["torch.float32"]


def observe(recipe: str, world: int, rank: int, output) -> dict:
    launch.python("-m", "tests.distributed.full_size", recipe, world, rank, output, timeout=900)
    return json.loads(output.read_text())
