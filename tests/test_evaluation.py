"""Evaluation: intervals by hand, presets, the harness model, and the whole stage on a tiny random model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline import evaluate
from pipeline.evaluation import harness, run
from pipeline.evaluation.presets import PRESETS, preset, preset_hash
from pipeline.evaluation.statistics import bootstrap, interval, wilson
from pipeline.evaluation.tasks.utils import chat_rows, code_similarity
from pipeline.recipe import BadInput
from pipeline.run_directory import exit_code

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "pipeline" / "evaluation" / "tasks"
CHAT = "{% for m in messages %}<u>{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
SUMS = ["12", "7", "100", "31"]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"How much is {int(total) - 1} and 1?"},
            {"role": "assistant", "content": f"It is {total}."},
        ],
        "answer": total,
    }
    for total in SUMS
]


# ---- statistics and presets


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # z = 1.96: z^2 = 3.8415; 0/10: 0 and z^2 / (n + z^2) = 3.8415 / 13.8415; 5/10: 0.5 -+ z / 2 / sqrt(n + z^2)
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (0, 1, 0.0, 0.79346),
        (79, 164, 0.40653, 0.55772),
    ],
)
def test_wilson_by_hand(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-5)


def test_intervals() -> None:
    assert interval([1, 0.0, 1, True]) == wilson(3, 4)
    values = [0.1 * i for i in range(11)]  # mean 0.5, standard error sqrt(0.1 / 11) = 0.0953: +- 1.96 of it
    assert interval(values) == bootstrap(values) == pytest.approx((0.313, 0.687), abs=0.01)
    assert interval([0.25]) == (0.25, 0.25)
    for bad in (lambda: interval([]), lambda: wilson(0, 0), lambda: wilson(3, 2), lambda: wilson(-1, 2)):
        with pytest.raises(ValueError, match="no"):
            bad()


def test_presets() -> None:
    paper = preset("paper", block_size=4)
    assert (paper.max_new_tokens, paper.steps, paper.block_size, paper.blocks) == (256, 256, 32, "reference")
    assert (preset("fast", 4).threshold, preset("fast", 4).max_new_tokens) == (0.9, 256)
    demo = preset("demo", block_size=8)
    assert (demo.max_new_tokens, demo.steps, demo.block_size, demo.blocks) == (24, 24, 8, "training")
    hashes = [preset_hash(preset(name, block_size)) for name in PRESETS for block_size in (8, 16)]
    assert len(set(hashes)) == 2 * len(PRESETS) - 2, "paper and fast bring their own block size"
    with pytest.raises(BadInput, match="'best'.*paper, fast, demo, smoke"):
        preset("best", 8)


# ---- a tiny tokenizer, model and task


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", pad_token="<p>", mask_token="<m>")
    fast.add_special_tokens({"additional_special_tokens": ["<u>", "<a>"]})
    fast.chat_template = CHAT
    return fast


@pytest.fixture(scope="module")
def model(tokenizer) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, mask_token_id=tokenizer.mask_token_id, block_size=4,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture
def task_file(tmp_path) -> Path:
    """The demo's task on four problems of our own, as a user would write it."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = tmp_path / "four_sums.yaml"
    shipped = str(TASKS / "demo_arithmetic.yaml")
    file.write_text(yaml.safe_dump({"include": shipped, "task": "four_sums", "dataset_kwargs": {"path": str(data)}}))
    return file


def answers(monkeypatch, tokenizer, texts: list[str]) -> None:
    """Makes the sampler say these texts, matched to prompts by the number that the question holds."""

    def say(_model, prompts, _config):
        asked = [tokenizer.decode(prompt) for prompt in prompts]
        said = [next(t for t, total in zip(texts, SUMS, strict=True) if f"is {int(total) - 1} and" in a) for a in asked]
        return [tokenizer.encode(text, add_special_tokens=False) for text in said], [3] * len(prompts)

    monkeypatch.setattr(harness, "decode", say)


def run_four_sums(model, tokenizer, task_file: Path, limit: int | None = None):
    tasks = run.load_tasks([str(task_file)])
    lm = harness.BlockDiffusionLM(model, tokenizer, preset("smoke", 4), batch_size=3)
    return run.run_task("four_sums", tasks["four_sums"], lm, limit)


# ---- the harness model


def test_scores_the_last_integer(monkeypatch, model, tokenizer, task_file) -> None:
    answers(monkeypatch, tokenizer, ["11 and 1 is 12.<e>", "It is 8.<e>", "100<e>", "31 apples"])
    score, rows = run_four_sums(model, tokenizer, task_file)
    assert (score["task"], score["metric"], score["value"], score["n"]) == ("four_sums", "exact_match", 0.75, 4)
    assert (score["low"], score["high"]) == wilson(3, 4)
    assert score["truncated"] == 0.25
    assert score["alarms"] == ["25% of the responses reach the length limit without an end token"]
    assert [row["correct"] for row in rows] == [True, False, True, True]
    assert rows[1]["prompt"] == "<u>How much is 6 and 1?<e><a>"
    assert (rows[1]["response"], rows[1]["answer"], rows[1]["target"]) == ("It is 8.", "8", "7")
    assert [row["ended"] for row in rows] == [True, True, True, False]
    assert [row["tokens"] for row in rows] == [15, 8, 3, 9]  # bytes; the end token does not count
    assert score["tokens"] == 35
    assert score["forwards_per_token"] == 4 * 3 / 35


def test_zero_and_leftover_masks_raise_alarms_with_raw_outputs(monkeypatch, model, tokenizer, task_file) -> None:
    answers(monkeypatch, tokenizer, ["<m><m>9<e>", "?<e>", "<e>", "no<e>"])
    score, _ = run_four_sums(model, tokenizer, task_file)
    assert [alarm.split(":")[0] for alarm in score["alarms"]] == [
        "exact_match is 0",
        "2 mask tokens are left in the responses",
    ]
    assert [output["response"] for output in score["raw_outputs"]] == ["9", "?", "", "no"]


def test_stop_strings_cut_and_end(monkeypatch, model, tokenizer, task_file) -> None:
    settings = yaml.safe_load(task_file.read_text()) | {"generation_kwargs": {"until": ["\n\n", "Q:"]}}
    task_file.write_text(yaml.safe_dump(settings))
    answers(monkeypatch, tokenizer, ["12 Q: 5\n\n6", "7\n\nQ:8", "100", "31"])
    score, rows = run_four_sums(model, tokenizer, task_file)
    assert [row["response"] for row in rows] == ["12 ", "7", "100", "31"]
    assert (score["value"], score["truncated"]) == (1.0, 0.5)


def test_responses_do_not_depend_on_batches(model, tokenizer, task_file) -> None:
    tasks = run.load_tasks([str(task_file)])
    outputs = []
    for batch_size in (1, 3, 16):
        lm = harness.BlockDiffusionLM(model, tokenizer, preset("demo", 4), batch_size)
        _, rows = run.run_task("four_sums", tasks["four_sums"], lm, None)
        outputs.append([row["response"] for row in rows])
        tasks = run.load_tasks([str(task_file)])
    assert outputs[0] == outputs[1] == outputs[2]


def test_data_is_read_afresh(monkeypatch, model, tokenizer, task_file) -> None:
    answers(monkeypatch, tokenizer, ["12<e>", "7<e>", "100<e>", "31<e>"])
    assert run_four_sums(model, tokenizer, task_file)[0]["value"] == 1.0
    changed = [row | {"answer": "0"} for row in ROWS]
    (task_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert run_four_sums(model, tokenizer, task_file)[0]["value"] == 0.0


def test_is_registered_and_refuses_likelihoods(model, tokenizer) -> None:
    from lm_eval.api.registry import get_model

    lm = get_model("block_diffusion")(model, tokenizer, preset("smoke", 4))
    for likelihood in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="no log-likelihoods"):
            likelihood([])


def test_code_similarity() -> None:
    doc = {"messages": [{"role": "user", "content": "f"}, {"role": "assistant", "content": "def f():\n    return 1\n"}]}
    same = code_similarity(doc, ["Sure:\n```python\ndef f():  \n    return 1\n```\nDone."])
    assert same == {"edit_similarity": 1.0, "exact_match": 1.0}
    other = code_similarity(doc, ["def f():\n    return 2"])  # 21 characters, 20 of them shared: 2 * 20 / 42
    assert other == {"edit_similarity": pytest.approx(40 / 42), "exact_match": 0.0}
    assert code_similarity(doc, [""])["edit_similarity"] == 0.0


def test_shipped_tasks_run(monkeypatch, model, tokenizer, tmp_path) -> None:
    """Every YAML of the project loads on rows of the documented form and scores the reference answers 1."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    answers(monkeypatch, tokenizer, [row["messages"][1]["content"] + "<e>" for row in ROWS])
    for shipped in sorted(TASKS.glob("*.yaml")):
        file = tmp_path / shipped.name
        settings = {"include": str(shipped), "task": "four", "dataset_kwargs": {"path": str(tmp_path / "rows.jsonl")}}
        file.write_text(yaml.safe_dump(settings))
        lm = harness.BlockDiffusionLM(model, tokenizer, preset("smoke", 4))
        score, _ = run.run_task("four", run.load_tasks([str(file)])["four"], lm, None)
        assert (score["value"], score["n"], score["alarms"]) == (1.0, 4, []), shipped.name


# ---- the stage


@pytest.fixture
def run_dir(tmp_path, model, tokenizer, task_file) -> Path:
    """A run directory with two complete checkpoints, one incomplete one and the recipe beside it."""
    for step in (3, 20, 40):
        export = tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "export"
        model.save_pretrained(export)
        tokenizer.save_pretrained(export)
        if step < 40:
            (export.parent / "COMPLETE").write_text("{}")
    recipe = {
        "name": "tiny",
        "run_dir": str(tmp_path / "run"),
        "student": {"path": str(export)},
        "optim": {"steps": 1},
        "evaluation": {"tasks": [str(task_file)], "preset": "smoke", "batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "run"


def stage(monkeypatch, run_dir: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--recipe", str(run_dir.parent / "recipe.yaml"), *arguments])
    return exit_code("evaluate", evaluate.main)


def test_stage_end_to_end(monkeypatch, run_dir, capsys) -> None:
    assert stage(monkeypatch, run_dir) == 0
    folder = run_dir / "evaluation" / "step-00000020"
    score = json.loads((folder / "four_sums.json").read_text())
    assert score.keys() >= {"task", "metric", "value", "n", "low", "high", "preset", "settings", "versions"}
    assert (score["task"], score["metric"], score["n"], score["preset"]) == ("four_sums", "exact_match", 4, "smoke")
    assert score["low"] <= score["value"] <= score["high"]
    assert score["settings"]["block_size"] == 4, "the model's own"
    assert score["settings"]["batch_size"] == 2
    assert score["masks_left"] == 0
    assert score["tokens"] <= 4 * 8
    assert score["tokens_per_second"] > 0
    rows = [json.loads(line) for line in (folder / "four_sums.samples.jsonl").read_text().splitlines()]
    assert [row["target"] for row in rows] == SUMS
    assert all(row.keys() >= {"prompt", "response", "target", "correct"} for row in rows)
    if score["value"] == 0:
        assert len(score["raw_outputs"]) == 4
    status = json.loads((run_dir / "status" / "evaluate.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, 20)
    assert "four_sums" in capsys.readouterr().out


def test_stage_takes_a_step_a_folder_and_a_limit(monkeypatch, run_dir) -> None:
    assert stage(monkeypatch, run_dir, "--step", "3", "--evaluation.limit", "2") == 0
    assert json.loads((run_dir / "evaluation" / "step-00000003" / "four_sums.json").read_text())["n"] == 2
    export = run_dir / "checkpoints" / "step-00000040" / "export"
    assert stage(monkeypatch, run_dir, "--model", str(export), "--label", "teacher") == 0
    assert (run_dir / "evaluation" / "teacher" / "four_sums.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--step", "7"], "no complete checkpoint step-00000007.*there are step-00000003, step-00000020"),
        (["--step", "40"], "no complete checkpoint step-00000040"),
        (["--evaluation.preset", "best"], "'best' is unknown: one of paper, fast"),
        (["--evaluation.tasks", "[]"], "evaluation.tasks is empty"),
        (["--evaluation.limit", "0"], "must be at least 1"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(monkeypatch, run_dir, capsys, arguments: list[str], line: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert stage(monkeypatch, run_dir, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(line, error), error


def test_missing_data_is_bad_input(task_file) -> None:
    (task_file.parent / "rows.jsonl").unlink()
    with pytest.raises(BadInput, match="rows.jsonl"):
        run.load_tasks([str(task_file)])
    with pytest.raises(BadInput, match="no file"):
        chat_rows("nowhere.jsonl", version=1.0)


def test_tasks_that_need_likelihoods_or_run_code_are_refused(task_file) -> None:
    settings = yaml.safe_load(task_file.read_text())
    for change, reason in (
        ({"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}], "filter_list": None}, "log-likelihoods"),
        ({"unsafe_code": True}, "runs generated code"),
    ):
        task_file.write_text(yaml.safe_dump(settings | change))
        with pytest.raises(BadInput, match=reason):
            run.load_tasks([str(task_file)])


def test_unknown_task_lists_the_known(monkeypatch) -> None:
    monkeypatch.setattr(run, "_unknown", lambda names, manager: names)
    with pytest.raises(BadInput, match="unknown nope; here are demo_arithmetic, humaneval_similarity"):
        run.load_tasks(["nope"])


def test_script_without_checkpoint_is_one_line_and_exit_code_2(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"name": "x", "run_dir": str(tmp_path), "student": {"path": "s"}, "optim": {"steps": 1}})
    )
    command = [sys.executable, "pipeline/evaluate.py", "--recipe", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pipeline/distill.py" in done.stderr
    assert json.loads((tmp_path / "status" / "evaluate.json").read_text())["exit_code"] == 2
