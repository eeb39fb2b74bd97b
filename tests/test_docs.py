"""What README and docs/ name exists: files, links, commands and their options, fields of a recipe; what they show can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from pipeline.alignment.sources import open_source
from pipeline.config.cli import RECIPES, parse, parser
from pipeline.config.recipe import Recipe, Source, Strategy
from pipeline.core.errors import BAD_INPUT, DONE, STOPPED_EARLY
from pipeline.evaluation.presets import preset, shots
from pipeline.evaluation.results import Generation, Provenance, Score
from tests import launch

PAGES = [launch.ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((launch.ROOT / "docs").glob("*.md"))
FOLDERS = "benchmarks|demo|docs|ds_configs|hostfiles|pipeline|slurm|tests"
BY_NAME = [pytest.param(page, id=page.name) for page in PAGES]
README, OPERATIONS, RECIPE_PAGE, PLAN = (
    (launch.ROOT / name).read_text() for name in ("README.md", "docs/operations.md", "docs/recipes.md", "docs/plan.md")
)


def code(text: str) -> Iterator[str]:
    """What stands between backticks, and the lines of code blocks without their comments; a `\\` joins two lines."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    fence = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    blocks = [line for block in fence.findall(text) for line in block.splitlines()[1:-1]]
    text = fence.sub("", text)
    blocks += [line[4:] for line in text.splitlines() if line.startswith("    ")]
    yield from re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)
    yield from (re.sub(r"(^|\s{2,})#.*", "", line) for line in blocks)


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", BY_NAME)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", BY_NAME)
def test_files_and_tests_exist(page):
    for word in " ".join(code(page.read_text())).replace(",", " ").split():
        name, _, test = word.partition("::")
        if re.fullmatch(rf"({FOLDERS})/[\w./*-]+", name) and not name.endswith((".log", ".svg")):
            assert list(launch.ROOT.glob(name.rstrip("/."))), word
        if re.fullmatch(r"[\w/]+\.py", name) and not name.startswith("custom_generate/"):  # of an export
            assert list(launch.ROOT.glob(name)) or list((launch.ROOT / "pipeline").rglob(name)), word
        if test and name.endswith(".py"):
            assert re.search(rf"^def {test}\(", (launch.ROOT / name).read_text(), re.MULTILINE), word


@cache
def options(script: str, command: str = "") -> str:
    """A stage's --help."""
    return launch.stage(script, *([command] if command else []), "--help", COLUMNS="200").stdout


def has_field(section: Any, path: list[str]) -> bool:
    """Whether a recipe has a field; of a list, its items."""
    hint = get_type_hints(section).get(path[0])
    if hint is None or len(path) == 1:
        return hint is not None
    inner = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
    return inner is not None and has_field(inner, path[1:])


OF_RECIPE = {field.name for field in fields(Recipe)}


@pytest.mark.parametrize("page", BY_NAME)
def test_commands_have_the_options_that_they_are_shown_with(page):
    for line in code(page.read_text()):
        for script, rest in re.findall(r"\b(pipeline/\w+\.py|slurm/\w+\.sh)(?= |$)([^|;&>]*)", " ".join(line.split())):
            words = rest.split()
            named = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
            of_recipe = {name for name in named if name[2:].split(".")[0] in OF_RECIPE}
            assert all(has_field(Recipe, name[2:].split(".")) for name in of_recipe), line
            if script.startswith("slurm/"):
                assert (launch.ROOT / script).is_file(), line
                continue
            commands = ("compare", "prefetch", "check", "score") if script.endswith("evaluate.py") else ()
            shown = options(script, words[0] if words and words[0] in commands else "")
            assert all(re.search(rf"{name}\b", shown) for name in named - of_recipe), line


@pytest.mark.parametrize("page", BY_NAME)
def test_fields_and_targets_exist(page):
    for word in code(page.read_text()):
        field = re.fullmatch(rf"({'|'.join(OF_RECIPE)})((\.\w+)+)(: .*)?", word)
        if field and not re.search(r"\.(py|yaml|jsonl?|md)\b", word):
            assert has_field(Recipe, (field[1] + field[2]).split(".")), word
        if made := re.match(r"make ((?:[a-z-]+ ?)+)", word):
            phony = re.search(r"^\.PHONY: (.*)", (launch.ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
            assert set(made[1].split()) <= set(phony), word


def block(text: str, language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]


def test_the_recipe_of_the_readme_is_one(tmp_path):
    (tmp_path / "my.yaml").write_text(block(README, "yaml"))
    recipe, _ = parse(parser(""), ["--recipe", str(tmp_path / "my.yaml")])
    assert recipe.run_dir == "runs/my-run" and recipe.data.validation and recipe.evaluation.tasks == ["my_task.yaml"]


def test_the_rows_of_the_readme_are_read(tmp_path):
    formats = []
    for number, line in enumerate(block(README, "json").splitlines()):
        (tmp_path / f"{number}.jsonl").write_text(line)
        rows = open_source(Source(str(tmp_path / f"{number}.jsonl"), "rows"))
        ((question, answer),) = rows.read(0, 1)
        assert question["role"] == "user" and answer == {"role": "assistant", "content": "5"}
        formats.append(rows.format)
    assert formats == ["messages", "sharegpt", "alpaca", "prompt_completion"]


def test_shipped_recipes_and_strategies_are_named():
    shipped = RECIPE_PAGE.split("## Shipped recipes")[1].split("\n## ")[0]
    assert {path.stem for path in RECIPES.glob("*.yaml")} <= set(re.findall(r"`(\w+)`", shipped))
    assert set(get_args(Strategy)) <= set(re.findall(r"`(\w+)`", RECIPE_PAGE))


def test_exit_codes():
    table = OPERATIONS.split("| exit code |")[1].split("\n\n")[0]
    rows = {row[0]: row[1] for row in re.findall(r"^\| (\d+) \| `(\w+)` \|", table, re.MULTILINE)}
    assert rows == {str(DONE): "done", str(BAD_INPUT): "failed", str(STOPPED_EARLY): "stopped", "1": "failed"}


def test_the_readme_s_needs_are_those_of_the_plan():
    """Memory and hours of a recipe on 1, 2 and 8 nodes."""
    planned: dict[str, list[list[str]]] = {}
    for row in re.findall(r"^\| ((?:llada2|wedlm)\w*, [\w-]+) \|(.*)\|$", PLAN, re.MULTILINE):
        cells = [cell.strip() for cell in row[1].split("|")]
        planned.setdefault(row[0], []).append([cells[2], cells[7]])
    shown = re.findall(r"^\| `(\w+)`(, [\w-]+) \| 1x8 / 2x8 / 8x8 \| (.*) \| (.*) \|$", README, re.MULTILINE)
    assert {name + strategy for name, strategy, *_ in shown} == planned.keys()
    for name, strategy, *cells in shown:
        assert [cell.split(" / ") for cell in cells] == [
            list(column) for column in zip(*planned[name + strategy], strict=True)
        ]


def test_what_was_measured_is_in_the_page_on_speed():
    speed = (launch.ROOT / "docs/speed.md").read_text()
    measured, gb, planned = re.search(r"\*\*Measured\*\*.*?within (\d)%", README, re.DOTALL), 75.2, 72.4
    assert f"{gb} GB at the peak" in speed and f"that is {planned} for" in speed
    assert gb / planned - 1 <= int(measured[1]) / 100
    assert "15 to 17% MFU" in README and "| 220 (1.4) |" in speed and "220 tokens/s" in README


def test_every_page_is_listed():
    listed = (launch.ROOT / "docs/README.md").read_text()
    assert all(f"]({page.name})" in listed for page in PAGES if page.parent.name == "docs" and page.name != "README.md")


def test_the_citation_is_the_paper_s():
    cited = (launch.ROOT / "CITATION.cff").read_text()
    title = re.search(r"title += \{(.*)\}", README)[1]
    assert title in cited and "2604.26951" in cited


def test_fields_of_a_score():
    """TASK.json has what docs/evaluation.md says of it, and nothing else (what programs of a code task came to apart)."""
    table = (launch.ROOT / "docs/evaluation.md").read_text().split("| field | meaning |")[1].split("\n\n")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    parts = {field.name for part in (Score, Generation, Provenance) for field in fields(part)}
    assert named == parts - {"generation", "programs", "provenance"}


def test_the_benchmarks_decoding():
    page = (launch.ROOT / "docs/benchmarks.md").read_text()
    rows = re.findall(r"^\| (\w+) \|.*\| (\d+) / (\d+) / (\d+) \|", page, re.MULTILINE)
    assert len(rows) == 8
    for task, *numbers in rows:
        config = preset("paper", 32, task=task)
        assert list(map(int, numbers)) == [config.max_new_tokens, config.steps, shots("paper", task)], task
