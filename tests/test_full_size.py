"""The published recipes' training step at full size, in DeepSpeed's own engines, on fake tensors: see distributed/full_size.py."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import launch

pytestmark = pytest.mark.slow

STUDENT = 596_049_920  # parameters of Qwen3-0.6B
MOE_LAYERS = {"llada2_mini": 19, "wedlm_8b": 0, "two_teachers": 19}  # of LLaDA2.0-mini
# and three all-to-alls per MoE layer: counts, tokens, and their results
PER_STEP = Counter({"all_gather_into_tensor": 123, "reduce_scatter_tensor": 2, "all_reduce": 2})
PER_ZERO_1_STEP = Counter({"all_gather_into_tensor": 2, "all_reduce": 2})
NUMBERS = 16  # bytes at most: the gradient's norm
DTYPES = {
    "student": ["torch.bfloat16"],
    "teachers": ["torch.bfloat16"],
    "communication": ["torch.float32"],
    "accumulation": ["torch.float32"],
    "master": ["torch.float32"],
    "optimizer": ["torch.float32"],
}


@pytest.mark.parametrize("world", [8, 64])
@pytest.mark.parametrize("recipe", MOE_LAYERS)
def test_zero3(recipe, world, tmp_path):
    first, last = observe(recipe, "zero3_bf16", world, tmp_path)
    # as many collectives on every rank, in the same order, of the same sizes
    assert [step["collectives"] for step in first["steps"]] == [step["collectives"] for step in last["steps"]]
    for rank in (first, last):
        count, size = check(rank, recipe)
        assert count == Counter(PER_STEP, all_to_all_single=3 * MOE_LAYERS[recipe])
        assert size["reduce_scatter_tensor"] == pytest.approx(4 * STUDENT, rel=1e-3)  # float32
        assert size["all_gather_into_tensor"] == pytest.approx(2 * STUDENT, rel=0.01)  # once: reuse_distance keeps it
        assert size["all_reduce"] <= NUMBERS


@pytest.mark.parametrize(("recipe", "world"), [("llada2_mini", 8), ("wedlm_8b", 64)])
def test_zero1(recipe, world, tmp_path):
    """Weights whole on every rank, gradients summed once per step, weights gathered from the shards that were stepped."""
    for rank in observe(recipe, "zero1_bf16", world, tmp_path):
        count, size = check(rank, recipe, clipping=1)  # the host chooses whether to clip
        assert count == Counter(PER_ZERO_1_STEP, all_to_all_single=3 * MOE_LAYERS[recipe])
        assert size["all_gather_into_tensor"] == pytest.approx(2 * STUDENT, rel=1e-3)
        assert size["all_reduce"] == pytest.approx(4 * STUDENT, rel=1e-3)  # float32


def check(rank: dict, recipe: str, **also_read: int) -> tuple[Counter[str], Counter[str]]:
    """What holds under every engine; gives the second step's collectives and the bytes that they take, by name."""
    step, layers = rank["steps"][1], MOE_LAYERS[recipe]  # DeepSpeed learns the order of modules in the first
    assert rank["planned"] == pytest.approx(max(step["peaks"].values()), rel=0.05)
    # whatever else read a tensor on the host would have raised: a fake one has no values
    tokens_per_expert = {"tokens per expert": layers} if layers else {}
    assert step["host_reads"] == {"gradient norm": 1, **tokens_per_expert, **also_read}
    assert rank["dtypes"] == DTYPES
    count, size = Counter(name for name, _, _ in step["collectives"]), Counter()
    for name, sent, _ in step["collectives"]:
        size[name] += sent
    return count, size


def observe(recipe: str, engine: str, world: int, folder: Path) -> list[dict]:
    """The first and the last rank."""

    def one(rank: int) -> dict:
        output = folder / f"{rank}.json"
        words = (recipe, f"ds_configs/{engine}.json", world, rank, output)
        launch.python("-m", "tests.distributed.full_size", *words, timeout=900)
        return json.loads(output.read_text())

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, (0, world - 1)))
