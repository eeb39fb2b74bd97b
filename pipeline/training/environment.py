"""environment.json: where a run runs."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.core.files import read_json, write_json
from pipeline.core.machine import cpu_name
from pipeline.core.version import code_version
from pipeline.training.engine import zero_stage
from pipeline.training.preflight import Plan


def machine() -> dict[str, Any]:
    """Versions, device and code."""
    packages = ("torch", "deepspeed", "transformers", "datasets")
    return {
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "commit": code_version(),
    }


def write_environment(plan: Plan, steps: int) -> None:
    """Writes environment.json: the machine, how the plan lies on its ranks, and when each start of the run began to train."""
    file = Path(plan.recipe.run_dir) / "environment.json"
    before = (read_json(file) or {}).get("started", [])
    of_run = {
        "command": sys.argv,
        "world_size": plan.topology.world_size,
        "accumulation": plan.accumulation,
        "expert_parallel_size": plan.expert_parallel_size,
        "zero_stage": zero_stage(plan.engine_config),
        "engine": plan.engine_config,
        "steps": steps,
        "started": [*before, datetime.now(UTC).isoformat("T", "seconds")],
    }
    write_json(file, machine() | of_run)
