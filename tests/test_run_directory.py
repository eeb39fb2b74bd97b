"""Files of a run directory: what is written is what is read."""

from __future__ import annotations

import errno
import json
from itertools import count

import pytest

from pipeline.alignment.dataset_lock import dataset_lock
from pipeline.config.recipe import Recipe, Student
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import read_json_lines, write_json_lines
from pipeline.core.run_directory import evaluation_folder, read_metrics
from pipeline.core.stage_status import history_file, read_history, record_status, status_file
from pipeline.core.version import code_version
from pipeline.evaluation.answer_cache import AnswerCache
from pipeline.reporting.run_status import StageStatus, run_state
from pipeline.training.run_lock import run_lock


def test_rows_of_text_with_any_separator_are_read_back(tmp_path):
    rows = [{"response": "one\u2028two\u2029three\x85four\x0bfive\nsix\r\nseven"}, {"response": ""}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_damaged_metrics_are_named_and_left_out(tmp_path, capsys):
    whole = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    lines = [json.dumps(line) for line in whole]
    damaged = [lines[0], "\x07" + lines[1][1:], '{"kin\x00": 1}', "7", lines[2], lines[2][:9]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(damaged))
    assert read_metrics(tmp_path) == [whole[0], whole[2]]
    said = capsys.readouterr().out
    assert all(f"line {number} is damaged" in said for number in (2, 3, 4)) and "line 6" not in said


@pytest.mark.parametrize("label", ["", ".", "..", "../x", "/etc", "a/b", "a\x1b[2J"])
def test_labels_are_plain_names(tmp_path, label):
    assert evaluation_folder(tmp_path, "step-1 (b)") == tmp_path / "evaluation" / "step-1 (b)"
    with pytest.raises(BadInput, match="is no label"):
        evaluation_folder(tmp_path, label)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_place_that_cannot_be_written_is_one_line_in_every_stage(tmp_path, number, capsys):
    def stage():
        with record_status(tmp_path, "report"):
            raise OSError(number, "whatever", "/full/file")

    assert exit_code("report", stage) == 2
    assert capsys.readouterr().err.startswith("report: /full/file: ")
    assert json.loads(status_file(tmp_path, "report").read_text())["exit_code"] == 2
    with pytest.raises(OSError):  # a broken disk is no place to choose better
        exit_code("report", lambda: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))


def test_a_refused_start_leaves_a_stage_done_and_the_history_has_both(tmp_path):
    def stage(error: BaseException | None = None, **words) -> None:
        with record_status(tmp_path, "score", **words) as status:
            if error:
                raise error
            status["message"] = "scored"

    stage()
    cases = [(BadInput("no such label"), {}), (ValueError("a fault"), {}), (BadInput("gone"), {"keeps": bool})]
    for error, words in cases:
        if not words:
            stage()
        with pytest.raises(type(error)):
            stage(error, **words)
        state = json.loads(status_file(tmp_path, "score").read_text())["state"]
        assert state == ("done" if "label" in str(error) else "failed")
    with history_file(tmp_path).open("a") as file:
        file.write('{"cut')
    history = read_history(tmp_path)
    assert [line["event"] for line in history[:6]] == ["started", "done", "started", "done", "started", "failed"]
    assert history[5]["message"] == "BadInput: no such label" and history[5]["time"].endswith("+00:00")
    ended = StageStatus.of({"state": "done", "exit_code": 0, "message": ""}, [*history, history[0]])
    assert ended.starts == 6 and "(6 starts, 0:00:00 in all)" in ended.line
    again = [*history, history[0], *history[:2]]
    assert StageStatus.of({"state": "done", "exit_code": 0, "message": ""}, again).starts == 8


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    said = "{}: its file system has no locks".format
    with pytest.raises(BadInput, match=said(r"aligned\.lock")), dataset_lock(tmp_path / "aligned"):
        pass
    with pytest.raises(BadInput, match=said(r"sums\.answers\.jsonl")):
        AnswerCache(tmp_path, "sums")
    with pytest.raises(BadInput, match=said(r"\.lock")):
        run_lock(Recipe(name="x", student=Student(path="none"), run_dir=str(tmp_path / "run")))
    (tmp_path / ".lock").touch()
    assert run_state(tmp_path) == "not started"


def test_a_clock_that_is_set_back_makes_no_negative_duration(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", count(10**9, -3600).__next__)
    with record_status(tmp_path, "score"):
        pass
    assert json.loads(status_file(tmp_path, "score").read_text())["seconds"] >= 0


def test_without_git_the_version_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_version() is None
