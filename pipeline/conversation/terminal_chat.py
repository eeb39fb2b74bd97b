"""A conversation in the terminal."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import suppress

from rich.text import Text

from pipeline.conversation.answering import Answerer, Forward
from pipeline.core.errors import BadInput
from pipeline.core.terminal import Console
from pipeline.evaluation.tables import ordered

HELP = (
    "/reset forgets the chat, /system TEXT sets the system message (and resets), /order colours by filling order, /quit"
)


class BlockPrinter:
    """Prints an answer block by block, as soon as a block is decided; with `order`, in the colours of its forwards."""

    def __init__(self, console: Console, order: bool) -> None:
        self.console, self.order = console, order
        self.decided: dict[int, tuple[bytes, int]] = {}
        self.printed, self.opened = 0, 0
        # a character may begin in one block and end in the next
        self.decoder = getincrementaldecoder("utf-8")("replace")

    def see(self, forward: Forward) -> None:
        """A forward; the first one of a block has the block before it printed."""
        if forward.opened > self.opened:
            block = [self.decided[i] for i in range(self.printed, self.opened)]
            self._print([self.decoder.decode(spelled) for spelled, _ in block], [number for _, number in block])
            self.opened = forward.opened
        self.decided |= {i: (spelled, forward.number) for i, spelled in forward.decided}

    def end(self, pieces: list[str], filled: list[int]) -> None:
        """Prints what is left of an answer."""
        self._print(pieces[self.printed :], filled[self.printed :])
        self.console.print()

    def _print(self, texts: list[str], forwards: list[int]) -> None:
        self.printed += len(texts)
        if texts:
            since = [forward - min(forwards) + 1 for forward in forwards]
            self.console.print(ordered(texts, since) if self.order else Text("".join(texts)), end="", soft_wrap=True)


def talk(
    answerer: Answerer,
    lines: Iterator[str],
    console: Console,
    *,
    chat: list[dict[str, str]] | None = None,
    system: str = "",
    order: bool = False,
) -> None:
    """Goes on with a chat (none: a new one), line after line, until there is none or /quit."""
    console.print(Text(HELP, "dim"))
    chat = chat or start(system)
    for line in lines:
        command, _, words = line.strip().partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            chat = start(system)
        elif command == "/system":
            system = words
            chat = start(system)
        elif command == "/order":
            order = not order
            console.print(Text(f"order of filling {'in colour' if order else 'off'}", "dim"))
        elif command.startswith("/"):
            console.print(Text(HELP, "dim"))
        elif line.strip():
            try:
                chat = respond(answerer, [*chat, {"role": "user", "content": line}], console, order=order)
            except BadInput as error:
                console.print(Text(str(error), "bold red"))
            except KeyboardInterrupt:
                console.print(Text("\nstopped; the question is forgotten", "dim"))


def respond(answerer: Answerer, chat: list[dict[str, str]], console: Console, *, order: bool) -> list[dict[str, str]]:
    """Prints the answer, block by block, and what it took; the chat with the answer. Raises BadInput as `Answerer.answer`."""
    printer = BlockPrinter(console, order)
    answer = answerer.answer(chat, printer.see)
    printer.end(answer.pieces, answer.filled)
    console.print(Text(answer.cost, "dim"))
    return [*chat, {"role": "assistant", "content": answer.text}]


def start(system: str) -> list[dict[str, str]]:
    """A chat of nothing but the system message, if there is one."""
    return [{"role": "system", "content": system}] if system else []


def typed_lines() -> Iterator[str]:
    """Lines of the user, until the end of the input."""
    import readline  # noqa: F401  lets `input` edit and recall lines

    with suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
    print()
