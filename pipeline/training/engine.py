"""The student's DeepSpeed engine: ds_configs/ hold engine settings, the recipe all that changes the result."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from pipeline.config.recipe import Optim
from pipeline.core.errors import BadInput
from pipeline.distributed.device_reads import read
from pipeline.training.monitor import PACKAGES, check_packages

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

RECIPE_OWNS = {
    "optimizer": "optim",
    "scheduler": "optim",
    "gradient_clipping": "optim.clip",
    "gradient_accumulation_steps": "optim.global_batch and optim.micro_tokens",
    "train_batch_size": "optim.global_batch",
    "train_micro_batch_size_per_gpu": "optim.micro_tokens",
}


def read_engine_config(path: Path) -> dict[str, Any]:
    """Engine settings from ds_configs/.

    Raises BadInput for a missing file, broken JSON, a setting of the recipe's, and what DeepSpeed refuses or ignores.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"no DeepSpeed config {path}: ds_configs/ holds the shipped ones") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise BadInput(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path}: not a JSON object of DeepSpeed settings")
    for key in config:
        if key in RECIPE_OWNS:
            raise BadInput(
                f"{path} sets {key}: remove it there and set {RECIPE_OWNS[key]} in the recipe, its only home"
            )
    _check_settings(path, config)
    check_packages(config)
    return config


class _RecordedReads(dict[str, Any]):
    """A dict that records, for itself and its shallow copies, which keys were asked for."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.asked: set[object] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def _check_settings(path: Path, config: dict[str, Any]) -> None:
    """DeepSpeed checks the sections, but takes unknown ones, and "auto" for absent, without a word."""
    from deepspeed.runtime.config import DeepSpeedConfig

    if not isinstance(config.get("zero_optimization", {}), dict):
        raise BadInput(f'{path}: zero_optimization must be an object, as {{"stage": 3}}')
    if '"auto"' in json.dumps(config):
        raise BadInput(f'{path} sets "auto", which nothing here fills in: give a value or remove it')
    settings = _RecordedReads(_whole(config, Optim(), accumulation=1))
    try:
        DeepSpeedConfig(settings)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise BadInput(f"{path}: {error.title}: {'; '.join(faults)}") from None
    except Exception as error:  # of any class: DeepSpeed asserts, and trips over wrong types
        raise BadInput(f"{path}: DeepSpeed refuses it: {' '.join(str(error).split())}") from None
    if unknown := sorted(settings.keys() - settings.asked):
        raise BadInput(f"{path}: DeepSpeed knows no {', '.join(unknown)}: correct the name or remove it")
    if config.get("fp16", {}).get("enabled"):
        raise BadInput(f"{path} enables fp16: the student is float32 or, with bf16 instead of it, bfloat16")
    if student_dtype(config) == torch.bfloat16 and not zero_stage(config):
        raise BadInput(f"{path} enables bf16 without ZeRO: set zero_optimization.stage to 1, 2 or 3")


def zero_stage(config: dict[str, Any]) -> int:
    """ZeRO stage of an engine config."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def student_dtype(config: dict[str, Any]) -> torch.dtype:
    """Precision of the student's weights and activations."""
    return torch.bfloat16 if config.get("bf16", {}).get("enabled") else torch.float32


class AdamWWithoutZeRO(torch.optim.AdamW):
    """Does what ZeRO's optimizers do by themselves: measures and clips the gradient, and takes no step where it is not finite.

    DeepSpeed reads both results under these names.
    """

    def __init__(self, clip: float, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.clip = clip

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._global_grad_norm = nn.utils.clip_grad_norm_(parameters, self.clip or math.inf)
        self.overflow = not math.isfinite(*read(self._global_grad_norm.view(1)))
        if not self.overflow:
            super().step()


def parameter_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups: matrices decay; norms' gains and biases, whose size is not a matter of capacity, do not."""
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_engine(module: nn.Module, config: dict[str, Any], optim: Optim, accumulation: int) -> DeepSpeedEngine:
    """Wraps the student in an engine with AdamW; from here on ZeRO-3 has partitioned its parameters."""
    import deepspeed

    parameters = [p for p in module.parameters() if p.requires_grad]
    settings = _whole({k: v for k, v in config.items() if k not in PACKAGES}, optim, accumulation)
    make = torch.optim.AdamW if zero_stage(config) else partial(AdamWWithoutZeRO, settings.pop("gradient_clipping"))
    optimizer = make(
        parameter_groups(parameters, optim.weight_decay), lr=optim.lr, betas=(optim.betas[0], optim.betas[1])
    )
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, model_parameters=parameters, config=settings)
    return engine


def _whole(config: dict[str, Any], optim: Optim, accumulation: int) -> dict[str, Any]:
    """The engine's settings and what the recipe owns of them."""
    return {
        **config,
        "train_micro_batch_size_per_gpu": 1,  # micro-batches are ours (packed by tokens): DeepSpeed only counts them
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optim.clip,
        "zero_allow_untested_optimizer": True,
    }
