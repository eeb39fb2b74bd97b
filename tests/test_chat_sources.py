"""Sources: kinds of files, their rows by position, weights, and what cannot be read."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.alignment.formats import BadRow
from pipeline.alignment.sources import ChatRows, open_source, repeats
from pipeline.config.recipe import Source
from pipeline.core.errors import BadInput
from tests.alignment_stage import ROWS, opencoder_rows, write_hub, write_jsonl


def opened(path: Path, **fields) -> ChatRows:
    return open_source(Source(str(path), "some", **fields))


def test_every_kind_of_source_gives_the_same_rows(tmp_path):
    jsonl = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=7)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    expected = [row["messages"] for row in ROWS]
    text = jsonl.read_bytes()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "rows.jsonl.zst").write_bytes(pa.compress(text, codec="zstd", asbytes=True))
    (tmp_path / "marked.jsonl").write_bytes(codecs.BOM_UTF8 + text)
    (tmp_path / "array.json").write_text(json.dumps(ROWS))
    (tmp_path / "pretty.json").write_text("\n" + json.dumps(ROWS, indent=2))
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    kinds = "rows.jsonl.gz", "rows.jsonl.zst", "marked.jsonl", "array.json", "pretty.json", "array.json.gz"
    for path in (jsonl, *(tmp_path / name for name in ("rows.parquet", "saved", "splits", *kinds))):
        rows = opened(path)
        assert rows.table.count == len(ROWS) and rows.format == "messages"
        for start, stop in ((0, 40), (5, 9), (6, 22), (39, 40)):
            assert rows.read(start, stop) == expected[start:stop]
        assert rows.table.sha256 == opened(path).table.sha256


PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        ("alpaca", {"instruction": "a", "output": "b"}),
        ("prompt_response", {"prompt": "a", "response": "b"}),
        ("messages", {"messages": json.dumps(PAIR)}),
    ],
)
def test_a_format_is_seen_in_its_columns_or_named(tmp_path, name, row):
    write_jsonl(tmp_path / "rows.jsonl", [row | {"id": 1}])
    pq.write_table(pa.Table.from_pylist([row | {"id": 1}]), tmp_path / "rows.parquet")
    for path in (tmp_path / "rows.jsonl", tmp_path / "rows.parquet"):
        for fields in ({}, {"format": name}):
            rows = opened(path, **fields)
            assert rows.format == name and rows.read(0, 1) == [PAIR]


def test_bad_rows_can_be_dropped_by_reason(tmp_path):
    rows = opened(write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:2], {"text": "x"}, {"messages": PAIR, "tools": ["t"]}]))
    *good, first, second = rows.read(0, 4, on_bad_row="drop")
    assert good == [row["messages"] for row in ROWS[:2]]
    assert isinstance(first, BadRow) and (first.reason, second.reason) == ("no_messages", "tools")


# As OpenCoder's: configurations of instruction, output and columns that differ


@pytest.fixture
def opencoder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return write_hub(tmp_path / "opc", {name: {"train": opencoder_rows(name)} for name in ("one", "two")})


def test_opencoder_as_published(opencoder):
    """All configurations, less 5% (seed 42), then the answers that name Python."""
    every = [answer["content"] for _, answer in opened(opencoder, config="*").read(0, 40)]
    assert every == [f"{name} {n} in {'python' if n % 2 else 'C'}" for name in ("one", "two") for n in range(20)]
    published = datasets.Dataset.from_dict({"output": every}).train_test_split(test_size=0.05, seed=42)["train"][
        "output"
    ]
    kept = opened(opencoder, config="*", holdout=0.05)
    assert [answer["content"] for _, answer in kept.read(0, kept.table.count)] == list(published)
    python = opened(opencoder, config="*", holdout=0.05, contains="python")
    assert [answer["content"] for _, answer in python.read(0, python.table.count)] == [
        answer for answer in published if "python" in answer
    ]
    assert python.table.sha256 != kept.table.sha256


def test_files_can_be_selected_from_too(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = opened(write_jsonl(tmp_path / "rows.jsonl", ROWS), contains="It is 7.")
    assert rows.read(0, rows.table.count) == [ROWS[7]["messages"]]
    with pytest.raises(BadInput, match="no row whose last message contains 'Perl'"):
        opened(tmp_path / "rows.jsonl", contains="Perl")


def test_other_fields_and_blank_lines_are_left_out(tmp_path):
    message = {"role": "user", "content": "a", "name": "x"}
    (tmp_path / "rows.jsonl").write_text("\n" + json.dumps({"messages": [message], "id": 1}) + "\n  \n")
    rows = opened(tmp_path / "rows.jsonl")
    assert rows.read(0, 1) == [[{"role": "user", "content": "a"}]]
    assert rows.table.count == 1 and "row 0 (line 2)" in rows.table.row_label(0)


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
    '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}': "message 0: content is list",
    '{"messages": [{"role": "user", "content": "\\ud83d"}]}': "half a surrogate pair",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_rows_name_file_and_row(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"{GOOD}\n{line}\n{GOOD}\n".encode("latin-1"))
    with pytest.raises(BadInput, match=BAD_LINES[line]) as error:
        opened(path).read(0, 3)
    assert f"{path}: row 1 (line 2)" in str(error.value) and "\n" not in str(error.value)


def test_unreadable_sources(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "no.parquet").write_text("x")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "text")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "wide.jsonl").write_text(json.dumps(ROWS[0]), encoding="utf-16")
    (tmp_path / "list.json").write_text("[1, 2")
    (tmp_path / "no.gz").write_text("x")
    write_jsonl(
        tmp_path / "released.jsonl", [{"input_ids": [1], "labels": [1], "teacher_input_ids": [2], "ranges": []}]
    )
    for name, message in {
        "missing.jsonl": "no file .*missing.jsonl",
        "empty.jsonl": "is empty",
        "no.parquet": "not a Parquet file",
        "text.parquet": "no column `messages`, but text",
        "splits": "no split 'train', but test",
        "text": "no column `messages`, but text",
        "nothing": "cannot read the dataset",
        "wide.jsonl": "is UTF-16: write it as UTF-8",
        "list.json": "begins as a JSON array, but is none",
        "no.gz": "cannot unpack",
        "released.jsonl": r"holds token ids \(input_ids, labels, .*name the datasets that they were made of",
    }.items():
        with pytest.raises(BadInput, match=message) as error:
            opened(tmp_path / name)
        assert "\n" not in str(error.value)
