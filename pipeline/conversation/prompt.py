"""`evaluate --prompt`: a prompt answered as a recipe's preset decodes, and the conversation that may follow it."""

from __future__ import annotations

import sys

from rich.text import Text

from pipeline.config.recipe import Evaluation
from pipeline.conversation.answering import Answerer
from pipeline.conversation.options import Sampling
from pipeline.conversation.terminal_chat import respond, talk, typed_lines
from pipeline.core.terminal import Console
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest
from pipeline.evaluation.presets import decoding


def answer_prompt(wanted: Evaluation, folder: str, prompt: str, sampling: Sampling) -> None:
    """Prints the prompt as the model reads it and the answer, block by block, in the colours of its forwards; then answers what is
    typed, if standard input is a terminal.

    Raises BadInput for a model, settings or a prompt that cannot be used.
    """
    checkpoint = CheckpointUnderTest.of(folder, wanted.dtype)
    answerer = Answerer(checkpoint, sampling.over(decoding(wanted, checkpoint)), chat=wanted.chat)
    console, first = Console(), [{"role": "user", "content": prompt}]
    answerer.encode(first)  # one that cannot be read is told before it is shown
    console.print(Text(checkpoint.control_tokens.show(answerer.render(first)), "dim"))
    chat = respond(answerer, first, console, order=True)
    if sys.stdin.isatty():
        talk(answerer, typed_lines(), console, chat=chat, order=True)
