"""The align stage: what is written, and restarts."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest

from pipeline.alignment import shards
from pipeline.alignment.manifest import Manifest, RowCounts, check_manifest, load_manifest
from pipeline.alignment.vocabulary import token_bytes
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import dump
from pipeline.core.checksums import damaged_files
from pipeline.core.errors import BadInput
from pipeline.core.files import read_json
from tests import tiny
from tests.alignment_stage import ROWS, recipe_of, table, write_jsonl
from tests.alignment_tokenizers import byte_level, metaspace


def test_the_dataset_follows_its_contract(run_align, align_recipe, tmp_path, align_tokenizers):
    code, out, _ = run_align()
    assert code == 0 and "reused 0 shards, built 4" in out and "llada2: chunks of one token on both sides" in out
    rows = table(tmp_path / "aligned")
    lists = datasets.List(datasets.Value("int32"))
    assert rows.features == {
        "input_ids": lists,
        "maskable": datasets.List(datasets.Value("bool")),
        "source": datasets.Value("string"),
        "row": datasets.Value("int64"),
        "llada2_input_ids": lists,
        "llada2_chunk_ids": lists,
        "llada2_student_chunk_ids": lists,
    }
    assert rows["row"] == list(range(40)) and set(rows["source"]) == {"sums"}
    assert table(tmp_path / "aligned", "validation")["row"] == list(range(5))
    student, teacher = token_bytes(byte_level()), token_bytes(metaspace())
    for row, source in zip(rows, ROWS, strict=True):
        sides = [
            [[i for i, c in zip(row[ids], row[chunks], strict=True) if c == n] for n in range(max(row[chunks]) + 1)]
            for ids, chunks in (("input_ids", "llada2_student_chunk_ids"), ("llada2_input_ids", "llada2_chunk_ids"))
        ]
        spelled = [b"".join(student[i] for i in chunk) for chunk in sides[0]]
        assert spelled == [b"".join(teacher[i] for i in chunk) for chunk in sides[1]]
        assert b"".join(spelled).decode() == "".join(message["content"] for message in source["messages"])
        answer = [student[i] for i, m in zip(row["input_ids"], row["maskable"], strict=True) if m]
        assert b"".join(answer).decode() == source["messages"][1]["content"] + "<|im_end|>"
    manifest = load_manifest(tmp_path / "aligned")
    assert manifest.rows["train"] == RowCounts(40, 40, {}, 0, 0)
    assert manifest.tokens["student"] == sum(map(len, rows["input_ids"]))
    assert manifest.inputs.sources[0].source.licence == "CC0"
    statistics = manifest.statistics["llada2"]
    assert statistics.chunks == sum(max(ids) + 1 for ids in rows["llada2_chunk_ids"])
    outside = sum(
        m and c < 0 for row in rows for m, c in zip(row["maskable"], row["llada2_student_chunk_ids"], strict=True)
    )
    assert statistics.maskable_outside_chunks_share == outside / manifest.tokens["maskable"]
    assert [shard.rows for shard in manifest.shards] == [16, 16, 8, 5]
    assert read_json(tmp_path / "run/status/align.json")["state"] == "done"
    assert not damaged_files(tmp_path / "aligned", manifest.shards)


def test_weighted_sources_are_mixed(run_align, align_recipe, tmp_path):
    write_jsonl(tmp_path / "more.jsonl", ROWS[:3])
    first = {"path": str(tmp_path / "rows.jsonl"), "name": "half", "weight": 0.5}
    second = {"path": str(tmp_path / "more.jsonl"), "name": "twice", "weight": 2.0}
    assert run_align("--data.sources", json.dumps([first, second]))[0] == 0
    rows = table(tmp_path / "aligned")
    assert rows["row"] == [*range(0, 40, 2), 0, 0, 1, 1, 2, 2]
    assert rows["source"] == ["half"] * 20 + ["twice"] * 6
    assert load_manifest(tmp_path / "aligned").rows["train"].kept == 26
    assert load_manifest(tmp_path / "aligned").tokens["student"] == sum(map(len, rows["input_ids"]))


def test_batches_do_not_change_the_rows(run_align, tmp_path, monkeypatch):
    run_align()
    whole = table(tmp_path / "aligned").to_list()
    shutil.rmtree(tmp_path / "aligned")
    monkeypatch.setattr(shards, "BATCH_ROWS", 7)
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 50)
    run_align()
    assert table(tmp_path / "aligned").to_list() == whole


def test_no_teacher_and_several(run_align, align_recipe, tmp_path, align_tokenizers):
    assert run_align("--teachers", "[]")[0] == 0
    assert table(tmp_path / "aligned").column_names == ["input_ids", "maskable", "source", "row"]
    teachers = [
        {"name": name, "path": "none", "tokenizer": str(align_tokenizers / folder), "length": 90}
        for name, folder in (("wedlm", "same"), ("llada2", "teacher"))
    ]
    code, out, _ = run_align("--teachers", json.dumps(teachers), "--overwrite")
    assert code == 0 and "holds another dataset" in out
    rows, manifest = table(tmp_path / "aligned"), load_manifest(tmp_path / "aligned")
    assert rows["wedlm_input_ids"] == rows["input_ids"]
    assert rows["wedlm_chunk_ids"] == rows["wedlm_student_chunk_ids"]
    assert manifest.inputs.teachers["wedlm"].shared_vocab == len(byte_level())
    assert manifest.inputs.teachers["llada2"].shared_vocab == 0
    assert manifest.statistics["wedlm"].one_to_one_share == 1.0
    check_manifest(manifest, recipe_of(align_recipe, "--teachers", json.dumps(teachers[1:])))  # a subset will do
    assert "reused 4 shards, built 0" in run_align("--teachers", json.dumps(teachers[1:]))[1]


# Restarts


def test_finished_shards_are_kept(run_align, tmp_path):
    run_align()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "aligned").iterdir()}
    assert "reused 4 shards, built 0" in run_align()[1]
    (tmp_path / "aligned/manifest.json").unlink()  # as if killed
    (tmp_path / "aligned/.shard-00001.arrow.123").touch()
    (tmp_path / "aligned/shard-00001.arrow").unlink()
    (tmp_path / "aligned/shard-00002.arrow").write_bytes(b"damaged")
    (tmp_path / "aligned/validation-00000.json").unlink()
    assert "reused 1 shard, built 3" in run_align()[1]
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "aligned").iterdir()}
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert after["shard-00000.arrow"] == before["shard-00000.arrow"]


def test_a_finished_dataset_is_not_replaced_unasked(run_align, tmp_path):
    run_align()
    before = {path.name: path.read_bytes() for path in (tmp_path / "aligned").iterdir()}
    code, _, error = run_align("--data.student_length", "24", "--student.block_size", "8", "--data.maskable", "last")
    assert code == 2 and error.count("\n") == 1
    assert "differs in maskable (aligned: all, recipe: last); student.length (aligned: 100, recipe: 24)" in error
    assert "--overwrite replaces it" in error
    assert {path.name: path.read_bytes() for path in (tmp_path / "aligned").iterdir()} == before
    assert read_json(tmp_path / "run/status/align.json")["state"] == "done"
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:20], {"messages": 1}])
    assert run_align("--overwrite")[0] == 2  # a row shows what is wrong: by then the old dataset is gone
    assert read_json(tmp_path / "run/status/align.json")["state"] == "failed"


def test_rows_that_are_cut_are_counted(run_align, tmp_path):
    run_align()
    assert (load_manifest(tmp_path / "aligned").rows["train"].cut, 0) == (0, 0)
    whole = table(tmp_path / "aligned")["maskable"]
    shorter = ("--data.student_length", "24", "--student.block_size", "8", "--teachers.length", "28")
    _, out, _ = run_align(*shorter, "--overwrite")
    manifest = load_manifest(tmp_path / "aligned")
    lost = sum(sum(row[24:]) for row in whole)
    rows = manifest.rows["train"]
    assert (rows.read, rows.kept, rows.cut, rows.tokens_lost) == (40, 40, sum(any(r[24:]) for r in whole), lost)
    assert rows.cut and f"│ {rows.cut} of 40, {lost} maskable tokens lost" in out
    assert 0 < manifest.statistics["llada2"].rows_cut <= 40
    unknown = manifest.to_json()  # as an older program wrote it
    for counts in unknown["rows"].values():
        del counts["cut"], counts["tokens_lost"]
    assert Manifest.from_json(unknown).rows["train"] == RowCounts(40, 40, {})


def test_other_settings_replace_the_dataset_if_asked(run_align, tmp_path):
    run_align()
    first = load_manifest(tmp_path / "aligned").key
    words = ("--data.student_length", "24", "--student.block_size", "8", "--shard-rows", "40", "--overwrite")
    code, out, _ = run_align(*words)
    assert code == 0 and f"holds another dataset, with key {first[:12]}" in out
    assert "reused 0 shards, built 2, removed 2 of another dataset" in out
    assert sorted(path.name for path in (tmp_path / "aligned").glob("*.arrow")) == [
        "shard-00000.arrow",
        "validation-00000.arrow",
    ]
    assert max(map(len, table(tmp_path / "aligned")["input_ids"])) == 24


def test_a_bad_row_leaves_no_dataset(run_align, align_recipe, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:20], {"messages": 1}])
    (tmp_path / "run").mkdir()
    code, _, error = run_align()
    assert code == 2 and f"align: {tmp_path / 'rows.jsonl'}: row 20 (line 21): no `messages`" in error
    assert not (tmp_path / "aligned/manifest.json").exists()
    assert {path.name for path in (tmp_path / "aligned").iterdir()} == {"shard-00000.arrow", "shard-00000.json"}
    assert read_json(tmp_path / "run/status/align.json")["exit_code"] == 2
    with pytest.raises(BadInput, match=r"no aligned dataset in .*: run `python pipeline/align\.py --recipe"):
        load_manifest(tmp_path / "aligned")


def test_bad_rows_are_dropped_and_counted_if_asked_for(run_align, tmp_path):
    bad = [{"messages": 1}, ROWS[0] | {"tools": [{"name": "f"}]}]
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:20], *bad, *ROWS[20:]])
    assert run_align()[0] == 2
    code, out, _ = run_align("--data.on_bad_row", "drop")
    assert code == 0 and "1 no_messages, 1 tools" in out
    counts = RowCounts(42, 40, {"no_messages": 1, "tools": 1}, 0, 0)
    assert load_manifest(tmp_path / "aligned").rows["train"] == counts
    assert table(tmp_path / "aligned")["row"] == [*range(20), *range(22, 42)]


def test_only_last_answers_if_asked_for(run_align, tmp_path):
    talk = {"messages": [message for row in (ROWS[1], ROWS[1]) for message in row["messages"]]}
    write_jsonl(tmp_path / "rows.jsonl", [talk] * 5)
    maskable = {}
    for setting in ("all", "last"):
        assert run_align("--data.maskable", setting, "--overwrite")[0] == 0
        maskable[setting] = load_manifest(tmp_path / "aligned").tokens["maskable"]
    assert maskable["all"] == 2 * maskable["last"]


def test_the_format_of_every_source_is_shown_and_kept(run_align, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "What is 1?", "completion": "It is 1."}] * 3)
    sources = [{"path": str(tmp_path / f"{name}.jsonl"), "name": name} for name in ("rows", "pairs")]
    code, out, _ = run_align("--data.sources", json.dumps(sources))
    assert code == 0 and "40 rows, messages" in out and "3 rows, prompt_completion" in out
    formats = [data.content.format for data in load_manifest(tmp_path / "aligned").inputs.sources]
    assert formats == ["messages", "prompt_completion"]


def test_the_loss_of_many_rows_is_said_aloud(run_align, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:5], *[{"messages": [{"role": "user", "content": "Anybody?"}]}] * 6])
    assert "WARNING more than half of the train rows are dropped (6 no_assistant_content)" in run_align()[1]
    assert load_manifest(tmp_path / "aligned").rows["train"] == RowCounts(11, 5, {"no_assistant_content": 6}, 0, 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.sources", "[]"], "set data.sources"),
        (["--data.sources.weight", "0"], ".weight is 0.0, must be above 0 and at most 1,000"),
        (["--data.sources.weight", "1001"], ".weight is 1001.0, must be above 0 and at most 1,000"),
        (["--data.sources.path", ""], "cannot read the dataset"),
        (["--data.aligned", "/dev/null"], "data.aligned /dev/null is no folder"),
        (["--data.student_length", "3", "--student.block_size", "2"], "no train row is left of 40: 40 prompt_fills"),
        (["--shard-rows", "0"], "--shard-rows must be at least 1"),
        (["--student.tokenizer", "no/such/tokenizer"], "no/such/tokenizer"),
    ],
)
def test_what_cannot_be_aligned(run_align, tmp_path, overrides, message):
    code, _, error = run_align(*overrides)
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "aligned/manifest.json").exists()


@pytest.mark.parametrize("before", [(), ("--student.eos_tail", "true", "--processes", "1"), ("--quiet",)])
def test_a_run_directory_stands_for_its_recipe(align_recipe, tmp_path, before):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/recipe.yaml").write_text(dump(recipe_of(align_recipe)))
    p = parser("")
    p.add_argument("--processes", type=int)
    found, _ = parse(p, [*before, str(tmp_path / "old"), "--optim.lr=0.5"])
    assert (found.name, found.run_dir, found.optim.lr) == ("test", str(tmp_path / "old"), 0.5)
    found, _ = parse(parser(""), ["--recipe", str(align_recipe), str(tmp_path / "new")])
    assert found.run_dir == str(tmp_path / "new")
    with pytest.raises(BadInput, match="nowhere is no run directory"):
        parse(parser(""), ["nowhere"])


def test_named_templates_without_a_default(run_align, tmp_path):
    tokenizer = byte_level()
    tokenizer.chat_template = {"tool_use": tokenizer.chat_template, "rag": "x"}
    tokenizer.save_pretrained(tmp_path / "named")
    code, _, error = run_align("--student.tokenizer", str(tmp_path / "named"))
    assert code == 2 and "named: chat templates" in error and "but no default" in error


def test_every_side_is_refused_by_name_before_a_row_is_read(run_align, align_recipe, tmp_path):
    (teacher,) = recipe_of(align_recipe).teachers
    place, config = tmp_path / "model", {"model_type": "llada2_moe", **tiny.MODEL, **tiny.EXPERTS}
    place.mkdir()
    for side, path, changes, message in (
        (f"teacher {teacher.name}", "--teachers.path", {"model_type": "bert"}, "model_type 'bert' is none of"),
        (f"teacher {teacher.name}", "--teachers.path", {"max_position_embeddings": 8}, "is beyond the 8 positions"),
        ("student", "--student.path", {"quantization_config": {"bits": 4}}, "the model is quantized"),
        ("student", "--student.path", {"model_type": "sdar_moe"}, "can be a teacher, not a student"),
        ("student", "--student.path", {"vocab_size": 256}, "the model 256 embeddings"),
        (f"teacher {teacher.name}", "--teachers.path", {"vocab_size": 256}, "the model 256 embeddings"),
    ):
        (place / "config.json").write_text(json.dumps(config | changes))
        code, _, error = run_align(path, str(place), "--data.sources.path", "nowhere.jsonl")
        assert code == 2 and error.startswith(f"align: {side}: ") and message in error and error.count("\n") == 1


def test_a_student_without_an_end_token(run_align, tmp_path):
    tokenizer = byte_level()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **tiny.MODEL}))
    words = ("--student.path", str(tmp_path), "--student.tokenizer", str(tmp_path))
    code, _, error = run_align(*words)
    assert code == 2 and "student: " in error and "no end token" in error
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **tiny.MODEL, "eos_token_id": [0, 1]}))
    assert run_align(*words)[0] == 0


def test_a_special_token_beyond_the_embeddings_is_the_template_s_alone(run_align, tmp_path):
    """As Gemma 3's image token, which no content becomes."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path)
    embeddings = max(tokenizer.get_vocab().values())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **tiny.MODEL, "vocab_size": embeddings}))
    assert run_align("--student.path", str(tmp_path), "--student.tokenizer", str(tmp_path))[0] == 0


@pytest.mark.parametrize(("side", "remedy"), [("student", "pipeline/convert.py"), ("teachers", "`input: causal`")])
def test_a_side_without_a_mask_token_is_told_what_helps_it(run_align, tmp_path, side, remedy):
    tokenizer = metaspace()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|mask|>", "<|other|>"))
    code, _, error = run_align(f"--{side}.tokenizer", str(tmp_path))
    assert code == 2 and "no mask token" in error and remedy in error and ("convert" in error) == (side == "student")
