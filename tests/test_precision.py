"""Every engine file on the CPU: no wait in the step, float32 where gradients meet, bf16 runs that resume."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from pipeline.core.checkpoint_files import complete_checkpoints
from tests import launch, tiny

pytestmark = pytest.mark.launch

ENGINES = sorted((launch.ROOT / "ds_configs").glob("*.json"))
BF16 = ("--teachers.dtype", "bfloat16", "--deepspeed", "ds_configs/zero3_bf16.json")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engines(recipe, tmp_path_factory):
    """What one step of each engine file does, of those that need no compiler."""
    out = tmp_path_factory.mktemp("reads") / "reads.json"
    launch.ranks(1, "tests/distributed/host_reads.py", out, "--recipe", recipe, "--", *ENGINES)
    return json.loads(out.read_text())


def test_a_step_waits_for_the_device_only_where_deepspeed_looks_at_the_gradient(engines):
    assert engines.keys() == {path.stem for path in ENGINES}
    for name, engine in engines.items():
        assert engine["synchronize"] == 0, name
        # without ZeRO it is our optimizer that reads AdamW's step counts, which lie on the host
        reads = [file.rpartition("/")[2] for file in engine["reads"]]
        assert reads == (["engine.py"] if name == "zero0" else []), name


def test_gradients_meet_in_float32_whatever_the_weights_are(engines):
    for name, engine in engines.items():
        assert (engine["communication"], engine["accumulation"]) == ("torch.float32", "torch.float32"), name
        bf16 = json.loads((launch.ROOT / f"ds_configs/{name}.json").read_text()).get("bf16", {}).get("enabled", False)
        assert engine["weights"] == ("torch.bfloat16" if bf16 else "torch.float32"), name


@pytest.mark.slow
def test_bf16_gradients_are_summed_in_float32_over_ranks_and_over_micro_batches(recipe, tmp_path):
    """Each micro-batch's gradient is rounded to bf16; the sum of two is not, whoever takes it."""
    words = ["--recipe", str(recipe), "--optim.global_batch", "2", "--teachers.dtype", "bfloat16"]
    stages = ("zero3_bf16", "zero1_bf16")
    apart, together = (
        {stage: [*words, "--optim.micro_tokens", tokens, "--deepspeed", f"ds_configs/{stage}.json"] for stage in stages}
        for tokens in ("140", "1200")
    )
    found = []
    for name, ranks, cases in (("micro_batches", 1, apart), ("ranks", 2, apart), ("whole", 1, together)):
        (tmp_path / name).mkdir()
        launch.ranks(ranks, "tests/distributed/gradients.py", tmp_path / name, json.dumps(cases))
        found.append({stage: load_file(tmp_path / name / f"{stage}.safetensors") for stage in stages})
    for stage in stages:
        micro_batches, ranks, whole = (run[stage] for run in found)
        assert [int(run["accumulation"]) for run in (micro_batches, ranks, whole)] == [2, 1, 1]
        names = [name for name in ranks if name.startswith("gradient.0.")]
        for name in names:
            assert_close(ranks[name], micro_batches[name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
            # one rounding of the result, by the micro-batch that holds all rows
            assert (whole[name] - ranks[name]).norm() <= 0.01 * ranks[name].norm(), name
        assert any((ranks[name] != ranks[name].bfloat16().float()).any() for name in names)


@pytest.mark.slow
def test_a_bf16_run_that_is_resumed_ends_to_the_bit_where_it_would_have(recipe, tmp_path):
    tiny.train(recipe, tmp_path / "whole", 2, *BF16)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for path in complete_checkpoints(tmp_path / "resumed"):
        if path.name > "step-00000004":
            shutil.rmtree(path)
    shutil.rmtree(tmp_path / "resumed/status")
    assert "going on from" in tiny.train(recipe, tmp_path / "resumed", 2, *BF16)
    tiny.assert_same(tmp_path / "whole", tmp_path / "resumed")
    weights = [t for name, t in tiny.tensors(tmp_path / "whole").items() if name.startswith("weight.")]
    assert all(t.dtype == torch.float32 for t in weights)  # the master copies
    assert any((t != t.bfloat16().float()).any() for t in weights)
