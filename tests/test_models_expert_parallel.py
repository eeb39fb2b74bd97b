"""Experts shared out over two ranks give what one rank with all of them gives (one launch, many checks)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_models_llada2 import write_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.mark.launch
def test_two_ranks_equal_one(tmp_path):
    folder = write_checkpoint(tmp_path, "llada2_tiny")
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    # Large biases: AutoEP forgets a bias whose name it does not know, and small ones would hide that.
    large = {n: torch.randn_like(t) * 2 for n, t in tensors.items() if n.endswith("expert_bias")}
    save_file(tensors | large, folder / "model.safetensors")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja, for DeepSpeed's first build
    }
    script = ROOT / "tests" / "distributed" / "models_expert_parallel.py"
    run = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "rank 0 done" in run.stdout and "rank 1 done" in run.stdout
