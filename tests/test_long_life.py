"""What a long run leaves is read in bounded time and memory; nothing grows while it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import launch
from tests.drills.long_life import drill

pytestmark = [pytest.mark.launch, pytest.mark.slow]

MEASURED = """
import json, re, runpy, sys, time
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
    print(json.dumps({"code": end.code, "seconds": time.process_time(), "gigabytes": int(peak) / 1e6}), file=sys.stderr)
"""
"""A stage, then what it took. (getrusage's peak begins with that of the process that has started it.)"""

CHECKPOINTS, STEPS_APART, LINES_APART = 10_000, 100, 10


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    """10,000 checkpoints' worth: 100,000 training lines, 5,000 validation lines and 10,000 scores."""
    folder = tmp_path_factory.mktemp("long")
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(LINES_APART, CHECKPOINTS * STEPS_APART + 1, LINES_APART):
            loss = 1 + 1 / step
            numbers = {"loss": loss, "cross_entropy": loss, "lr": 0.001, "grad_norm": 0.5, "memory_gb": 1.5}
            numbers |= {"tokens": 40_000, "seconds": 5.0, "tokens_per_second": 8000.0}
            file.write(json.dumps({"kind": "train", "step": step, **numbers}) + "\n")
            if step % (2 * STEPS_APART) == 0:
                by_t = {str(t): loss + t for t in (0.1, 0.5, 0.9)}
                file.write(json.dumps({"kind": "validation", "step": step, "loss": loss, "by_t": by_t}) + "\n")
    score = {"task": "sums", "metric": "exact_match", "value": 0.5, "n": 500, "low": 0.4, "high": 0.6, "preset": "demo"}
    for step in range(STEPS_APART, CHECKPOINTS * STEPS_APART + 1, STEPS_APART):
        place = folder / "evaluation" / f"step-{step:08d}"
        place.mkdir(parents=True)
        (place / "sums.json").write_text(json.dumps(score))
    (folder / "recipe.yaml").write_text(json.dumps({"name": "long", "student": {"path": "demo/student"}}))
    return folder


@pytest.mark.parametrize(
    ("words", "seconds", "gigabytes"),
    [(["pipeline/status.py"], 30, 0.5), (["pipeline/report.py", "--run_dir"], 60, 1.5)],
    ids=["status", "report"],
)
def test_a_long_run_is_read_in_bounded_time_and_memory(long_run, words, seconds, gigabytes) -> None:
    measured = json.loads(launch.python("-c", MEASURED, *words, long_run).stderr.splitlines()[-1])
    assert measured["code"] == 0
    assert measured["seconds"] < seconds
    assert measured["gigabytes"] < gigabytes
    page = long_run / "report.html"
    assert not page.exists() or page.stat().st_size < 20_000_000


def test_nothing_grows(tmp_path) -> None:
    """`python tests/drills/long_life.py` takes 2,000 steps."""
    drill(tmp_path, 300)
