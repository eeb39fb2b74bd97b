"""Studies: the grid, the statistics, a real one that is killed and goes on, and docs/evidence.md against its raw results."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from demo.study.evidence import DOCUMENT, FIGURES, read_studies, render
from demo.study.teachers import DIAL, Dial
from pipeline.config.recipe import Objective
from pipeline.core.errors import BadInput, StoppedEarly
from pipeline.core.files import write_json
from pipeline.distributed.signals import StopSignals
from pipeline.evaluation.statistics import sign_flip
from pipeline.experiments import runs
from pipeline.experiments.command_line import parse_study
from pipeline.experiments.grid import Study, grid
from pipeline.experiments.results import Results, RunResult, collect, earlier_results, lines, t_interval
from tests import launch


def study(**fields) -> Study:
    variants = {"undistilled": {"teachers": []}, "calm": {"objective.strategy": "calm"}}
    return Study(**{"name": "s", "recipe": "study", "variants": variants, **fields})


def result(variant, seed, score):
    measured = {"score": score, "kl": {"moe": [score, 0.0]}, "tasks": {}, "loss": 0.0}
    return RunResult(variant=variant, seed=seed, **measured, seconds=1, wall_seconds=1, tokens=2, steps=1)


def test_seeds():
    assert study(seeds="3..5").seed_numbers() == [3, 4, 5] and study(seeds="0,7").seed_numbers() == [0, 7]
    with pytest.raises(BadInput, match="0..7 or 0,2,5"):
        study(seeds="0-7").seed_numbers()


def test_grid_is_the_product():
    made = grid(["objective.strategy=calm,tide_cross", "optim.lr=1e-3,2e-3"])
    assert list(made) == ["calm,1e-3", "calm,2e-3", "tide_cross,1e-3", "tide_cross,2e-3"]
    assert made["tide_cross,1e-3"] == {"objective.strategy": "tide_cross", "optim.lr": "1e-3"}
    assert grid([]) == {}
    with pytest.raises(BadInput, match="FIELD=VALUE"):
        grid(["objective.strategy"])


def test_variants_of_products():
    data, teachers = {"carry": {"data.seed": 1}}, {"moe": {"teachers": ["m"]}, "dense": {"teachers": ["d"]}}
    how = {"calm": {"objective.strategy": "calm"}, "kl": {"objective.strategy": "kl"}}
    made = study(variants=[[data, {"undistilled": {"teachers": []}}], [data, teachers, how]]).variants
    assert list(made) == [
        "carry-undistilled", "carry-moe-calm", "carry-moe-kl", "carry-dense-calm", "carry-dense-kl",
    ]  # fmt: skip
    assert made["carry-dense-kl"] == {"data.seed": 1, "teachers": ["d"], "objective.strategy": "kl"}


def test_the_reliability_study_has_the_cells_of_its_protocol():
    planned = parse_study(["--study", "demo/study/reliability/study.yaml"])[0]
    assert len(planned.variants) == 90 and planned.planned()[0] == "start"
    dial = Dial.read(DIAL)
    made = {f"{dial.folder}/{a}_{name}" for a in dial.architectures for name in dial.teachers}
    assert {teacher["path"] for cell in planned.variants.values() for teacher in cell["teachers"]} == made
    recipe = planned.run("clean-dense_t30-tidal_compdemo", 3)
    assert recipe.objective.strategy == "tidal" and recipe.objective.compdemo.enabled and recipe.optim.steps == 80
    assert recipe.data.aligned == "runs/aligned/reliability-clean" and recipe.teachers[0].name == "dense_t30"


def test_a_start_below_the_bar_goes_on_from_its_own_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "folder", tmp_path)
    monkeypatch.setattr(Study, "start_dir", lambda self, seed: tmp_path / "start" / str(seed))
    scores, began = iter([0.5, 0.8, 0.95]), []

    def trained(planned, variant, seed, initial, stop):
        began.append(initial)
        export = planned.run_dir(variant, seed) / "checkpoints/step-00000001/export"
        export.mkdir(parents=True)
        (export.parent / "COMPLETE").touch()
        return result(variant, seed, next(scores))

    monkeypatch.setattr(runs, "_train_and_score", trained)
    runs.run_one(study(start={}, start_bar=0.9), "start", 4, StopSignals)
    weak = [str(tmp_path / f"start-{n}/4/checkpoints/step-00000001/export") for n in (1, 2)]
    assert began == [None, *weak]
    done = json.loads((tmp_path / "start/4/result.json").read_text())
    assert done["score"] == 0.95 and done["rounds"] == 3


def test_complete_seeds_of_earlier_results_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "folder", tmp_path)
    cells = [("undistilled", 0), ("calm", 0), ("undistilled", 1)]  # seed 1 lacks calm: it is run again, whole
    before = Results({}, [], {}, {}, [result(variant, seed, 0.5) for variant, seed in cells])
    write_json(tmp_path / "before.json", before.to_json())
    planned = study(results=str(tmp_path / "before.json"), seeds="0..1")
    assert [(run.variant, run.seed) for run in earlier_results(planned).runs] == cells[:2]
    write_json(planned.run_dir("calm", 1) / "result.json", {**asdict(result("calm", 1, 0.7)), "environment": {}})
    assert [(run.variant, run.seed, run.score) for run in collect(planned).runs] == [
        ("undistilled", 0, 0.5), ("calm", 0, 0.5), ("calm", 1, 0.7),
    ]  # fmt: skip
    assert earlier_results(study(results="no/such.json")).runs == []


def test_a_run_is_the_recipe_with_settings_then_the_variant_s_own_fields_and_the_seed():
    planned = study(settings={"optim.steps": 7, "objective.strategy": "tidal"}, start={"optim.steps": 9}, seeds="0..1")
    recipe = planned.run("calm", 5, "weights/of/the/start")
    assert (recipe.optim.steps, recipe.objective.strategy, recipe.data.seed) == (7, "calm", 5)
    assert (recipe.student.path, recipe.student.weights) == ("weights/of/the/start", "pretrained")
    assert recipe.run_dir == "runs/study/s/calm/5"
    assert planned.run("undistilled", 0).teachers == [] and planned.run("start", 0).optim.steps == 9
    assert len(planned.base.teachers) == 2
    assert recipe.data.aligned == planned.base.data.aligned == "runs/aligned/s", "all runs read the same rows"
    assert planned.planned() == ["start", "undistilled", "calm"]
    assert str(study(start="other").start_dir(3)) == "runs/study/other/start/3"
    assert study(start="other").planned() == ["undistilled", "calm"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants": {"a": {"optim.speed": 3}}}, "variant a: .*optim.speed"),
        ({"variants": {"start": {}}}, "other than start"),
        ({"variants": {"../a": {}}}, "letters"),
        ({"variants": {}}, "--vary"),
        ({"only": ["kl"]}, "no variant kl"),
        ({"variants": "no/such.yaml"}, "no/such.yaml"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(fields, message):
    with pytest.raises(BadInput, match=message):
        study(**fields).run("a", 0)


def test_sign_flip_is_exact_for_a_study_s_seeds():
    rng = np.random.default_rng(0)
    for n in (3, 10):
        d = rng.normal(0.5, 1, n)
        means = [abs(np.mean(d * signs)) for signs in product((1, -1), repeat=n)]
        assert sign_flip(d) == pytest.approx(np.mean([m >= abs(d.mean()) - 1e-12 for m in means]))
    assert sign_flip([0.1] * 10) == pytest.approx(2 / 1024)


def test_interval_is_student_s():
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert t_interval([0.5]) == (0.5, 0.5)


def test_differences_are_paired_by_seed():
    base = [result("undistilled", seed, score) for seed, score in enumerate((0.1, 0.5, 0.9))]
    made = lines([*base, result("calm", 2, 0.95), result("calm", 0, 0.2)], "undistilled")
    assert [line.variant for line in made] == ["undistilled", "calm"]
    assert made[0].difference is None and made[0].p_holm is None and made[0].kl["moe"] == pytest.approx([0.5, 0.0])
    assert made[1].difference == pytest.approx(0.075) and made[1].p == made[1].p_holm == pytest.approx(0.5)
    groups = [result(f"{data}-{name}", 0, score) for data, name, score in (
        ("clean", "undistilled", 0.5), ("clean", "calm", 0.75), ("carry", "calm", 0.9),
    )]  # fmt: skip
    assert [line.difference for line in lines(groups, "undistilled")] == [None, 0.25, None]


def test_document_holds_what_its_raw_results_say():
    studies, document = read_studies(), DOCUMENT.read_text(encoding="utf-8")
    assert render(document, studies) == document, "run `python -m demo.study.evidence`"
    for name, results in studies.items():
        assert f"<!-- {name} -->" in document
        assert len(results.study["variants"]) == len(results.compared()), f"{name} lacks variants"
        seeds = {tuple(line.scores) for line in results.compared()}
        assert len(seeds) == 1 and len(seeds.pop()) >= 8, f"{name}: every variant has all of the same seeds"
    for figure in re.findall(r"\]\(evidence/([\w-]+\.svg)\)", document):
        assert (FIGURES / figure).is_file(), figure


@pytest.mark.launch
@pytest.mark.slow
def test_a_killed_study_does_what_is_missing(checkout):
    """Also the smoke test of `make study`: demo/study/run.sh --quick."""
    words, folder = ["bash", "demo/study/run.sh", "--quick"], checkout / "runs/study/quick"
    first = launch.popen(*words, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = lambda: {path: path.stat().st_mtime_ns for path in folder.glob("*/*/result.json")}
    deadline = time.time() + 300
    while len(results()) < 2 and time.time() < deadline:
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)  # exec: this is study.py itself, and its workers die with it
    first.wait()
    time.sleep(0.5)
    kept = results()
    assert 2 <= len(kept) < 6
    launch.run(*words, cwd=checkout, timeout=400)
    after = results()
    assert len(after) == 6 and kept.items() <= after.items(), "a finished run was done again"
    table = (folder / "table.md").read_text()
    assert "undistilled" in table and "A-calm" in table and "start" not in table
    assert not list(folder.glob("A-calm/*/checkpoints"))
    assert len(list(folder.glob("start/*/checkpoints/*/COMPLETE"))) == 2
    raw = json.loads((folder / "results.json").read_text())
    assert len(raw["runs"]) == 6 and set(raw["teachers"]) == {"moe"} and set(raw["probe"]) == {"moe"}
    for run in raw["runs"]:
        assert len(run["kl"]["moe"]) == 5 and all(0 <= x < 50 for x in run["kl"]["moe"])
        assert run["steps"] == 4 and run["tokens"] > 0
        assert len(run["accuracy"]) == 5 and all(0 <= x <= 1 for x in run["accuracy"])
        assert len(run["tasks"]["study_arithmetic"]["correct"]) == 8
    starts = {run["seed"]: run["kl"]["moe"] for run in raw["runs"] if run["variant"] == "start"}
    assert starts[0] != starts[1], "seeds start from different weights"
    again = launch.python("pipeline/study.py", "--study", "demo/study/quick.yaml", "--table", cwd=checkout)
    assert "A-calm" in again.stdout


def test_a_result_of_other_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_manifest", lambda folder: SimpleNamespace(key="data"))
    monkeypatch.setattr(Study, "folder", tmp_path)
    planned = study()
    assert not runs.is_done(planned, "calm", 0)
    write_json(planned.run_dir("calm", 0) / "result.json", {"digest": runs.digest(planned.run("calm", 0))})
    assert runs.is_done(planned, "calm", 0)
    with pytest.raises(BadInput, match="was made with other settings or data"):
        runs.is_done(study(settings={"optim.steps": 7}), "calm", 0)


def test_a_field_that_a_later_version_adds_changes_no_digest(monkeypatch):
    @dataclass
    class Later(Objective):
        added: int = 3

    monkeypatch.setattr(runs, "load_manifest", lambda folder: SimpleNamespace(key="data"))
    recipe = study().run("calm", 0)
    later = lambda **fields: replace(recipe, objective=Later(**vars(recipe.objective), **fields))
    assert runs.digest(later()) == runs.digest(recipe) != runs.digest(later(added=4))


def test_vary_adds_to_a_file_s_variants():
    words = "--study demo/study/noisy.yaml --only [] --vary objective.temperature=1,4"
    planned, _ = parse_study(words.split())
    assert {"undistilled", "A-calm", "1", "4"} <= planned.variants.keys()


def test_a_signal_that_has_come_ends_a_run_when_all_is_saved(monkeypatch):
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    stop = StopSignals()
    stop.defer()
    handlers[signal.SIGUSR1](signal.SIGUSR1, None)
    with pytest.raises(StoppedEarly, match="stopped by a signal: run the same command"):
        stop.settle()
