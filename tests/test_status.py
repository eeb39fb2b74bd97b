"""Watching: the status command and the monitors, beside a run that lives, is killed and goes on."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import status as status_stage
from pipeline.core.errors import BadInput
from pipeline.core.run_directory import read_metrics
from pipeline.reporting.run_record import read_run
from pipeline.training.monitor import PACKAGES, check_packages, events
from tests import launch


def write(path: Path, value: object, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    then = time.time() - age
    os.utime(path, (then, then))


@pytest.fixture
def made(tmp_path) -> Path:
    """A run that was stopped at step 40 of 100 and evaluated: 2 s and 1,000 tokens per step."""
    recipe = {"teachers": [{"name": "llada2"}], "objective": {"strategy": "tide_cross"}, "data": {"aligned": "none"}}
    write(tmp_path / "recipe.yaml", yaml.safe_dump(recipe), 1000)
    write(tmp_path / "environment.json", {"world_size": 2, "steps": 100}, 1000)
    pace = {"tokens": 10_000, "seconds": 20.0, "tokens_per_second": 500.0, "grad_norm": 0.5, "lr": 1e-3}
    terms = {"loss": 1.5, "cross_entropy": 1.0, "llada2": 0.5, "lambda": None}
    lines = [{"kind": "train", "step": step, **terms, **pace} for step in (10, 20, 30, 40)]
    lines.insert(2, {"kind": "validation", "step": 20, "loss": 2.25, "by_t": {"0.5": 2.25}})
    write(tmp_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"cut": ', 300)
    for stage, state, code, message, age in (
        ("align", "done", 0, "", 900),
        ("distill", "stopped", 75, "stopped by a signal at step 40/100", 290),
        ("evaluate", "failed", 2, "BadInput: no task 'mystery'", 100),
    ):
        write(tmp_path / f"status/{stage}.json", {"state": state, "exit_code": code, "message": message}, age)
    for step, marker in ((20, "COMPLETE"), (40, "COMPLETE"), (60, "half")):
        write(tmp_path / f"checkpoints/step-{step:08d}/{marker}", {"seconds": 1.25}, 700 - 10 * step)
    score = {"task": "arithmetic", "metric": "exact_match", "value": 0.25, "n": 12, "low": 0.1, "high": 0.5}
    write(tmp_path / "evaluation/step-00000020/arithmetic.json", score, 200)
    write(tmp_path / "evaluation/best.json", {"step": 20, "task": "arithmetic", "value": 0.25}, 200)
    return tmp_path


def status(*words: object, **kwargs) -> str:
    return launch.stage("pipeline/status.py", *words, COLUMNS="200", **kwargs).stdout


def as_json(run: Path) -> dict:
    return json.loads(status(run, "--json"))


def test_one_screen_says_where_a_run_stands(made):
    lines = dict(line.rstrip().split("  ", 1) for line in status("--run_dir", made).splitlines())
    lines = {name: text.strip() for name, text in lines.items()}
    assert len(lines) <= 24
    assert lines["run"] == f"{made}  tide_cross"
    assert lines["state"].startswith("stopped on 2 ranks, last line 0:05:")
    assert lines["step"] == "40 of 100 (40%)"
    assert lines["rate"] == "2 s/step, 500 tokens/s, 0:02:00 left"
    assert lines["loss"].startswith("1.5000 (cross_entropy 1.0000 + llada2 0.5000); gradient norm 0.5")
    assert lines["validation"] == "2.2500 at step 20"
    assert re.fullmatch(r"step-00000040, saved in 1.25 s, 0:05:\d\d ago; 2 complete", lines["checkpoint"])
    assert lines["evaluation"] == "step-00000020: arithmetic 0.250 (0.100 to 0.500)"
    assert lines["best"] == "step 20: arithmetic 0.250"
    assert lines["distill"] == "stopped, exit code 75. stopped by a signal at step 40/100"
    assert lines["evaluate"] == "failed, exit code 2. BadInput: no task 'mystery'"


def test_a_run_that_could_not_say_how_it_ended(made):
    (made / "status/distill.json").unlink()
    assert as_json(made)["state"] == "killed"


def test_words_of_others_are_text(made):
    write(made / "status/align.json", {"state": "failed", "exit_code": 2, "message": "role '[/INST]'"}, 1)
    assert "role '[/INST]'" in status(made)


@pytest.mark.parametrize(
    "recipe", ["", "name: [", "[]", "data:", "teachers: [{}]", "objective: {tidal: {}}", "x: \x00"]
)
def test_a_damaged_recipe_is_named(made, recipe):
    (made / "recipe.yaml").write_text(recipe)
    with pytest.raises(BadInput, match="recipe.yaml .*put back the one that the run was started with"):
        read_run(made)


def test_a_run_directory_with_nothing_in_it(tmp_path):
    stands = as_json(tmp_path)
    assert (stands["state"], stands["step"], stands["checkpoint"]) == ("not started", 0, None)
    assert "none yet" in status(tmp_path)


def test_no_run_directory_is_one_line():
    done = launch.stage("pipeline/status.py", "runs/nowhere", code=2)
    assert done.stderr.startswith("status: no run directory runs/nowhere") and done.stderr.count("\n") == 1


def test_without_a_name_every_run_has_a_line(made, tmp_path_factory, monkeypatch, run_command):
    folder = tmp_path_factory.mktemp("folder")
    (folder / "runs").mkdir()
    (folder / "runs/mine").symlink_to(made)
    monkeypatch.chdir(folder)
    _, out, _ = run_command(status_stage)
    (line,) = [line for line in out.splitlines() if "runs/mine" in line]
    assert line.split() == ["runs/mine", "stopped", "40", "of", "100"]


def test_it_answers_without_the_large_libraries(tmp_path):
    code = "import sys; from pipeline.status import command; print(command()); print(*sys.modules)"
    code, modules = launch.python("-c", code, "--run_dir", tmp_path).stdout.splitlines()[-2:]
    assert code == "0" and not {"torch", "transformers", "scipy", "datasets"} & set(modules.split())


@pytest.fixture(scope="module")
def lived(tmp_path_factory) -> dict:
    """A run with TensorBoard that was looked at while it ran, after a kill -9, and at its end."""
    folder = tmp_path_factory.mktemp("lived")
    run, engine = folder / "run", folder / "engine.json"
    engine.write_text('{"tensorboard": {"enabled": true}, "steps_per_print": 1000000000}')
    common = ["--run_dir", run, "--data.aligned", folder / "aligned", *launch.SHORT]
    launch.stage("pipeline/align.py", *common, timeout=900)
    words = [*common, "--deepspeed", engine, "--teachers", "[]", "--optim.steps", "30", "--checkpoint.every_steps", "5"]
    process = launch.Rank(["pipeline/distill.py", *words], folder / "log", folder / "log")
    deadline = time.monotonic() + 200
    try:
        while (running := as_json(run))["checkpoint"] is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    killed = as_json(run)
    launch.stage("pipeline/distill.py", *words)
    return {"running": running, "killed": killed, "done": as_json(run), "folder": run}


@pytest.mark.launch
def test_a_run_that_lives_and_is_killed_and_goes_on(lived):
    running, done = lived["running"], lived["done"]
    assert running["state"] == "running" and 5 <= running["step"] <= running["steps"] == 30
    assert running["seconds_left"] == pytest.approx(running["seconds_per_step"] * (30 - running["step"]))
    assert lived["killed"]["state"] == "killed"
    assert (done["state"], done["step"], done["seconds_left"]) == ("done", 30, 0)
    assert done["checkpoint"]["folder"] == "step-00000030" and done["checkpoint"]["seconds"] > 0


@pytest.mark.launch
def test_tensorboard_has_what_metrics_jsonl_has(lived):
    written = EventAccumulator(str(lived["folder"] / "tensorboard"))
    written.Reload()
    for record in read_metrics(lived["folder"]):
        numbers = {name: value for name, value, _ in events(record)}
        assert numbers.keys() >= {f"{record['kind']}/loss"}
        for name, value in numbers.items():
            values = [e.value for e in written.Scalars(name) if e.step == record["step"]]
            assert values[-1] == pytest.approx(value, rel=1e-6), name


def test_names_and_numbers_that_monitors_get():
    train = {"kind": "train", "step": 3, "loss": 1.5, "lambda": None, "llada2": 0.5}
    assert list(events(train)) == [("train/loss", 1.5, 3), ("train/llada2", 0.5, 3)]
    validation = {"kind": "validation", "step": 3, "loss": 2.0, "by_t": {"0.5": 2.0}}
    assert list(events(validation)) == [("validation/loss", 2.0, 3), ("validation/by_t/0.5", 2.0, 3)]


def test_a_monitor_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(PACKAGES, "wandb", "not_installed_here")
    check_packages({"wandb": {"enabled": False}})
    with pytest.raises(BadInput, match="wandb is enabled, but not_installed_here is not installed: pip install"):
        check_packages({"wandb": {"enabled": True}})
