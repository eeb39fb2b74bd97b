"""The student's DeepSpeed engine: ds_configs/ hold engine settings, the recipe holds everything that changes the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.recipe import BadInput, Optim

_RECIPE_OWNS = {
    "optimizer": "optim",
    "scheduler": "optim",
    "gradient_clipping": "optim.clip",
    "gradient_accumulation_steps": "optim.global_batch and optim.micro_tokens",
    "train_batch_size": "optim.global_batch",
    "train_micro_batch_size_per_gpu": "optim.micro_tokens",
}


def read_engine_config(path: Path) -> dict[str, Any]:
    """Engine settings from ds_configs/. Raises BadInput for a missing file, broken JSON, or a setting of the recipe's."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"no DeepSpeed config {path}: ds_configs/ holds the shipped ones") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    for key in config:
        if key in _RECIPE_OWNS:
            raise BadInput(f"{path} sets {key}: remove it there and set {_RECIPE_OWNS[key]} in the recipe, its only home")
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """ZeRO stage of an engine config."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def student_dtype(config: dict[str, Any]) -> torch.dtype:
    """Precision of the student's weights and activations."""
    return torch.bfloat16 if config.get("bf16", {}).get("enabled") else torch.float32


def build_engine(module: nn.Module, config: dict[str, Any], optim: Optim, accumulation: int):
    """Wraps the student in an engine with AdamW; from here on ZeRO-3 has partitioned its parameters."""
    import deepspeed

    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=optim.lr, betas=tuple(optim.betas), weight_decay=optim.weight_decay)
    whole = {
        **config,
        "train_micro_batch_size_per_gpu": 1,  # micro-batches are ours (packed by tokens): DeepSpeed only counts them
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optim.clip,
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, model_parameters=parameters, config=whole)
    return engine
