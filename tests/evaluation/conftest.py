"""Fixtures of the tests of evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline import evaluate
from pipeline.core.checkpoint_files import inventory
from tests.evaluation.tiny import CHAT, ROWS, SUMS, TASKS


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", pad_token="<p>", mask_token="<m>")
    fast.add_special_tokens({"additional_special_tokens": ["<u>", "<a>"]})
    fast.chat_template = CHAT
    return fast


@pytest.fixture(scope="module")
def model(tokenizer) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, mask_token_id=tokenizer.mask_token_id, block_size=4,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer) -> Path:
    """The tiny model as a folder that knows of no run."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def task_file(tmp_path) -> Path:
    """The demo's task on four problems of our own, as a user would write it."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = tmp_path / "four_sums.yaml"
    shipped = str(TASKS / "demo_arithmetic.yaml")
    file.write_text(yaml.safe_dump({"include": shipped, "task": "four_sums", "dataset_kwargs": {"path": str(data)}}))
    return file


@pytest.fixture
def choice_file(tmp_path) -> Path:
    """The same problems as a choice among all four sums, by log-likelihood."""
    rows = [{"question": row["messages"][0]["content"], "gold": i} for i, row in enumerate(ROWS)]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "choose.yaml"
    task = {
        "task": "choose", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "choices.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "gold",
        "doc_to_choice": SUMS, "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(task))
    return file


@pytest.fixture
def run_dir(tmp_path, model, tokenizer, task_file) -> Path:
    """A run directory with two complete checkpoints, one incomplete one and the recipe beside it."""
    for step in (3, 20, 40):
        export = tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "export"
        model.save_pretrained(export)
        tokenizer.save_pretrained(export)
        if step < 40:
            (export.parent / "COMPLETE").write_text(json.dumps({"step": step, "files": inventory(export.parent)}))
    recipe = {
        "name": "tiny", "run_dir": str(tmp_path / "run"), "student": {"path": str(export)}, "optim": {"steps": 1},
        "evaluation": {"tasks": [str(task_file)], "preset": "smoke", "batch_size": 2},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "run"


@pytest.fixture
def command(monkeypatch) -> Callable[..., int]:
    """Runs `evaluate` in this process; gives its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
        return evaluate.command()

    return run


@pytest.fixture
def stage(command, run_dir) -> Callable[..., int]:
    """The same, with the recipe beside the run."""
    return partial(command, "--recipe", run_dir.parent / "recipe.yaml")
