"""Checkpoints: complete or absent.

A checkpoint is written beside its place, COMPLETE is written last, and then the folder is renamed. No pointer to the
newest is kept: it is computed from what is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models.export import export
from pipeline.recipe import BadInput
from pipeline.run_directory import complete_checkpoints, read_json, step_name, write_json


def save(engine, tokenizer, run_dir: Path, keep: int, provenance: dict[str, Any], step: int) -> None:
    """Saves the engine's state and an export of the student. Collective: every rank calls it at the same step."""
    place = run_dir / "checkpoints" / step_name(step)
    aside = place.with_name(f".writing-{place.name}")
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    # save_latest: DeepSpeed's own pointer is written before the other ranks have finished
    engine.save_checkpoint(str(aside), tag="state", client_state={"step": step}, save_latest=False)
    model = engine.module.model
    weights = gather_weights(model)
    if dist.get_rank() == 0:
        export(model, weights, tokenizer, aside / "export", provenance={**provenance, "step": step})
    dist.barrier()
    if dist.get_rank() == 0:
        write_json(aside / "COMPLETE", {"step": step, "world_size": dist.get_world_size(), "files": _inventory(aside)})
        shutil.rmtree(place, ignore_errors=True)
        os.rename(aside, place)
        for old in complete_checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()


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


def resume(engine, run_dir: Path) -> int:
    """Loads the newest complete checkpoint, if any, and returns the number of steps done."""
    found = complete_checkpoints(run_dir)
    if not found:
        return 0
    step = read_json(found[-1] / "COMPLETE")["step"]
    _, client = engine.load_checkpoint(str(found[-1]), tag="state")
    if client is None or client["step"] != step:
        raise BadInput(f"{found[-1]} could not be loaded: remove it to resume from the one before")
    return step


def verify(run_dir: Path) -> None:
    """Compares the newest complete checkpoint with the sizes and checksums that its COMPLETE names."""
    for place in complete_checkpoints(run_dir)[-1:]:
        written, found = read_json(place / "COMPLETE")["files"], _inventory(place)
        for name, facts in written.items():
            if found.get(name) != facts:
                raise BadInput(
                    f"{place / name} is damaged or missing: remove {place} to resume from the checkpoint before"
                )


def check_ranks(run_dir: Path, world_size: int) -> None:
    """DeepSpeed's state is resumed by as many ranks as wrote it. Raises BadInput for another number."""
    for place in complete_checkpoints(run_dir)[-1:]:
        ranks = read_json(place / "COMPLETE")["world_size"]
        if ranks != world_size:
            raise BadInput(
                f"{place} was written by {ranks} ranks and this run has {world_size}: resume with {ranks}, or start "
                "another run from its export/ (student.path)"
            )


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "COMPLETE")
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
