"""Recipes and engine settings: typed, explained, overridable; what cannot run is refused by name."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import shlex
import typing
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pipeline import align, distill, evaluate, plan, report
from pipeline.config import recipe
from pipeline.config.checks import advice
from pipeline.config.cli import RECIPES, parse, parser
from pipeline.config.recipe import Recipe, Source, dump
from pipeline.core.errors import BadInput
from pipeline.evaluation.presets import PRESETS
from pipeline.method.strategies import STRATEGIES
from pipeline.training.engine import RECIPE_OWNS, read_engine_config, student_dtype, zero_stage
from tests import launch

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
ENGINES = sorted((launch.ROOT / "ds_configs").glob("*.json"))
LEAST = "name: least\nstudent: {path: s}\noptim: {steps: 1}\n"


made = cache(parser)  # a tenth of a second


def read(*words: object) -> Recipe:
    return parse(made(""), [str(word) for word in words])[0]


def refused(*words: object) -> str:
    """The message, of one line."""
    with pytest.raises(BadInput) as error:
        read(*words)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "recipe.yaml").write_text(text)
        return tmp_path / "recipe.yaml"

    return write


# Reading


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_read_and_written_back(name, write):
    found = read("--recipe", name)
    assert read("--recipe", RECIPES / f"{name}.yaml") == found
    assert read("--recipe", write(dump(found))) == found
    assert found.evaluation.preset in PRESETS
    assert found.run_dir == f"runs/{found.name}" and found.data.aligned == f"runs/aligned/{found.name}"


def test_a_recipe_takes_what_it_does_not_name_from_the_one_it_extends(write):
    found = read("--recipe", write("name: x\nextends: llada2_mini\nobjective: {temperature: 5.0}\n"))
    base = read("--recipe", "llada2_mini")
    assert (found.name, found.objective.temperature, base.objective.temperature) == ("x", 5.0, 2.0)
    assert (found.teachers, found.student, found.optim, found.extends) == (base.teachers, base.student, base.optim, "")
    assert read("--recipe", write("extends: llada2_mini\nteachers: []\n")).teachers == []


def test_a_recipe_that_extends_itself_or_nothing_is_refused(write):
    assert "extends itself" in refused("--recipe", write(f"extends: {write('')}\n"))
    assert "no recipe 'nowhere'" in refused("--recipe", write("extends: nowhere\n"))


def test_the_published_command_differs_from_the_paper_in_these_settings():
    paper, published = (read("--recipe", name) for name in ("llada2_mini", "llada2_mini_published"))
    assert (paper.objective.temperature, paper.optim.epochs, paper.data.maskable) == (2.0, 10, "all")
    assert (published.objective.temperature, published.optim.epochs, published.data.maskable) == (5.0, 2, "last")
    assert (published.teachers, published.student) == (paper.teachers, paper.student)


@pytest.mark.parametrize(
    "text", ["yes", "null", "1.5", "~", " x", "a: b", "[x]", "#c", "'q'", "a\nb", "日本", "2024-01-01"]
)
def test_any_text_survives_the_dump(write, text):
    found = read("--recipe", write(LEAST))
    found.data.sources = [Source("p", "n", licence=text)]
    assert read("--recipe", write(dump(found))) == found


@pytest.mark.parametrize(
    "words", [["{r}", "{o}"], ["{o}", "{r}"], ["{o}", "--recipe={f}"], ["--recipe", "demo", "{o}", "{r}"]]
)
def test_overrides_win_wherever_the_recipe_is_typed(words, write):
    file = write(LEAST + "teachers: [{name: a, path: p, length: 7}, {name: b, path: q, tokenizer: t, length: 8}]\n")
    spelled = {
        "{r}": ["--recipe", file],
        "{o}": ["--optim.steps", "5", "--teachers.length=9"],
        "--recipe={f}": [f"--recipe={file}"],
    }
    found = read(*(w for word in words for w in spelled.get(word, [word])))
    assert (found.name, found.optim.steps) == ("least", 5)
    assert [(t.path, t.tokenizer, t.length) for t in found.teachers] == [("p", "p", 7), ("q", "t", 9)]


def test_lists_and_options_can_be_emptied_and_replaced(write):
    file = write(LEAST + "teachers: [{name: a, path: p}]\ndata: {validation: {path: v}}\n")
    found = read("--recipe", file, "--teachers", "[]", "--data.validation", "null")
    assert (found.teachers, found.data.validation) == ([], None)
    two = read("--recipe", file, "--teachers", "[{name: x, path: y, length: 5}, {name: z, path: w}]").teachers
    assert [(t.name, t.tokenizer, t.length) for t in two] == [("x", "y", 5), ("z", "w", 1024)]


BAD_FILES = {
    "name: [": "parsing",
    "- 1\n": "Unexpected config",
    "": "Unexpected config",
    "\xff": "can't decode",
    "name: x\n": "required: student.path",
    LEAST + "optin: {lr: 1}\n": "optin",
    LEAST + "data: {sead: 1}\n": "'sead'",
    LEAST + "teachers: [{name: a, path: b, lenght: 3}]\n": "'lenght'",
    LEAST + "teachers: [{name: a}]\n": "required: path",
    LEAST + "teachers: {name: a}\n": '"teachers": Expected a list',
    LEAST + "data: {seed: x}\n": '"data.seed": Expected a int. Got value: x',
    LEAST + "data: {seed: 1}\ndata: {student_length: 64}\n": "'data' stands twice",
    LEAST + "data: {seed: 1, seed: 2}\n": "'seed' stands twice",
    LEAST + "teachers:" + " [" * 2000: "recursion",
    LEAST + "a: &a {a: *a}\n": "stand for more than",
    "name: &a [x, x]\n"
    + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in pairwise("abcdefgh")): "stand for more than",
    LEAST.replace("least", "3"): '"name": Expected a str',
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_files_name_the_file_and_the_fault(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode("latin-1"))
    message = refused("--recipe", file)
    assert BAD_FILES[text] in message and f"(recipe {file} and its overrides; --help explains" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe nowhere", "no recipe 'nowhere': give a YAML file or one of code, demo"),
        ("--recipe", "no recipe ''"),
        ("--optim.lrr 1", "unrecognized arguments: --optim.lrr"),
        ("--opt.lr 1", "unrecognized arguments"),
        ("word", "word is no run directory"),
        ("--optim.lr fast", '"optim.lr": Expected a float. Got value: fast'),
        ("--optim.lr nan", "nan"),
        ("--optim.lr 1e999", "optim.lr is inf: numbers must be finite and below 1e+12"),
        ("--optim.steps 9000000000000000000000 --teachers.weight 1e300", "teachers.0.weight is 1e+300; optim.steps is 90000000000000000000: numbers"),
        ("--optim.steps 1.5", '"optim.steps"'),
        ("--evaluation.limit 0 --evaluation.likelihood_samples 2", "evaluation.limit is 0, must be above 0; evaluation.likelihood_samples is 2, must be a positive multiple of 4"),
        ("--optim.betas [1]", '"optim.betas": Expected a tuple with 2 elements'),
        ("--student.eos_tail maybe", '"student.eos_tail": Expected a bool'),
        ("--data.validation.rows x", '"rows": Expected a int'),
        ("--objective.strategy magic", "Expected a Literal['tide_cross', 'tide_shared', 'calm'"),
        ("--teachers.dtype float16", "Literal['float32', 'bfloat16']. Got value: float16"),
        ("--teachers.expert_parallel_size some", '"expert_parallel_size"'),
        ("--name=", "name is empty"),
        ("--name a/../../b", "name 'a/../../b' is no plain name: it names the run directory"),
        ("--name ..", "name '..' is no plain name"),
        ("--student.block_size 0", "student.block_size is 0, must be above 0"),
        ("--student.block_size 9 --data.student_length 8", "student.block_size 9 is above data.student_length 8"),
        ("--optim.global_batch 0 --optim.lr 0", "optim.lr is 0.0, must be above 0; optim.global_batch is 0"),
        ("--optim.steps 0", "optim.steps is 0, must be above 0"),
        ("--optim.steps 1 --optim.epochs 1", "give optim.steps or optim.epochs"),
        ("--optim.steps null", "give optim.steps or optim.epochs"),
        ("--optim.warmup 1.1", "optim.warmup is 1.1, must be between 0 and 1"),
        ("--optim.betas [0.9,1]", "optim.betas[1] is 1.0, must be at least 0 and below 1"),
        ("--optim.weight_decay -1", "optim.weight_decay is -1.0, must be 0 or more"),
        ("--data.seed -1", "data.seed is -1, must be 0 or more"),
        ("--data.validation.rows 0", "data.validation.rows is 0, must be above 0"),
        ("--objective.temperature 0", "objective.temperature is 0.0, must be above 0"),
        ("--objective.t_range [0.5,0.3]", "objective.t_range is [0.5, 0.3], must be two rising numbers above 0 and at most 1"),
        ("--objective.teacher_floor 0.5", "objective.teacher_floor is 0.5, must be above 0 and below 0.5"),
        ("--objective.teacher_floor 0", "objective.teacher_floor is 0.0, must be above 0 and below 0.5"),
        ("--objective.cross_entropy_weight 0 --teachers []", "no loss has a weight"),
        ("--teachers.length 0", "teachers.llada2.length is 0, must be above 0"),
        ("--teachers+ '[{name: llada2, path: x}]'", "teachers need different names, not ['llada2', 'llada2']"),
        ("--teachers.name a-b", "teacher name 'a-b': letters, digits and _"),
        ("--student.eos_tail true --student.input full", "student.eos_tail fills blocks: it needs student.input block"),
    ],
)  # fmt: skip
def test_bad_overrides_name_the_field_and_the_fault(words, message):
    assert message in refused(*shlex.split(words))


@pytest.mark.parametrize("strategy", typing.get_args(recipe.Strategy))
def test_tidal_with_a_reverse_objective_is_advised_against_by_name(strategy):
    found = read("--objective.strategy", strategy)
    told = [f"objective.strategy {strategy}: TIDAL with a reverse objective"]
    advised = [line.split(" is advised")[0] for line in advice(found)]
    assert advised == (told if "reverse" in strategy and "tidal" in strategy else [])
    assert not advice(read("--objective.strategy", strategy, "--teachers", "[]"))


def test_recipes_name_every_strategy():
    assert set(typing.get_args(recipe.Strategy)) == STRATEGIES.keys()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_resolved_recipe_says_whether_compdemo_is_on(strategy):
    def enabled(*words: str) -> bool:
        return yaml.safe_load(dump(read("--objective.strategy", strategy, *words)))["objective"]["compdemo"]["enabled"]

    assert enabled() is STRATEGIES[strategy].compdemo
    assert enabled("--objective.compdemo.enabled", "true") is True
    assert enabled("--objective.compdemo.enabled", "false") is False


# Help


def explanations() -> dict[str, dict[str, str]]:
    """{class: {field: the text under it}} of recipe.py."""
    found = {}
    for node in ast.parse(inspect.getsource(recipe)).body:
        if isinstance(node, ast.ClassDef):
            pairs = [(a, b) for a, b in pairwise(node.body) if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)]
            found[node.name] = {field.target.id: " ".join(text.value.value.split()) for field, text in pairs}
    return found


def shown(capsys, monkeypatch, stage, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "2000")  # no line is broken
    monkeypatch.setattr("sys.argv", ["stage", *words])
    with pytest.raises(SystemExit) as end:
        stage.main()
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("stage", [align, distill, evaluate, report, plan], ids=lambda stage: stage.__name__)
def test_help_explains_every_field(stage, capsys, monkeypatch):
    whole = shown(capsys, monkeypatch, stage, "--help")
    texts, hints = explanations(), {}
    for cls in (getattr(recipe, name) for name in texts if dataclasses.is_dataclass(getattr(recipe, name))):
        hints[cls] = typing.get_type_hints(cls)
    listed = {
        recipe.Teacher: "--teachers.help",
        recipe.Source: "--data.sources.help",
        recipe.Validation: "--data.validation.help",
    }
    for cls, types in hints.items():
        text = shown(capsys, monkeypatch, stage, listed[cls]) if cls in listed else whole
        assert listed.get(cls, "") in whole
        for name, kind in types.items():
            if dataclasses.is_dataclass(kind):
                assert f"{kind.__doc__.splitlines()[0].rstrip('.')}:" in whole
            else:
                assert texts[cls.__name__][name] in text, f"{cls.__name__}.{name}"


# Engine settings


@pytest.mark.parametrize("path", ENGINES, ids=lambda path: path.stem)
def test_shipped_engine_settings_are_deepspeed_s(path):
    config = read_engine_config(path)
    assert zero_stage(config) == {"zero0": 0, "zero1_bf16": 1}.get(path.stem, 3)
    bf16 = path.stem in ("zero1_bf16", "zero3_bf16", "zero3_offload")
    assert (str(student_dtype(config)) == "torch.bfloat16") == bf16


def test_there_are_engine_settings_for_cpu_and_gpu():
    assert {"zero0", "zero1_bf16", "zero3", "zero3_bf16", "zero3_offload"} <= {path.stem for path in ENGINES}


BAD_ENGINES = {
    "{": "not JSON",
    "[]": "not a JSON object",
    '{"zero_optimization": true}': "zero_optimization must be an object",
    '{"zero_optimization": {"stage": 4}}': "stage: Input should be 0, 1, 2, 3",
    '{"zero_optimization": {"stage": 3, "overlap": true}}': "DeepSpeedZeroConfig: overlap: Extra inputs",
    '{"zero_optimization.stage": 3}': "DeepSpeed knows no zero_optimization.stage",
    '{"zero_optimisation": {}}': "DeepSpeed knows no zero_optimisation",
    '{"bf16": {"enabled": "auto"}}': 'sets "auto"',
    '{"bf16": true}': "DeepSpeed refuses it",
    '{"bf16": {"enabled": true}, "fp16": {"enabled": true}}': "DeepSpeed refuses it: bfloat16 and fp16",
    '{"fp16": {"enabled": true}}': "enables fp16: the student is float32 or",
    '{"bf16": {"enabled": true}}': "enables bf16 without ZeRO: set zero_optimization.stage",
    **{
        json.dumps({key: 1}): f"sets {key}: remove it there and set {home} in the recipe"
        for key, home in RECIPE_OWNS.items()
    },
}


@pytest.mark.parametrize("text", BAD_ENGINES)
def test_bad_engine_settings_name_the_file_and_the_fault(tmp_path, text):
    file = tmp_path / "engine.json"
    file.write_text(text)
    with pytest.raises(BadInput) as error:
        read_engine_config(file)
    assert str(file) in str(error.value) and BAD_ENGINES[text] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_missing_engine_settings(tmp_path, name):
    with pytest.raises(BadInput, match=r"no DeepSpeed config .*: ds_configs/ holds the shipped ones"):
        read_engine_config(tmp_path / name)


def test_paths_of_a_recipe_are_of_this_machine(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    path = write(
        "student: {path: ~/model}\nrun_dir: $SCRATCH/run\ndata: {sources: [{path: '${SCRATCH}/a.jsonl'}]}\nextends: demo\n"
    )
    recipe = read("--recipe", path)
    found = recipe.student.path, recipe.student.tokenizer, recipe.run_dir, recipe.data.sources[0].path
    assert found == ("/home/me/model", "/home/me/model", "/scratch/me/run", "/scratch/me/a.jsonl")
    monkeypatch.delenv("SCRATCH")
    assert "path ${SCRATCH}/a.jsonl: this variable is not set on this machine" in refused("--recipe", path)
