"""Scoring while a run trains: every checkpoint once, the best marked, restarts and pruned checkpoints harmless."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline.core.checkpoint_files import inventory
from pipeline.core.files import write_json
from pipeline.evaluation.watch import mark_best, score_checkpoints

ROOT = Path(__file__).parents[1]


def add_checkpoint(run_dir: Path, step: int, content: str = "weights") -> Path:
    place = run_dir / "checkpoints" / f"step-{step:08d}"
    (place / "export").mkdir(parents=True)
    (place / "export" / "model").write_text(content)
    write_json(place / "COMPLETE", {"step": step, "files": inventory(place)})
    return place


def score(run_dir: Path, step: str, value: float | None, task: str = "sums", **facts) -> None:
    write_json(
        run_dir / "evaluation" / step / f"{task}.json",
        {"task": task, "metric": "exact_match", "value": value, "n": 4, **facts},
    )


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
    best = json.loads((tmp_path / "evaluation" / "best.json").read_text())
    assert best == {"step": 10, "task": "sums", "metric": "exact_match", "value": 0.7}
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
    assert json.loads((tmp_path / "evaluation" / "best.json").read_text())["step"] == 1


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


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run whose recipe is in its directory, with one real checkpoint and training still going on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", pad_token="<p>", mask_token="<m>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<e>{% endfor %}"
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, block_size=4,
    )  # fmt: skip
    place = tmp_path / "run" / "checkpoints" / "step-00000007"
    Qwen3ForCausalLM(config).save_pretrained(place / "export")
    tokenizer.save_pretrained(place / "export")
    write_json(place / "COMPLETE", {"step": 7, "files": inventory(place)})
    row = {"messages": [{"role": "user", "content": "1 and 1?"}], "answer": "2"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    shipped = str(ROOT / "pipeline" / "evaluation" / "tasks" / "demo_arithmetic.yaml")
    task = {"include": shipped, "task": "sums", "dataset_kwargs": {"path": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    recipe = {
        "name": "tiny", "run_dir": str(tmp_path / "run"), "student": {"path": str(place / "export")},
        "optim": {"steps": 1}, "evaluation": {"tasks": [str(tmp_path / "sums.yaml")], "preset": "smoke"},
    }  # fmt: skip
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "run"


def test_the_command_stops_by_sigterm_and_goes_on(run_dir) -> None:
    """`--watch RUN` scores, waits for more, saves its state at SIGTERM (exit code 75), and ends with the run (0)."""
    command = [sys.executable, "pipeline/evaluate.py", "--watch", str(run_dir), "--every", "0.2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not (run_dir / "evaluation" / "best.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    status = json.loads((run_dir / "status" / "watch.json").read_text())
    assert (process.returncode, status["state"], status["exit_code"]) == (75, "stopped", 75), out
    scored = (run_dir / "evaluation" / "step-00000007" / "sums.json").stat().st_mtime_ns
    training_ends(run_dir)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((run_dir / "status" / "watch.json").read_text())["state"] == "done"
    assert (run_dir / "evaluation" / "step-00000007" / "sums.json").stat().st_mtime_ns == scored, "scored once"
