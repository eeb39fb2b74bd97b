"""The manifest of an aligned dataset: what it was made from, what it holds, and whether it fits a recipe.

`identity` is everything that determines the rows; `key` is its hash. The manifest is written last: without it there is
no dataset. Settings of training (block size, batch, objective) are no part of it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput
from pipeline.core.files import file_sha256, json_sha256, read_json

FORMAT = 2
"""Version of the columns and of what is in them; a new one makes every older dataset stale."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a digest of its content, by which a reader sees damage."""
    written = json.loads(json.dumps(record))
    return {**written, "digest": json_sha256(written)}


def is_sealed(record: Any) -> bool:
    """Whether a record is as `seal` made it."""
    return isinstance(record, dict) and record == seal({k: v for k, v in record.items() if k != "digest"})


def tokenizer_fingerprint(path: str) -> dict[str, Any]:
    """Path, digest of every tokenizer and template file, and one digest over all. Raises BadInput without any."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(path, allow_patterns=list(TOKENIZER_FILES)))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f"{path}: no such folder, and the hub gives no tokenizer of that name ({reason})") from None
    files = {name: file_sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not files:
        raise BadInput(f"{path}: no tokenizer files; expected {TOKENIZER_FILES[0]}")
    return {"path": path, "sha256": json_sha256(files), "files": files}


def describe(recipe: Recipe, contents: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that a recipe sets. `contents`: what is known of the data at each `place`."""
    validation = recipe.data.validation
    sources = [{**asdict(source), "content": contents.get(place(asdict(source)))} for source in recipe.data.sources]
    return {
        "format": FORMAT,
        "student": _side(recipe.student.tokenizer, recipe.data.student_length),
        "teachers": {teacher.name: _side(teacher.tokenizer, teacher.length) for teacher in recipe.teachers},
        "maskable": recipe.data.maskable,
        "on_bad_row": recipe.data.on_bad_row,
        "sources": sources,
        "validation": validation and {**asdict(validation), "content": contents.get(place(asdict(validation)))},
    }


def identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the rows, of a manifest or its `describe` part."""
    return {
        "format": manifest["format"],
        "student": _side_identity(manifest["student"]),
        "teachers": {name: _side_identity(side) for name, side in manifest["teachers"].items()},
        "maskable": manifest["maskable"],
        "on_bad_row": manifest["on_bad_row"],
        "sources": {str(n): {**source, "licence": None} for n, source in enumerate(manifest["sources"])},
        "validation": manifest["validation"],
    }


def place(source: Mapping[str, Any]) -> str:
    """Names the data behind a source or the validation rows."""
    parts = ("path", "config", "split", "format", "holdout", "contains")
    return ":".join(str(source.get(part, "")) for part in parts)


def _side(tokenizer: str, length: int) -> dict[str, Any]:
    return {"tokenizer": tokenizer_fingerprint(tokenizer), "length": length}


def _side_identity(side: Mapping[str, Any]) -> dict[str, Any]:
    return {"tokenizer": side["tokenizer"]["sha256"], "length": side["length"]}


def load_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a complete aligned dataset. Raises BadInput naming the align command if there is none."""
    manifest = read_json(Path(folder) / "manifest.json")
    if manifest is None:
        raise BadInput(f"no aligned dataset in {folder}: run `{align_command()}` first")
    if not is_sealed(manifest):
        raise BadInput(f"{folder}/manifest.json is damaged or older than this program: run `{align_command()}`")
    if manifest["format"] != FORMAT:
        raise BadInput(f"{folder} has format {manifest['format']}, not {FORMAT}: run `{align_command()}`")
    return manifest


def check_manifest(manifest: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises BadInput, naming what differs and both keys, unless the dataset fits the recipe.

    It fits with the same tokenizers, lengths and data; it may hold more teachers, or validation rows that the recipe
    does not ask for. The data themselves are not read again; a local file must have kept its size.
    """
    data = [*manifest["sources"], *filter(None, [manifest["validation"]])]
    wanted = identity(describe(recipe, {place(source): source["content"] for source in data}))
    held = covered(identity(manifest), wanted)
    changes = [f"{name} (aligned: {there}, recipe: {here})" for name, there, here in _differences(held, wanted)]
    changes += [f"the size of {source['path']}" for source in data if _was_resized(source)]
    if changes:
        raise BadInput(
            f"the aligned dataset in {recipe.data.aligned} has key {json_sha256(held)[:12]}, the recipe "
            f"{json_sha256(wanted)[:12]}; they differ in {'; '.join(changes)}: run `{align_command()}`"
        )


def covered(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's identity without the teachers and validation rows that are not wanted."""
    teachers = {name: side for name, side in held["teachers"].items() if name in wanted["teachers"]}
    return {**held, "teachers": teachers, "validation": held["validation"] if wanted["validation"] else None}


def _was_resized(source: Mapping[str, Any]) -> bool:
    path = Path(source["path"])
    return path.is_file() and path.stat().st_size != source["content"]["bytes"]


def _differences(held: Any, wanted: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        keys = sorted({*held, *wanted})
        return [d for key in keys for d in _differences(held.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))]
    return [] if held == wanted else [(name, _short(held), _short(wanted))]


def _short(value: Any) -> str:
    if value is None or isinstance(value, Mapping):
        return "no" if value is None else "yes"
    return str(value)[:12] if len(str(value)) == 64 else str(value)  # a digest


def verify_shards(folder: Path | str, manifest: Mapping[str, Any], rank: int = 0, world_size: int = 1) -> None:
    """Compares this rank's share of the shards with their digests. Raises BadInput for missing or damaged ones."""
    damaged = damaged_shards(Path(folder), manifest["shards"][rank::world_size])
    if damaged:
        raise BadInput(f"{folder}: missing or damaged {', '.join(damaged)}: run `{align_command()}`")


def damaged_shards(folder: Path, shards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Files that are not there or do not have their digest. Hashing in threads, at the speed of the disk."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        intact = pool.map(lambda shard: is_intact(folder, shard), shards)
        return [shard["file"] for shard, good in zip(shards, intact, strict=True) if not good]


def is_intact(folder: Path, shard: Mapping[str, Any]) -> bool:
    """Whether a shard's file is there and has its digest."""
    path = folder / shard["file"]
    return path.is_file() and file_sha256(path) == shard["sha256"]


def align_command(argv: Sequence[str] | None = None) -> str:
    """The align command for the recipe and overrides of this process's command line."""
    sections = {"recipe", *Recipe.__dataclass_fields__}
    words, keep, kept = list(sys.argv[1:] if argv is None else argv), False, []
    for word in words:
        if word.startswith("--"):
            keep = word[2:].split("=")[0].split(".")[0] in sections
        if keep:
            kept.append(word)
    return shlex.join(["python", "pipeline/align.py", *kept])
