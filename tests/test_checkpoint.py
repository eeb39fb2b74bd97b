"""Checkpoints and aligned datasets, file by file: what is damaged is found; what is kept is the newest and the best."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.alignment.manifest import load_manifest
from pipeline.alignment.shards import ShardRecord
from pipeline.core.checkpoint_files import complete_checkpoints, damaged_file, step_name
from pipeline.core.checksums import damaged_files, read_record
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json
from pipeline.distributed.topology import Topology
from pipeline.training.checkpoint import best_step, newest_intact, prune
from tests import tiny

pytestmark = pytest.mark.launch

ALONE = Topology(0, 1, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A finished run of one rank with four checkpoints, in place/run, and its aligned dataset."""
    folder = tmp_path_factory.mktemp("place")
    tiny.train(tiny.make(folder), folder / "run", 1, "--checkpoint.formats", '["transformers"]')
    return folder


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A copy of the run."""
    return shutil.copytree(place / "run", tmp_path / "run")


# The corruption table

DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "shortened": lambda data: data[:-2],
    "emptied": lambda data: b"",
    "first bit flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "middle bit flipped": lambda data: flipped(data, len(data) // 2),
    "last bit flipped": lambda data: flipped(data, len(data) - 1),
    "missing": lambda data: None,
}


def flipped(data: bytes, place: int, bit: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


@contextmanager
def damaged(path: Path, how: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """The file with this damage, and afterwards as it was."""
    data = path.read_bytes()
    worse = how(data)
    path.unlink()
    if worse is not None:
        path.write_bytes(worse)
    try:
        yield
    finally:
        path.write_bytes(data)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", DAMAGE)
def test_every_file_of_a_checkpoint(place, how):
    checkpoint = complete_checkpoints(place / "run")[-1]
    names = [str(path.relative_to(checkpoint)) for path in files(checkpoint)]
    assert {"COMPLETE", "state/rank-00000-of-00001.safetensors", "export/model.safetensors"} <= set(names)
    assert "export-transformers/model.safetensors" in names
    assert damaged_file(checkpoint) is None
    for name in names:
        with damaged(checkpoint / name, DAMAGE[how]):
            # the model card may be written again (evaluation adds scores), and no program reads it
            found = damaged_file(checkpoint)
            assert (found is None) == name.endswith("/README.md") and (found in (name, None) or name == "COMPLETE")
            if (name, how) == ("COMPLETE", "missing"):
                assert checkpoint not in complete_checkpoints(place / "run")


def test_every_byte_of_complete(place):
    """A flipped bit is found, or it is in a fact that nobody acts on."""
    checkpoint = complete_checkpoints(place / "run")[-1]
    data = (checkpoint / "COMPLETE").read_bytes()
    facts = json.loads(data)
    harmless = 0
    for n in range(len(data)):
        with damaged(checkpoint / "COMPLETE", lambda data, n=n: flipped(data, n, 1 << n % 8)):
            if damaged_file(checkpoint) is None:
                now = json.loads((checkpoint / "COMPLETE").read_text())
                assert (now["step"], now["files"]) == (facts["step"], facts["files"])
                harmless += 1
    assert harmless < len(data) / 10  # spaces, seconds, the number of ranks


@pytest.mark.parametrize("how", DAMAGE)
def test_every_file_of_an_aligned_dataset(place, how):
    folder = place / "aligned"
    manifest = load_manifest(folder)
    found = files(folder)
    assert len(found) == 1 + 2 * len(manifest.shards) and len(manifest.shards) == 4
    for path in found:
        key = json.loads(path.with_suffix(".json").read_text())["key"]
        with damaged(path, DAMAGE[how]):
            if path.suffix == ".arrow":
                assert damaged_files(folder, manifest.shards) == [path.name]
            elif path.name == "manifest.json":
                with pytest.raises(BadInput, match=r"manifest.json|no aligned dataset") as error:
                    load_manifest(folder)
                assert "\n" not in str(error.value)
            else:  # a shard's record: align builds the shard again
                assert read_record(folder, path.with_suffix(".arrow").name, key, ShardRecord) is None
        if path.name.endswith("0.json"):
            assert read_record(folder, path.with_suffix(".arrow").name, key, ShardRecord)


def test_every_byte_of_a_manifest(place):
    path = place / "aligned/manifest.json"
    data, manifest = path.read_bytes(), load_manifest(place / "aligned")
    for n in range(0, len(data), 3):
        with damaged(path, lambda data, n=n: flipped(data, n, 1 << n % 8)):
            try:
                assert load_manifest(place / "aligned") == manifest  # a space
            except BadInput as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"format": 1}'])
def test_a_manifest_that_is_none(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match="run `python pipeline/align"):
        load_manifest(tmp_path)


# Which one a run goes on from


def test_the_newest_intact_one_is_taken_and_damaged_ones_are_set_aside(run, capsys):
    found = complete_checkpoints(run)
    assert [place.name for place in found] == [step_name(n) for n in (2, 4, 6, 8)]
    assert newest_intact(run, ALONE) == found[-1]
    for place, name in ((found[-1], "state/rank-00000-of-00001.safetensors"), (found[-2], "export/config.json")):
        (place / name).write_bytes(b"")
    left = [run / "checkpoints" / name for name in (".writing-step-00000010", ".pruned-step-00000001")]
    for folder in left:
        folder.mkdir()
    assert newest_intact(run, ALONE) == found[1]
    warned = capsys.readouterr().out.splitlines()
    assert [line[9:].split(" is damaged")[0] for line in warned] == [
        f"WARNING {found[-1]}/state/rank-00000-of-00001.safetensors",
        f"WARNING {found[-2]}/export/config.json",
    ]
    assert all("going on from step-00000004" in line for line in warned)
    assert complete_checkpoints(run) == found[:2] and not any(folder.exists() for folder in left)
    assert (run / "checkpoints/damaged-step-00000008").is_dir()


def test_without_an_intact_one_nothing_is_touched(run):
    for place in complete_checkpoints(run):
        (place / "COMPLETE").write_text("{")
    with pytest.raises(BadInput, match=r"no checkpoint is intact .*step-00000008/COMPLETE.*step-00000002/COMPLETE\)"):
        newest_intact(run, ALONE)
    assert len(complete_checkpoints(run)) == 4
    shutil.rmtree(run / "checkpoints")
    assert newest_intact(run, ALONE) is None


# What is kept


def kept(run: Path, keep: int) -> list[int]:
    prune(run, keep)
    return [int(place.name[-8:]) for place in complete_checkpoints(run)]


def test_the_last_ones_and_the_best_by_validation_are_kept(run):
    losses = {line["step"]: line["loss"] for line in tiny.lines(run) if line["kind"] == "validation"}
    assert losses.keys() == {4, 8} and best_step(run) == min(losses, key=losses.get)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "step": 3, "loss": -2}\n{"kind": "validation", "step": 4, "loss": -1}\n')
    assert kept(run, 3) == [4, 6, 8] and kept(run, 1) == [4, 8]


def test_the_best_by_evaluation_comes_first(run):
    write_json(run / "evaluation/best.json", {"step": 2})
    assert kept(run, 1) == [2, 8]
    (run / "evaluation/best.json").write_text("{")
    assert best_step(run) is None and kept(run, 1) == [8]
