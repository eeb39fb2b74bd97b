"""Scoring while a run trains: every checkpoint once, the best marked, restarts and pruned checkpoints harmless."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from pipeline.core.checkpoint_files import inventory
from pipeline.core.files import read_json, write_json
from pipeline.evaluation.watch import mark_best, score_checkpoints
from tests import launch


def add_checkpoint(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "model").write_text("weights")
    write_json(folder / "COMPLETE", {"step": step, "files": inventory(folder)})


def score(run_dir: Path, step: str, value: float | None, **more) -> None:
    entries = {"task": "sums", "metric": "exact_match", "value": value, "n": 4, **more}
    write_json(run_dir / "evaluation" / step / "sums.json", entries)


def training_ends(run_dir: Path) -> None:
    write_json(run_dir / "status" / "distill.json", {"state": "done"})


def test_every_checkpoint_once_newest_first_until_the_run_is_done(tmp_path) -> None:
    values, calls = {5: 0.2, 10: 0.7, 15: 0.7, 20: 0.1}, []
    add_checkpoint(tmp_path, 5)
    add_checkpoint(tmp_path, 10)

    def evaluate(folder: str, step: str) -> None:
        calls.append(int(step[5:]))
        assert Path(folder, "model").is_file()
        score(tmp_path, step, values[calls[-1]])
        if calls[-1] == 10:  # training goes on meanwhile
            add_checkpoint(tmp_path, 15)
        if calls[-1] == 5:
            add_checkpoint(tmp_path, 20)
            training_ends(tmp_path)

    score_checkpoints(tmp_path, ["sums"], evaluate, every=0.01)
    assert calls == [10, 15, 5, 20]
    assert read_json(tmp_path / "evaluation" / "best.json") == {
        "step": 10,
        "task": "sums",
        "metric": "exact_match",
        "value": 0.7,
    }
    score_checkpoints(tmp_path, ["sums"], evaluate, every=0.01)
    assert len(calls) == 4, "a second start has nothing to do"


def test_waits_for_a_run_that_has_not_begun(tmp_path) -> None:
    calls = []

    def evaluate(_folder: str, step: str) -> None:
        calls.append(step)
        score(tmp_path, step, 1.0)

    thread = threading.Thread(target=score_checkpoints, args=(tmp_path, ["sums"], evaluate, 0.01), daemon=True)
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive() and not calls
    add_checkpoint(tmp_path, 1)
    training_ends(tmp_path)
    thread.join(10)
    assert not thread.is_alive() and calls == ["step-00000001"]


def test_pruned_and_damaged_checkpoints_are_skipped(tmp_path, capsys) -> None:
    for step in (1, 2, 3):
        add_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000002" / "export" / "model").write_text("damaged")
    training_ends(tmp_path)

    def evaluate(folder: str, step: str) -> None:
        if step == "step-00000003":  # training prunes it while it is read
            shutil.rmtree(Path(folder).parent)
            Path(folder, "model").read_text()
        score(tmp_path, step, 0.5)

    score_checkpoints(tmp_path, ["sums"], evaluate, every=0.01)
    out = " ".join(capsys.readouterr().out.split())
    assert "step-00000003: pruned while it was read" in out
    assert "step-00000002: export/model is damaged" in out
    assert [p.name for p in (tmp_path / "evaluation").iterdir() if p.is_dir()] == ["step-00000001"]
    assert read_json(tmp_path / "evaluation" / "best.json")["step"] == 1


def test_other_failures_are_raised(tmp_path) -> None:
    add_checkpoint(tmp_path, 1)

    def evaluate(_folder: str, _step: str) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        score_checkpoints(tmp_path, ["sums"], evaluate, every=0.01)


def test_the_best_is_the_lowest_where_less_is_better_and_unscored_tasks_wait(tmp_path) -> None:
    assert mark_best(tmp_path, "sums") is None
    score(tmp_path, "step-00000001", None)
    assert mark_best(tmp_path, "sums") is None and not (tmp_path / "evaluation" / "best.json").exists()
    for step, value in ((2, 9.0), (3, 4.0), (4, 5.0)):
        score(tmp_path, f"step-{step:08d}", value, higher_is_better=False)
    score(tmp_path, "teacher", 0.0, higher_is_better=False)
    assert mark_best(tmp_path, "sums").step == 3


def test_the_command_stops_by_sigterm_and_goes_on(run_dir) -> None:
    """`--watch RUN` scores, waits for more, saves its state at SIGTERM (exit code 75), and ends with the run (0)."""
    shutil.copy(run_dir.parent / "recipe.yaml", run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000003")
    command, log = ["pipeline/evaluate.py", "--watch", run_dir, "--every", "0.2"], run_dir.parent / "log"
    process = launch.Rank(command, log, log)
    deadline = time.monotonic() + 240
    while not (run_dir / "evaluation" / "best.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, status = process.wait(timeout=60), read_json(run_dir / "status" / "watch.json")
    assert (code, status["state"], status["exit_code"]) == (75, "stopped", 75), log.read_text()
    scored = run_dir / "evaluation" / "step-00000020" / "four_sums.json"
    written = scored.stat().st_mtime_ns
    training_ends(run_dir)
    launch.stage(*command)
    assert read_json(run_dir / "status" / "watch.json")["state"] == "done"
    assert scored.stat().st_mtime_ns == written, "scored once"
