"""`evaluate --sweep`: tokens per forward against score."""

from __future__ import annotations

import pytest

from pipeline.core.errors import BadInput
from pipeline.core.files import read_json, read_json_lines
from pipeline.evaluation.statistics import ratio_interval
from pipeline.evaluation.sweep import SweepPoint, parse_thresholds, read_sweep


def test_thresholds_come_in_order_and_once() -> None:
    assert parse_thresholds("threshold=0.9,0.7,0.9") == [0.7, 0.9]
    for bad in ("0.7", "steps=3", "threshold=", "threshold=0.7,x", "threshold=0,0.5"):
        with pytest.raises(BadInput, match=f"--sweep {bad}: write it as"):
            parse_thresholds(bad)


def test_the_interval_of_a_ratio() -> None:
    assert ratio_interval([3, 6, 9], [1, 2, 3]) == (3, 3), "all problems alike"
    # 20 tokens in 15 forwards; delta method: 4 / 3 * 2.5 / 7.5 / sqrt(100)
    assert ratio_interval([10, 10] * 50, [5, 10] * 50) == pytest.approx(
        (4 / 3 - 1.96 / 22.5, 4 / 3 + 1.96 / 22.5), abs=0.01
    )


def test_a_model_is_scored_under_each_threshold(stage, run_dir, capsys) -> None:
    assert stage() == 0
    assert stage("--sweep", "threshold=1.5,1e-9") == 0
    folder = run_dir / "evaluation" / "step-00000020"
    preset, *points = read_sweep(folder, "four_sums")
    assert [point.setting for point in (preset, *points)] == ["preset smoke", "threshold 1.5", "threshold 1e-09"]
    one_by_one, whole_blocks = points
    for point, threshold in ((whole_blocks, 1e-9), (one_by_one, 1.5)):
        swept = folder / "sweep" / f"threshold-{threshold:g}"
        score, rows = read_json(swept / "four_sums.json"), read_json_lines(swept / "four_sums.samples.jsonl")
        assert score["settings"]["threshold"] == threshold and score["n"] == 4
        assert point.tokens_per_forward == sum(r["tokens"] for r in rows) / sum(r["forwards"] for r in rows)
        assert point.low <= point.tokens_per_forward <= point.high
    assert whole_blocks.tokens_per_forward > one_by_one.tokens_per_forward
    out = capsys.readouterr().out
    assert f"{whole_blocks.tokens_per_forward:.2f}" in out and "tokens" in out


def test_a_task_that_generates_nothing(stage, choice_file, capsys) -> None:
    assert stage("--sweep", "threshold=0.9", "--tasks", str(choice_file)) == 2
    assert "generates text" in capsys.readouterr().err


def test_a_folder_without_a_sweep(tmp_path) -> None:
    assert read_sweep(tmp_path, "four_sums") == [] and SweepPoint.read(tmp_path, "four_sums") is None
