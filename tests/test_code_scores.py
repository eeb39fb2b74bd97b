"""Scoring of saved programs: it completes samples and score, goes on after a kill, and is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.errors import BadInput
from pipeline.core.files import read_json, read_json_lines, write_json, write_json_lines
from pipeline.evaluation.code import score as scoring

TARGET = {"setup": "", "names": ["f"], "tests": "assert f(1) == 2"}
ANSWERS = ["def f(x): return 2", "def f(x): return 3", "def f(x", "def f(x): return 1 + x"]


@pytest.fixture
def samples(tmp_path) -> Path:
    """What evaluate leaves of a code task with four problems."""
    folder = tmp_path / "evaluation" / "step-00000001"
    rows = [
        {"id": i, "prompt": "p", "response": "r", "answer": a, "target": TARGET, "correct": None}
        for i, a in enumerate(ANSWERS)
    ]
    write_json_lines(folder / "mbpp.samples.jsonl", rows)
    write_json(folder / "mbpp.json", {"task": "mbpp", "metric": None, "value": None, "preset": "smoke", "alarms": []})
    write_json_lines(folder / "gsm8k.samples.jsonl", [{"id": 0, "target": "6", "answer": "6"}])
    return folder


def test_scoring_completes_samples_and_score(samples, tmp_path, capsys) -> None:
    scoring.main(["--run_dir", str(tmp_path), "--workers", "3"])
    score = read_json(samples / "mbpp.json")
    assert (score["metric"], score["value"], score["n"], score["preset"]) == ("pass@1", 0.5, 4, "smoke")
    assert 0 < score["low"] < 0.5 < score["high"] < 1
    assert score["reasons"] == {"passed": 2, "wrong answer": 1, "syntax error": 1}
    rows = read_json_lines(samples / "mbpp.samples.jsonl")
    assert [row["correct"] for row in rows] == [True, False, False, True]
    assert [row["reason"] for row in rows] == ["passed", "wrong answer", "syntax error", "passed"]
    verdicts = (samples / "mbpp.verdicts.jsonl").read_text()
    assert [json.loads(line)["id"] for line in verdicts.splitlines()] == [0, 1, 2, 3]
    assert "pass@1 0.500" in capsys.readouterr().out
    assert read_json(tmp_path / "status" / "score.json")["exit_code"] == 0
    assert "correct" not in read_json(samples / "gsm8k.samples.jsonl")

    # again, after a kill in the middle of a line: what was judged stays, the rest is judged
    lines = [json.loads(line) for line in verdicts.splitlines()]
    lines[1]["detail"] = "judged before"
    (samples / "mbpp.verdicts.jsonl").write_text("\n".join(json.dumps(line) for line in lines[:3]) + '\n{"key": "')
    scoring.main(["--run_dir", str(tmp_path), "--workers", "1", "--label", "step-00000001"])
    rows = read_json_lines(samples / "mbpp.samples.jsonl")
    assert [row["correct"] for row in rows] == [True, False, False, True] and rows[1]["detail"] == "judged before"

    # other limits: judged anew
    scoring.main(["--run_dir", str(tmp_path), "--cpu_seconds", "9"])
    assert (samples / "mbpp.verdicts.jsonl").read_text() != verdicts
    assert "judged before" not in (samples / "mbpp.samples.jsonl").read_text()


def test_zero_is_an_alarm_and_nothing_to_score_is_one_line(samples, tmp_path) -> None:
    path = samples / "mbpp.samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:3]))
    scoring.main(["--run_dir", str(tmp_path)])
    score = read_json(samples / "mbpp.json")
    assert score["value"] == 0 and any("pass@1 is 0" in alarm for alarm in score["alarms"])
    assert score["raw_outputs"] == [{"prompt": "p", "response": "r"}] * 2
    for bad, words in (
        (["--label", "none"], "no saved samples of a code task"),
        (["--workers", "0"], "must be positive"),
    ):
        with pytest.raises(BadInput, match=words):
            scoring.main(["--run_dir", str(tmp_path), *bad])


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (["--memory_mb", "1"], "a right program does not pass within these limits"),
        (["--wall_seconds", "0.001"], "a right program does not pass within these limits"),
        (["--memory_mb", "99999999999999"], "memory_mb is 99999999999999: numbers must be finite and below"),
        (["--cpu_seconds", "9" * 20], "cpu_seconds is 9+: numbers must be finite and below"),
    ],
)
def test_limits_without_room_are_refused_before_a_score_is_lost(samples, tmp_path, limit, words) -> None:
    before = {path: path.read_bytes() for path in samples.iterdir()}
    with pytest.raises(BadInput, match=words):
        scoring.main(["--run_dir", str(tmp_path), *limit])
    assert {path: path.read_bytes() for path in samples.iterdir()} == before


@pytest.mark.parametrize("label", ["..", "../..", "a/b", "/etc", "a\x1b[2J"])
def test_a_label_never_leads_out_of_the_run(samples, tmp_path, label) -> None:
    with pytest.raises(BadInput, match="is no label"):
        scoring.main(["--run_dir", str(samples / "mine"), "--label", label])
    assert not (samples / "mbpp.verdicts.jsonl").exists()
