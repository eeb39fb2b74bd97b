"""The paper's recipe file itself, end to end at toy width: random models, its strategies by the documented flag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.run_directory import read_metrics
from tests import launch
from tests.tiny import write_models

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """llada2_mini.yaml with other paths and sizes, and the aligned dataset of both its variants."""
    folder = tmp_path_factory.mktemp("paper")
    write_models(folder)
    rows = folder / "rows.jsonl"
    chats = [
        [{"role": "user", "content": f"{n} plus 1?"}, {"role": "assistant", "content": f"A sum: {n + 1}."}]
        for n in range(12)
    ]
    rows.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    changed = {
        "data.sources": f"[{{path: {rows}, name: sums}}]",
        "data.validation": "null",
        "data.aligned": folder / "aligned",
        "data.student_length": 100,
        "student.path": folder / "student",
        "student.weights": "random",
        "teachers.path": folder / "teacher",
        "teachers.weights": "random",
        "teachers.length": 120,
        "optim.epochs": "null",
        "optim.steps": 2,
        "optim.global_batch": 4,
        "optim.micro_tokens": 2000,
        "logging.every_steps": 1,
    }
    words = ["--recipe", "llada2_mini"]
    words += [str(word) for name, value in changed.items() for word in (f"--{name}", value)]
    launch.stage("pipeline/align.py", *words, "--processes", 1, "--run_dir", folder / "align")
    return words


@pytest.mark.parametrize(("strategy", "compdemo"), [("tide_cross", False), ("tide_shared", True)])
def test_both_variants_of_the_recipe_train_and_export(words, tmp_path: Path, strategy, compdemo):
    run = tmp_path / "run"
    launch.stage("pipeline/distill.py", *words, "--objective.strategy", strategy, "--run_dir", run)
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (resolved["objective"]["strategy"], resolved["objective"]["compdemo"]["enabled"]) == (strategy, compdemo)
    assert (resolved["teachers"][0]["input"], resolved["teachers"][0]["dtype"]) == ("full", "bfloat16")
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2] and all(line["llada2"] > 0 for line in lines)
    assert (complete_checkpoints(run)[-1] / "export/config.json").is_file()
