"""The whole pipeline through the demo's own script, in a clean checkout: a few steps in `make test`, in full when slow."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.core.run_directory import read_metrics
from tests import launch

pytestmark = pytest.mark.launch


def demo(checkout: Path, *words: str, timeout: float) -> dict:
    """demo/run.sh there; returns the summary."""
    done = launch.run("bash", "demo/run.sh", "2", *words, cwd=checkout, timeout=timeout)
    return json.loads((checkout / "runs/demo/summary.json").read_text()) | {"output": done.stdout}


def test_a_few_steps_of_everything(checkout):
    summary = demo(checkout, *launch.SHORT, timeout=1200)
    assert summary["world_size"] == 2 and summary["expert_parallel_size"] == 2 and summary["zero_stage"] == 3
    assert summary["strategy"] == "tide_shared"
    assert set(summary["scores"]) == {"start", "undistilled", "calm", "distilled"}
    for score in summary["scores"].values():
        assert score["n"] == 12 and score["low"] <= score["value"] <= score["high"]
    assert {"align", "distill", "evaluate"} <= set(summary["seconds"])
    run = checkout / "runs/demo"
    for name in ("recipe.yaml", "environment.json", "teacher_probe.json", "report.html", "status/distill.json"):
        assert (run / name).is_file(), name
    (card,) = run.glob("checkpoints/*/export/README.md")
    assert "| demo_arithmetic | exact_match |" in card.read_text(), "the scores are in the model card"
    lines = read_metrics(run)
    assert [r["step"] for r in lines if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        if line["kind"] == "train":  # the recipe's teacher weighs 2
            assert line["loss"] == pytest.approx(line["cross_entropy"] + 2 * line["llada2"])
    assert "runs/demo/report.html" in summary["output"].replace("\n", "")


def test_baseline_and_distilled_student_start_alike(checkout):
    """Equal data, seed and initial weights: before the first update only the completion of masked chunks differs."""
    first = [read_metrics(checkout / f"runs/{name}")[0] for name in ("demo", "demo-calm", "demo-undistilled")]
    assert first[0]["cross_entropy"] == pytest.approx(first[1]["cross_entropy"], rel=1e-4)
    assert first[0]["cross_entropy"] == pytest.approx(first[2]["cross_entropy"], rel=0.25)


def test_a_finished_run_is_left_alone(checkout):
    before = (checkout / "runs/demo/status/distill.json").read_text()
    words = ("--run_dir", checkout / "runs/demo", "--data.aligned", checkout / "runs/aligned/demo", *launch.SHORT)
    assert "is done" in launch.stage("pipeline/distill.py", *words).stdout
    assert (checkout / "runs/demo/status/distill.json").read_text() == before


def distill(checkout: Path, name: str) -> launch.Rank:
    runs, log = checkout / "runs", checkout / "distill.log"
    words = [
        "--data.aligned",
        runs / "aligned/demo",
        "--run_dir",
        runs / name,
        "--teachers",
        "[]",
        "--optim.steps",
        "20",
    ]
    words += ["--logging.every_steps", "1", "--checkpoint.every_steps", "0", "--data.validation.rows", "32"]
    return launch.Rank(["pipeline/distill.py", *words], log, log)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(checkout):
    """SIGTERM saves at a step's boundary and exits with 75; the resumed run ends with the uninterrupted run's weights."""
    assert distill(checkout, "whole").wait(timeout=600) == 0
    stopped = distill(checkout, "stopped")
    deadline = time.monotonic() + 200
    while len(read_metrics(checkout / "runs/stopped")) < 5:
        assert stopped.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(stopped.pid, signal.SIGTERM)
    assert stopped.wait(timeout=300) == 75
    status = json.loads((checkout / "runs/stopped/status/distill.json").read_text())
    assert status["state"] == "stopped" and status["exit_code"] == 75 and status["step"] >= 5
    assert distill(checkout, "stopped").wait(timeout=600) == 0
    whole, resumed = (
        load_file(next(checkout.glob(f"runs/{n}/checkpoints/step-00000020/export/*.safetensors")))
        for n in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_the_demo_distils(checkout):
    """The real demo: the start is competent, and TIDE-Shared is 15 points above the undistilled student."""
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    summary = demo(checkout, timeout=900)
    scores = summary["scores"]
    assert scores["start"]["value"] >= 0.95
    shown = re.search(r"!\[.*?: (start .*?);", (launch.ROOT / "README.md").read_text())[1]
    assert len(shown.split(", ")) == 4
    for label, score in (words.split() for words in shown.split(", ")):
        assert scores[label]["value"] == pytest.approx(float(score), abs=0.05), scores
    assert scores["distilled"]["value"] >= scores["undistilled"]["value"] + 0.15, scores
