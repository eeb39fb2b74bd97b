"""Computes the answers of causal teachers once, as they depend on no noise: see `answer_store`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.alignment.manifest import Manifest, require_dataset
from pipeline.config.recipe import Recipe, Teacher
from pipeline.core.checksums import read_record, write_record
from pipeline.core.errors import BadInput, for_user
from pipeline.core.files import file_sha256, json_sha256
from pipeline.core.log import log
from pipeline.data.aligned_dataset import AlignedRow, AlignedRows
from pipeline.data.arrow_files import write_arrow
from pipeline.data.blocks import lay_out_causal
from pipeline.data.packing import pack
from pipeline.data.teacher_answers import TeacherAnswers, schema, to_columns
from pipeline.distributed.collectives import first_or_error
from pipeline.distributed.topology import Topology
from pipeline.method.chunked_lm_head import chunked_lm_head, token_log_prob
from pipeline.method.masking import predictable
from pipeline.models.configs import read_config
from pipeline.models.expert_parallel import expert_count, resolve_expert_parallel_size
from pipeline.models.forward import head_weight, hidden_states
from pipeline.models.loading import load_teacher
from pipeline.training.answer_store import StoredShard, store_folder, store_identity, weight_digests, write_store
from pipeline.training.teacher_checks import nats_bound
from pipeline.training.terms import stored_temperatures

Row = tuple[int, dict[str, np.ndarray]]
"""Index in its shard, columns of the answers."""


def precompute(recipe: Recipe, topology: Topology) -> list[str]:
    """Stores the answers of every teacher with `answers: stored`; what was done, a line each. Collective.

    Finished files of an earlier run are kept. Raises BadInput without such a teacher, for a dataset that does not fit, and for a
    teacher that understands its tokens hardly better than by guessing (`check_teachers`).
    """
    teachers = [teacher for teacher in recipe.teachers if teacher.stored]
    if not teachers:
        raise BadInput("no teacher has `answers: stored`: nothing to compute")
    manifest = require_dataset(recipe, every_byte=False)
    return [_store(recipe, teacher, manifest, topology) for teacher in teachers]


def _store(recipe: Recipe, teacher: Teacher, manifest: Manifest, topology: Topology) -> str:
    folder = store_folder(recipe, teacher.name)
    folder.mkdir(parents=True, exist_ok=True)
    identity = store_identity(recipe, teacher, manifest)
    weights = topology.broadcast_object(weight_digests(teacher) if topology.rank == 0 else {})
    key = json_sha256([identity, weights])
    done = {shard.file: read_record(folder, shard.file, key, StoredShard) for shard in manifest.shards}
    done = topology.broadcast_object(done)
    missing = [shard.file for shard in manifest.shards if done[shard.file] is None]
    if missing:
        model = _load(recipe, teacher, topology)
        for number, file in enumerate(missing, start=1):
            rows = AlignedRows(Path(recipe.data.aligned), [file], [teacher.name])
            answers = _answer(recipe, model, rows, identity["shared_vocab"], identity["top_k"], topology)
            gathered = [row for part in topology.gather_objects(answers) for row in part]
            if topology.rank == 0:
                done[file] = _write(folder, file, key, sorted(gathered, key=lambda row: row[0]))
                log.info(f"{teacher.name}: {file} answered ({number} of {len(missing)})")

    def complete() -> int:
        shards = [shard for shard in done.values() if shard is not None]
        _require_understanding(teacher, shards)
        write_store(folder, key, {**identity, "weights_sha256": weights}, shards)
        return sum((folder / shard.file).stat().st_size for shard in shards)

    size = first_or_error(for_user(complete), topology.rank == 0, topology.broadcast_object)
    return f"{folder}: reused {len(done) - len(missing)} files, computed {len(missing)}; {size / 1e6:.1f} MB"


def _load(recipe: Recipe, teacher: Teacher, topology: Topology) -> PreTrainedModel:
    size = resolve_expert_parallel_size(
        teacher.expert_parallel_size,
        experts=expert_count(read_config(teacher.path, causal=True)),
        world_size=topology.world_size,
        local_world_size=topology.local_world_size,
    )
    return load_teacher(
        teacher.path,
        dtype=getattr(torch, teacher.dtype),
        device=topology.device,
        expert_parallel_size=size,
        weights=teacher.weights,
        seed=recipe.data.seed,
        causal=True,
    )


def _write(folder: Path, file: str, key: str, rows: list[Row]) -> StoredShard:
    columns = schema()
    arrays = ([pa.array([values[field.name]], field.type) for field in columns] for _, values in rows)
    write_arrow(folder / file, columns, (pa.record_batch(row, schema=columns) for row in arrays))
    log_probs = [values["log_prob"] for _, values in rows]
    nats, tokens = -float(sum(part.sum(dtype=np.float64) for part in log_probs)), sum(len(part) for part in log_probs)
    shard = StoredShard(file, file_sha256(folder / file), len(rows), nats, tokens)
    write_record(folder, key, shard)
    return shard


def _require_understanding(teacher: Teacher, shards: Sequence[StoredShard]) -> None:
    """Raises BadInput for a teacher that reads its tokens hardly better than by guessing."""
    if teacher.weights == "random":
        return
    nats = sum(shard.nats for shard in shards) / max(1, sum(shard.tokens for shard in shards))
    bound = nats_bound(read_config(teacher.path, causal=True).vocab_size)
    log.info(f"teacher {teacher.name}: {nats:.2f} nats per token of its own ids (bound {bound:.2f})")
    if not nats < bound:
        raise BadInput(
            f"teacher {teacher.name} needs {nats:.2f} nats per token of its own ids, above {bound:.2f}: check its tokenizer, "
            "chat template and weights"
        )


def answered_tokens(row: AlignedRow) -> Tensor:
    """`predictable` of the row's teacher, except the first token, which has nothing to its left: bool [L_t]."""
    (teacher,) = row.teachers
    wanted = predictable(row.maskable, teacher.student_chunks, teacher.chunks)
    wanted[:1] = False
    return wanted


@torch.no_grad()
def _answer(
    recipe: Recipe, model: PreTrainedModel, rows: AlignedRows, shared: int, top_k: int, topology: Topology
) -> list[Row]:
    """Of this rank's rows of a shard. Every rank runs as many forwards."""
    batches = list(_batches(rows, range(topology.rank, len(rows), topology.world_size), recipe.optim.micro_tokens))
    answered: list[Row] = []
    temperatures = stored_temperatures(recipe.objective.temperature, shared)
    for number in range(max(topology.gather_objects(len(batches)))):
        indices = batches[number] if number < len(batches) else []
        samples = [(rows[index], answered_tokens(rows[index])) for index in indices]
        answers = answer(model, [(row.teachers[0].ids, wanted) for row, wanted in samples], shared, top_k, temperatures)
        for index, (_, wanted), of_row in zip(indices, samples, answers, strict=True):
            answered.append((index, to_columns(wanted.nonzero()[:, 0], of_row)))
    return answered


def _batches(rows: AlignedRows, indices: range, budget: int) -> Iterator[list[int]]:
    """Indices in order, of as many rows as fit a budget of tokens; at least one."""
    batch: list[int] = []
    tokens = 0
    for index in indices:
        length = int(rows.teacher_lengths[0][index])
        if batch and tokens + length > budget:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    samples: list[tuple[Tensor, Tensor]],
    shared_vocab: int,
    top_k: int,
    temperatures: tuple[float, ...],
) -> list[TeacherAnswers]:
    """What a causal model says of some tokens of its rows, in one forward (no row is fine): (int64 [L], bool [L]) each."""
    device = head_weight(model).device
    packed, predicting = pack([lay_out_causal(ids, wanted) for ids, wanted in samples])
    counts = [int(wanted.sum()) for _, wanted in samples]
    targets = torch.cat([torch.zeros(0, dtype=torch.int64), *(ids[wanted] for ids, wanted in samples)]).to(device)

    def score(logits: Tensor, tokens: slice) -> Tensor:
        shared = logits[:, :shared_vocab]
        top = shared.topk(top_k, dim=1)
        partitions = [(shared / temperature).logsumexp(1, keepdim=True) for temperature in temperatures]
        true = token_log_prob(logits, targets[tokens])[:, None]
        return torch.cat([true, *partitions, top.values, top.indices.float()], 1)  # ids below 2^24 are exact

    hidden = hidden_states(model, packed.to(device), predicting.to(device))
    scores = chunked_lm_head(score, hidden, head_weight(model)).cpu()
    true, partitions, logits, top = scores.split([1, len(temperatures), top_k, top_k], dim=1)
    whole = TeacherAnswers(true[:, 0], top.long(), logits, partitions)
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    return [whole.at(torch.arange(start, start + n)) for start, n in zip(starts, counts, strict=False)]
