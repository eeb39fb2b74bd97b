"""Task data and readiness: `python pipeline/evaluate.py prefetch` on a machine with a network, `check` on any.

`prefetch` writes the rows of the recipe's benchmarks to data/benchmarks (or $BENCHMARK_DATA), which evaluation reads; a task
of lm-evaluation-harness's own is loaded once, which fills the Hugging Face cache: evaluate it with HF_HUB_OFFLINE=1.
`check` says in seconds what is missing: data, checkpoint, chat template, sandbox.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json, write_text
from pipeline.evaluation import human_eval
from pipeline.evaluation.benchmarks import SOURCES, TASKS, Source, data_file, read
from pipeline.evaluation.code.sandbox import Limits, Sandbox
from pipeline.evaluation.presets import preset

CODE = ("humaneval", "mbpp")


def main(argv: list[str]) -> None:
    """Fetches what the recipe's tasks need and is not there yet."""
    p = parser(__doc__)
    p.add_argument("--tasks", nargs="+", default=[], help="short for --evaluation.tasks")
    recipe, flags = parse(p, argv)
    for name in flags.tasks or recipe.evaluation.tasks:
        if name in SOURCES:
            path = data_file(name)
            if not path.is_file():
                fetch(name)
            print(f"{name}: {len(read(name))} rows in {path}")
        elif not _own_file(name):
            from pipeline.evaluation.lm_eval_tasks import load_tasks

            load_tasks([name])
            print(f"{name}: in the Hugging Face cache")


def fetch(name: str) -> None:
    """Writes a benchmark's rows and, beside them, where they are from. Raises BadInput where its source is not reached."""
    source = SOURCES[name]
    rows, revision = (human_eval.problems(), human_eval.PACKAGE) if name == "humaneval" else _from_hub(source)
    if len(rows) != source.rows:
        found = f"{source.path} has {len(rows)} rows in {source.split}, not {source.rows}"
        raise BadInput(f"{found}: it is not the data of {name}")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    facts = {"source": source.path, "revision": revision, "split": source.split, "rows": len(rows), "sha256": checksum}
    write_json(data_file(name).with_suffix(".source.json"), facts)
    write_text(data_file(name), text)


def _from_hub(source: Source) -> tuple[list[dict[str, Any]], str]:
    """All rows of a source at its newest revision, and the revision."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(source.path).sha
        rows = []
        for config in source.configs:
            added = {source.config_column: config} if source.config_column else {}
            part = load_dataset(source.path, config, split=source.split, revision=revision)
            rows += [{**row, **added} for row in part]
    except Exception as error:  # of either library, of the network below them, of an offline switch
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"cannot fetch {source.path} ({type(error).__name__}: {reason}): run prefetch where the hub is reached"
        ) from None
    return rows, revision


def check(argv: list[str]) -> None:
    """Prints what evaluation will need, and raises BadInput if anything of it is missing."""
    p = parser(__doc__)
    p.add_argument("--model", default="", help="check this model folder instead of the run's checkpoints")
    recipe, flags = parse(p, argv)
    missing = 0
    for what, state in states(recipe, flags.model):
        missing += state is not None
        print(f"{'missing' if state else 'ok':8} {what}{': ' + state if state else ''}")
    if missing:
        raise BadInput(f"{missing} of the things that evaluation needs are missing (above)")


def states(recipe: Recipe, model: str = "") -> Iterator[tuple[str, str | None]]:
    """(what, None or what is wrong with it)."""
    tasks, named = recipe.evaluation.tasks, recipe.evaluation.preset
    yield "tasks", None if tasks else "evaluation.tasks is empty"
    yield f"preset {named}", _trouble(lambda: preset(named, recipe.student.block_size))
    for name in tasks:
        yield f"data of {name}", _trouble(lambda name=name: _data(name))
    checkpoints = complete_checkpoints(Path(recipe.run_dir))
    folder = model or (str(checkpoints[-1] / "export") if checkpoints else "")
    place = f"model {folder}" if folder else f"checkpoint in {recipe.run_dir}/checkpoints"
    yield place, None if folder and Path(folder, "config.json").is_file() else "run distill.py first, or name a --model"
    if folder and recipe.evaluation.chat:
        yield "chat template of its tokenizer", _trouble(lambda: _template(folder))
    if set(CODE) & set(tasks):
        yield "sandbox for generated code", _trouble(_sandbox)


def _trouble(look: Any) -> str | None:
    try:
        look()
    except BadInput as error:
        return str(error)
    return None


def _data(name: str) -> None:
    """Raises BadInput for data that is not there."""
    if name in SOURCES:
        return read(name) and None
    file = _own_file(name)
    if file is None:
        from pipeline.evaluation.lm_eval_tasks import load_tasks

        load_tasks([name])
    elif not Path(path := yaml.load(file.read_text(encoding="utf-8"), _Loader)["dataset_kwargs"]["path"]).is_file():
        raise BadInput(f"no file {path}: make the data of this task first (see the README)")


def _own_file(name: str) -> Path | None:
    """The YAML of a task of this project, named like the task."""
    file = TASKS / f"{name}.yaml"
    return file if file.is_file() else None


class _Loader(yaml.SafeLoader):
    """Task files without their functions."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


def _template(folder: str) -> None:
    """Raises BadInput for a tokenizer without a chat template."""
    names = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    config = Path(folder, "tokenizer_config.json")
    in_config = config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
    if not in_config and not any(Path(folder, name).exists() for name in names):
        raise BadInput(f"no chat template in {folder}: save one there, or evaluate with --evaluation.chat false")


def _sandbox() -> None:
    with Sandbox.open(Limits()):
        pass
