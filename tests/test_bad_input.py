"""Bad input to the stages: one line that names the thing and the remedy, exit code 2, nothing left, no model loaded.

Recipes and engine settings by themselves: test_recipe.py; single rows and manifests: test_alignment_stage.py.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from pipeline import align, distill, evaluate
from pipeline.alignment.manifest import load_manifest
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe, Student, dump
from pipeline.core.errors import BadInput
from pipeline.evaluation import lm_eval_tasks as tasks
from pipeline.reporting.page import write_report
from tests import tiny

ROWS = [
    {"messages": [{"role": "user", "content": f"{n} plus 12?"}, {"role": "assistant", "content": f"{n + 12}."}]}
    for n in range(6)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A recipe, two models of random weights, chat rows and their aligned dataset."""
    folder = tmp_path_factory.mktemp("place")
    tiny.write_models(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = {
        "name": "test",
        "data": {
            "sources": [{"path": str(folder / "rows.jsonl"), "name": "sums"}],
            "aligned": str(folder / "aligned"),
            "student_length": 100,
        },
        "student": {"path": str(folder / "student"), "weights": "random", "block_size": 8},
        "teachers": [{"name": "llada2", "path": str(folder / "teacher"), "weights": "random", "length": 120}],
        "optim": {"steps": 1},
        "evaluation": {"tasks": ["demo_arithmetic"], "preset": "smoke"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        words = ["--recipe", str(folder / "recipe.yaml"), "--processes", "1", "--run_dir", str(folder)]
        patch.setattr("sys.argv", ["align", *words])
        assert align.command() == 0
    return folder


def files(folder: Path) -> dict[str, bytes | None]:
    """All that lies there, but for the run directory, its lock and status: a refused stage says there why."""
    found = {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    status = [folder / "run/status" / name for name in ("distill.json", "history.jsonl")]
    said = [folder / "run", folder / "run/.lock", folder / "run/status", *status]
    return {name: content for name, content in found.items() if Path(name) not in said}


@pytest.fixture
def run(place, tmp_path, monkeypatch, run_command):
    """Runs a stage in this process, with tmp_path/run as run directory; gives exit code, output and errors."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")  # align sets it
    for name in ("models.loading.build", "training.run.train"):
        monkeypatch.setattr(f"pipeline.{name}", lambda *_, _name=name, **__: pytest.fail(f"{_name} is called"))

    return lambda stage, *words: run_command(
        stage, "--recipe", place / "recipe.yaml", "--run_dir", tmp_path / "run", *words
    )


@pytest.fixture
def refused(run, place, tmp_path):
    """Runs a stage that must refuse its input and leave no trace; gives its one line."""

    def refused(stage, *words: object) -> str:
        before = files(tmp_path), files(place)
        code, _, error = run(stage, *words)
        assert code == 2, error
        assert error.count("\n") == 1 and error.startswith(f"{stage.__name__.rpartition('.')[2]}: "), error
        assert (files(tmp_path), files(place)) == before
        return error

    return refused


# align


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file {}: give a JSONL or Parquet file"),
        ("", "{} is empty"),
        ('{"messages": [', "{}: row 0 (line 1): not JSON"),
    ],
)
def test_bad_data_leave_no_dataset(refused, tmp_path, text, message):
    file = tmp_path / "bad.jsonl"
    if text is not None:
        file.write_text(text)
    error = refused(align, "--data.sources.path", file, "--data.aligned", tmp_path / "aligned", "--processes", "1")
    assert message.format(file) in error


# distill

FULL_DISTRIBUTIONS = ("kl", "reverse_kl", "tidal", "reverse_tidal")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.aligned", "nowhere"], "no aligned dataset in nowhere: run `python pipeline/align.py --recipe "),
        (["--data.student_length", "99"], "student.length (aligned: 100, recipe: 99): run `python pipeline/align.py"),
        (["--teachers.length", "64"], "teachers.llada2.length (aligned: 120, recipe: 64): run `python "),
        (["--student.tokenizer", "{place}/teacher"], "student.tokenizer (aligned: "),
        (["--teachers.name", "other"], "teachers.other (aligned: no, recipe: yes)"),
        (["--data.student_length", "129"], "data.student_length 129 is beyond the 128 positions of {place}/student"),
        (["--teachers.length", "129"], "teacher llada2: length 129 is beyond the 128 positions of {place}/teacher"),
        (["--student.block_size", "101"], "student.block_size 101 is above data.student_length 100"),
        (["--teachers.expert_parallel_size", "2"], "size 2 must divide the ranks (1) and the experts (8)"),
        (["--checkpoint.formats", '["sdar"]'], "checkpoint.formats: {place}/student cannot be exported as sdar: "),
        (["--student.path", "{place}/nowhere"], "{place}/nowhere: no such folder"),
        (["--student.path", "{place}"], "{place}: no config.json"),
        (["--student.weights", "pretrained"], "{place}/student: no model.safetensors; weights must be safetensors"),
        (["--teachers.weights", "pretrained"], "{place}/teacher: no model.safetensors; weights must be safetensors"),
        *((["--objective.strategy", name], f"strategy {name} needs a shared tokenizer") for name in FULL_DISTRIBUTIONS),
        (["--deepspeed", "nowhere.json"], "no DeepSpeed config nowhere.json: ds_configs/ holds the shipped ones"),
        (["--timeout-minutes", "0"], '"timeout_minutes": Not of type PositiveFloat'),
        (["--teachers.lr", "1"], "'lr' is not accepted"),
    ],
)  # fmt: skip
def test_distill_refuses_what_does_not_fit(refused, place, monkeypatch, words, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message.format(place=place) in refused(distill, *(word.format(place=place) for word in words))


@pytest.mark.parametrize(
    ("words", "missed"),
    [
        ("--student.path {0} --student.tokenizer {1}/student", "{0}: mask token 485 is outside its 90 embeddings; resize"),
        ("--teachers.path {0} --teachers.input causal --teachers.tokenizer {1}/teacher", "{0} has 90 embeddings, and the aligned"),
    ],
    ids=["the mask", "of the rows"],
)  # fmt: skip
def test_distill_refuses_ids_without_an_embedding(refused, place, tmp_path, words, missed):
    """As after a token was added to the tokenizer, and the model was not resized."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **tiny.MODEL, "vocab_size": 90}))
    assert missed.format(tmp_path) in refused(distill, *words.format(tmp_path, place).split())


def test_distill_refuses_a_damaged_dataset(refused, place, tmp_path):
    aligned = shutil.copytree(place / "aligned", tmp_path / "aligned")
    shard = aligned / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "missing or damaged shard-00000.arrow: run `python pipeline/align.py" in refused(
        distill, "--data.aligned", aligned
    )
    shard.unlink()
    assert "missing or damaged shard-00000.arrow" in refused(distill, "--data.aligned", aligned)
    (aligned / "manifest.json").write_text("{")
    assert "manifest.json: not JSON" in refused(distill, "--data.aligned", aligned)


def test_one_rank_speaks_for_all(run, finished, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert run(distill, "--teachers.length", "129") == (2, "", "")
    assert run(distill) == (0, "", "")


def resolved(place: Path, tmp_path: Path) -> Recipe:
    return parse(parser(""), ["--recipe", str(place / "recipe.yaml"), "--run_dir", str(tmp_path / "run")])[0]


def test_dry_run_prints_recipe_and_topology_and_writes_nothing(run, place, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    before = files(tmp_path), files(place)
    code, output, error = run(distill, "--dry-run", "--objective.strategy", "reverse_calm_tidal")
    assert (code, error) == (0, "")
    printed, topology = output.split("# ranks: ")
    wanted = resolved(place, tmp_path)
    wanted.objective.strategy = "reverse_calm_tidal"
    assert printed.endswith(dump(wanted))
    *ranks, warning = topology.splitlines()
    engine = "# student: ZeRO stage 3, torch.float32"
    assert ranks == ["4 (2 on this node)", "# expert parallelism: llada2 2", engine]
    assert warning.startswith("# WARNING objective.strategy reverse_calm_tidal: TIDAL with a reverse objective")
    assert (files(tmp_path), files(place)) == before


# The run directory


@pytest.fixture
def finished(run, place, tmp_path) -> Path:
    """The run directory of a finished run."""
    folder, recipe = tmp_path / "run", resolved(place, tmp_path)
    checkpoint = folder / "checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").write_text('{"step": 1, "world_size": 1, "files": {}}')
    (folder / "status").mkdir()
    (folder / "status/distill.json").write_text('{"state": "done"}')
    (folder / "recipe.yaml").write_text(dump(recipe))
    (folder / ".lock").touch()
    return folder


FREE = ["--checkpoint.keep", "9", "--evaluation.limit", "3", "--evaluation.tasks", "[]", "--logging.every_steps", "1"]


@pytest.mark.parametrize("words", [[], FREE], ids=["same", "other sections that change no training"])
def test_a_finished_run_says_so(run, finished, words):
    before = files(finished)
    code, output, error = run(distill, *words)
    assert (code, error) == (0, "") and f"{finished} is done: choose another --run_dir" in output
    assert files(finished) == before


def test_a_run_directory_of_another_recipe_is_refused(refused, finished):
    error = refused(distill, "--optim.lr", "0.1", "--teachers", "[]", "--name", "other", "--logging.every_steps", "1")
    assert (
        f"{finished} belongs to another recipe (it differs in name, teachers, optim.lr): choose another --run_dir"
        in error
    )


def test_a_run_goes_on_where_it_and_its_data_were_moved_to(run, refused, place, finished, tmp_path):
    for name in ("aligned", "rows.jsonl"):
        copy = shutil.copytree if (place / name).is_dir() else shutil.copy
        copy(place / name, tmp_path / name)
    words = ("--data.aligned", str(tmp_path / "aligned"), "--data.sources.path", str(tmp_path / "rows.jsonl"))
    export = finished / "checkpoints/step-00000001/export"
    export.mkdir()
    for key, fits in (("another", False), (load_manifest(place / "aligned").key, True)):
        (export / "config.json").write_text(json.dumps({"provenance": {"manifest_key": key}}))
        if fits:
            assert run(distill, *words)[0] == 0
        else:
            assert "run was trained on another dataset than" in refused(distill, *words)


def test_a_run_directory_in_use_is_refused(refused, finished):
    with (finished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"{finished} is in use by another process: wait for it or choose another --run_dir" in refused(distill)


def test_a_run_directory_that_cannot_be_made_is_refused(refused, tmp_path):
    (tmp_path / "run").touch()
    assert f"cannot write to {tmp_path}/run (File exists): choose another --run_dir" in refused(distill)


def test_bad_input_leaves_a_status(run, tmp_path):
    """Launchers change exit codes: torchrun gives 1, whatever its ranks give."""
    code, _, error = run(distill, "--teachers.length", "129")
    status = json.loads((tmp_path / "run/status/distill.json").read_text())
    assert (code, status["state"], status["exit_code"], status["step"]) == (2, "failed", 2, 0)
    assert status["message"] == f"BadInput: {error.removeprefix('distill: ').strip()}"


# evaluate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no complete checkpoint in {run}/checkpoints: run `deepspeed pipeline/distill.py` with the same recipe"),
        (["--model", "{place}/student", "--evaluation.preset", "best"], "preset 'best' is unknown: one of paper, fast"),
        (["--model", "{place}/student", "--evaluation.tasks", "[]"], "evaluation.tasks is empty: name tasks"),
        (
            ["--model", "{place}/student", "--evaluation.tasks", "[sums]", "--evaluation.preset", "paper"],
            "unknown sums; here are ",
        ),
        (["--model", "{place}"], "{place}: no config.json"),
    ],
)  # fmt: skip
def test_evaluate_refuses_what_is_not_there(refused, place, tmp_path, monkeypatch, words, message):
    ours = partial(tasks.TaskManager, include_defaults=False)  # the harness's own take seconds to list
    monkeypatch.setattr(tasks, "TaskManager", ours)
    found = refused(evaluate, *(word.format(place=place) for word in words))
    assert message.format(place=place, run=tmp_path / "run") in found


def test_report_writes_into_no_folder_that_is_no_run_directory(tmp_path):
    (tmp_path / "letter").write_text("Dear Sir")
    with pytest.raises(BadInput, match="is no run directory"):
        write_report(Recipe("x", Student("s"), run_dir=str(tmp_path)), [], "teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]
