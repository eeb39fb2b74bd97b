"""TensorBoard, Weights & Biases and the other monitors of DeepSpeed, beside metrics.jsonl; off unless the engine's settings say so.

    "tensorboard": {"enabled": true}     in a file of ds_configs/

The engine itself does not get these sections: it would write names of its own, and wait for the device at every step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.core.errors import BadInput

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml", "csv_monitor": "deepspeed"}
"""Sections of an engine config, and what each needs."""


def check_packages(config: dict[str, Any]) -> None:
    """Raises BadInput for a monitor that is enabled and not installed."""
    for section, package in PACKAGES.items():
        if config.get(section, {}).get("enabled") and not find_spec(package):
            raise BadInput(
                f"{section} is enabled, but {package} is not installed: pip install {package}, or disable it"
            )


def build_monitor(config: dict[str, Any], run_dir: Path) -> Callable[[dict[str, Any]], None]:
    """What hands a record of metrics.jsonl to the monitors that an engine config enables (rank 0 writes).

    Files go to RUN_DIR/tensorboard and so on, unless a section names another output_path or job_name.
    """
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    sections = {name: config.get(name, {}) for name in PACKAGES}
    for name in ("tensorboard", "csv_monitor"):
        sections[name] = {"output_path": str(run_dir), "job_name": name, **sections[name]}
    os.environ.setdefault("WANDB_DIR", str(run_dir))
    os.environ.setdefault("WANDB_NAME", run_dir.name)
    master = MonitorMaster(get_monitor_config(sections))
    return lambda record: master.write_events(list(events(record)))


def events(record: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of every number in a record: `train/loss`, `validation/by_t/0.5`."""
    kind, step = record["kind"], record["step"]
    for name, value in record.items():
        if isinstance(value, dict):
            yield from (
                (f"{kind}/{name}/{inner}", x, step) for inner, x in value.items() if isinstance(x, (int, float))
            )
        elif isinstance(value, (int, float)) and name != "step":
            yield f"{kind}/{name}", value, step
