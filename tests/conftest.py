"""Fixtures of several test files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import settings

from tests import launch

settings.register_profile("here", deadline=None)  # a busy machine is no failure
settings.load_profile("here")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share a worker; files that start several processes come first, since they take longest."""
    launching = {item.path for item in items if item.get_closest_marker("launch")}
    items.sort(key=lambda item: item.path not in launching)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that git knows (or would), and nothing that a run has left behind."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = launch.run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split("\n")
    for name in filter(None, listed):
        if (launch.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(launch.ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    if dist.is_initialized():  # a stage that ran in this process has left its own
        yield
        return
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def align_tokenizers(tmp_path_factory) -> Path:
    """Folders with the tokenizers of a student, of a teacher with the same one, and of another teacher."""
    from tests.alignment_tokenizers import byte_level, metaspace

    folder = tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in {"student": byte_level(), "same": byte_level(), "teacher": metaspace()}.items():
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def align_recipe(tmp_path, align_tokenizers) -> Path:
    """A recipe of one source, validation rows and one teacher; its dataset goes to tmp_path/aligned."""
    from tests.alignment_stage import ROWS, write_jsonl

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
        "student": {"path": "none", "tokenizer": str(align_tokenizers / "student")},
        "teachers": [{"name": "llada2", "path": "none", "tokenizer": str(align_tokenizers / "teacher"), "length": 120}],
        "optim": {"steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def run_command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a stage's console command in this process; gives its exit code, output and errors."""

    def run(stage: ModuleType, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [stage.__name__, *map(str, words)])
        return stage.command(), *capsys.readouterr()

    return run


@pytest.fixture
def run_align(align_recipe, monkeypatch, run_command):
    """Runs the align stage in this process; gives its exit code, output and errors."""
    from pipeline import align

    monkeypatch.setenv("RANK", "0")
    return partial(run_command, align, "--recipe", align_recipe, "--processes", 1, "--shard-rows", 16)
