"""The manifest of an aligned dataset: whether it fits a recipe, is whole, and what it names."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.alignment.fingerprint import FORMAT, tokenizer_fingerprint
from pipeline.alignment.manifest import align_command, check_manifest, load_manifest
from pipeline.core.checksums import add_checksum
from pipeline.core.errors import BadInput
from tests.alignment_stage import ROWS, recipe_of, write_jsonl


def test_a_recipe_that_does_not_fit_is_refused(run_align, align_recipe, tmp_path, align_tokenizers):
    run_align()
    manifest = load_manifest(tmp_path / "aligned")
    check_manifest(manifest, recipe_of(align_recipe))
    check_manifest(manifest, recipe_of(align_recipe, "--teachers", "[]", "--data.validation", "null"))
    check_manifest(manifest, recipe_of(align_recipe, "--student.block_size", "16", "--optim.lr", "1"))
    other = {"name": "other", "path": "none", "tokenizer": str(align_tokenizers / "same"), "length": 9}
    for overrides, difference in {
        ("--data.student_length", "99"): r"student\.length \(aligned: 100, recipe: 99\)",
        ("--teachers.length", "64"): r"teachers\.llada2\.length \(aligned: 120, recipe: 64\)",
        ("--teachers", json.dumps([other])): r"teachers\.other \(aligned: no, recipe: yes\)",
        (
            "--student.tokenizer",
            f"{align_tokenizers}/teacher",
        ): r"student\.tokenizer \(aligned: \w{12}, recipe: \w{12}\)",
        ("--data.validation.rows", "7"): r"validation\.rows \(aligned: 5, recipe: 7\)",
        ("--data.sources.weight", "0.5"): r"sources\.0\.weight \(aligned: 1\.0, recipe: 0\.5\)",
    }.items():
        keys = r"has key \w{12}, the recipe \w{12}; they differ in "
        with pytest.raises(BadInput, match=f"{keys}.*{difference}.*: run `python pipeline/align.py"):
            check_manifest(manifest, recipe_of(align_recipe, *overrides))
    write_jsonl(tmp_path / "rows.jsonl", ROWS[:30])
    with pytest.raises(BadInput, match=r"rows\.jsonl holds other rows than .* was made from: run"):
        check_manifest(manifest, recipe_of(align_recipe))


def test_moved_data_fit_by_their_content(run_align, align_recipe, tmp_path):
    run_align()
    manifest = load_manifest(tmp_path / "aligned")
    moved = recipe_of(align_recipe, "--data.sources.path", str(tmp_path / "new/rows.jsonl"))
    with pytest.raises(BadInput, match=r"no file .*new/rows\.jsonl"):
        check_manifest(manifest, moved)
    (tmp_path / "new").mkdir()
    moved_file = (tmp_path / "rows.jsonl").rename(tmp_path / "new/rows.jsonl")
    check_manifest(manifest, moved)
    check_manifest(manifest, recipe_of(align_recipe))  # the dataset alone was taken along
    here, again = ["--data.sources.path", moved_file, "--data.validation.path", moved_file], tmp_path / "again"
    run_align(*here, "--data.aligned", again)
    assert load_manifest(again).key == manifest.key
    text = moved_file.read_text()
    moved_file.write_text(text.replace("3", "4", 1))
    with pytest.raises(BadInput, match=r"new/rows\.jsonl holds other rows than .* was made from: run"):
        check_manifest(manifest, moved)


def test_an_edited_template_changes_the_key(run_align, align_recipe, tmp_path, align_tokenizers):
    copy = shutil.copytree(align_tokenizers / "student", tmp_path / "copy")
    assert tokenizer_fingerprint(str(copy)).sha256 == tokenizer_fingerprint(str(align_tokenizers / "student")).sha256
    run_align()
    manifest = load_manifest(tmp_path / "aligned")
    check_manifest(manifest, recipe_of(align_recipe, "--student.tokenizer", str(copy)))  # the same files elsewhere
    with open(copy / "chat_template.jinja", "a") as file:
        file.write(" ")
    with pytest.raises(BadInput, match=r"student\.tokenizer"):
        check_manifest(manifest, recipe_of(align_recipe, "--student.tokenizer", str(copy)))


def test_a_dataset_of_an_older_format_is_refused(run_align, tmp_path):
    run_align()
    file = tmp_path / "aligned/manifest.json"
    fields = json.loads(file.read_text())
    del fields["digest"]
    file.write_text(json.dumps(add_checksum(fields | {"format": FORMAT - 1})))
    with pytest.raises(BadInput, match=rf"has format {FORMAT - 1}, not {FORMAT}: run `python pipeline/align\.py"):
        load_manifest(tmp_path / "aligned")


def test_the_align_command_repeats_recipe_and_overrides():
    words = ["--local_rank=0", "--deepspeed", "z.json", "--recipe", "a b.yaml", "--data.seed=3", "--steps", "4"]
    assert align_command(words) == "python pipeline/align.py --recipe 'a b.yaml' --data.seed=3"
