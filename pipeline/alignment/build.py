"""Builds an aligned dataset: every row rendered and tokenized once on each side, and tied by chunks, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.progress import track
from transformers import PreTrainedTokenizerFast

from pipeline.alignment import shards as sharding
from pipeline.alignment.dataset_lock import dataset_lock
from pipeline.alignment.manifest import FORMAT, covered, damaged_shards, describe, identity, is_sealed, place, seal
from pipeline.alignment.ranks import Ranks
from pipeline.alignment.shards import Aligner, Shard
from pipeline.alignment.sides import Side
from pipeline.alignment.sources import ChatRows, open_source
from pipeline.alignment.summary import summarise
from pipeline.alignment.vocabulary import shared_vocab
from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput
from pipeline.core.files import json_sha256, read_json, write_json
from pipeline.core.log import log
from pipeline.models.loading import load_tokenizer


@dataclass
class Job:
    """What every process needs to build shards."""

    folder: Path
    manifest: dict[str, Any]
    """as `manifest.describe` gives it"""
    rows: dict[str, ChatRows]
    shards: list[Shard]

    def build(self, shard: Shard) -> tuple[dict[str, Any], bool]:
        """The shard's record, and whether an earlier run had built it."""
        wanted = identity(self.manifest)
        settings = {name: wanted[name] for name in ("format", "student", "teachers", "maskable", "on_bad_row")}
        rows = self.rows[shard.place]
        key = shard.key(settings, rows.table.sha256)
        if record := sharding.finished(self.folder, shard, key):
            return record, True
        student, teachers = _sides(self.manifest)
        aligner = Aligner(student, teachers, wanted["maskable"], wanted["on_bad_row"])
        return sharding.build(self.folder, shard, key, rows, aligner), False


def align(recipe: Recipe, ranks: Ranks, processes: int, shard_rows: int) -> tuple[dict[str, Any], str]:
    """Builds what is missing of the recipe's aligned dataset; returns its manifest and what was done, in words.

    Raises BadInput for data, tokenizers or settings that cannot be used; then there is no manifest.
    """
    job = ranks.share(lambda: prepare(recipe, shard_rows))
    with ExitStack() as stack:
        if job.shards and ranks.share(lambda: stack.enter_context(dataset_lock(job.folder))):
            job = ranks.share(lambda: prepare(recipe, shard_rows))  # another process has built it
        if not job.shards:
            manifest = read_json(job.folder / "manifest.json")
            return manifest, f"reused {len(manifest['shards'])} shards, built 0"
        if ranks.rank == 0:
            (job.folder / "manifest.json").unlink(missing_ok=True)  # what it marks as complete is about to change
        try:
            mine = job.shards[ranks.rank :: ranks.size]
            built = ranks.gather(lambda: build_all(job, mine, processes, ranks.rank == 0))
        except BadInput:
            with suppress(OSError):  # finished shards stay for the next run
                job.folder.rmdir()
            raise
        return ranks.share(lambda: finish(job, [outcome for part in built for outcome in part]))


def prepare(recipe: Recipe, shard_rows: int) -> Job:
    """Checks all inputs and plans the shards: none if the folder holds a complete dataset that fits the recipe."""
    data = [*recipe.data.sources, *filter(None, [recipe.data.validation])]
    if not recipe.data.sources:
        raise BadInput("the recipe names no data: set data.sources")
    if any(source.weight <= 0 for source in recipe.data.sources):
        raise BadInput("data.sources: every weight must be above 0")
    tokenizers = {teacher.name: _tokenizer(teacher.tokenizer) for teacher in recipe.teachers}
    student = _tokenizer(recipe.student.tokenizer)
    rows = {place(asdict(source)): open_source(source) for source in data}
    contents = {place(asdict(source)): _content(source.path, rows[place(asdict(source))]) for source in data}
    manifest = describe(recipe, contents)
    for name, tokenizer in tokenizers.items():
        manifest["teachers"][name]["shared_vocab"] = shared_vocab(student, tokenizer)
    job = Job(Path(recipe.data.aligned), manifest, rows, sharding.plan(manifest, shard_rows))
    held = read_json(job.folder / "manifest.json")
    if held:
        problem = _misfit(held, job)
        if problem is None:
            job.shards = []
        else:
            log.info(f"{job.folder} {problem}: building it again")
    return job


def build_all(job: Job, shards: Sequence[Shard], processes: int, show: bool) -> list[tuple[dict[str, Any], bool]]:
    """Builds the shards in this many processes; the first error ends the work, finished shards stay."""
    job.folder.mkdir(parents=True, exist_ok=True)
    outcomes = _build(job, shards, min(processes, len(shards)))
    return list(track(outcomes, "aligning", total=len(shards), disable=not show))


def finish(job: Job, built: Sequence[tuple[dict[str, Any], bool]]) -> tuple[dict[str, Any], str]:
    """Removes what an earlier dataset left and writes the manifest, the mark of completion."""
    order = {shard.file: number for number, shard in enumerate(job.shards)}
    records = sorted((record for record, _ in built), key=lambda record: order[record["file"]])
    summary = summarise(records, job.manifest["teachers"])
    for split, rows in summary["rows"].items():
        reasons = ", ".join(f"{n} {reason}" for reason, n in rows["dropped"].items())
        if not rows["kept"]:
            reasons = reasons or "the weights of data.sources take none"
            raise BadInput(f"no {split} row is left of {rows['read']}: {reasons}")
        if 2 * rows["kept"] < rows["read"]:
            log.warning(f"more than half of the {split} rows are dropped ({reasons})")
    stale = sharding.remove_stale(job.folder, job.shards)
    listed = ("file", "split", "rows", "sha256")
    shards = [{name: record[name] for name in listed} for record in records]
    manifest = seal({**job.manifest, "key": json_sha256(identity(job.manifest)), **summary, "shards": shards})
    write_json(job.folder / "manifest.json", manifest)
    reused = sum(was_there for _, was_there in built)
    message = f"reused {reused} shards, built {len(built) - reused}"
    return manifest, message + (f", removed {stale} of another dataset" if stale else "")


def _misfit(held: dict[str, Any], job: Job) -> str | None:
    """Why the complete dataset in the folder neither is nor contains the one that is asked for."""
    if not is_sealed(held):
        return "has a damaged manifest"
    wanted = identity(job.manifest)
    if held["format"] != FORMAT or covered(identity(held), wanted) != wanted:
        return f"holds another dataset, with key {held['key'][:12]}"
    damaged = damaged_shards(job.folder, held["shards"])
    return f"has missing or damaged shards ({', '.join(damaged)})" if damaged else None


def _content(path: str, rows: ChatRows) -> dict[str, Any]:
    size = Path(path).stat().st_size if Path(path).is_file() else None
    return {"rows": rows.table.count, "sha256": rows.table.sha256, "bytes": size, "format": rows.format}


@lru_cache
def _tokenizer(path: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(path)


@lru_cache  # forked workers find the parent's
def _side(path: str, length: int) -> Side:
    return Side(_tokenizer(path), length)


def _sides(manifest: dict[str, Any]) -> tuple[Side, dict[str, Side]]:
    student, teachers = manifest["student"], manifest["teachers"]
    made = {name: _side(side["tokenizer"]["path"], side["length"]) for name, side in teachers.items()}
    return _side(student["tokenizer"]["path"], student["length"]), made


def _build(job: Job, shards: Sequence[Shard], processes: int) -> Iterator[tuple[dict[str, Any], bool]]:
    _sides(job.manifest)
    if processes <= 1:
        yield from map(job.build, shards)
        return
    with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            for future in as_completed([pool.submit(_build_in_worker, shard) for shard in shards]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_job: Job | None = None


def _start_worker(job: Job) -> None:
    global _job
    _job = job


def _build_in_worker(shard: Shard) -> tuple[dict[str, Any], bool]:
    return _job.build(shard)
