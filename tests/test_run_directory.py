"""Files of a run directory: what is written is what is read."""

from __future__ import annotations

from pipeline.core.files import read_json_lines, write_json_lines


def test_rows_of_text_with_any_separator_are_read_back(tmp_path):
    rows = [{"response": "one\u2028two\u2029three\x85four\x0bfive\nsix\r\nseven"}, {"response": ""}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows
    assert read_json_lines(tmp_path / "none.jsonl") == []
