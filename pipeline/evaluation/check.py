"""Says in seconds what an evaluation will lack: `python pipeline/evaluate.py check`. Data, checkpoint, chat template, sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml

from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import BadInput
from pipeline.evaluation.benchmarks import SOURCES, own_task_file, read
from pipeline.evaluation.code.limits import Limits
from pipeline.evaluation.code.sandbox import Sandbox
from pipeline.evaluation.presets import preset

CODE = ("humaneval", "mbpp")


def main(argv: list[str]) -> None:
    """Prints what evaluation will need. Raises BadInput if anything of it is missing."""
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
        yield f"data of {name}", _trouble(partial(_data, name))
    checkpoints = complete_checkpoints(Path(recipe.run_dir))
    folder = model or (str(checkpoints[-1] / "export") if checkpoints else "")
    what = f"model {folder}" if folder else f"checkpoint in {recipe.run_dir}/checkpoints"
    yield what, None if folder and Path(folder, "config.json").is_file() else "run distill.py first, or name a --model"
    if folder and recipe.evaluation.chat:
        yield "chat template of its tokenizer", _trouble(lambda: _template(folder))
    if set(CODE) & set(tasks):
        yield "sandbox for generated code", _trouble(_sandbox)


def _trouble(look: Callable[[], object]) -> str | None:
    try:
        look()
    except BadInput as error:
        return str(error)
    return None


def _data(name: str) -> None:
    """Raises BadInput for data that is not there."""
    if name in SOURCES:
        read(name)
        return
    file = own_task_file(name)
    if file is None:
        from pipeline.evaluation.lm_eval_tasks import load_tasks

        load_tasks([name])
    elif not Path(path := yaml.load(file.read_text(encoding="utf-8"), _Loader)["dataset_kwargs"]["path"]).is_file():
        raise BadInput(f"no file {path}: make the data of this task first (see the README)")


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
