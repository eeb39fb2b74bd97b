"""Named decoding presets: every score says which one, and its hash, because decoding settings move scores."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pipeline.diffusion.sampler import GenerateConfig
from pipeline.recipe import BadInput

PAPER = {"max_new_tokens": 256, "steps": 256, "block_size": 32, "blocks": "reference"}

# Without a block_size, the model's own.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": PAPER,  # TIDE's evaluation: one token a forward
    "fast": {**PAPER, "threshold": 0.9},  # several tokens a forward where the model is sure
    "demo": {"max_new_tokens": 24, "steps": 24, "blocks": "training"},
    "smoke": {"max_new_tokens": 8, "steps": 2, "blocks": "training"},  # whether it runs; scores mean nothing
}


def preset(name: str, block_size: int) -> GenerateConfig:
    """The decoding settings of a preset for a model of that block size. Raises BadInput for an unknown name."""
    if name not in PRESETS:
        raise BadInput(f"evaluation.preset {name!r} is unknown: one of {', '.join(PRESETS)}")
    return GenerateConfig(**{"block_size": block_size, **PRESETS[name]})


def preset_hash(config: GenerateConfig) -> str:
    """12 hex digits that change with any decoding setting."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]
