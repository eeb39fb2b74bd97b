"""A distillation of random models that takes seconds: what the tests of training, and the drill, run for real."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.run_directory import read_metrics
from tests import launch
from tests.alignment_tokenizers import byte_level, metaspace

MODEL = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,  # dense, then experts
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16}
ODD = "日本語"
"""Only the last training row holds these characters."""


def write_models(folder: Path) -> None:
    """Configs and tokenizers of the student and the teacher, in folders of these names; there are no weights."""
    sides = {
        "student": (byte_level(), {"model_type": "qwen3"}),
        "teacher": (metaspace(), {"model_type": "llada2_moe", **EXPERTS}),
    }
    for name, (tokenizer, config) in sides.items():
        tokenizer.save_pretrained(folder / name)
        (folder / name / "config.json").write_text(json.dumps(MODEL | config))


def make(folder: Path, rows: int = 41, **sections: object) -> Path:
    """A student, a teacher, chat rows, their aligned dataset and a recipe in a folder; returns the recipe."""
    write_models(folder)
    draw = random.Random(0)
    texts = [f"{draw.randint(0, 99)} plus {draw.randint(0, 99)}" + "?" * (n % 7) for n in range(rows - 1)] + [ODD]
    chats = [[{"role": "user", "content": t}, {"role": "assistant", "content": f"{t}: a sum."}] for t in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    recipe = {
        "name": "tiny",
        "data": {
            "sources": [{"path": str(folder / "rows.jsonl"), "name": "sums"}],
            "validation": {"path": str(folder / "rows.jsonl"), "rows": 8},
            "aligned": str(folder / "aligned"),
            "student_length": 100,
        },
        "student": {"path": str(folder / "student"), "weights": "random", "block_size": 8},
        "teachers": [{"name": "llada2", "path": str(folder / "teacher"), "weights": "random", "length": 120}],
        "optim": {"steps": 8, "lr": 0.01, "global_batch": 6, "micro_tokens": 1200},
        "checkpoint": {"every_steps": 2, "keep": 9},
        "logging": {"every_steps": 3, "validate_every": 4},
        **sections,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--recipe", folder / "recipe.yaml", "--run_dir", folder / "align"]
    launch.stage("pipeline/align.py", *words, "--processes", "1", "--shard-rows", "16")
    return folder / "recipe.yaml"


def start(recipe: Path, run_dir: Path, ranks: int, *words: object) -> list[launch.Rank]:
    """Ranks without a launcher, so that nobody ends one when another dies. Output goes to RUN_DIR.rank-N.log."""
    found, port = [], launch.free_port()
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = ["pipeline/distill.py", "--recipe", recipe, "--run_dir", run_dir, *words]
        output = log(run_dir, rank)
        found.append(launch.Rank(command, output, output, place))
    return found


def log(run_dir: Path, rank: int) -> Path:
    """What a rank has printed."""
    return run_dir.with_name(f"{run_dir.name}.rank-{rank}.log")


def finish(ranks: list[launch.Rank], timeout: float = 900) -> list[int]:
    """Exit codes; kills what is left at the end of the time."""
    try:
        return [rank.wait(timeout) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                os.kill(rank.pid, 9)
                rank.wait()


def train(recipe: Path, run_dir: Path, ranks: int, *words: object) -> str:
    """Runs to the end; returns what rank 0 printed."""
    codes = finish(start(recipe, run_dir, ranks, *words))
    text = log(run_dir, 0).read_text()
    assert codes == [0] * ranks, text[-3000:]
    return text


def status(run_dir: Path) -> dict:
    """How distill ended there."""
    return json.loads((run_dir / "status/distill.json").read_text())


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint's whole training state."""
    files = (complete_checkpoints(run_dir)[-1] / "state").glob("*.safetensors")
    return {name: t for file in files for name, t in load_file(file).items() if not name.startswith("metrics.")}


def lines(run_dir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the machine."""
    measured = ("seconds", "tokens_per_second", "memory_gb")
    return [{k: v for k, v in line.items() if k not in measured} for line in read_metrics(run_dir)]


def assert_same(run_dir: Path, other: Path) -> None:
    """Two runs ended alike, to the last bit."""
    ours, theirs = tensors(run_dir), tensors(other)
    assert ours and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines(run_dir) == lines(other)
