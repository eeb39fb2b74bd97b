"""Real launches of the training step: the result does not depend on ranks, ZeRO stage, expert parallelism or micro-batches."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests import launch

pytestmark = pytest.mark.launch

HELD_OUT = ("--data.validation.rows", "6")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """The demo's aligned dataset, with fewer held-out rows."""
    folder = tmp_path_factory.mktemp("aligned")
    launch.stage("pipeline/align.py", "--data.aligned", folder, *HELD_OUT)
    return folder


def cases(aligned, batch: int, *words: str) -> dict[str, list[str]]:
    """The same recipe under both ZeRO stages."""
    common = ["--data.aligned", str(aligned), "--optim.global_batch", str(batch), *HELD_OUT, *words]
    return {stage: [*common, "--deepspeed", f"ds_configs/{stage}.json"] for stage in ("zero0", "zero3")}


def untied_student(folder) -> str:
    """The demo's student with a head of its own (the demo's is its embedding)."""
    shutil.copytree(launch.ROOT / "demo/student", folder, dirs_exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    return str(folder)


@pytest.fixture(scope="module")
def results(aligned, tmp_path_factory):
    """Tensors of every case on one rank (in several micro-batches) and on two (expert parallelism 2)."""
    shared = cases(aligned, 6, "--objective.strategy", "tide_shared")  # CALM-TIDAL + CompDemo
    cross = cases(aligned, 1, "--objective.strategy", "tide_cross")  # one row: the second rank has none
    untied = cases(
        aligned, 2, "--student.weights", "random", "--student.path", untied_student(tmp_path_factory.mktemp("untied"))
    )
    named = {"shared": shared, "cross": cross, "untied": untied}
    all_cases = {f"{name}-{stage}": v for name, stages in named.items() for stage, v in stages.items()}
    found = {}
    for ranks, budget in ((1, 1024), (2, 16384)):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        words = {name: [*v, "--optim.micro_tokens", str(budget)] for name, v in all_cases.items()}
        launch.ranks(ranks, "tests/distributed/gradients.py", folder, json.dumps(words))
        found |= {(ranks, name): load_file(folder / f"{name}.safetensors") for name in all_cases}
    return found


def part(tensors, kind):
    return {name.removeprefix(kind + "."): t for name, t in tensors.items() if name.startswith(kind + ".")}


def assert_equal(ours, theirs, kind, **tolerance):
    ours, theirs = part(ours, kind), part(theirs, kind)
    assert ours and ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], msg=lambda text, n=name: f"{kind} {n}: {text}", **tolerance)


GRADIENTS = {"rtol": 2e-4, "atol": 2e-6}


@pytest.mark.parametrize("name", ["shared-zero0", "cross-zero0", "untied-zero0"])
def test_engine_gives_autograd_s_gradients(results, name):
    """Accumulated micro-batches under the engine = one plain backward of the whole global batch."""
    found = results[1, name]
    first = {n.replace("gradient.0.", "plain."): t for n, t in found.items() if n.startswith("gradient.0.")}
    assert_equal(first, found, "plain", **GRADIENTS)


@pytest.mark.parametrize("other", [(1, "zero3"), (2, "zero0"), (2, "zero3")], ids=lambda x: f"{x[0]}-rank-{x[1]}")
@pytest.mark.parametrize("case", ["shared", "cross", "untied"])
def test_ranks_and_zero_stages_agree(results, case, other):
    ranks, stage = other
    reference, found = results[1, f"{case}-zero0"], results[ranks, f"{case}-{stage}"]
    assert_equal(found, reference, "loss", rtol=2e-5, atol=1e-6)
    assert_equal(found, reference, "kl", rtol=2e-5, atol=1e-6)
    assert_equal(found, reference, "gradient", **GRADIENTS)
    assert_equal(found, reference, "weight", rtol=1e-3, atol=2e-4)
