"""From responses and likelihoods to scores, samples and alarms."""

from __future__ import annotations

import json
from io import StringIO

import pytest
import yaml

from pipeline.core.terminal import Console
from pipeline.evaluation.lm_eval_tasks import load_tasks, run_task
from pipeline.evaluation.results import Generation, Score
from pipeline.evaluation.statistics import wilson
from pipeline.evaluation.sweep import SweepPoint
from pipeline.evaluation.tables import print_scores, print_sweep
from tests.evaluation.tiny import ROWS, SUMS, language_model, run_file, says


def test_scores_the_last_integer(monkeypatch, folder, tokenizer, task_file) -> None:
    says(monkeypatch, tokenizer, ["11 and 1 is 12.<e>", "It is 8.<e>", "100<e>", "31 apples"])
    score, rows = run_file(folder, task_file)
    assert (score.task, score.metric, score.value, score.n) == ("four_sums", "exact_match", 0.75, 4)
    assert (score.low, score.high) == wilson(3, 4)
    assert score.generation.truncated == 0.25
    assert score.alarms == ["25% of the responses reach the length limit without an end token"]
    assert [row.correct for row in rows] == [True, False, True, True]
    assert rows[1].prompt == "<u>How much is 6 and 1?<e><a>"
    assert (rows[1].response, rows[1].answer, rows[1].target) == ("It is 8.", "8", "7")
    assert [row.filling.ended for row in rows] == [True, True, True, False]
    assert [row.filling.tokens for row in rows] == [15, 8, 3, 9]  # bytes; the end token does not count
    assert "".join(rows[1].filling.pieces) == "It is 8." and rows[1].filling.filled == list(range(1, 9))
    assert score.generation.tokens == 35
    assert score.generation.forwards_per_token == 4 * 3 / 35
    assert {k: v.n for k, v in score.generation.by_length.items()} == {"up to 16 tokens": 4}
    assert 0 < score.generation.latency_median <= score.generation.latency_p95


def test_zero_and_leftover_masks_raise_alarms_with_raw_outputs(monkeypatch, folder, tokenizer, task_file) -> None:
    says(monkeypatch, tokenizer, ["<m><m>9<e>", "?<e>", "<e>", "no<e>"])
    score, _ = run_file(folder, task_file)
    assert [alarm.split(":")[0] for alarm in score.alarms] == [
        "exact_match is 0",
        "2 mask tokens are left in the responses",
    ]
    assert [output["response"] for output in score.raw_outputs] == ["9", "?", "", "no"]


def test_stop_strings_cut_and_end(monkeypatch, folder, tokenizer, task_file) -> None:
    settings = yaml.safe_load(task_file.read_text()) | {"generation_kwargs": {"until": ["\n\n", "Q:"]}}
    task_file.write_text(yaml.safe_dump(settings))
    says(monkeypatch, tokenizer, ["12 Q: 5\n\n6", "7\n\nQ:8", "100", "31"])
    score, rows = run_file(folder, task_file)
    assert [row.response for row in rows] == ["12 ", "7", "100", "31"]
    assert (score.value, score.generation.truncated) == (1.0, 0.5)


def test_data_is_read_afresh(monkeypatch, folder, tokenizer, task_file) -> None:
    says(monkeypatch, tokenizer, ["12<e>", "7<e>", "100<e>", "31<e>"])
    assert run_file(folder, task_file)[0].value == 1.0
    changed = [row | {"answer": "0"} for row in ROWS]
    (task_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert run_file(folder, task_file)[0].value == 0.0


def test_shots_and_templates_make_the_prompt(folder, task_file) -> None:
    settings = yaml.safe_load(task_file.read_text()) | {"fewshot_split": "test"}
    task_file.write_text(yaml.safe_dump(settings))
    prompts = {}
    for shots, chat in ((0, True), (1, True), (1, False)):
        ((name, task),) = load_tasks([str(task_file)]).items()
        score, rows = run_task(name, task, language_model(folder), fewshot=shots, chat=chat)
        prompts[shots, chat] = (rows[0].prompt, score.prompts_hash, score.fewshot)
    question = "How much is 11 and 1?"
    assert prompts[0, True][0] == f"<u>{question}<e><a>"
    assert prompts[1, True][0].startswith("<u>How much is") and prompts[1, True][0].endswith(f"{question}<e><a>")
    assert prompts[1, False][0].endswith(question) and "<" not in prompts[1, False][0]
    assert len({h for _, h, _ in prompts.values()}) == 3 and [n for _, _, n in prompts.values()] == [0, 1, 1]


def test_choices_by_likelihood(folder, choice_file) -> None:
    score, rows = run_file(folder, choice_file, likelihood_samples=4)
    assert (score.metric, score.n) == ("acc", 4)
    assert (score.low, score.high) == wilson(round(4 * score.value), 4)
    for i, row in enumerate(rows):
        best = max(row.choices, key=lambda c: c.log_likelihood)
        assert len(row.choices) == 4 and row.response == best.text
        assert row.correct == (best.text.strip() == SUMS[i])
        assert row.prompt.endswith("<e><a>"), "the template's own end belongs to the context"
    errors = [c.stderr for row in rows for c in row.choices]
    assert score.likelihood.largest_stderr == max(errors) > 0
    assert score.likelihood.mean_stderr == pytest.approx(sum(errors) / 16)
    assert score.likelihood.unsure == sum(row.unsure for row in rows) / 4
    assert score.generation is None


def test_tables_fit_80_columns() -> None:
    """As the demo's are: no name is cut, no cell is wrapped."""
    cost = Generation(2020.4, 1.45, 0.1, 0.2, truncated=0.0, masks_left=0, tokens=900, by_length={})
    score = Score("demo_arithmetic", "exact_match", 0.64, 300, 0.584, 0.692, generation=cost)
    console = Console(width=80, file=StringIO())
    print_scores(console, [score], "preset demo (71668563310e)")
    print_sweep(console, [SweepPoint("threshold 0.95", score, 3.94, 3.74, 4.14)], "demo_arithmetic: step-00000080")
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["demo_arithmetic", "exact_match", "0.640", "0.584", "to", "0.692", "300", "0%", "2020", "1.45"] in lines
    assert ["threshold", "0.95", "3.94", "3.74", "to", "4.14", "0.640", "0.584", "to", "0.692", "2020", "300"] in lines
