"""Checkpoints: complete or absent.

A checkpoint is written beside its place, read back, marked with COMPLETE, and only then renamed. No pointer to the newest is
kept: it is computed from what is complete and intact.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save as serialise
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from pipeline.core.errors import BadInput
from pipeline.core.files import flush, read_json, write_json
from pipeline.core.run_directory import (
    best_file,
    complete_checkpoints,
    damaged_file,
    inventory,
    read_metrics,
    saved_step,
    step_name,
    step_of,
)
from pipeline.distributed.topology import Topology
from pipeline.models.export import export
from pipeline.training.metrics import Metrics
from pipeline.training.zero_state import collect

T = TypeVar("T")


class NotSaved(BadInput):
    """A checkpoint could not be written; older ones are as they were."""


@dataclass
class Checkpoints:
    """What a checkpoint is made of, and where they go."""

    run_dir: Path
    engine: Any
    tokenizer: PreTrainedTokenizerFast
    metrics: Metrics
    topology: Topology
    provenance: dict[str, Any]
    keep: int

    def save(self, step: int) -> None:
        """Saves the training state and an export of the student. Collective: every rank calls it at the same step.

        Raises NotSaved, on every rank, when one of them cannot write.
        """
        started = time.monotonic()
        place = self.run_dir / "checkpoints" / step_name(step)
        aside = place.with_name(f".writing-{place.name}")
        share = collect(self.engine) | {f"metrics.{self.topology.rank}": self.metrics.unwritten()}
        weights = gather_weights(self.engine.module.model)
        try:
            written = _together(partial(self._write, aside, share, weights, step), self.topology)
            _together(partial(self._complete, aside, place, written, started), self.topology)
        except OSError as error:
            if self.topology.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            newest = saved_step(self.run_dir)
            raise NotSaved(
                f"{place} could not be written ({error}); the last complete checkpoint is of step {newest}"
            ) from None
        if self.topology.rank == 0:
            prune(self.run_dir, self.keep)

    def _write(self, aside: Path, share: dict[str, Tensor], weights: dict[str, Tensor], step: int) -> tuple[str, str]:
        """This rank's file of the state, and on rank 0 the export; returns the file's name and digest as in memory."""
        (aside / "state").mkdir(parents=True, exist_ok=True)
        if self.topology.rank == 0:
            provenance = {**self.provenance, "step": step}
            export(self.engine.module.model, weights, self.tokenizer, aside / "export", provenance=provenance)
        name = f"state/rank-{self.topology.rank:05d}-of-{self.topology.world_size:05d}.safetensors"
        data = serialise(share)
        (aside / name).write_bytes(data)
        flush(aside / name)
        return name, hashlib.sha256(data).hexdigest()

    def _complete(self, aside: Path, place: Path, written: list[tuple[str, str]], started: float) -> None:
        """Reads every file back, marks the checkpoint as complete and gives it its name (rank 0)."""
        if self.topology.rank != 0:
            return
        for file in (aside / "export").rglob("*"):
            flush(file)
        found = inventory(aside)
        for name, digest in written:
            if found[name]["sha256"] != digest:
                raise OSError(f"{name} reads back other than it was written")
        facts = {"world_size": self.topology.world_size, "seconds": round(time.monotonic() - started, 2)}
        write_json(aside / "COMPLETE", {"step": step_of(place), **facts, "files": found})
        for folder in (aside / "state", aside / "export", aside):
            flush(folder)
        flush(self.run_dir / "metrics.jsonl")
        shutil.rmtree(place, ignore_errors=True)
        os.rename(aside, place)
        flush(place.parent)


def _together(work: Callable[[], T], topology: Topology) -> list[T]:
    """Every rank works; all get all results, or all an OSError that names the ranks that failed."""
    try:
        outcome = work(), None
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        outcome = None, f"rank {topology.rank} on {socket.gethostname()}: {error}"
    outcomes = [outcome] * topology.world_size
    dist.all_gather_object(outcomes, outcome, group=topology.control)
    if failed := [error for _, error in outcomes if error]:
        raise OSError("; ".join(failed))
    return [result for result, _ in outcomes]


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole student on the CPU of rank 0, whatever the ZeRO stage; empty on other ranks. Collective."""
    import deepspeed

    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                weights[name] = parameter.detach().cpu().clone()
    if dist.get_rank() == 0:
        persistent = model.state_dict().keys()
        weights |= {name: b.detach().cpu().clone() for name, b in model.named_buffers() if name in persistent}
    return weights


def prune(run_dir: Path, keep: int) -> None:
    """Deletes all complete checkpoints but the last `keep` and the best."""
    older = complete_checkpoints(run_dir)[:-keep]
    best = best_step(run_dir) if older else None
    for old in older:
        if step_of(old) != best:
            doomed = old.with_name(f".pruned-{old.name}")
            os.rename(old, doomed)  # at once: half a checkpoint must not look complete
            shutil.rmtree(doomed)


def best_step(run_dir: Path) -> int | None:
    """The step that evaluation/best.json names, else that of the lowest validation loss among complete checkpoints."""
    with suppress(BadInput, AttributeError):  # of a damaged file nobody may die
        if marked := read_json(best_file(run_dir)):
            return marked.get("step")
        steps = {step_of(place) for place in complete_checkpoints(run_dir)}
        lines = [line for line in read_metrics(run_dir) if line["kind"] == "validation" and line["step"] in steps]
        return min(lines, key=lambda line: line["loss"])["step"] if lines else None
    return None


def newest_intact(run_dir: Path, topology: Topology) -> Path | None:
    """The newest checkpoint without damage, None without any checkpoint. Collective: rank 0 reads.

    Damaged ones are reported and set aside, and what killed processes have left is deleted. Raises BadInput when all
    checkpoints are damaged.
    """
    outcome: list[Any] = [None]
    if topology.rank == 0:
        try:
            outcome = [_newest_intact(run_dir)]
        except BadInput as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, group=topology.control)
    if isinstance(outcome[0], BadInput):
        raise outcome[0]
    return outcome[0]


def _newest_intact(run_dir: Path) -> Path | None:
    for left in (run_dir / "checkpoints").glob(".*-step-*"):
        shutil.rmtree(left, ignore_errors=True)
    found, damaged = complete_checkpoints(run_dir), {}
    while found and (file := damaged_file(found[-1])):
        damaged[found.pop()] = file
    if damaged and not found:
        named = ", ".join(str(place / file) for place, file in damaged.items())
        raise BadInput(
            f"no checkpoint is intact (damaged or missing: {named}): put a copy back, or delete {run_dir} to start again"
        )
    for place, file in damaged.items():
        print(f"WARNING {place / file} is damaged or missing: going on from {found[-1].name}", flush=True)
        aside = place.with_name(f"damaged-{place.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(place, aside)
    return found[-1] if found else None
