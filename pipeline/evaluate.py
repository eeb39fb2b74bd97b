"""Scores a checkpoint: `python pipeline/evaluate.py [--recipe X] [--step latest | --model FOLDER --label NAME]`.

Tasks, decoding preset and number of problems are the recipe's `evaluation`. Nothing is fetched for the tasks of this
project; scores and samples go to RUN_DIR/evaluation/STEP or LABEL. A killed evaluation goes on where it was. `--shard 2/8`
answers a part of the problems (a Slurm array's task does so by itself); the last shard scores. `--watch` scores every
checkpoint of a run while it trains. `--show N` prints answers and how they came about; `--prompt TEXT` answers a prompt as the
preset decodes, scores nothing, and in a terminal goes on with what is typed, as pipeline/chat.py does.

Other commands: `evaluate.py compare A B` (which differences are real), `prefetch` and `check` (data of the benchmarks),
`score` (runs generated programs in the sandbox); each has --help.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial
from importlib import import_module

from pipeline.config.cli import parse, parser
from pipeline.conversation.options import Sampling, add_sampling, check_prompt
from pipeline.core.errors import BadInput, exit_code

COMMANDS = {
    "compare": "pipeline.evaluation.compare",
    "prefetch": "pipeline.evaluation.prefetch",
    "check": "pipeline.evaluation.check",
    "score": "pipeline.evaluation.code.score",
}


def main() -> None:
    """Parses the command line, and evaluates or runs another command."""
    argv = sys.argv[1:]
    if argv and argv[0] in COMMANDS:
        return import_module(COMMANDS[argv[0]]).main(argv[1:])
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness draws a bar for prompts that take it a second to build
    from pipeline.evaluation.stage import Request, export_of, model_folder, run

    p = parser(__doc__)
    p.add_class_arguments(Request)
    p.add_argument("--watch", action="store_true", help="score every new checkpoint of the run while it trains")
    p.add_argument("--tasks", nargs="+", default=[], help="short for --evaluation.tasks")
    p.add_argument("--preset", default="", help="short for --evaluation.preset")
    p.add_argument("--prompt", metavar="TEXT", help="answer this, score nothing; the next five options go with it")
    add_sampling(p, length="the preset's", threshold="the preset's", block_size="the preset's, else the model's")
    recipe, flags = parse(p, argv)
    recipe.evaluation.tasks = flags.tasks or recipe.evaluation.tasks
    recipe.evaluation.preset = flags.preset or recipe.evaluation.preset
    sampling = Sampling.of(flags)
    if flags.prompt is not None:
        check_prompt("--prompt", flags.prompt)
        folder = model_folder(flags.model) if flags.model else str(export_of(Path(recipe.run_dir), flags.step))
        from pipeline.conversation.prompt import answer_prompt

        return answer_prompt(recipe.evaluation, folder, flags.prompt, sampling)
    if sampling.given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sampling.given)
        raise BadInput(f"{options}: only with --prompt; scores are decoded as evaluation.preset says")
    run(recipe, Request(**{name: getattr(flags, name) for name in Request.__dataclass_fields__}), flags.watch)


command = partial(exit_code, "evaluate", main)  # tide-evaluate

if __name__ == "__main__":
    sys.exit(command())
