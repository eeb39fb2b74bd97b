"""Whether two models differ: paired, on common problems."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from pipeline.core.errors import BadInput
from pipeline.core.files import write_json, write_json_lines, write_text
from pipeline.evaluation.compare import Scored, compare, main
from pipeline.evaluation.results import SAMPLES, Score, TaskSample
from pipeline.evaluation.statistics import mcnemar


def scored(values: list[float], first: int = 0, **facts) -> Scored:
    score = Score("t", "exact_match", fmean(values), len(values), **facts)
    return Scored.of([(score, [sample(v, first + i) for i, v in enumerate(values)])])


def sample(value: float, problem: int) -> TaskSample:
    return TaskSample("question", "answer", "target", None, id=problem, metric="exact_match", value=value)


def test_comparisons_are_paired() -> None:
    a, b = [1, 0, 0, 0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    (comparison,) = compare({"a": {"t": scored(a)}, "b": {"t": scored(b)}})
    assert (comparison.n, comparison.value_a, comparison.value_b) == (10, 0.3, 0.9)
    assert comparison.difference == pytest.approx(0.6) and comparison.low < 0.6 < comparison.high
    assert comparison.p == comparison.p_holm == mcnemar(1, 7) and not comparison.real and not comparison.differs_in
    many = compare({name: {"t": scored(v * 4)} for name, v in {"a": a, "b": b, "c": b}.items()})
    assert [(c.a, c.b, c.real) for c in many] == [("a", "b", True), ("a", "c", True), ("b", "c", False)]
    assert many[0].p_holm == pytest.approx(3 * many[0].p)


def test_only_common_problems_count_and_other_settings_are_named() -> None:
    (comparison,) = compare(
        {"a": {"t": scored([1, 1, 0, 0])}, "b": {"t": scored([0, 1, 1], first=2, prompts_hash="q")}}
    )
    assert (comparison.n, comparison.value_a, comparison.value_b, comparison.differs_in) == (2, 0.0, 0.5, ["prompts"])
    with pytest.raises(BadInput, match="no problem in common"):
        compare({"a": {"t": scored([1])}, "b": {"t": scored([1], first=5)}})
    assert compare({"a": {"t": scored([1])}, "b": {"u": scored([1])}}) == []


def test_seeds_are_averaged_per_problem() -> None:
    score = Score("t", "exact_match", 0.5, 2)
    results = [(score, [sample(x, 0), sample(1, 1)]) for x in (0, 1, 1)]
    assert Scored.of(results).by_problem == {0: pytest.approx(2 / 3), 1: 1.0}
    graded = compare({"a": {"t": Scored.of(results)}, "b": {"t": Scored.of([(score, [sample(1, 0)])])}})
    assert (graded[0].n, graded[0].test) == (1, "sign flips")


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """Two runs whose step 20 is scored; their newest step is 40."""
    for name, values in (("a-run-with-a-long-name", [0, 0, 1, 1]), ("b", [1, 1, 1, 0])):
        folder = tmp_path / name / "evaluation/step-00000020"
        score = Score("demo_arithmetic", "exact_match", fmean(values), 4, fewshot=len(name))
        write_json(folder / "demo_arithmetic.json", score.to_json())
        rows = [sample(value, i).to_json() for i, value in enumerate(values)]
        write_json_lines(folder / f"demo_arithmetic{SAMPLES}", rows)
        write_text(tmp_path / name / "recipe.yaml", "")
    return [str(tmp_path / "a-run-with-a-long-name"), str(tmp_path / "b")]


def test_eighty_columns_say_which_is_minus_which(runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    main(runs)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [f"A = {runs[0]}", f"B = {runs[1]}"]
    (row,) = [line for line in lines if line.startswith("demo_arithmetic") and "+0.250" in line]
    assert row.split()[1:6] == ["B", "-", "A", "0.750", "+0.250"] and row.endswith("no") and len(row) <= 80
    assert any("B - A: not the model alone differs, but also fewshot 22 and 1" in line for line in lines)


def test_what_is_not_scored_is_told_how(runs, tmp_path):
    unscored = tmp_path / "c"
    write_text(unscored / "recipe.yaml", "")
    step = Path(runs[1]) / "checkpoints/step-00000040"
    for name, command in ((unscored, f"evaluate.py {unscored}`"), (step, f"evaluate.py {runs[1]} --step 40`")):
        with pytest.raises(BadInput, match=f"{name} is not scored yet: `python pipeline/{command}"):
            main([runs[0], str(name)])


def test_an_output_that_cannot_be_written_is_one_line(runs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="--output .*file/x.json: .*: choose another file"):
        main([*runs, "--output", str(tmp_path / "file/x.json")])
