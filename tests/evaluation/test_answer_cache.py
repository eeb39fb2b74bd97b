"""Answers are kept one by one: batches, shards and restarts change none of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.core.errors import BadInput
from pipeline.decoding.sampler import GenerateConfig
from pipeline.evaluation import lm_eval_model
from pipeline.evaluation.answer_cache import AnswerCache, Shard
from pipeline.evaluation.lm_eval_model import Unanswered
from tests.evaluation.tiny import SMOKE, run_file


def outputs(rows) -> list:
    return [[row.response, row.prompt, row.filling.filled] for row in rows]


def test_batches_shards_and_restarts_change_no_answer(folder, task_file, tmp_path) -> None:
    config = GenerateConfig(max_new_tokens=8, block_size=4, steps=8, temperature=1.0)
    expected = outputs(run_file(folder, task_file, config, batch_size=1)[1])
    assert len({response for response, _, _ in expected}) > 1
    for batch_size in (3, 16):
        assert outputs(run_file(folder, task_file, config, batch_size=batch_size)[1]) == expected
    with AnswerCache(tmp_path / "e", "four_sums", Shard(1, 3)) as last:  # begins with the others, and ends after them
        for index in (2, 0):
            with AnswerCache(tmp_path / "e", "four_sums", Shard(index, 3)) as kept, pytest.raises(Unanswered):
                run_file(folder, task_file, config, cache=kept)
        score, rows = run_file(folder, task_file, config, cache=last)
    assert outputs(rows) == expected and score.n == 4
    lines = {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "e").iterdir()}
    assert lines == {f"four_sums.answers-{i}-of-3.jsonl": n for i, n in enumerate((2, 1, 1))}


def test_merging_loads_no_weights(monkeypatch, folder, task_file, tmp_path) -> None:
    with AnswerCache(tmp_path, "four_sums") as kept:
        expected = outputs(run_file(folder, task_file, cache=kept)[1])
    load = "pipeline.evaluation.checkpoint_under_test.load_teacher"
    monkeypatch.setattr(load, lambda *_, **__: pytest.fail("weights were loaded"))
    with AnswerCache(tmp_path, "four_sums") as kept:
        assert outputs(run_file(folder, task_file, cache=kept)[1]) == expected


def test_a_killed_evaluation_goes_on(monkeypatch, folder, task_file, tmp_path) -> None:
    with AnswerCache(tmp_path, "four_sums") as kept:
        expected = outputs(run_file(folder, task_file, cache=kept)[1])
    file = tmp_path / "four_sums.answers.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1] + lines[2][:20])  # killed while the third answer was written
    asked, decode = [], lm_eval_model.decode
    monkeypatch.setattr(
        lm_eval_model, "decode", lambda model, prompts, c: asked.extend(prompts) or decode(model, prompts, c)
    )
    with AnswerCache(tmp_path, "four_sums") as kept:
        assert outputs(run_file(folder, task_file, cache=kept)[1]) == expected
    assert len(asked) == 2 and file.read_bytes().count(b"\n") == 4


def test_an_answer_without_its_token_count_is_refused(folder, task_file, tmp_path) -> None:
    with AnswerCache(tmp_path, "four_sums") as kept:
        run_file(folder, task_file, cache=kept)
    file = tmp_path / "four_sums.answers.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    del records[0]["tokens"]
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    with AnswerCache(tmp_path, "four_sums") as kept, pytest.raises(TypeError, match="'tokens'"):
        run_file(folder, task_file, cache=kept)


def test_other_settings_and_other_weights_are_other_answers(folder, task_file, model, tokenizer, tmp_path) -> None:
    other = tmp_path / "other"
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    config = json.loads((other / "config.json").read_text()) | {"note": "not the same file"}
    (other / "config.json").write_text(json.dumps(config))
    for model_folder, settings in ((folder, SMOKE), (folder, replace(SMOKE, seed=1)), (other, SMOKE)):
        with AnswerCache(tmp_path, "four_sums") as kept:
            run_file(model_folder, task_file, settings, cache=kept)
    assert len((tmp_path / "four_sums.answers.jsonl").read_text().splitlines()) == 3 * 4


def test_answers_have_one_writer(tmp_path) -> None:
    with AnswerCache(tmp_path, "t") as kept:
        kept.add("a", {"response": "x\u2028y"})
        with pytest.raises(BadInput, match="being written by another process"):
            AnswerCache(tmp_path, "t")
        AnswerCache(tmp_path, "t", Shard(0, 2)).__exit__()
    with AnswerCache(tmp_path, "t") as kept:
        assert kept["a"] == {"response": "x\u2028y"}


def test_shards_are_parsed() -> None:
    assert Shard.parse("2/8", {}) == Shard(2, 8)
    assert Shard.parse("", {}) == Shard(0, 1)
    array = {
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_STEP": "2",
        "SLURM_ARRAY_TASK_COUNT": "5",
    }
    assert Shard.parse("", array) == Shard(3, 5)
    assert Shard.parse("0/1", array) == Shard(0, 1)
    for bad in ("8/8", "a/2", "1", "-1/2"):
        with pytest.raises(BadInput, match="shard"):
            Shard.parse(bad, {})
