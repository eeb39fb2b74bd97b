"""The align stage: sources, shards, restarts, ranks, the manifest and what it refuses."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import align as stage
from pipeline.alignment import shards
from pipeline.alignment.manifest import (
    FORMAT,
    align_command,
    check_manifest,
    load_manifest,
    seal,
    tokenizer_fingerprint,
    verify_shards,
)
from pipeline.alignment.sources import open_rows, read_messages, repeats
from pipeline.alignment.vocabulary import token_bytes
from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import read_json
from tests.alignment_tokenizers import byte_level, metaspace

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} plus 12?"},
            {"role": "assistant", "content": f"It is {n}."},
        ]
    }
    for n in range(40)
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {"student": byte_level(), "same": byte_level(), "teacher": metaspace()}
    for name, tokenizer in made.items():
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def recipe_file(tmp_path, tokenizers) -> Path:
    """A recipe of one source, validation rows and one teacher; its dataset goes to tmp_path/aligned."""
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    fields = {
        "name": "test",
        "run_dir": str(tmp_path / "run"),
        "data": {
            "sources": [{"path": str(tmp_path / "rows.jsonl"), "name": "sums", "licence": "CC0"}],
            "validation": {"path": str(tmp_path / "rows.jsonl"), "rows": 5},
            "aligned": str(tmp_path / "aligned"),
            "student_length": 100,
        },
        "student": {"path": "none", "tokenizer": str(tokenizers / "student")},
        "teachers": [{"name": "llada2", "path": "none", "tokenizer": str(tokenizers / "teacher"), "length": 120}],
        "optim": {"steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def run(recipe_file, monkeypatch, capsys):
    """Runs the stage in this process; gives its exit code, output and errors."""
    monkeypatch.setenv("RANK", "0")

    def align(*overrides: str) -> tuple[int, str, str]:
        words = ["align", "--recipe", str(recipe_file), "--processes", "1", "--shard-rows", "16", *overrides]
        monkeypatch.setattr(sys, "argv", words)
        code = exit_code("align", stage.main)
        return code, *capsys.readouterr()

    return align


def recipe_of(recipe_file: Path, *overrides: str):
    return parse(parser(""), ["--recipe", str(recipe_file), *overrides])[0]


def table(folder: Path, split: str = "train") -> datasets.Dataset:
    shards = [shard for shard in read_json(folder / "manifest.json")["shards"] if shard["split"] == split]
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(folder / s["file"])) for s in shards])


# Sources


def test_every_kind_of_source_gives_the_same_rows(tmp_path):
    jsonl = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=7)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    expected = [row["messages"] for row in ROWS]
    for path in (jsonl, tmp_path / "rows.parquet", tmp_path / "saved", tmp_path / "splits"):
        rows = open_rows(str(path), "train")
        assert rows.count == len(ROWS)
        for start, stop in ((0, 40), (5, 9), (6, 22), (39, 40)):
            assert read_messages(rows, start, stop) == expected[start:stop]
        assert rows.sha256 == open_rows(str(path), "train").sha256


def test_other_fields_and_blank_lines_are_left_out(tmp_path):
    message = {"role": "user", "content": "a", "name": "x"}
    (tmp_path / "rows.jsonl").write_text("\n" + json.dumps({"messages": [message], "id": 1}) + "\n  \n")
    rows = open_rows(str(tmp_path / "rows.jsonl"), "train")
    assert read_messages(rows, 0, 1) == [[{"role": "user", "content": "a"}]]
    assert rows.count == 1 and "row 0 (line 2)" in rows.place(0)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(1.0, [1, 1, 1, 1, 1, 1]), (0.5, [1, 0, 1, 0, 1, 0]), (2.0, [2] * 6), (1.5, [2, 1, 2, 1, 2, 1]), (0.0, [0] * 6)],
)
def test_weights(weight, expected):
    assert repeats(weight, 0, 6).tolist() == expected
    assert repeats(weight, 2, 5).tolist() == expected[2:5]
    assert repeats(0.1, 0, 1000).sum() == 100


GOOD = json.dumps(ROWS[0])
BAD_LINES = {
    '{"messages": [': r"row 1 \(line 2\): not JSON",
    "\xff": "not JSON",
    "[]": "no `messages`",
    '{"text": "x"}': "no `messages`",
    '{"messages": []}': "no `messages`",
    '{"messages": "x"}': "no `messages`",
    '{"messages": ["x"]}': "message 0: role None",
    '{"messages": [{"content": "x"}]}': "message 0: role None",
    '{"messages": [{"role": "bot", "content": "x"}]}': "message 0: role 'bot' is not one of system, user",
    '{"messages": [{"role": "user", "content": "x"}, {"role": "user"}]}': "message 1: content is NoneType",
    '{"messages": [{"role": "user", "content": [{"text": "x"}]}]}': "message 0: content is list",
    '{"messages": [{"role": "user", "content": "\\ud83d"}]}': "half a surrogate pair",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_rows_name_file_and_row(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"{GOOD}\n{line}\n{GOOD}\n".encode("latin-1"))
    with pytest.raises(BadInput, match=BAD_LINES[line]) as error:
        read_messages(open_rows(str(path), "train"), 0, 3)
    assert f"{path}: row 1 (line 2)" in str(error.value) and "\n" not in str(error.value)


def test_unreadable_sources(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "no.parquet").write_text("x")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "text")
    (tmp_path / "nothing").mkdir()
    for name, message in {
        "missing.jsonl": "no file .*missing.jsonl",
        "empty.jsonl": "is empty",
        "no.parquet": "not a Parquet file",
        "text.parquet": "no column `messages`, but text",
        "splits": "no split 'train', but test",
        "text": "no column `messages`, but text",
        "nothing": "cannot read the dataset",
    }.items():
        with pytest.raises(BadInput, match=message) as error:
            open_rows(str(tmp_path / name), "train")
        assert "\n" not in str(error.value)


# What is written


def test_the_dataset_follows_its_contract(run, recipe_file, tmp_path, tokenizers):
    code, out, _ = run()
    assert code == 0 and "reused 0 shards, built 4" in out and "llada2: one to one share" in out
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
    assert manifest["rows"]["train"] == {"read": 40, "kept": 40, "dropped": {}}
    assert manifest["tokens"]["student"] == sum(map(len, rows["input_ids"]))
    assert manifest["sources"][0]["licence"] == "CC0"
    statistics = manifest["statistics"]["llada2"]
    assert statistics["chunks"] == sum(max(ids) + 1 for ids in rows["llada2_chunk_ids"])
    outside = sum(
        m and c < 0 for row in rows for m, c in zip(row["maskable"], row["llada2_student_chunk_ids"], strict=True)
    )
    assert statistics["maskable_outside_chunks_share"] == outside / manifest["tokens"]["maskable"]
    assert [shard["rows"] for shard in manifest["shards"]] == [16, 16, 8, 5]
    assert read_json(tmp_path / "run/status/align.json")["state"] == "done"
    verify_shards(tmp_path / "aligned", manifest)


def test_weighted_sources_are_mixed(run, recipe_file, tmp_path):
    write_jsonl(tmp_path / "more.jsonl", ROWS[:3])
    first = {"path": str(tmp_path / "rows.jsonl"), "name": "half", "weight": 0.5}
    second = {"path": str(tmp_path / "more.jsonl"), "name": "twice", "weight": 2.0}
    assert run("--data.sources", json.dumps([first, second]))[0] == 0
    rows = table(tmp_path / "aligned")
    assert rows["row"] == [*range(0, 40, 2), 0, 0, 1, 1, 2, 2]
    assert rows["source"] == ["half"] * 20 + ["twice"] * 6
    assert load_manifest(tmp_path / "aligned")["rows"]["train"]["kept"] == 26
    assert load_manifest(tmp_path / "aligned")["tokens"]["student"] == sum(map(len, rows["input_ids"]))


def test_batches_do_not_change_the_rows(run, tmp_path, monkeypatch):
    run()
    whole = table(tmp_path / "aligned").to_list()
    shutil.rmtree(tmp_path / "aligned")
    monkeypatch.setattr(shards, "BATCH_ROWS", 7)
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 50)
    run()
    assert table(tmp_path / "aligned").to_list() == whole


def test_no_teacher_and_several(run, recipe_file, tmp_path, tokenizers):
    assert run("--teachers", "[]")[0] == 0
    assert table(tmp_path / "aligned").column_names == ["input_ids", "maskable", "source", "row"]
    teachers = [
        {"name": name, "path": "none", "tokenizer": str(tokenizers / folder), "length": 90}
        for name, folder in (("wedlm", "same"), ("llada2", "teacher"))
    ]
    code, out, _ = run("--teachers", json.dumps(teachers))
    assert code == 0 and "holds another dataset" in out
    rows, manifest = table(tmp_path / "aligned"), load_manifest(tmp_path / "aligned")
    assert rows["wedlm_input_ids"] == rows["input_ids"]
    assert rows["wedlm_chunk_ids"] == rows["wedlm_student_chunk_ids"]
    assert manifest["teachers"]["wedlm"]["shared_vocab"] == len(byte_level())
    assert manifest["teachers"]["llada2"]["shared_vocab"] == 0
    assert manifest["statistics"]["wedlm"]["one_to_one_share"] == 1.0
    check_manifest(manifest, recipe_of(recipe_file, "--teachers", json.dumps(teachers[1:])))  # a subset will do
    assert "reused 4 shards, built 0" in run("--teachers", json.dumps(teachers[1:]))[1]


# Restarts


def test_finished_shards_are_kept(run, tmp_path):
    run()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "aligned").iterdir()}
    assert "reused 4 shards, built 0" in run()[1]
    (tmp_path / "aligned/manifest.json").unlink()  # as if killed
    (tmp_path / "aligned/.shard-00001.arrow.123").touch()
    (tmp_path / "aligned/shard-00001.arrow").unlink()
    (tmp_path / "aligned/shard-00002.arrow").write_bytes(b"damaged")
    (tmp_path / "aligned/validation-00000.json").unlink()
    assert "reused 1 shards, built 3" in run()[1]
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "aligned").iterdir()}
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert after["shard-00000.arrow"] == before["shard-00000.arrow"]


def test_other_settings_replace_the_dataset(run, tmp_path):
    run()
    first = load_manifest(tmp_path / "aligned")["key"]
    code, out, _ = run("--data.student_length", "24", "--student.block_size", "8", "--shard-rows", "40")
    assert code == 0 and f"holds another dataset, with key {first[:12]}" in out
    assert "reused 0 shards, built 2, removed 2 of another dataset" in out
    assert sorted(path.name for path in (tmp_path / "aligned").glob("*.arrow")) == [
        "shard-00000.arrow",
        "validation-00000.arrow",
    ]
    assert max(map(len, table(tmp_path / "aligned")["input_ids"])) == 24


def test_a_bad_row_leaves_no_dataset(run, recipe_file, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:20], {"messages": 1}])
    (tmp_path / "run").mkdir()
    code, _, error = run()
    assert code == 2 and f"align: {tmp_path / 'rows.jsonl'}: row 20 (line 21): no `messages`" in error
    assert not (tmp_path / "aligned/manifest.json").exists()
    assert {path.name for path in (tmp_path / "aligned").iterdir()} == {"shard-00000.arrow", "shard-00000.json"}
    assert read_json(tmp_path / "run/status/align.json")["exit_code"] == 2
    with pytest.raises(BadInput, match=r"no aligned dataset in .*: run `python pipeline/align\.py --recipe"):
        load_manifest(tmp_path / "aligned")


def test_rows_are_dropped_with_a_reason(run, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"messages": [{"role": "user", "content": "Anybody?"}]}])
    assert "1 no_assistant_content" in run()[1]
    assert load_manifest(tmp_path / "aligned")["rows"]["train"] == {
        "read": 41,
        "kept": 40,
        "dropped": {"no_assistant_content": 1},
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.sources", "[]"], "set data.sources"),
        (["--data.sources.weight", "0"], "every weight must be above 0"),
        (["--data.student_length", "3", "--student.block_size", "2"], "no train row is left of 40: 40 prompt_fills"),
        (["--shard-rows", "0"], "--shard-rows must be at least 1"),
        (["--student.tokenizer", "no/such/tokenizer"], "no/such/tokenizer"),
    ],
)
def test_what_cannot_be_aligned(run, tmp_path, overrides, message):
    code, _, error = run(*overrides)
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "aligned/manifest.json").exists()


def test_tokenizers_without_template_or_mask_token(run, tmp_path):
    for lacking, message in ("chat_template", "no chat template"), ("mask_token", "no mask token"):
        tokenizer = byte_level()
        setattr(tokenizer, lacking, None)
        folder = tmp_path / lacking
        tokenizer.save_pretrained(folder)
        if lacking == "mask_token":
            backend = (folder / "tokenizer.json").read_text().replace("<|mask|>", "<|other|>")
            (folder / "tokenizer.json").write_text(backend)
        code, _, error = run("--student.tokenizer", str(folder))
        assert code == 2 and message in error


# The manifest


def test_a_recipe_that_does_not_fit_is_refused(run, recipe_file, tmp_path, tokenizers):
    run()
    manifest = load_manifest(tmp_path / "aligned")
    check_manifest(manifest, recipe_of(recipe_file))
    check_manifest(manifest, recipe_of(recipe_file, "--teachers", "[]", "--data.validation", "null"))
    check_manifest(manifest, recipe_of(recipe_file, "--student.block_size", "16", "--optim.lr", "1"))
    other = {"name": "other", "path": "none", "tokenizer": str(tokenizers / "same"), "length": 9}
    for overrides, difference in {
        ("--data.student_length", "99"): r"student\.length \(aligned: 100, recipe: 99\)",
        ("--teachers.length", "64"): r"teachers\.llada2\.length \(aligned: 120, recipe: 64\)",
        ("--teachers", json.dumps([other])): r"teachers\.other \(aligned: no, recipe: yes\)",
        ("--student.tokenizer", str(tokenizers / "teacher")): r"student\.tokenizer \(aligned: \w{12}, recipe: \w{12}\)",
        ("--data.validation.rows", "7"): r"validation\.rows \(aligned: 5, recipe: 7\)",
        ("--data.sources.weight", "0.5"): r"sources\.0\.weight \(aligned: 1\.0, recipe: 0\.5\)",
    }.items():
        keys = r"has key \w{12}, the recipe \w{12}; they differ in "
        with pytest.raises(BadInput, match=f"{keys}.*{difference}.*: run `python pipeline/align.py"):
            check_manifest(manifest, recipe_of(recipe_file, *overrides))
    write_jsonl(tmp_path / "rows.jsonl", ROWS[:30])
    with pytest.raises(BadInput, match=r"differ in the size of .*rows\.jsonl"):
        check_manifest(manifest, recipe_of(recipe_file))


def test_an_edited_template_changes_the_key(run, recipe_file, tmp_path, tokenizers):
    copy = shutil.copytree(tokenizers / "student", tmp_path / "copy")
    assert tokenizer_fingerprint(str(copy))["sha256"] == tokenizer_fingerprint(str(tokenizers / "student"))["sha256"]
    run()
    manifest = load_manifest(tmp_path / "aligned")
    check_manifest(manifest, recipe_of(recipe_file, "--student.tokenizer", str(copy)))  # the same files elsewhere
    with open(copy / "chat_template.jinja", "a") as file:
        file.write(" ")
    with pytest.raises(BadInput, match=r"student\.tokenizer"):
        check_manifest(manifest, recipe_of(recipe_file, "--student.tokenizer", str(copy)))


def test_a_dataset_of_an_older_format_is_refused(run, tmp_path):
    run()
    file = tmp_path / "aligned/manifest.json"
    fields = json.loads(file.read_text())
    del fields["digest"]
    file.write_text(json.dumps(seal(fields | {"format": FORMAT - 1})))
    with pytest.raises(BadInput, match=rf"has format {FORMAT - 1}, not {FORMAT}: run `python pipeline/align\.py"):
        load_manifest(tmp_path / "aligned")


def test_damaged_shards_are_found(run, tmp_path):
    run()
    manifest, shard = load_manifest(tmp_path / "aligned"), tmp_path / "aligned/shard-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    verify_shards(tmp_path / "aligned", manifest, rank=0, world_size=2)  # shards 0 and 2 only
    with pytest.raises(BadInput, match=r"missing or damaged shard-00001\.arrow: run `python pipeline/align\.py"):
        verify_shards(tmp_path / "aligned", manifest, rank=1, world_size=2)


def test_the_align_command_repeats_recipe_and_overrides():
    words = ["--local_rank=0", "--deepspeed", "z.json", "--recipe", "a b.yaml", "--data.seed=3", "--steps", "4"]
    assert align_command(words) == "python pipeline/align.py --recipe 'a b.yaml' --data.seed=3"


# Processes


def launch(*command: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.launch
def test_worker_processes_and_mpi_ranks_write_the_same_dataset(run, recipe_file, tmp_path):
    run()
    arguments = ["--recipe", str(recipe_file), "--shard-rows", "16", "--data.aligned"]
    workers = launch(sys.executable, "pipeline/align.py", *arguments, str(tmp_path / "two"), "--processes", "2")
    assert workers.returncode == 0, workers.stderr
    assert files(tmp_path / "two") == files(tmp_path / "aligned")
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("no mpirun")
    module = [mpirun, "-n", "2", sys.executable, "-m", "pipeline.align", *arguments]
    ranks = launch(*module, str(tmp_path / "ranks"))
    assert ranks.returncode == 0, ranks.stderr
    assert files(tmp_path / "ranks") == files(tmp_path / "aligned")
    assert ranks.stdout.count("reused 0 shards, built 4") == 1
    assert read_json(tmp_path / "run/status/align.json")["state"] == "done"


@pytest.mark.launch
def test_a_failing_rank_ends_all(recipe_file, tmp_path):
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("no mpirun")
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:20], {"messages": 1}, *ROWS])  # in the second shard: rank 1
    arguments = ["--recipe", str(recipe_file), "--shard-rows", "16"]
    failed = launch(mpirun, "-n", "2", sys.executable, "pipeline/align.py", *arguments)
    assert failed.returncode == 2
    assert failed.stderr.count("row 20 (line 21): no `messages`") == 1 and "Traceback" not in failed.stderr
    assert not (tmp_path / "aligned/manifest.json").exists()


@pytest.mark.launch
def test_a_dataset_that_another_process_builds_is_waited_for(run, recipe_file, tmp_path):
    run("--data.aligned", str(tmp_path / "made"))
    with (tmp_path / ".aligned.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "pipeline/align.py", "--recipe", str(recipe_file), "--shard-rows", "16"]
        waiting = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert "is being built by another process: waiting" in waiting.stdout.readline()
        shutil.copytree(tmp_path / "made", tmp_path / "aligned")
    output, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0 and "reused 4 shards, built 0" in output
