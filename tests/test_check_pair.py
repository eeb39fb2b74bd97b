"""What `check_pair` says before anything is bought."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline import check_pair
from tests import tiny
from tests.test_causal_teachers import write

CHAT = [{"role": "user", "content": "What is 12 plus 34?"}, {"role": "assistant", "content": "The sum is 46."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    tiny.write_models(folder)
    (folder / "rows.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 12)
    return folder


@pytest.fixture
def look(folder, run_command):
    """Exit code, and what was printed, in one line."""

    def look(*words: str, teacher: str = "teacher") -> tuple[int, str]:
        code, *printed = run_command(check_pair, "--student", folder / "student", "--teacher", folder / teacher, *words)
        return code, " ".join("".join(printed).split())

    return look


def test_a_pair_across_tokenizers(folder, look):
    code, text = look("--data", str(folder / "rows.jsonl"))
    assert code == 0
    for words in (
        "Qwen3, trained with block, full, causal",
        "LLaDA2, trained with block, full",
        "none: CALM, over chunks",
        "12 of 12 can be used",
        "chunks of one token on both sides",
        "answers' tokens outside of chunks",
        "not measured: no weights",
    ):
        assert words in text, words


def test_a_causal_teacher_of_the_same_tokenizer(folder, tmp_path, look):
    """With weights, which are random here: it is no teacher."""
    shutil.copytree(folder / "student", folder / "ar")
    for file in write(tmp_path / "w", "qwen3", **tiny.MODEL).iterdir():
        shutil.copy(file, folder / "ar")
    words = ("--input", "causal", "--data", str(folder / "rows.jsonl"))
    code, text = look(*words, teacher="ar")
    assert "ids: KL" in text and "nats per token, 15% masked" in text
    assert code == 2 and "check its tokenizer, template and `--input`" in text


def test_what_cannot_work(folder, look):
    config = folder / "teacher" / "config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"vocab_size": 100, "eos_token_id": 5}))
    code, text = look()
    config.write_text(json.dumps(raw))
    assert code == 2 and "the model 100 embeddings" in text
    assert "its config.json with [5], as a base model's" in text
    code, text = look("--input", "causal")
    assert code == 2 and "is a diffusion model here" in text
