"""Evaluation: intervals by hand, the lm_eval_model model, shards and restarts, and the whole stage on a tiny random model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline import evaluate
from pipeline.core.checkpoint_files import inventory
from pipeline.core.errors import BadInput, exit_code
from pipeline.decoding.sampler import GenerateConfig, Response
from pipeline.evaluation import lm_eval_model, lm_eval_tasks
from pipeline.evaluation.answer_cache import Answers, Share
from pipeline.evaluation.checkpoint_under_test import Checkpoint
from pipeline.evaluation.compare import Scored, compare
from pipeline.evaluation.results import Sample, Score
from pipeline.evaluation.statistics import bootstrap, holm, interval, mcnemar, sign_flip, wilson
from pipeline.evaluation.tables import colour, ordered
from pipeline.evaluation.tasks.utils import chat_rows

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


def test_paired_tests_by_hand() -> None:
    assert mcnemar(1, 7) == pytest.approx(18 / 256)  # 2 (C(8,0) + C(8,1)) / 2^8
    assert (mcnemar(0, 0), mcnemar(3, 3)) == (1.0, 1.0)
    assert sign_flip([1, -1, 1, 1, 0, 1, 1, 1, 1]) == pytest.approx(mcnemar(1, 7)), "all 2^8 ways of the signs"
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.1] * 30) < 0.001
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer) -> Path:
    """The tiny model as a folder that knows of no run."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def task_file(tmp_path) -> Path:
    """The demo's task on four problems of our own, as a user would write it."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = tmp_path / "four_sums.yaml"
    shipped = str(TASKS / "demo_arithmetic.yaml")
    file.write_text(yaml.safe_dump({"include": shipped, "task": "four_sums", "dataset_kwargs": {"path": str(data)}}))
    return file


@pytest.fixture
def choice_file(tmp_path) -> Path:
    """The same problems as a choice among all four sums, by log-likelihood."""
    rows = [{"question": row["messages"][0]["content"], "gold": i} for i, row in enumerate(ROWS)]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "choose.yaml"
    task = {
        "task": "choose", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "choices.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "gold",
        "doc_to_choice": SUMS, "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(task))
    return file


def says(monkeypatch, tokenizer, texts: list[str]) -> None:
    """Makes the sampler say these texts, matched to prompts by the number that the question holds."""

    def say(_model, prompts, _config):
        asked = [tokenizer.decode(prompt) for prompt in prompts]
        said = [next(t for t, total in zip(texts, SUMS, strict=True) if f"is {int(total) - 1} and" in a) for a in asked]
        tokens = [tokenizer.encode(text, add_special_tokens=False) for text in said]
        return [Response(t, list(range(1, len(t) + 1)), 3) for t in tokens]

    monkeypatch.setattr(lm_eval_model, "decode", say)


SMOKE = GenerateConfig(max_new_tokens=8, block_size=4, steps=4, blocks="training")


def language_model(folder: Path, config: GenerateConfig = SMOKE, **settings) -> lm_eval_model.BlockDiffusionLM:
    return lm_eval_model.BlockDiffusionLM(Checkpoint.of(str(folder)), config, **{"batch_size": 3, **settings})


def run_file(folder: Path, task_file: Path, config: GenerateConfig = SMOKE, **settings):
    """(score, samples) of the only task in a file."""
    ((name, task),) = lm_eval_tasks.load_tasks([str(task_file)]).items()
    return lm_eval_tasks.run_task(name, task, language_model(folder, config, **settings))


# ---- the lm_eval_model model


def test_scores_the_last_integer(monkeypatch, folder, tokenizer, task_file) -> None:
    says(monkeypatch, tokenizer, ["11 and 1 is 12.<e>", "It is 8.<e>", "100<e>", "31 apples"])
    score, rows = run_file(folder, task_file)
    assert (score["task"], score["metric"], score["value"], score["n"]) == ("four_sums", "exact_match", 0.75, 4)
    assert (score["low"], score["high"]) == wilson(3, 4)
    assert score["truncated"] == 0.25
    assert score["alarms"] == ["25% of the responses reach the length limit without an end token"]
    assert [row["correct"] for row in rows] == [True, False, True, True]
    assert rows[1]["prompt"] == "<u>How much is 6 and 1?<e><a>"
    assert (rows[1]["response"], rows[1]["answer"], rows[1]["target"]) == ("It is 8.", "8", "7")
    assert [row["ended"] for row in rows] == [True, True, True, False]
    assert [row["tokens"] for row in rows] == [15, 8, 3, 9]  # bytes; the end token does not count
    assert "".join(rows[1]["pieces"]) == "It is 8." and rows[1]["filled"] == list(range(1, 9))
    assert score["tokens"] == 35
    assert score["forwards_per_token"] == 4 * 3 / 35
    assert {k: v["n"] for k, v in score["by_length"].items()} == {"up to 16 tokens": 4}
    assert 0 < score["latency_median"] <= score["latency_p95"]


def test_zero_and_leftover_masks_raise_alarms_with_raw_outputs(monkeypatch, folder, tokenizer, task_file) -> None:
    says(monkeypatch, tokenizer, ["<m><m>9<e>", "?<e>", "<e>", "no<e>"])
    score, _ = run_file(folder, task_file)
    assert [alarm.split(":")[0] for alarm in score["alarms"]] == [
        "exact_match is 0",
        "2 mask tokens are left in the responses",
    ]
    assert [output["response"] for output in score["raw_outputs"]] == ["9", "?", "", "no"]


def test_stop_strings_cut_and_end(monkeypatch, folder, tokenizer, task_file) -> None:
    settings = yaml.safe_load(task_file.read_text()) | {"generation_kwargs": {"until": ["\n\n", "Q:"]}}
    task_file.write_text(yaml.safe_dump(settings))
    says(monkeypatch, tokenizer, ["12 Q: 5\n\n6", "7\n\nQ:8", "100", "31"])
    score, rows = run_file(folder, task_file)
    assert [row["response"] for row in rows] == ["12 ", "7", "100", "31"]
    assert (score["value"], score["truncated"]) == (1.0, 0.5)


def test_data_is_read_afresh(monkeypatch, folder, tokenizer, task_file) -> None:
    says(monkeypatch, tokenizer, ["12<e>", "7<e>", "100<e>", "31<e>"])
    assert run_file(folder, task_file)[0]["value"] == 1.0
    changed = [row | {"answer": "0"} for row in ROWS]
    (task_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert run_file(folder, task_file)[0]["value"] == 0.0


def test_shots_and_templates_make_the_prompt(folder, task_file) -> None:
    settings = yaml.safe_load(task_file.read_text()) | {"fewshot_split": "test"}
    task_file.write_text(yaml.safe_dump(settings))
    prompts = {}
    for shots, chat in ((0, True), (1, True), (1, False)):
        ((name, task),) = lm_eval_tasks.load_tasks([str(task_file)]).items()
        score, rows = lm_eval_tasks.run_task(name, task, language_model(folder), fewshot=shots, chat=chat)
        prompts[shots, chat] = (rows[0]["prompt"], score["prompts_hash"], score["fewshot"])
    question = "How much is 11 and 1?"
    assert prompts[0, True][0] == f"<u>{question}<e><a>"
    assert prompts[1, True][0].startswith("<u>How much is") and prompts[1, True][0].endswith(f"{question}<e><a>")
    assert prompts[1, False][0].endswith(question) and "<" not in prompts[1, False][0]
    assert len({h for _, h, _ in prompts.values()}) == 3 and [n for _, _, n in prompts.values()] == [0, 1, 1]


def test_choices_by_likelihood(folder, choice_file) -> None:
    score, rows = run_file(folder, choice_file, likelihood_samples=4)
    assert (score["metric"], score["n"]) == ("acc", 4)
    assert (score["low"], score["high"]) == wilson(round(4 * score["value"]), 4)
    for i, row in enumerate(rows):
        best = max(row["choices"], key=lambda c: c["log_likelihood"])
        assert len(row["choices"]) == 4 and row["response"] == best["text"]
        assert row["correct"] == (best["text"].strip() == SUMS[i])
        assert row["prompt"].endswith("<e><a>"), "the template's own end belongs to the context"
    errors = [c["stderr"] for row in rows for c in row["choices"]]
    assert score["likelihood"]["largest_stderr"] == max(errors) > 0
    assert score["likelihood"]["mean_stderr"] == pytest.approx(sum(errors) / 16)
    assert score["likelihood"]["unsure"] == sum(row["unsure"] for row in rows) / 4
    assert "tokens_per_second" not in score


def test_rolling_likelihood_scores_every_token_once(folder) -> None:
    windows = lm_eval_model.rolling_windows(list(range(23)), 8)
    assert [t for _, new in windows for t in new] == list(range(23))
    assert all(len(context) + len(new) <= 8 for context, new in windows)
    assert windows[2] == ([8, 9, 10, 11], [12, 13, 14, 15])
    lm = language_model(folder)
    found = lm.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(["ab", ""])]
    )
    assert found[0] < -2 and found[1] == 0.0


def test_continuations_start_where_the_context_ends(folder) -> None:
    lm = language_model(folder)
    assert lm.encode_pair("a b ", "c") == (lm.encode("a b "), lm.encode("c"))
    assert lm.encode_pair("", "c") == ([], lm.encode("c"))


# ---- answers: batches, shards, restarts


def outputs(rows) -> list:
    return [[row["response"], row["prompt"], row["filled"]] for row in rows]


def test_batches_shards_and_restarts_change_no_answer(folder, task_file, tmp_path) -> None:
    config = GenerateConfig(max_new_tokens=8, block_size=4, steps=8, temperature=1.0)
    expected = outputs(run_file(folder, task_file, config, batch_size=1)[1])
    assert len({response for response, _, _ in expected}) > 1
    for batch_size in (3, 16):
        assert outputs(run_file(folder, task_file, config, batch_size=batch_size)[1]) == expected
    with Answers(tmp_path / "e", "four_sums", Share(1, 3)) as last:  # begins with the others, and ends after them
        for index in (2, 0):
            with Answers(tmp_path / "e", "four_sums", Share(index, 3)) as kept, pytest.raises(lm_eval_model.Unanswered):
                run_file(folder, task_file, config, answers=kept)
        score, rows = run_file(folder, task_file, config, answers=last)
    assert outputs(rows) == expected and score["n"] == 4
    lines = {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "e").iterdir()}
    assert lines == {f"four_sums.answers-{i}-of-3.jsonl": n for i, n in enumerate((2, 1, 1))}


def test_merging_loads_no_weights(monkeypatch, folder, task_file, tmp_path) -> None:
    with Answers(tmp_path, "four_sums") as kept:
        expected = outputs(run_file(folder, task_file, answers=kept)[1])
    monkeypatch.setattr(
        "pipeline.evaluation.checkpoint_under_test.load_teacher", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with Answers(tmp_path, "four_sums") as kept:
        assert outputs(run_file(folder, task_file, answers=kept)[1]) == expected


def test_a_killed_evaluation_goes_on(monkeypatch, folder, task_file, tmp_path) -> None:
    with Answers(tmp_path, "four_sums") as kept:
        expected = outputs(run_file(folder, task_file, answers=kept)[1])
    file = tmp_path / "four_sums.answers.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1] + lines[2][:20])  # killed while the third answer was written
    asked, decode = [], lm_eval_model.decode
    monkeypatch.setattr(
        lm_eval_model, "decode", lambda model, prompts, c: asked.extend(prompts) or decode(model, prompts, c)
    )
    with Answers(tmp_path, "four_sums") as kept:
        assert outputs(run_file(folder, task_file, answers=kept)[1]) == expected
    assert len(asked) == 2 and file.read_bytes().count(b"\n") == 4


def test_other_settings_and_other_weights_are_other_answers(folder, task_file, model, tokenizer, tmp_path) -> None:
    other = tmp_path / "other"
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    config = json.loads((other / "config.json").read_text()) | {"note": "not the same file"}
    (other / "config.json").write_text(json.dumps(config))
    for place, settings in ((folder, SMOKE), (folder, replace(SMOKE, seed=1)), (other, SMOKE)):
        with Answers(tmp_path, "four_sums") as kept:
            run_file(place, task_file, settings, answers=kept)
    assert len((tmp_path / "four_sums.answers.jsonl").read_text().splitlines()) == 3 * 4


def test_answers_have_one_writer(tmp_path) -> None:
    with Answers(tmp_path, "t") as kept:
        kept.add("a", {"response": "x\u2028y"})
        with pytest.raises(BadInput, match="being written by another process"):
            Answers(tmp_path, "t")
        Answers(tmp_path, "t", Share(0, 2)).__exit__()
    with Answers(tmp_path, "t") as kept:
        assert kept["a"] == {"response": "x\u2028y"}


def test_shares() -> None:
    assert Share.parse("2/8", {}) == Share(2, 8)
    assert Share.parse("", {}) == Share(0, 1)
    array = {
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_STEP": "2",
        "SLURM_ARRAY_TASK_COUNT": "5",
    }
    assert Share.parse("", array) == Share(3, 5)
    assert Share.parse("0/1", array) == Share(0, 1)
    for bad in ("8/8", "a/2", "1", "-1/2"):
        with pytest.raises(BadInput, match="shard"):
            Share.parse(bad, {})


def test_repetitions_draw_other_tokens(folder, tokenizer) -> None:
    requests = [Instance("generate_until", {}, ("<u>How much?<e><a>", {}), 0)] * 3
    config = GenerateConfig(max_new_tokens=8, block_size=4, steps=8, temperature=1.0)
    assert len(set(language_model(folder, config).generate_until(requests))) == 3
    assert len(set(language_model(folder, SMOKE).generate_until(requests))) == 1


# ---- the lm_eval_model's own command


def test_the_harness_runs_it(folder, task_file, tmp_path) -> None:
    command = [sys.executable, "-m", "pipeline.evaluation", "run", "--model", "block_diffusion", "--model_args"]
    command += [
        f"pretrained={folder},preset=smoke,max_new_tokens=4",
        "--tasks",
        str(task_file),
        "--apply_chat_template",
    ]
    command += ["--batch_size", "2", "--output_path", str(tmp_path / "out.json"), "--log_samples"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = tmp_path.glob("samples_four_sums_*.jsonl")
    assert len(samples.read_text().splitlines()) == 4
    assert "block_diffusion" in done.stdout and "exact_match" in done.stdout


# ---- comparisons


def scored(values: list[float], first: int = 0, **facts) -> Scored:
    score = Score("t", "exact_match", fmean(values), len(values), **facts)
    return Scored.of([(score, [sample(v, first + i) for i, v in enumerate(values)])])


def sample(value: float, problem: int) -> Sample:
    return Sample("question", "answer", "target", None, id=problem, metric="exact_match", value=value)


def test_comparisons_are_paired() -> None:
    a, b = [1, 0, 0, 0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    (found,) = compare({"a": {"t": scored(a)}, "b": {"t": scored(b)}})
    assert (found.n, found.value_a, found.value_b) == (10, 0.3, 0.9)
    assert found.difference == pytest.approx(0.6) and found.low < 0.6 < found.high
    assert found.p == found.p_holm == mcnemar(1, 7) and not found.real and not found.differs_in
    many = compare({name: {"t": scored(v * 4)} for name, v in {"a": a, "b": b, "c": b}.items()})
    assert [(c.a, c.b, c.real) for c in many] == [("a", "b", True), ("a", "c", True), ("b", "c", False)]
    assert many[0].p_holm == pytest.approx(3 * many[0].p)


def test_only_common_problems_count_and_other_settings_are_named() -> None:
    (found,) = compare({"a": {"t": scored([1, 1, 0, 0])}, "b": {"t": scored([0, 1, 1], first=2, prompts_hash="q")}})
    assert (found.n, found.value_a, found.value_b, found.differs_in) == (2, 0.0, 0.5, ["prompts_hash"])
    with pytest.raises(BadInput, match="no problem in common"):
        compare({"a": {"t": scored([1])}, "b": {"t": scored([1], first=5)}})
    assert compare({"a": {"t": scored([1])}, "b": {"u": scored([1])}}) == []


def test_seeds_are_averaged_a_problem() -> None:
    score = Score("t", "exact_match", 0.5, 2)
    results = [(score, [sample(x, 0), sample(1, 1)]) for x in (0, 1, 1)]
    assert Scored.of(results).by_problem == {0: pytest.approx(2 / 3), 1: 1.0}
    graded = compare({"a": {"t": Scored.of(results)}, "b": {"t": Scored.of([(score, [sample(1, 0)])])}})
    assert (graded[0].n, graded[0].test) == (1, "sign flips")


# ---- the stage


@pytest.fixture
def run_dir(tmp_path, model, tokenizer, task_file) -> Path:
    """A run directory with two complete checkpoints, one incomplete one and the recipe beside it."""
    for step in (3, 20, 40):
        export = tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "export"
        model.save_pretrained(export)
        tokenizer.save_pretrained(export)
        if step < 40:
            (export.parent / "COMPLETE").write_text(json.dumps({"step": step, "files": inventory(export.parent)}))
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
    assert score.keys() >= {"task", "metric", "value", "n", "low", "high", "preset", "settings", "versions", "hardware"}
    assert score.keys() >= {"preset_hash", "prompts_hash", "checksum", "devices", "fewshot", "by_length"}
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


def test_stage_in_shards(monkeypatch, run_dir, capsys) -> None:
    file = run_dir / "evaluation" / "step-00000020" / "four_sums.json"
    assert stage(monkeypatch, run_dir, "--shard", "0/2") == 0 and not file.exists()
    assert json.loads((run_dir / "status" / "evaluate-0-of-2.json").read_text())["state"] == "done"
    assert "shard 0/2 is answered, 2 answers" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert stage(monkeypatch, run_dir) == 0
    sharded = json.loads(file.read_text())
    assert stage(monkeypatch, run_dir, "--shard", "0/1", "--label", "whole") == 0
    whole = json.loads((run_dir / "evaluation" / "whole" / "four_sums.json").read_text())
    assert [sharded[k] for k in ("value", "n", "tokens", "prompts_hash", "checksum")] == [
        whole[k] for k in ("value", "n", "tokens", "prompts_hash", "checksum")
    ]


def test_a_folder_without_a_run(monkeypatch, folder, task_file, tmp_path) -> None:
    place = tmp_path / "elsewhere"
    command = [
        "evaluate",
        "--model",
        str(folder),
        "--tasks",
        str(task_file),
        "--preset",
        "smoke",
        "--run_dir",
        str(place),
    ]
    monkeypatch.setattr(sys, "argv", command)
    assert exit_code("evaluate", evaluate.main) == 0
    assert (place / "evaluation" / folder.name / "four_sums.json").is_file()


def test_one_prompt_and_samples_in_colour(monkeypatch, run_dir, capsys) -> None:
    assert stage(monkeypatch, run_dir, "--prompt", "How much is 1 and 2?") == 0
    out = capsys.readouterr().out
    assert "<u>How much is 1 and 2?<e><a>" in out
    order = re.search(r"forward of each token: ([\d ]+)", out)[1].split()
    assert sorted(set(map(int, order))) == list(range(1, max(map(int, order)) + 1))
    assert not (run_dir / "evaluation").exists()
    assert stage(monkeypatch, run_dir, "--show", "3") == 0
    assert capsys.readouterr().out.count("forward of each token") == 3


def test_colours_follow_the_order() -> None:
    text = ordered(["a", "b", "c"], [2, 1, 3])
    assert text.plain == "abc"
    assert [span.style.split()[1] for span in text.spans] == [colour(2, 3), colour(1, 3), colour(3, 3)]
    assert len({colour(i, 3) for i in (1, 2, 3)}) == 3


def test_compare_from_the_command_line(monkeypatch, run_dir, tmp_path, capsys) -> None:
    for step in ("3", "20"):
        assert stage(monkeypatch, run_dir, "--step", step) == 0
    capsys.readouterr()
    output = tmp_path / "compared.json"
    names = [str(run_dir / "evaluation" / "step-00000003"), str(run_dir)]
    monkeypatch.setattr(sys, "argv", ["evaluate", "compare", *names, "--output", str(output)])
    assert exit_code("evaluate", evaluate.main) == 0
    (found,) = json.loads(output.read_text())
    assert (found["a"], found["b"], found["n"], found["difference"], found["p"]) == (*names, 4, 0.0, 1.0)
    assert found["real"] is False and found["test"] == "exact McNemar"
    for bad, line in (
        (names[:1], "at least two"),
        ([names[0], str(tmp_path)], "no scored task"),
        (["a", "b"], "no such folder"),
    ):
        monkeypatch.setattr(sys, "argv", ["evaluate", "compare", *bad])
        assert exit_code("evaluate", evaluate.main) == 2
        assert line in capsys.readouterr().err


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
        (["--shard", "3/3"], "shard 3/3"),
        (["--evaluation.likelihood_samples", "6"], "multiple of 4"),
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
        lm_eval_tasks.load_tasks([str(task_file)])
    with pytest.raises(BadInput, match="no file"):
        chat_rows("nowhere.jsonl", version=1.0)


def test_tasks_that_run_code_are_refused(task_file) -> None:
    task_file.write_text(yaml.safe_dump(yaml.safe_load(task_file.read_text()) | {"unsafe_code": True}))
    with pytest.raises(BadInput, match="runs generated code"):
        lm_eval_tasks.load_tasks([str(task_file)])


def test_unknown_task_lists_the_known(monkeypatch) -> None:
    monkeypatch.setattr(
        lm_eval_tasks, "TaskManager", partial(lm_eval_tasks.TaskManager, include_defaults=False)
    )  # the harness's: seconds
    with pytest.raises(BadInput, match="unknown nope; here are .*demo_arithmetic"):
        lm_eval_tasks.load_tasks(["nope"])


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
