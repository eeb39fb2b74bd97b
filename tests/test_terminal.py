"""What is printed: names and texts of others stay text."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from pipeline.core.errors import BadInput, exit_code
from pipeline.core.log import log
from pipeline.core.terminal import Console

EVIL = "a\x1b]52;c;ZWNobyBwd25lZA==\x1b\\\x1b[2J\x9b2J\r\x07b"
SHOWN = r"a\x1b]52;c;ZWNobyBwd25lZA==\x1b\\x1b[2J\x9b2J\x0d\x07b"


def table() -> Table:
    evil = Table(EVIL, title="[/red]")
    evil.add_row("[/INST] :smile:")
    return evil


@pytest.mark.parametrize("printed", [EVIL, Text(EVIL, style="bold"), table()])
def test_a_console_obeys_nothing_that_it_prints(printed) -> None:
    file = io.StringIO()
    Console(file=file, width=200).print(printed)
    text = file.getvalue()
    assert not {"\x1b", "\x9b", "\r", "\x07"} & {*text} and "ZWNobyBwd25lZA==" in text
    if isinstance(printed, Table):
        assert "[/red]" in text and "[/INST] :smile:" in text


def test_colours_stay() -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="truecolor").print(Text("red", style="red"))
    assert "\x1b[31mred\x1b[0m" in file.getvalue()


def test_errors_and_the_log_obey_nothing_that_they_say(capsys) -> None:
    def main() -> None:
        log.info("read %s", EVIL)
        raise BadInput(f"no file {EVIL}")

    assert exit_code("align", main) == 2
    said = capsys.readouterr()
    assert said.out.endswith(f"read {SHOWN}\n") and said.err == f"align: no file {SHOWN}\n"


def test_letters_that_the_terminal_lacks_are_written_out(monkeypatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert exit_code("evaluate", lambda: Console().print("日本 is Japan")) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"\\u65e5\\u672c is Japan\n"


def test_a_file_holds_no_progress_bars() -> None:
    program = """
from pipeline.core.errors import exit_code
def main():
    from tqdm import tqdm
    print(sum(tqdm(range(3))))
exit_code("convert", main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_no_stage(stream) -> None:
    program = f"""
import sys
from pipeline.core.errors import exit_code
from pipeline.core.log import log
from pipeline.core.terminal import Console
def main():
    print("text", file=sys.{stream}, flush=True)
    Console(file=sys.{stream}).print("text")
    log.info("text")
    print("what is left at the end", file=sys.{stream})
sys.exit(exit_code("stage", main))
"""
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: write}
    done = subprocess.run([sys.executable, "-c", program], text=True, check=False, **streams)
    os.close(write)
    assert done.returncode == 0 and not done.stderr
