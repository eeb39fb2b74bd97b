"""Scores a checkpoint: `python pipeline/evaluate.py [--recipe X] [--step latest | --model FOLDER --label NAME]`.

Tasks, decoding preset and number of problems are the recipe's `evaluation`. Nothing is fetched for the tasks of this
project; scores and samples go to RUN_DIR/evaluation/STEP or LABEL. A killed evaluation goes on where it was. `--shard 2/8`
answers a part of the problems (a Slurm array's task does so by itself); the last shard scores. `--watch` scores every
checkpoint of a run while it trains. `--prompt TEXT` answers one prompt, `--show N` prints answers and how they came about.

Other commands: `evaluate.py compare A B` (which differences are real), `prefetch` and `check` (data of the benchmarks),
`score` (runs generated programs in the sandbox); each has --help.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import signal
from functools import partial
from importlib import import_module

from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints, step_name, step_of
from pipeline.core.errors import BadInput, StoppedEarly, exit_code
from pipeline.core.stage_status import record_status

COMMANDS = {
    "compare": "pipeline.evaluation.compare:main",
    "prefetch": "pipeline.evaluation.prefetch:main",
    "check": "pipeline.evaluation.prefetch:check",
    "score": "pipeline.evaluation.code.score:main",
}


def main() -> None:
    """Checks the command line and what it names, then loads the model and runs the tasks."""
    argv = sys.argv[1:]
    if argv and argv[0] in COMMANDS:
        module, function = COMMANDS[argv[0]].split(":")
        return getattr(import_module(module), function)(argv[1:])
    recipe, flags = _parse(argv)
    run_dir = Path(recipe.run_dir)
    if flags.prompt:
        from pipeline.evaluation.runner import answer

        folder = flags.model or checkpoint(recipe, flags.step)[0]
        return answer(recipe, folder, flags.prompt)
    from pipeline.evaluation.answer_cache import Share

    share = Share.parse(flags.shard, dict(os.environ))
    stage = "watch" if flags.watch else f"evaluate{share.suffix}"
    with record_status(run_dir, stage) as status:
        signal.signal(signal.SIGTERM, _stop)
        if flags.watch:
            return _watch(recipe, flags.every)
        if flags.model:
            folder, label = flags.model, flags.label or Path(flags.model).resolve().name
        else:
            folder, step = checkpoint(recipe, flags.step)
            label, status["step"] = flags.label or step, step_of(Path(step))
        status["message"] = label
        evaluate(recipe, folder, label, share=share, shown=flags.show)


def _parse(argv: list[str]):
    """The recipe and the stage's own flags."""
    p = parser(__doc__)
    p.add_argument("--step", default="latest", help="checkpoint of the run: `latest` or a step number")
    p.add_argument("--model", default="", help="score the model in this folder instead of a checkpoint")
    p.add_argument("--label", default="", help="name of the scores (default: the step's, or the folder's name)")
    p.add_argument("--tasks", nargs="+", default=[], help="short for --evaluation.tasks")
    p.add_argument("--preset", default="", help="short for --evaluation.preset")
    p.add_argument("--shard", default="", help="answer this part of the problems: 2/8, counting from 0")
    p.add_argument("--show", type=int, default=0, help="print so many samples of each task, coloured by filling order")
    p.add_argument("--prompt", default="", help="answer this text, and do nothing else")
    p.add_argument("--watch", nargs="?", const="yes", default="", metavar="RUN", help="score every new checkpoint")
    p.add_argument("--every", type=float, default=30.0, help="seconds between looks of --watch")
    recipe, flags = parse(p, _of_the_run(argv))
    recipe.evaluation.tasks = flags.tasks or recipe.evaluation.tasks
    recipe.evaluation.preset = flags.preset or recipe.evaluation.preset
    return recipe, flags


def _of_the_run(argv: list[str]) -> list[str]:
    """`--watch RUN` as a recipe's options: its run directory and, where no recipe is named, its recipe."""
    after = argv.index("--watch") + 1 if "--watch" in argv else len(argv)
    run = argv[after] if after < len(argv) and not argv[after].startswith("-") else ""
    if not run:
        return argv
    named = any(word.startswith("--recipe") for word in argv)
    return [*argv, "--run_dir", run, *([] if named else ["--recipe", str(Path(run) / "recipe.yaml")])]


def checkpoint(recipe: Recipe, step: str) -> tuple[str, str]:
    """The exported model of a step and the step's name. Raises BadInput where there is no complete checkpoint."""
    found = {place.name: str(place / "export") for place in complete_checkpoints(Path(recipe.run_dir))}
    if not found:
        raise BadInput(
            f"no complete checkpoint in {recipe.run_dir}/checkpoints: run `deepspeed pipeline/distill.py` with the same "
            "recipe first"
        )
    name = max(found) if step == "latest" else step_name(int(step)) if step.isdigit() else step
    if name not in found:
        raise BadInput(f"no complete checkpoint {name} in {recipe.run_dir}/checkpoints: there are {', '.join(found)}")
    return found[name], name


def evaluate(recipe: Recipe, folder: str, label: str, **options) -> None:
    """All tasks of the recipe on the model in a folder: see pipeline.evaluation.runner."""
    from pipeline.evaluation import runner

    runner.evaluate(recipe, folder, label, **options)


def _watch(recipe: Recipe, every: float) -> None:
    from pipeline.evaluation.lm_eval_tasks import load_tasks
    from pipeline.evaluation.runner import check
    from pipeline.evaluation.watch import watch

    check(recipe.evaluation)
    watch(Path(recipe.run_dir), list(load_tasks(recipe.evaluation.tasks)), partial(evaluate, recipe), every)


def _stop(*_signal) -> None:
    raise StoppedEarly("stopped by SIGTERM; answers so far are kept, the same command goes on")


command = partial(exit_code, "evaluate", main)
"""The console command `tide-evaluate`; returns the exit code."""

if __name__ == "__main__":
    sys.exit(command())
