"""Checkpoints: complete or absent.

A checkpoint is written beside its final path, read back, marked with COMPLETE, and only then renamed. No pointer to the newest is
kept: it is computed from what is complete and intact.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save as serialise
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from pipeline.config.recipe import ExportFormat
from pipeline.core.checkpoint_files import complete_checkpoints, damaged_file, inventory, saved_step, step_name, step_of
from pipeline.core.errors import BadInput
from pipeline.core.files import flush, read_json, write_json
from pipeline.core.log import log
from pipeline.core.run_directory import best_file, read_metrics
from pipeline.distributed.collectives import RanksFailed, all_or_error, first_or_error
from pipeline.distributed.topology import Topology
from pipeline.models.export import export
from pipeline.models.export_formats import FORMATS, Exported
from pipeline.training.metrics import Metrics
from pipeline.training.zero_state import buffers, collect

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

T = TypeVar("T")


class NotSaved(BadInput):
    """A checkpoint could not be written; older ones are as they were."""


@dataclass
class Checkpoints:
    """What a checkpoint is made of, and where they go."""

    run_dir: Path
    engine: DeepSpeedEngine
    tokenizer: PreTrainedTokenizerFast
    metrics: Metrics
    topology: Topology
    provenance: dict[str, Any]
    keep: int
    formats: Sequence[ExportFormat] = ()
    """beside `export`"""

    def save(self, step: int) -> None:
        """Saves the training state and an export of the student. Collective: every rank calls it at the same step.

        Raises NotSaved, on every rank, when one of them cannot write.
        """
        started = time.monotonic()
        path = self.run_dir / "checkpoints" / step_name(step)
        tmp_dir = path.with_name(f".writing-{path.name}")
        share = collect(self.engine) | {f"metrics.{self.topology.rank}": self.metrics.state()}
        weights = gather_weights(self.engine.module.model)
        try:
            written = self._on_all_ranks(partial(self._write, tmp_dir, share, weights, step))
            self._on_all_ranks(partial(self._complete, tmp_dir, path, written, started))
        except RanksFailed as error:
            if self.topology.rank == 0:
                shutil.rmtree(tmp_dir, ignore_errors=True)
            newest = saved_step(self.run_dir)
            raise NotSaved(
                f"{path} could not be written ({error}); the last complete checkpoint is of step {newest}"
            ) from None
        if self.topology.rank == 0:
            prune(self.run_dir, self.keep)

    def _on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        # safetensors has an error of its own for a full disk
        return all_or_error(work, self.topology.gather_objects, caught=(OSError, SafetensorError))

    def _write(self, tmp_dir: Path, share: dict[str, Tensor], weights: dict[str, Tensor], step: int) -> tuple[str, str]:
        """This rank's file of the state, and on rank 0 the export; returns the file's name and digest as in memory."""
        (tmp_dir / "state").mkdir(parents=True, exist_ok=True)
        if self.topology.rank == 0:
            provenance = {**self.provenance, "step": step}
            exported = Exported(self.engine.module.model, weights, self.tokenizer)
            export(*exported, tmp_dir / "export", provenance=provenance)
            for kind in self.formats:
                FORMATS[kind].write(exported, tmp_dir / f"export-{kind}", provenance)
        name = f"state/rank-{self.topology.rank:05d}-of-{self.topology.world_size:05d}.safetensors"
        data = serialise(share)
        (tmp_dir / name).write_bytes(data)
        flush(tmp_dir / name)
        return name, hashlib.sha256(data).hexdigest()

    def _complete(self, tmp_dir: Path, path: Path, written: list[tuple[str, str]], started: float) -> None:
        """Reads every file back, marks the checkpoint as complete and gives it its name (rank 0)."""
        if self.topology.rank != 0:
            return
        for exported in tmp_dir.glob("export*"):
            for file in exported.rglob("*"):
                flush(file)
        files = inventory(tmp_dir)
        for name, digest in written:
            if files[name]["sha256"] != digest:
                raise OSError(f"{name} reads back other than it was written")
        summary = {
            "step": step_of(path),
            "world_size": self.topology.world_size,
            "seconds": round(time.monotonic() - started, 2),
            "files": files,
        }
        write_json(tmp_dir / "COMPLETE", summary)
        for folder in (tmp_dir / "state", *tmp_dir.glob("export*"), tmp_dir):
            flush(folder)
        flush(self.run_dir / "metrics.jsonl")
        shutil.rmtree(path, ignore_errors=True)
        os.rename(tmp_dir, path)
        flush(path.parent)


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole student on the CPU of rank 0, whatever the ZeRO stage; empty on other ranks. Collective."""
    import deepspeed

    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                weights[name] = parameter.detach().cpu().clone()
    if dist.get_rank() == 0:
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in buffers(model).items()}
    return weights


def prune(run_dir: Path, keep: int) -> None:
    """Deletes all complete checkpoints but the last `keep` and the best."""
    older = complete_checkpoints(run_dir)[:-keep]
    best = best_step(run_dir) if older else None
    for old in older:
        if step_of(old) != best:
            hidden = old.with_name(f".pruned-{old.name}")
            os.rename(old, hidden)  # at once: half a checkpoint must not look complete
            shutil.rmtree(hidden)


def best_step(run_dir: Path) -> int | None:
    """The step that evaluation/best.json names, else that of the lowest validation loss among complete checkpoints."""
    with suppress(BadInput, AttributeError):  # a damaged file must not end the run
        if marked := read_json(best_file(run_dir)):
            return marked.get("step")
        steps = {step_of(path) for path in complete_checkpoints(run_dir)}
        lines = [line for line in read_metrics(run_dir) if line["kind"] == "validation" and line["step"] in steps]
        return min(lines, key=lambda line: line["loss"])["step"] if lines else None
    return None


def newest_intact(run_dir: Path, topology: Topology) -> Path | None:
    """The newest checkpoint without damage, None without any checkpoint. Collective: rank 0 reads.

    Damaged ones are reported and set aside, and what killed processes have left is deleted. Raises BadInput when all
    checkpoints are damaged.
    """
    return first_or_error(partial(_newest_intact, run_dir), topology.rank == 0, topology.broadcast_object)


def _newest_intact(run_dir: Path) -> Path | None:
    for leftover in (run_dir / "checkpoints").glob(".*-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    checkpoints, damaged = complete_checkpoints(run_dir), {}
    while checkpoints and (file := damaged_file(checkpoints[-1])):
        damaged[checkpoints.pop()] = file
    if damaged and not checkpoints:
        named = ", ".join(str(path / file) for path, file in damaged.items())
        raise BadInput(
            f"no checkpoint is intact (damaged or missing: {named}): put a copy back, or delete {run_dir} to start again"
        )
    for path, file in damaged.items():
        log.warning(f"{path / file} is damaged or missing: going on from {checkpoints[-1].name}")
        set_aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(set_aside, ignore_errors=True)
        os.rename(path, set_aside)
    return checkpoints[-1] if checkpoints else None
