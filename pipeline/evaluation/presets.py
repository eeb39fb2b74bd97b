"""Named decoding presets: every score says which one, and its hash, because decoding settings move scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.config.recipe import Evaluation
from pipeline.core.errors import BadInput
from pipeline.core.files import json_sha256
from pipeline.decoding.canvas import GenerateConfig
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest


@dataclass(frozen=True)
class Preset:
    """Fields of GenerateConfig for every task, what single tasks change, and their numbers of examples."""

    decoding: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shots: Mapping[str, int] = field(default_factory=dict)


# TIDE's evaluation, as scripts/eval_all.sh of the published code runs it: greedy, one token per forward, no guidance.
PAPER = {"max_new_tokens": 256, "steps": 256, "block_size": 32}
LETTERS = {task: {"max_new_tokens": 3, "steps": 3} for task in ("mmlu", "hellaswag")}  # the answer is a letter
SHOTS = {"bbh": 3} | dict.fromkeys(("gsm8k", "math", "mmlu", "mmlu_pro", "hellaswag", "humaneval", "mbpp"), 0)

# Without a block_size or blocks, the model's own. All decode with the key-value cache (the same responses, sooner).
PRESETS: dict[str, Preset] = {
    "paper": Preset({**PAPER, "blocks": "reference"}, LETTERS, SHOTS),
    "fast": Preset({**PAPER, "threshold": 0.9}, LETTERS, SHOTS),  # several tokens per forward where the model is sure
    "demo": Preset({"max_new_tokens": 24, "steps": 24}),
    "smoke": Preset({"max_new_tokens": 8, "steps": 2}, shots=SHOTS),  # whether it runs; scores mean nothing
}


def preset(name: str, block_size: int, *, task: str = "", blocks: str = "training") -> GenerateConfig:
    """The decoding settings of a preset for a task, and a model of that block size and cut.

    Raises BadInput for an unknown name.
    """
    named = _named(name)
    return GenerateConfig(**{"block_size": block_size, "blocks": blocks, **named.decoding, **named.tasks.get(task, {})})


def named_block_size(name: str, task: str = "") -> int | None:
    """The block size that a preset decodes every model with, if it names one."""
    named = _named(name)
    return {**named.decoding, **named.tasks.get(task, {})}.get("block_size")


def shots(name: str, task: str) -> int | None:
    """Examples that a preset puts before each problem of a task; None = as the task says."""
    return _named(name).shots.get(task)


def _named(name: str) -> Preset:
    if name not in PRESETS:
        raise BadInput(f"evaluation.preset {name!r} is unknown: one of {', '.join(PRESETS)}")
    return PRESETS[name]


def decoding(wanted: Evaluation, checkpoint: CheckpointUnderTest, task: str = "") -> GenerateConfig:
    """The recipe's preset for a task. Where the preset names no block size or cut, the model's own are taken.

    Raises BadInput for an unknown preset, or where neither names a block size.
    """
    size, blocks = checkpoint.blocks(named_block_size(wanted.preset, task))
    return replace(preset(wanted.preset, size, task=task, blocks=blocks), seed=wanted.seed)


def preset_hash(config: GenerateConfig) -> str:
    """12 hex digits that change with any decoding setting."""
    return json_sha256(asdict(config))[:12]
