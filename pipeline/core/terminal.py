"""What is printed for people. Names and texts of others are text there: no markup, no escape sequences."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from io import BufferedWriter, FileIO, TextIOWrapper, UnsupportedOperation
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but line break and tab


def visible(text: str) -> str:
    """The text with its control characters written out: a terminal would obey them."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def print_any_letter() -> None:
    """From here on, letters that the terminal's encoding lacks (ASCII in many a log collector) are written out: `\\u65e5`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _ForWhoeverReads(FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(data)


def outlive_readers() -> None:
    """From here on, output that nobody reads any more (`| head`, a closed terminal) is dropped without an error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper) and _has_reader(stream):
            stream.flush()
            raw = BufferedWriter(_ForWhoeverReads(stream.fileno(), "w", closefd=False))
            outliving = TextIOWrapper(
                raw,
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, outliving)


def _has_reader(stream: TextIOWrapper) -> bool:
    try:
        kind = os.fstat(stream.fileno()).st_mode
    except UnsupportedOperation:  # no file at all
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or stream.isatty()


def draw_bars_on_terminals_only() -> None:
    """No progress bars of tqdm, which every library draws with, where a file takes the output: one line of all their states."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def span(seconds: float) -> str:
    """A time as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def by_timestep(values: Mapping[str, float], form: str) -> str:
    """Values at timesteps in order, each in that format: `t 0.1-0.9: 0.4 0.5 0.6`."""
    first, *_, last = values
    return f"t {first}-{last}: {' '.join(format(value, form) for value in values.values())}"


def number_of(count: int, thing: str) -> str:
    """1 shard, 2 shards."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


class Console(RichConsole):
    """Rich's, for whom square brackets and control characters in what is printed are text. Styles are objects, not markup."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
