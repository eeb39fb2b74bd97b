"""The report stage on made run directories: complete, nearly empty, and wrong."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import yaml

from pipeline.core.terminal import Console
from pipeline.evaluation.results import Score
from pipeline.reporting import figures
from pipeline.reporting.headline import headline
from pipeline.reporting.page import render
from pipeline.reporting.run_record import read_run
from pipeline.reporting.sections import comparisons, losses, sections, validation
from pipeline.reporting.summary import Model, read_models, score_table, scored_tasks, summary
from tests import launch
from tests.report_runs import SCORES, TS, write, write_aligned, write_run, write_scores

SECTIONS = [
    "Scores: arithmetic", "Tokens per forward: arithmetic", "Training", "Validation loss by t", "What the teacher knows",
    "KL to the teachers", "Gradient of CALM and Reverse CALM", "TIDAL lambda",
    "Alignment", "Sample chunks", "Throughput", "Sample generations", "Recipe", "Environment",
]  # fmt: skip


@pytest.fixture
def run_dirs(tmp_path: Path) -> tuple[Path, Path]:
    run, baseline = tmp_path / "demo", tmp_path / "demo-undistilled"
    write_run(run, "distilled", 0.1, "llada2")
    write_scores(run, "teacher", "teacher")
    write_scores(run, "step-00000400/sweep/threshold-0.9", "distilled")
    write_scores(run, "step-00000200", "undistilled")  # an older step, which the report must not take
    write_run(baseline, "undistilled", 0.4, None)
    write_aligned(tmp_path / "aligned", "There are 61 apples in all.")
    known = [-0.05, -0.1, -0.2, -0.4, -0.8]
    views = {"one_view": known, "two_views": [x / 2 for x in known], "uniform": -6.0}
    views |= {f"accuracy_{name}": [math.exp(x) for x in views[name]] for name in ("one_view", "two_views")}
    write(run / "teacher_probe.json", {"t": TS, "teachers": {"llada2": views}})
    return run, baseline


report = partial(launch.stage, "pipeline/report.py", code=None)


def minimal_recipe(folder: Path, run_dir: Path) -> Path:
    recipe = {"name": "x", "run_dir": str(run_dir), "student": {"path": "demo/student"}, "optim": {"steps": 1}}
    write(folder / "minimal.yaml", yaml.safe_dump(recipe))
    return folder / "minimal.yaml"


class Page(HTMLParser):
    """Headings, text, and everything that a browser would fetch."""

    def __init__(self, html: str):
        super().__init__()
        self.headings, self.fetched, self.text, self._tag = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._tag = tag
        self.fetched += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and not v.startswith(("#", "data:"))
        ]
        self.fetched += [tag] if tag in ("script", "link", "iframe", "object") else []

    def handle_data(self, data):
        self.text.append(data)
        if self._tag == "h2" and data.strip():
            self.headings.append(data)


def test_the_whole_report(run_dirs, tmp_path):
    """The script form, on two complete runs."""
    run, baseline = run_dirs
    done = report("--recipe", minimal_recipe(tmp_path, run), "--baseline", baseline)
    assert done.returncode == 0, done.stderr
    assert str(run / "report.html") in done.stdout and "0.960" in done.stdout and "0.830" in done.stdout
    html = (run / "report.html").read_text()
    page = Page(html)
    assert page.headings == SECTIONS
    assert page.fetched == [] and not re.search(r"https?://|url\((?!#)|@import", html)
    assert html.count("<svg") == html.count('role="img" aria-label="') == 22
    assert "␣$um$" in html, "the order in which positions were filled"
    text = " ".join(page.text)
    for words in (
        "0.940 to 0.975", "llada2: chunks of one token on both sides", "no assistant content", "What is 11 plus 5?",
        "-15.0 points, 95% interval", "distilled - undistilled", "distilled - teacher",
        "Alarm, distilled: 30% of the responses.",
    ):  # fmt: skip
        assert words in text
    assert "No " not in text, "a complete run has nothing missing"
    assert json.loads((run / "status" / "report.json").read_text())["state"] == "done"

    result = json.loads((run / "summary.json").read_text())
    assert set(result) == {"scores", "world_size", "expert_parallel_size", "zero_stage", "strategy", "seconds"}
    assert {model: (s["value"], s["low"], s["high"]) for model, s in result["scores"].items()} == SCORES
    assert all(s["n"] == 500 for s in result["scores"].values())
    assert (result["world_size"], result["expert_parallel_size"], result["zero_stage"]) == (2, 2, 3)
    assert result["strategy"] == "tide_shared"
    assert result["seconds"] == {"distill": 200.5, "undistilled_distill": 200.5}

    assert report("--recipe", minimal_recipe(tmp_path, run)).returncode == 0
    assert (run / "report.html").read_text() == html, "the baselines of the last report count"
    assert report("--recipe", minimal_recipe(tmp_path, run), "--baseline").returncode == 0
    assert set(json.loads((run / "summary.json").read_text())["scores"]) == {"teacher", "distilled"}


def test_an_empty_run_directory(tmp_path):
    """Every section is there and says what is missing."""
    run = tmp_path / "fresh"
    run.mkdir()
    done = report("--recipe", minimal_recipe(tmp_path, run))
    assert done.returncode == 0, done.stderr
    page = Page((run / "report.html").read_text())
    assert page.headings == [
        "Scores", "Training", "Alignment", "Throughput", "Sample generations", "Recipe", "Environment",
    ]  # fmt: skip
    assert " ".join(page.text).count("has not run") >= 4
    assert "No scores yet: evaluate has not run; nothing has been trained yet." in " ".join(page.text)
    assert json.loads((run / "summary.json").read_text()) == {"scores": {}, "strategy": "bd3lm", "seconds": {}}


def test_parts_stand_alone(run_dirs):
    """Without baseline, probe and aligned dataset the rest is still drawn."""
    run, _ = run_dirs
    (run / "teacher_probe.json").unlink()
    (run / "distance.json").unlink()
    (run.parent / "aligned" / "manifest.json").unlink()
    state = read_run(run)
    html = render(state, read_models(state, [], "teacher"))
    for missing in ("teacher_probe.json", "distance.json", "manifest.json", "sample alignment"):
        assert f"No {missing}" in html
    assert "no other run to compare with" in html and html.count("<svg") == 18


def test_the_first_sentence_says_what_came_out(run_dirs):
    """What, against what, how sure; how long, how often started, when, on what, from which code."""
    run, baseline = read_run(run_dirs[0]), str(run_dirs[1])
    models = read_models(run, [baseline], "teacher")
    assert headline(run, models, comparisons(models)) == (
        "Distilled (TIDE-Shared) scores 0.960 on arithmetic (500 problems), +0.0 points against undistilled, 95% interval "
        "+0.0 to +0.0, which may be chance (p = 1); trained 400 steps in 0:03:20 over 2 starts, the last on 27 November 2026, "
        "2 ranks on Toy CPU, commit 0123456789-dirty."
    )
    alone = "Distilled (TIDE-Shared) scores 0.960 on arithmetic (500 problems); trained"
    assert headline(run, models, []).startswith(alone)
    started = replace(run, steps=800, started=["2026-11-27T08:00:00+00:00"], device="", commit="")
    half = "trained 400 of 800 steps in 0:03:20 over 1 start, the last on 27 November 2026."
    assert headline(started, models, []).endswith(half)


def test_no_section_about_what_the_run_does_not_use(run_dirs):
    """TIDAL and the gradient of CALM belong to strategies; everything about teachers to runs that have some."""
    folder, untaught = run_dirs
    run = read_run(folder)
    used = [section.title for section in sections(run, read_models(run, [], "teacher"), [])]
    assert {"TIDAL lambda", "Gradient of CALM and Reverse CALM"} <= set(used)
    reverse = replace(run, strategy="reverse_kl")
    titles = [section.title for section in sections(reverse, read_models(run, [], "teacher"), [])]
    assert set(used) - set(titles) == {"TIDAL lambda", "Gradient of CALM and Reverse CALM"}
    alone = read_run(untaught)
    titles = {section.title for section in sections(alone, read_models(alone, [], "teacher"), [])}
    assert not titles & {"TIDAL lambda", "What the teacher knows", "KL to the teachers", "Sample chunks"}
    assert "Validation loss by t" in titles


def test_a_run_that_was_only_swept_shows_tokens_per_forward(run_dirs):
    run = run_dirs[1]
    scored = run / "evaluation" / "step-00000400"
    moved = scored / "sweep" / "threshold-0.9"
    moved.mkdir(parents=True)
    for file in scored.glob("arithmetic*"):
        file.rename(moved / file.name)
    state = read_run(run)
    models = read_models(state, [f"taught={run_dirs[0]}"], "teacher")
    (section,) = [section for section in sections(state, models, []) if section.title.startswith("Tokens per forward")]
    assert [label for _, label in section.legend] == ["taught", models[-1].label]


def test_certainty_has_a_picture_where_a_run_was_trained_with_it(run_dirs):
    run = read_run(run_dirs[1])

    def pictures() -> int:
        return len(losses(read_models(run, [], "teacher")).figures)

    without = pictures()
    for line in run.training:
        line["certainty"] = 0.1
    assert pictures() == without + 1


def test_the_table_of_scores_fits_80_columns(run_dirs):
    run = replace(read_run(run_dirs[0]), tasks=["demo_arithmetic"])
    score = Score("demo_arithmetic", "exact_match", 0.88, 300, 0.838, 0.912)
    console = Console(width=80, file=StringIO())
    console.print(score_table([Model("undistilled", "", run_dirs[0], {"demo_arithmetic": score}, run)]))
    row = ["demo_arithmetic", "undistilled", "TIDE-Shared", "0.880", "0.838", "to", "0.912", "300"]
    assert row in [line.split() for line in console.file.getvalue().splitlines()]


def test_a_run_that_was_validated_once_has_a_table_of_it(run_dirs):
    run = read_run(run_dirs[0])
    models = read_models(run, [], "teacher")
    assert len(validation(models).figures) == 1
    del run.validation[:-1]
    assert not validation(models).figures and len(validation(models).tables[0]) == 2


def test_twelve_runs_side_by_side(run_dirs, tmp_path):
    run, baseline = run_dirs
    more = [f"run{i}={baseline}" for i in range(12)]
    state = read_run(run)
    models = read_models(state, more, "teacher")
    drawn = next(section for section in sections(state, models, []) if section.title == "Training")
    assert [label for _, label in drawn.legend] == [*(f"run{i}" for i in range(12)), "distilled"]
    assert len({model.colour for model in models}) == len(models)


def test_several_teachers_and_tasks(run_dirs):
    folder, baseline = run_dirs
    write(folder / "environment.json", {"expert_parallel_size": {"llada2": 2, "other": 4}})
    score = json.loads((folder / "evaluation/step-00000400/arithmetic.json").read_text())
    write(folder / "evaluation/step-00000400/aardvark.json", score | {"task": "aardvark", "value": 0.5})
    run = read_run(folder)
    models = read_models(run, [str(baseline)], "teacher")
    assert scored_tasks(models) == ["arithmetic", "aardvark"], "the recipe's tasks come first"
    result = summary(run, models)
    assert result["expert_parallel_size"] == {"llada2": 2, "other": 4}
    assert result["scores"]["distilled"]["value"] == 0.96
    assert "teacher" not in summary(run, read_models(run, [str(baseline)], "nobody"))["scores"]


def test_any_number_of_models_in_their_order(run_dirs, tmp_path):
    """The demo's rows: scores of the start alone, the undistilled run, another objective's run, and the run itself."""
    run, undistilled = run_dirs
    write_scores(run, "start", "undistilled")
    write_run(tmp_path / "demo-calm", "undistilled", 0.2, "llada2")
    models = [run / "evaluation/start", undistilled, f"CALM={tmp_path / 'demo-calm'}"]
    done = report("--recipe", minimal_recipe(tmp_path, run), "--baseline", *models)
    assert done.returncode == 0, done.stderr
    labels = ["teacher", "start", "undistilled", "CALM", "distilled"]
    result = json.loads((run / "summary.json").read_text())
    assert list(result["scores"]) == labels
    assert result["seconds"] == {"distill": 200.5, "undistilled_distill": 200.5, "CALM_distill": 200.5}
    html = (run / "report.html").read_text()
    page = Page(html)
    table = html[html.index(">model</th>") : html.index(">models</th>")]
    assert re.findall(r"<tr><td>(\w+)</td>", table) == labels, "the table of scores, in order"
    text = " ".join(page.text)
    assert all(f"{b} - {a}" in text for a, b in itertools.combinations(labels, 2)), "every pair is compared"
    assert text.count("200.5") == 3 and page.headings == SECTIONS
    done = report("--recipe", minimal_recipe(tmp_path, run), "--baseline", undistilled, undistilled)
    assert done.returncode == 2 and "two models are called undistilled" in done.stderr


def test_graded_scores_without_an_interval(run_dirs):
    run, _ = run_dirs
    score = {"task": "similarity", "metric": "chrf", "value": 0.4, "n": 2, "low": None, "high": None}
    write(run / "evaluation/step-00000400/similarity.json", score)
    sample = {"prompt": "p", "response": "r", "target": "t", "correct": None, "chrf": 0.25}
    write(run / "evaluation/step-00000400/similarity.samples.jsonl", json.dumps(sample) + "\n")
    state = read_run(run)
    assert "chrf 0.25" in render(state, read_models(state, [], "teacher"))


def test_a_metric_that_is_no_share_is_on_its_figure(run_dirs):
    run, _ = run_dirs
    score = {"task": "text", "metric": "word_perplexity", "value": 35.2, "n": 2, "low": None, "high": None}
    write(run / "evaluation/step-00000400/text.json", score)
    models = [model for model in read_models(read_run(run), [], "teacher") if "text" in model.scores]
    drawn = figures.scores(models, "text")
    assert max(float(label) for label in re.findall(r">(\d+\.?\d*)</text>", drawn) if label != "35.200") > 30


def test_a_repeated_step_counts_once(run_dirs):
    """A resumed run writes some steps again: the later line holds."""
    run, _ = run_dirs
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 10, "loss": 7.0}) + "\n")
    state = read_run(run)
    assert [line["step"] for line in state.training] == list(range(10, 401, 10)) and state.training[0]["loss"] == 7.0


def test_text_of_a_run_cannot_become_markup(run_dirs):
    run, _ = run_dirs
    bad = {"prompt": "<script>x</script>", "response": "<b>", "target": "&", "correct": False}
    write(run / "evaluation/step-00000400/arithmetic.samples.jsonl", json.dumps(bad) + "\n")
    state = read_run(run)
    html = render(state, read_models(state, [], "teacher"))
    assert "<script>" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run_dir", "runs/nowhere"], "runs/nowhere"),
        (["--baseline", "runs/nowhere"], "runs/nowhere"),
        (["--colour", "x"], "colour"),
    ],
)
def test_bad_input_is_one_line(tmp_path, flags, message):
    run = tmp_path / "fresh"
    run.mkdir()
    done = report("--recipe", minimal_recipe(tmp_path, run), *flags)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(run.iterdir()) == []
