"""Experts shared out over ranks give what one rank with all of them gives (one launch a world size, many checks)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.configs import read_config
from pipeline.models.expert_parallel import expert_count
from pipeline.models.loading import load_student, load_teacher
from tests import launch
from tests.test_models_llada2 import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A golden model with large biases: AutoEP forgets one whose name it does not know, and small ones would hide that."""
    folder = write_checkpoint(tmp_path, "llada2_tiny")
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    large = {n: torch.randn_like(t) * 2 for n, t in tensors.items() if n.endswith("expert_bias")}
    save_file(tensors | large, folder / "model.safetensors")
    return folder


def check(folder: Path, ranks: int, sizes: list[int]) -> None:
    done = launch.ranks(ranks, "tests/distributed/models_expert_parallel.py", folder, *sizes)
    assert all(f"rank {rank} done" in done.stdout for rank in range(ranks))


@pytest.mark.launch
def test_two_ranks_equal_one(checkpoint):
    check(checkpoint, 2, [2])


@pytest.mark.launch
@pytest.mark.slow
def test_four_ranks_equal_one_with_one_group_and_with_two(checkpoint):
    check(checkpoint, 4, [2, 4])


def test_a_mixture_whose_layers_are_all_dense_has_nothing_to_share(tmp_path):
    folder = write_checkpoint(tmp_path, "llada2_tiny")
    assert expert_count(read_config(str(folder))) == 16
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"first_k_dense_replace": config["num_hidden_layers"]}))
    assert expert_count(read_config(str(folder))) == 1
    load_teacher(str(folder), dtype=torch.float32, device="cpu", weights="random")
    load_student(str(folder), dtype=torch.float32, weights="random").update_selection_bias(0.1)
