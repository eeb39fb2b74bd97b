"""`precompute` and what `distill` makes of it: a diffusion teacher and an autoregressive one, the latter's answers stored."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput
from pipeline.core.run_directory import read_metrics
from pipeline.distributed.topology import Topology
from pipeline.training.precompute import precompute
from tests import launch, tiny
from tests.test_causal_teachers import write

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The tiny distillation, with an autoregressive Qwen3 of the student's tokenizer beside the diffusion teacher."""
    folder = tmp_path_factory.mktemp("stored")
    tiny.write_models(folder)
    write(folder / "weights", "qwen3", **tiny.MODEL)
    (folder / "causal").mkdir()
    student = folder / "student"
    for file in [*student.glob("*token*"), *student.glob("*.jinja"), *(folder / "weights").iterdir()]:
        shutil.copy(file, folder / "causal")
    drawn = {"weights": "random", "length": 120}  # says nothing true: it is not checked for what it knows
    teachers = [
        {"name": "llada2", "path": str(folder / "teacher"), **drawn},
        {"name": "ar", "path": str(folder / "causal"), "input": "causal", "top_k": 512, **drawn},
    ]
    return tiny.make(folder, teachers=teachers, attention="sdpa", objective={"strategy": "tide_cross"})


def with_answers(recipe: Path, answers: str) -> Path:
    settings = yaml.safe_load(recipe.read_text())
    settings["teachers"][1]["answers"] = answers
    other = recipe.with_name(f"{answers}.yaml")
    other.write_text(yaml.safe_dump(settings))
    return other


def full_disk(*paths: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_diffusion_teacher_and_a_stored_causal_one_train_as_the_live_ones(recipe, tmp_path, monkeypatch):
    stored, live = with_answers(recipe, "stored"), with_answers(recipe, "live")
    run = tmp_path / "run"
    refused = launch.stage("pipeline/distill.py", "--recipe", stored, "--run_dir", run, code=2)
    assert "no stored answers of teacher ar" in refused.stderr and "pipeline/precompute.py" in refused.stderr

    done = launch.stage("pipeline/precompute.py", "--recipe", stored, "--run_dir", tmp_path / "first")
    assert "reused 0 files, computed 4" in done.stdout + done.stderr
    folder = recipe.parent / "aligned/answers/ar"
    first = {file.name: file.read_bytes() for file in folder.glob("*.arrow")}
    (folder / "manifest.json").unlink()  # as if it had been stopped
    parsed, _ = parse(parser(""), ["--recipe", str(stored)])
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="No space left on device: make room"):
        patch.setattr(os, "replace", full_disk)
        precompute(parsed, Topology(0, 1, 1, torch.device("cpu")))
    (folder / "shard-00001.arrow").write_bytes(b"damaged")
    again = launch.stage("pipeline/precompute.py", "--recipe", stored, "--run_dir", tmp_path / "again")
    assert "reused 3 files, computed 1" in again.stdout + again.stderr
    assert {file.name: file.read_bytes() for file in folder.glob("*.arrow")} == first

    losses = {}
    for name, path in (("stored", stored), ("live", live)):
        launch.stage("pipeline/distill.py", "--recipe", path, "--run_dir", tmp_path / name)
        lines = read_metrics(tmp_path / name)
        losses[name] = [(line["llada2"], line["ar"], line["cross_entropy"]) for line in lines if "ar" in line]
    assert len(losses["live"]) > 1
    torch.testing.assert_close(torch.tensor(losses["stored"]), torch.tensor(losses["live"]), atol=1e-4, rtol=1e-4)
    distance = json.loads((tmp_path / "stored/distance.json").read_text())
    assert set(distance["0"]) == {"llada2", "ar"}

    other = launch.stage(
        "pipeline/distill.py", "--recipe", stored, "--objective.temperature", 3, "--run_dir", run, code=2
    )
    assert "were computed with another temperatures" in other.stderr
