"""Tasks that cannot be loaded are refused in one line."""

from __future__ import annotations

from functools import partial

import pytest
import yaml

from pipeline.core.errors import BadInput
from pipeline.evaluation import lm_eval_tasks
from pipeline.evaluation.lm_eval_tasks import load_tasks
from pipeline.evaluation.tasks.utils import chat_rows


def test_missing_data_is_bad_input(task_file) -> None:
    (task_file.parent / "rows.jsonl").unlink()
    with pytest.raises(BadInput, match="rows.jsonl"):
        load_tasks([str(task_file)])
    with pytest.raises(BadInput, match="no file"):
        chat_rows("nowhere.jsonl", version=1.0)


def test_tasks_that_run_code_are_refused(task_file) -> None:
    task_file.write_text(yaml.safe_dump(yaml.safe_load(task_file.read_text()) | {"unsafe_code": True}))
    with pytest.raises(BadInput, match="runs generated code"):
        load_tasks([str(task_file)])


def test_unknown_task_lists_the_known(monkeypatch) -> None:
    ours_alone = partial(lm_eval_tasks.TaskManager, include_defaults=False)  # the harness's take seconds
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", ours_alone)
    with pytest.raises(BadInput, match="unknown nope; here are .*demo_arithmetic"):
        load_tasks(["nope"])
