"""Talks to a model: `python pipeline/chat.py --model runs/NAME`, in the terminal, or with `--web` on a page of this machine.

Answers come block by block; `/order` (or `--order`) colours their tokens by the forward that decided them. `--once TEXT`
prints one answer and ends. /reset, /system TEXT and /quit are commands of the conversation.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextlib import suppress
from functools import partial

from pipeline.conversation.options import Sampling, add_sampling, check_prompt
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.log import log
from pipeline.core.terminal import Console, visible
from pipeline.core.version import plain_parser
from pipeline.evaluation.stage import model_folder


def main() -> None:
    """Parses the command line and talks."""
    p = plain_parser(__doc__)
    p.add_argument(
        "--model", required=True, help="run directory (its newest checkpoint), checkpoint, export, model or hub name"
    )
    p.add_argument("--once", metavar="TEXT", help="answer this and end; what it took goes to standard error")
    p.add_argument(
        "--web", nargs="?", type=int, const=0, metavar="PORT", help="a page at 127.0.0.1 (default: a free port)"
    )
    p.add_argument("--system", default="", metavar="TEXT", help="system message")
    p.add_argument("--order", action="store_true", help="colour tokens by the forward that decided them")
    add_sampling(p, length="256", threshold="0.9", block_size="the model's, else 32")
    p.add_argument(
        "--published",
        action="store_true",
        help="decode as the model's published code does (LLaDA, Dream, SDAR, Fast-dLLM v2), --threshold apart",
    )
    p.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on a GPU")
    options = p.parse_args()
    folder = model_folder(options.model)

    from pipeline.conversation import terminal_chat
    from pipeline.conversation.answering import Answerer
    from pipeline.conversation.web import PageServer
    from pipeline.decoding.canvas import GenerateConfig
    from pipeline.decoding.rules import BLOCK_DIFFUSION, published, published_blocks
    from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest

    checkpoint = CheckpointUnderTest.of(folder, options.dtype)
    size, blocks = checkpoint.blocks(32)
    default = GenerateConfig(max_new_tokens=256, block_size=size, steps=256, threshold=0.9, blocks=blocks)
    config = Sampling.of(options).over(default)
    try:
        rules = BLOCK_DIFFUSION
        if options.published:
            rules, config = published(checkpoint.model), published_blocks(checkpoint.model, config)
    except ValueError as error:
        raise BadInput(str(error)) from None
    answerer, chat = Answerer(checkpoint, config, rules), terminal_chat.start(options.system)
    if options.once is not None:
        check_prompt("--once", options.once)
        answer = answerer.answer([*chat, {"role": "user", "content": options.once}])
        print(visible(answer.text))
        print(answer.cost, file=sys.stderr)
    elif options.web is not None:
        _ = checkpoint.model
        with PageServer(answerer, folder, options.web) as server, suppress(KeyboardInterrupt):
            log.info(f"open http://{server.address} in a browser of this machine; Ctrl-C ends")
            server.serve_forever()
    else:
        _ = checkpoint.model  # read before the first question
        terminal_chat.talk(answerer, terminal_chat.typed_lines(), Console(), system=options.system, order=options.order)


command = partial(exit_code, "chat", main)  # tide-chat

if __name__ == "__main__":
    sys.exit(command())
