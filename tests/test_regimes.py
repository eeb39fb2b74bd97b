"""docs/reliability.md against its raw results, and its comparisons against numbers by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demo.study.evidence import fill
from demo.study.regimes import (
    DOCUMENT,
    FIGURES,
    RESULTS,
    TEXT,
    Cell,
    Evidence,
    Known,
    blocks,
    families,
    natives,
    read_all,
    rules,
)
from pipeline.experiments.command_line import parse_study
from pipeline.training.teacher_probe import TeacherProbe


def known(one: float, two: float) -> Known:
    return Known([800], 1.0, TeacherProbe([0.5], -5.8, {}, {"one_view": [one], "two_views": [two]}))


def evidence(planned: int = 3) -> Evidence:
    """Reverse CALM minus CALM is 0.3, 0.1 and 0 with teachers of reliability 0.5, 0.7 and 0.9 in seed 0; a tenth of it in the others."""
    teachers = {"moe_t30": known(0.5, 0.75), "moe_t50": known(0.7, 0.7), "moe_t100": known(0.9, 1.0)}
    scores = {Cell("carry", "", "", "undistilled"): dict.fromkeys(range(3), 0.4)}
    for (_, dial), gain in zip([name.split("_") for name in teachers], (0.3, 0.1, 0.0), strict=True):
        scores[Cell("carry", "moe", dial, "calm")] = dict.fromkeys(range(3), 0.5)
        scores[Cell("carry", "moe", dial, "reverse_calm")] = {0: 0.5 + gain, 1: 0.5 + gain / 10, 2: 0.5 + gain / 10}
    return Evidence(teachers, scores, {0: (0.95, 1), 1: (0.96, 2), 2: (0.97, 1)}, planned, [])


def test_families_by_hand():
    made = families(evidence())
    (words, moved), *rest = made["primary"]  # the teacher of 0.9 is reliable
    assert not rest and words[:3] == ["moe", "reverse_calm", "calm"] and words[3] == "2 teachers"
    assert moved == pytest.approx({0: 0.2, 1: 0.02, 2: 0.02})
    ((_, slopes),) = made["slope"]
    assert slopes == pytest.approx({0: -0.75, 1: -0.075, 2: -0.075})
    assert [(words[1], moved[0]) for words, moved in made["regimes"]] == [
        ("moe_t30", pytest.approx(0.3)), ("moe_t50", pytest.approx(0.1)), ("moe_t100", 0.0),
    ]  # fmt: skip
    assert len(made["gain"]) == 6 and made["gain"][1][1][0] == pytest.approx(0.4)
    assert known(0.5, 0.75).probe.room == 0.25


def test_teachers_made_twice_count_with_their_mean():
    def made(one: float, steps: int) -> dict:
        probe = {"t": [0.5], "uniform": -5.8, "one_view": [-1.0], "accuracy_one_view": [one]}
        return {"steps": {"moe_em60": steps}, "teachers": {"moe_em60": {"exact_match": one, "probe": probe}}}

    twice = Evidence.of([made(0.5, 300), made(0.75, 320)], None).teachers["moe_em60"]
    assert (twice.steps, twice.score, twice.probe.reliability) == ([300, 320], 0.625, 0.625)


def test_no_p_value_before_the_last_seed():
    assert "p (Holm)" in blocks(evidence())["primary"]
    early = evidence(planned=4)
    assert not any("p (Holm)" in block for block in blocks(early).values())
    assert "3 of 4 seeds are complete" in blocks(early)["state"] and "0.960 (2 rounds)" in blocks(early)["state"]
    del early.scores[Cell("carry", "moe", "t30", "calm")][1]
    assert early.complete() == [0, 2]


def test_the_rule_by_hand():
    """Halves of the seeds: 0 and 1, whose line is 0.165 - 0.4125 (x - 0.5), and 2."""
    (rule,) = rules(evidence())
    assert (rule.pipeline, rule.strategy, rule.teachers) == ("moe", "reverse_calm", 3)
    assert rule.p == 0.25 and not rule.holds  # three seeds of one sign: 2 / 2^3
    gains = [0.5 * (0.3 + 0.03), 0.5 * (0.1 + 0.01), 0.0]
    line = np.polyfit([0.5, 0.7, 0.9], gains, 1)
    assert rule.bound == pytest.approx(-line[1] / line[0]) and 0.7 < rule.bound < 0.9
    assert rule.separated == 3  # seed 2 is ahead with the two teachers below it, and level above
    assert replace(rule, p=0.04, separated=2).holds and not replace(rule, p=0.04, separated=1).holds
    assert not rules(evidence(planned=4))


def test_pulls_by_t():
    pulls = {"wrong": [0.0, 0.125, 1.0, 0.0, 0.0], "cosine": [0.5, -0.25, 0.0, 1.0, 1.0], "size": [2.0] * 5}
    made = replace(evidence(), pulls={Cell.of("carry-moe_t30-calm"): pulls})
    assert "| moe_t30 | calm | 0% / +0.50 / 2.00 | 12% / -0.25 / 2.00 | 100% / +0.00 / 2.00 |" in blocks(made)["pulls"]


def test_the_protocol_s_families_have_their_sizes():
    planned = parse_study(["--study", "demo/study/reliability/study.yaml"])[0]
    scores = {Cell.of(variant): {0: 0.5} for variant in planned.variants}
    teachers = {cell.teacher: known(0.5 + 0.001 * i, 0.9) for i, cell in enumerate(scores) if cell.pipeline}
    made = families(Evidence(teachers, scores, {}, 8, []))
    assert {name: len(of) for name, of in made.items()} == {
        "primary": 4, "regimes": 40, "slope": 4, "parts": 28, "gain": 88,
    }  # fmt: skip
    assert all(moved == pytest.approx({0: 0.0}) for of in made.values() for _, moved in of)
    assert all(set(pair) <= scores.keys() for pair in natives(Evidence(teachers, scores, {}, 8, [])))


def test_document_holds_what_its_raw_results_say():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert fill(document, read_all(RESULTS, TEXT), Path()) == document, "run `python -m demo.study.regimes`"
    for figure in re.findall(r"\]\(evidence/([\w-]+\.svg)\)", document):
        assert (FIGURES / figure).is_file(), figure
