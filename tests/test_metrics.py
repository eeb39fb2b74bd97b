"""metrics.jsonl where a run goes on, on one rank."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from pipeline.core.run_directory import read_metrics
from pipeline.training.metrics import Metrics


@pytest.fixture
def metrics(tmp_path, one_rank) -> Metrics:
    """Going on from step 8, whose checkpoint keeps the sums of the two steps since the line of step 6."""
    found = Metrics(tmp_path / "metrics.jsonl", ["ce"], first=8, steps=9, device=torch.device("cpu"))
    found.load_state([torch.tensor([0.0, 100.0, 2.0], dtype=torch.float64)])
    return found


def write(path: Path, *steps: int) -> None:
    path.write_text("".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in steps))


def test_lines_past_the_checkpoint_are_dropped_without_a_word(metrics, capsys):
    write(metrics.path, 3, 6, 9)
    metrics.truncate_after(8)
    assert [line["step"] for line in read_metrics(metrics.path.parent)] == [3, 6]
    assert "lost" not in capsys.readouterr().out


def test_lost_lines_are_named(metrics, capsys):
    write(metrics.path, 3)
    metrics.truncate_after(8)
    assert "metrics.jsonl: metrics after step 3, up to step 6, are lost" in " ".join(capsys.readouterr().out.split())


def test_a_step_is_a_line_with_the_time_left(metrics, capsys):
    metrics.add(torch.tensor([1.5], dtype=torch.float64), 10)
    metrics.step_done()
    metrics.write(9, weights=[1.0])
    assert re.search(
        r"^\d\d:\d\d:\d\d step 9/9  loss 0\.500  ce 0\.500  0\.\d\d s/step  0:00:00 left$",
        capsys.readouterr().out,
        re.M,
    )
