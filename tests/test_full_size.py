"""The published recipes' training step at full size, in DeepSpeed's own engine, on fake tensors: see distributed/full_size.py.

Two of the six combinations of recipe and ranks hold everything that the others have (both teachers, with experts shared out and
without; one node and eight) and fit into five minutes on two cores. The others run by the same command.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import launch

STUDENT = 596_049_920  # parameters of Qwen3-0.6B
MOE_LAYERS = 19  # of LLaDA2.0-mini
PER_STEP = {
    "all_gather_into_tensor": 123,
    "reduce_scatter_tensor": 2,
    "all_to_all_single": 3 * MOE_LAYERS,  # counts, tokens, and their results
    "all_reduce": 2,  # of numbers: the gradient's norm
}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "world"), [("llada2_mini", 8), ("two_teachers", 64)])
def test_full_size(recipe, world, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        first, last = pool.map(lambda rank: observe(recipe, "zero3_bf16", world, rank, tmp_path), (0, world - 1))
    # as many collectives on every rank, in the same order, of the same sizes
    assert [step["collectives"] for step in first["steps"]] == [step["collectives"] for step in last["steps"]]
    for rank in (first, last):
        step = rank["steps"][1]  # DeepSpeed learns the order of modules in the first
        assert rank["planned"] == pytest.approx(max(step["peaks"].values()), rel=0.05)
        # whatever else read a tensor on the host would have raised: a fake one has no values
        assert step["host_reads"] == {"tokens per expert": MOE_LAYERS, "gradient norm": 1}
        assert Counter(name for name, _, _ in step["collectives"]) == PER_STEP
        size: Counter[str] = Counter()
        for name, sent, _ in step["collectives"]:
            size[name] += sent
        assert size["reduce_scatter_tensor"] == pytest.approx(4 * STUDENT, rel=1e-3)  # float32
        assert size["all_gather_into_tensor"] == pytest.approx(
            2 * STUDENT, rel=0.01
        )  # bf16, once: reuse_distance keeps it
        assert size["all_reduce"] <= 16
        assert rank["dtypes"] == {
            "student": ["torch.bfloat16"],
            "teachers": ["torch.bfloat16"],
            "communication": ["torch.float32"],
            "accumulation": ["torch.float32"],
            "master": ["torch.float32"],
            "optimizer": ["torch.float32"],
        }


def observe(recipe: str, engine: str, world: int, rank: int, folder: Path) -> dict:
    output = folder / f"{rank}.json"
    words = (recipe, f"ds_configs/{engine}.json", world, rank, output)
    launch.python("-m", "tests.distributed.full_size", *words, timeout=900)
    return json.loads(output.read_text())
