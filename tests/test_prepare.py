"""The paper's recipes name their data in full: prepared and aligned here from small tables of the same schema."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from pipeline import align, prepare
from pipeline.alignment.manifest import RowCounts, load_manifest
from pipeline.config.cli import parse, parser
from pipeline.core.files import read_json
from tests.alignment_stage import ROWS, opencoder_rows, write_hub

CHATS = [row | {"source": "x"} for row in ROWS]
HUB = {
    "allenai/tulu-3-sft-mixture": {"default": {"train": [row | {"id": "x"} for row in CHATS]}},
    "HuggingFaceTB/smoltalk": {"all": {"train": CHATS, "test": CHATS[:9]}, "other": {"train": CHATS[:1]}},
    "OpenCoder-LLM/opc-sft-stage1": {name: {"train": opencoder_rows(name, 100)} for name in ("infinity", "diverse")},
    "OpenCoder-LLM/opc-sft-stage2": {name: {"train": opencoder_rows(name, 60)} for name in ("educational", "evol")},
}


@pytest.fixture
def run_stage(tmp_path, monkeypatch, run_command):
    """Runs a stage of a recipe whose hub is a folder; gives its exit code, output and errors."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "120")
    return lambda stage, recipe, *words: run_command(stage, "--recipe", recipe, "--run_dir", tmp_path / "run", *words)


@pytest.mark.parametrize("name", ["llada2_mini", "wedlm_8b", "two_teachers"])
def test_the_data_of_the_paper_s_recipes(run_stage, tmp_path, align_tokenizers, name):
    recipe = parse(parser(""), ["--recipe", name])[0]
    for path, configurations in HUB.items():
        write_hub(tmp_path / path, configurations)
    sources = [asdict(source) | {"path": str(tmp_path / source.path)} for source in recipe.data.sources]
    validation = asdict(recipe.data.validation) | {"path": str(tmp_path / recipe.data.validation.path), "rows": 5}
    data = ["--data.sources", json.dumps(sources), "--data.validation", json.dumps(validation)]
    code, out, _ = run_stage(prepare, name, *data)
    assert code == 0 and out.count("messages") == 3 and out.count("alpaca") == 2
    assert read_json(tmp_path / "run/status/prepare.json")["state"] == "done"
    words = ["--data.aligned", str(tmp_path / "aligned"), "--processes", "1", "--teachers", "[]"]
    assert run_stage(align, name, *data, *words, "--student.tokenizer", str(align_tokenizers / "student"))[0] == 0
    manifest = load_manifest(tmp_path / "aligned")
    first, second = (data.content.rows for data in manifest.inputs.sources[2:])
    assert 0 < first <= 100 and 0 < second <= 60  # half of the answers name Python, and 5% are held out
    assert manifest.rows["train"] == RowCounts(80 + first + second, 80 + first + second, {}, 0, 0)
    assert manifest.rows["validation"].kept == 5


def test_bad_rows_are_named_or_counted(run_stage, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"messages": 1}]))
    words = ["--data.sources", json.dumps([{"path": str(tmp_path / "rows.jsonl"), "name": "mine"}])]
    words += ["--data.validation", "null"]
    code, _, error = run_stage(prepare, "demo", *words)
    assert code == 2 and "rows.jsonl: row 40 (line 41): no `messages`" in error and error.count("\n") == 1
    code, out, _ = run_stage(prepare, "demo", *words, "--data.on_bad_row", "drop")
    assert code == 0 and "1 no_messages" in out
