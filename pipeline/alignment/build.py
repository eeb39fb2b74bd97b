"""Builds an aligned dataset: every row rendered and tokenized once on each side, and tied by chunks, shard by shard."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.progress import track
from transformers import PreTrainedTokenizerFast

from pipeline.alignment import shards as sharding
from pipeline.alignment.dataset_lock import dataset_lock
from pipeline.alignment.fingerprint import Content, Inputs, fingerprint_inputs, source_key
from pipeline.alignment.manifest import (
    Manifest,
    RowCounts,
    ShardEntry,
    changes,
    load_manifest,
    parse_manifest,
    restrict_to,
)
from pipeline.alignment.manifest_summary import chunk_statistics, count_by_split, row_counts, token_counts
from pipeline.alignment.shards import Aligner, PlannedShard, ShardRecord
from pipeline.alignment.sides import Side
from pipeline.alignment.sources import ChatRows, open_source
from pipeline.alignment.vocabulary import shared_vocab
from pipeline.config.recipe import Recipe, Source, Validation
from pipeline.core.checksums import damaged_files, read_record
from pipeline.core.errors import BadInput
from pipeline.core.files import json_sha256, read_json, write_json
from pipeline.core.log import log
from pipeline.core.terminal import number_of
from pipeline.distributed.mpi_ranks import Ranks
from pipeline.distributed.signals import end_with_parent
from pipeline.models.early_checks import check_side
from pipeline.models.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Job:
    """What every process needs to build shards."""

    folder: Path
    inputs: Inputs
    rows: dict[str, ChatRows]
    """by source_key"""
    shards: list[PlannedShard]

    def build(self, shard: PlannedShard) -> BuiltShard:
        """The shard, built now or by an earlier run."""
        rows = self.rows[shard.source_key]
        key = shard.key(self.inputs.settings, rows.table.sha256)
        if record := read_record(self.folder, shard.file, key, ShardRecord):
            return BuiltShard(record, reused=True)
        return BuiltShard(sharding.build(self.folder, shard, key, rows, _aligner(self.inputs)), reused=False)


@dataclass(frozen=True)
class BuiltShard:
    """A shard's record, and whether an earlier run had built it."""

    record: ShardRecord
    reused: bool


def align(
    recipe: Recipe, ranks: Ranks, processes: int, shard_rows: int, *, overwrite: bool = False
) -> tuple[Manifest, str]:
    """Builds what is missing of the recipe's aligned dataset; returns its manifest and what was done, in words.

    overwrite: another complete dataset in that folder may be replaced.

    Raises BadInput for data, tokenizers or settings that cannot be used; what is found out before the first row leaves
    the folder as it was, and what a row shows leaves no manifest.
    """
    job = ranks.share(lambda: prepare(recipe, shard_rows, overwrite=overwrite))
    with ExitStack() as stack:
        lock = dataset_lock(job.folder)
        waited: bool = bool(job.shards) and ranks.share(lambda: stack.enter_context(lock))
        if waited:
            job = ranks.share(lambda: prepare(recipe, shard_rows, overwrite=overwrite))  # another process has built it
        if not job.shards:
            manifest = load_manifest(job.folder)
            return manifest, f"reused {number_of(len(manifest.shards), 'shard')}, built 0"
        if ranks.rank == 0:
            (job.folder / "manifest.json").unlink(missing_ok=True)  # what it marks as complete is about to change
        try:
            mine = job.shards[ranks.rank :: ranks.size]
            built = ranks.gather(lambda: build_all(job, mine, processes, ranks.rank == 0))
        except BadInput:
            with suppress(OSError):  # finished shards stay for the next run
                job.folder.rmdir()
            raise
        return ranks.share(lambda: finish(job, [shard for part in built for shard in part]))


def prepare(recipe: Recipe, shard_rows: int, *, overwrite: bool = False) -> Job:
    """Checks all inputs and plans the shards: none if the folder holds a complete dataset that fits the recipe.

    Raises BadInput, too, for a folder that holds a complete dataset of other settings or data, unless `overwrite`.
    """
    held_out = recipe.data.validation
    data: list[Source | Validation] = [*recipe.data.sources, *([held_out] if held_out else [])]
    if not recipe.data.sources:
        raise BadInput("the recipe names no data: set data.sources")
    if Path(recipe.data.aligned).exists() and not Path(recipe.data.aligned).is_dir():
        raise BadInput(f"data.aligned {recipe.data.aligned} is no folder: choose another one")
    check_side(recipe.student, _tokenizer(recipe.student.tokenizer), recipe.data.student_length)
    for teacher in recipe.teachers:
        check_side(teacher, _tokenizer(teacher.tokenizer), teacher.length)
    rows = {source_key(source): open_source(source) for source in data}
    contents = {source_key(source): _content(source.path, rows[source_key(source)]) for source in data}
    shared = {
        teacher.name: shared_vocab(_tokenizer(recipe.student.tokenizer), _tokenizer(teacher.tokenizer))
        for teacher in recipe.teachers
    }
    inputs, folder = fingerprint_inputs(recipe, contents, shared), Path(recipe.data.aligned)
    there = read_json(folder / "manifest.json")
    problem = mismatch(there, inputs, folder, overwrite=overwrite) if there else "is empty"
    if there and problem:
        log.info(f"{folder} {problem}: building it again")
    return Job(folder, inputs, rows, sharding.plan(inputs, shard_rows) if problem else [])


def build_all(job: Job, shards: Sequence[PlannedShard], processes: int, progress: bool) -> list[BuiltShard]:
    """Builds the shards in this many processes; the first error ends the work, finished shards stay."""
    job.folder.mkdir(parents=True, exist_ok=True)
    built = _build(job, shards, min(processes, len(shards)))
    return list(track(built, "aligning", total=len(shards), disable=not progress))


def finish(job: Job, built: Sequence[BuiltShard]) -> tuple[Manifest, str]:
    """Removes what an earlier dataset left and writes the manifest, the mark of completion."""
    order = {shard.file: number for number, shard in enumerate(job.shards)}
    records = sorted((shard.record for shard in built), key=lambda record: order[record.file])
    counts = count_by_split(records)
    rows = {split: row_counts(count) for split, count in counts.items()}
    for split, count in rows.items():
        _check_rows(split, count)
    removed = sharding.remove_stale(job.folder, job.shards)
    teachers = job.inputs.teachers
    manifest = Manifest(
        inputs=job.inputs,
        key=json_sha256(job.inputs.identity),
        rows=rows,
        tokens=token_counts(counts["train"], teachers),
        statistics={name: chunk_statistics(counts["train"], name) for name in teachers},
        shards=tuple(ShardEntry(record.file, record.sha256, record.split, record.rows) for record in records),
    )
    write_json(job.folder / "manifest.json", manifest.to_json())
    reused = sum(shard.reused for shard in built)
    message = f"reused {number_of(reused, 'shard')}, built {len(built) - reused}"
    return manifest, message + (f", removed {removed} of another dataset" if removed else "")


def _check_rows(split: str, rows: RowCounts) -> None:
    reasons = ", ".join(f"{n} {reason}" for reason, n in rows.dropped.items())
    if not rows.kept:
        reasons = reasons or "the weights of data.sources take none"
        raise BadInput(f"no {split} row is left of {rows.read}: {reasons}")
    if 2 * rows.kept < rows.read:
        log.warning(f"more than half of the {split} rows are dropped ({reasons})")


def mismatch(there: Any, inputs: Inputs, folder: Path, *, overwrite: bool) -> str | None:
    """Why this manifest's dataset neither equals nor contains the wanted one; None where it does.

    Raises BadInput where it is a usable one of other settings or data and must not be replaced.
    """
    try:
        manifest = parse_manifest(there)
    except ValueError as error:
        return str(error)
    wanted = inputs.identity
    if changed := changes(restrict_to(manifest.inputs.identity, wanted), wanted):
        if overwrite:
            return f"holds another dataset, with key {manifest.key[:12]}"
        raise BadInput(
            f"{folder} holds a finished dataset that differs in {'; '.join(changed)}: --overwrite replaces it, another "
            "--data.aligned keeps both"
        )
    damaged = damaged_files(folder, manifest.shards)
    return f"has missing or damaged shards ({', '.join(damaged)})" if damaged else None


def _content(path: str, rows: ChatRows) -> Content:
    size = Path(path).stat().st_size if Path(path).is_file() else None
    return Content(rows.table.count, rows.table.sha256, size, rows.format)


@lru_cache
def _tokenizer(path: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(path, needs_mask=False)


@lru_cache  # forked workers find the parent's
def _side(path: str, length: int) -> Side:
    return Side(_tokenizer(path), length)


def _aligner(inputs: Inputs) -> Aligner:
    teachers = {name: _side(side.tokenizer.path, side.length) for name, side in inputs.teachers.items()}
    student = _side(inputs.student.tokenizer.path, inputs.student.length)
    return Aligner(student, teachers, inputs.maskable, inputs.on_bad_row)


def _build(job: Job, shards: Sequence[PlannedShard], processes: int) -> Iterator[BuiltShard]:
    _aligner(job.inputs)
    if processes <= 1:
        yield from map(job.build, shards)
        return
    with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            for future in as_completed([pool.submit(_build_in_worker, shard) for shard in shards]):
                yield future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()  # a shard that is not whole has a temporary name
            if isinstance(error, BrokenProcessPool):
                raise BadInput(
                    "a worker process was killed (out of memory?): run the same command with fewer --processes; finished "
                    "shards stay"
                ) from None
            raise


_job: Job | None = None


def _start_worker(job: Job) -> None:
    global _job
    _job = job
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    end_with_parent()  # a worker that outlived align would hold the dataset's lock


def _build_in_worker(shard: PlannedShard) -> BuiltShard:
    assert _job is not None
    return _job.build(shard)
