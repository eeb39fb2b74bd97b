"""The stage `evaluate` and its command line."""

from __future__ import annotations

import json
import re
import shutil
import sys
from io import StringIO

import pytest
import torch

from pipeline.core.errors import BadInput
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest
from pipeline.evaluation.lm_eval_model import BlockDiffusionLM
from pipeline.evaluation.tables import colour, ordered
from tests import launch
from tests.evaluation.tiny import SUMS


def test_stage_end_to_end(stage, run_dir, capsys) -> None:
    assert stage() == 0
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


def test_stage_in_shards(stage, monkeypatch, run_dir, capsys) -> None:
    file = run_dir / "evaluation" / "step-00000020" / "four_sums.json"
    assert stage("--shard", "0/2") == 0 and not file.exists()
    assert json.loads((run_dir / "status" / "evaluate-0-of-2.json").read_text())["state"] == "done"
    assert "shard 0/2 is answered, 2 answers" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert stage() == 0
    sharded = json.loads(file.read_text())
    assert stage("--shard", "0/1", "--label", "whole") == 0
    whole = json.loads((run_dir / "evaluation" / "whole" / "four_sums.json").read_text())
    for entry in ("value", "n", "tokens", "prompts_hash", "checksum"):
        assert sharded[entry] == whole[entry]


def test_a_folder_without_a_run(command, folder, task_file, tmp_path) -> None:
    words = ["--model", folder, "--tasks", task_file, "--preset", "smoke", "--run_dir", tmp_path / "elsewhere"]
    assert command(*words) == 0
    assert (tmp_path / "elsewhere" / "evaluation" / folder.name / "four_sums.json").is_file()


def test_a_model_that_names_no_block_size_is_not_scored_under_the_student_s(stage, folder, tmp_path, capsys) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    del config["block_size"]
    (other / "config.json").write_text(json.dumps(config))
    assert stage("--model", other) == 2
    assert "other: config.json names no block_size" in capsys.readouterr().err
    with pytest.raises(BadInput, match="names no block_size"):
        BlockDiffusionLM.create_from_arg_string(f"pretrained={other},preset=smoke")
    named = BlockDiffusionLM.create_from_arg_string(f"pretrained={other},preset=smoke,block_size=2")
    assert named.config.block_size == 2 and named.config.blocks == "training"


@pytest.mark.parametrize("wrong", [{"block_size": 0}, {"block_size": "8"}, {"blocks": "x"}])
def test_blocks_that_cannot_be_are_refused(folder, tmp_path, wrong) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | wrong))
    with pytest.raises(BadInput, match="config.json has block_size"):
        CheckpointUnderTest(str(tmp_path), torch.float32, "cpu").blocks(4)


def test_samples_in_colour(stage, capsys) -> None:
    assert stage("--show", "3") == 0
    orders = re.findall(r"forward of each token: ([\d ]+)", capsys.readouterr().out)
    assert len(orders) == 3
    for order in orders:
        assert sorted(set(map(int, order.split()))) == list(range(1, max(map(int, order.split())) + 1))


class Typed(StringIO):
    """A terminal in which somebody types."""

    def isatty(self) -> bool:
        return True


def test_a_prompt_is_answered_as_the_preset_decodes(stage, monkeypatch, run_dir, capsys) -> None:
    def answers(*arguments: str, typed: StringIO) -> list[tuple[int, int]]:
        monkeypatch.setattr(sys, "stdin", typed)
        assert stage("--prompt", "How much is 1 and 2?", *arguments) == 0
        out = capsys.readouterr().out
        assert out.startswith("<u>How much is 1 and 2?<e><a>\n") and not (run_dir / "evaluation").exists()
        return [tuple(map(int, pair)) for pair in re.findall(r"(\d+) tokens, (\d+) forwards", out)]

    ((tokens, forwards),) = answers(typed=StringIO("How much is 3 and 4?\n"))  # no terminal: nobody types
    assert tokens <= 8 and forwards < 8
    ((tokens, _),) = answers("--max-new-tokens", "3", typed=StringIO())
    assert tokens <= 3
    ((_, forwards),) = answers("--threshold", "2", "--max-new-tokens", "6", typed=StringIO())
    assert forwards == 6, "nothing is as probable as that"
    assert len(answers(typed=Typed("How much is 3 and 4?\n/reset\n"))) == 2


def test_a_base_model_has_no_chat_template(stage, folder, tmp_path, capsys) -> None:
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    words = ("--model", base)
    assert stage(*words) == 2
    assert "no chat template" in capsys.readouterr().err
    assert stage(*words, "--evaluation.chat", "false", "--prompt", "How much is 1<e>") == 0
    assert capsys.readouterr().out.startswith("How much is 1<e>\n")
    assert stage(*words, "--evaluation.chat", "false") == 0
    (base / "chat_template.jinja").write_text("{{ raise_exception('Only talk of [/cats]') }}")
    assert stage(*words, "--label", "b") == 2
    assert "refuses a prompt (Only talk of [/cats])" in capsys.readouterr().err


def test_colours_follow_the_order() -> None:
    text = ordered(["a", "b", "c"], [2, 1, 3])
    assert text.plain == "abc"
    assert [span.style.split()[1] for span in text.spans] == [colour(2, 3), colour(1, 3), colour(3, 3)]
    assert len({colour(i, 3) for i in (1, 2, 3)}) == 3


def test_compare_from_the_command_line(stage, command, run_dir, tmp_path, capsys) -> None:
    for step in ("3", "20"):
        assert stage("--step", step) == 0
    capsys.readouterr()
    output = tmp_path / "compared.json"
    names = [str(run_dir / "evaluation" / "step-00000003"), str(run_dir)]
    assert command("compare", *names, "--output", output) == 0
    (comparison,) = json.loads(output.read_text())
    assert [comparison["a"], comparison["b"]] == names
    assert (comparison["n"], comparison["difference"], comparison["p"]) == (4, 0.0, 1.0)
    assert comparison["real"] is False and comparison["test"] == "exact McNemar"
    for bad, line in (
        (names[:1], "at least two"),
        ([names[0], run_dir / "checkpoints"], "holds no scores"),
        (["a", "b"], "no such folder"),
    ):
        assert command("compare", *bad) == 2
        assert line in capsys.readouterr().err


def test_stage_takes_a_step_a_folder_and_a_limit(stage, run_dir) -> None:
    assert stage("--step", "3", "--evaluation.limit", "2") == 0
    assert json.loads((run_dir / "evaluation" / "step-00000003" / "four_sums.json").read_text())["n"] == 2
    export = run_dir / "checkpoints" / "step-00000040" / "export"
    assert stage("--model", export, "--label", "teacher") == 0
    assert (run_dir / "evaluation" / "teacher" / "four_sums.json").is_file()
    assert stage("--model", run_dir, "--label", "newest") == 0
    scored = json.loads((run_dir / "evaluation" / "newest" / "four_sums.json").read_text())
    assert scored["model"] == str(run_dir / "checkpoints" / "step-00000020" / "export")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--step", "7"], "no complete checkpoint step-00000007.*there are step-00000003, step-00000020"),
        (["--step", "²"], "no complete checkpoint ²"),
        (["--shard", "0/9999999"], "more than 1,000,000"),
        (["--tasks", "{list}"], "not tasks of the harness"),
        (["--evaluation.fewshot", "-1"], "fewshot is -1, must be 0 or more"),
        (["--evaluation.fewshot", "4"], "four_sums has 4 examples to draw from"),
        (["--step", "40"], "no complete checkpoint step-00000040"),
        (["--evaluation.preset", "best"], "'best' is unknown: one of paper, fast"),
        (["--evaluation.tasks", "[]"], "evaluation.tasks is empty"),
        (["--evaluation.limit", "0"], "limit is 0, must be above 0"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--shard", "3/3"], "shard 3/3"),
        (["--evaluation.likelihood_samples", "6"], "samples is 6, must be a positive multiple of 4"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "1", "--temperature", "-1"], "temperature -1.0 must not be negative"),
        (["--temperature", "1", "--block-size", "4"], "--temperature, --block-size: only with --prompt"),
        (["--prompt", "\ud83d"], "--prompt is not UTF-8"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(stage, monkeypatch, run_dir, capsys, arguments: list[str], line: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (run_dir.parent / "list.yaml").write_text("- a\n")
    assert stage(*(word.format(list=run_dir.parent / "list.yaml") for word in arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(line, error), error


def test_script_without_checkpoint_is_one_line_and_exit_code_2(tmp_path) -> None:
    done = launch.stage("pipeline/evaluate.py", "--run_dir", tmp_path, code=2)
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "pipeline/distill.py" in done.stderr
    assert json.loads((tmp_path / "status" / "evaluate.json").read_text())["exit_code"] == 2
