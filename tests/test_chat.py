"""Talking to the demo's student: the sampler's answers, told block by block, in the terminal and on the page."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest
import torch
from rich.console import Console

from pipeline import chat as stage
from pipeline.conversation.answering import Answerer, Forward, pieces
from pipeline.conversation.terminal_chat import BlockPrinter, talk
from pipeline.conversation.web import PageServer
from pipeline.core.errors import BadInput
from pipeline.decoding.cached_model import BidirectionalModel
from pipeline.decoding.canvas import GenerateConfig
from pipeline.decoding.rules import Rules
from pipeline.decoding.sampler import decode
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest
from tests import chromium
from tests.test_models_loading import STUDENT

QUESTION = "How many apples are 51 plus 64?"
FOLLOW_UP = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "115 apples in all."},
    {"role": "user", "content": "How many coins are 84 plus 61?"},
]


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    """Blocks of 8, so that an answer has several."""
    config = GenerateConfig(max_new_tokens=30, block_size=8, steps=30, threshold=0.9, blocks="training")
    return Answerer(CheckpointUnderTest(str(STUDENT), torch.float32, "cpu"), config)


@pytest.mark.parametrize("chat", [FOLLOW_UP[1:2], FOLLOW_UP], ids=["first", "fourth"])
def test_an_answer_is_the_samplers_and_its_forwards_tell_all_of_it(answerer, chat) -> None:
    seen: list[Forward] = []
    answer = answerer.answer(chat, seen.append)
    checkpoint = answerer.checkpoint
    options = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": False}
    prompt = checkpoint.tokenizer.apply_chat_template(chat, **options)
    (expected,) = decode(checkpoint.model, [prompt], answerer.config)
    body = expected.tokens[:-1]
    assert answer.text == checkpoint.tokenizer.decode(body, skip_special_tokens=True)
    assert (answer.filled, answer.forwards) == (expected.filled[: len(body)], expected.forwards)
    assert [forward.number for forward in seen] == list(range(1, expected.forwards + 1))
    told = {i: (spelled, f.number) for f in seen for i, spelled in f.decided}
    assert len(told) == sum(len(f.decided) for f in seen), "no position is decided twice"
    spelled = [checkpoint.spelled[token] for token in expected.tokens]
    assert [told[i] for i in range(len(spelled))] == list(zip(spelled, expected.filled, strict=True))
    assert all(max(i for i, _ in f.decided) < f.opened <= 30 for f in seen)
    per_token = expected.forwards / len(body)
    assert answer.cost.startswith(f"{len(body)} tokens, {expected.forwards} forwards ({per_token:.2f} per token)")


def test_an_answer_by_other_rules(answerer) -> None:
    rules = Rules(read=partial(BidirectionalModel.guided, 0.0))
    answer = replace(answerer, rules=rules).answer(FOLLOW_UP)
    prompt = answerer.encode(FOLLOW_UP)
    (response,) = decode(answerer.checkpoint.model, [prompt], answerer.config, rules=rules)
    assert (answer.filled, answer.forwards) == (response.filled[: len(answer.filled)], response.forwards)
    assert answer.text != answerer.answer(FOLLOW_UP).text  # this student was not trained to see later blocks


def test_a_character_of_several_tokens_stands_at_the_last_of_them() -> None:
    spelled = [b"a", "é".encode()[:1], "é".encode()[1:], b"\xff"]
    assert pieces(spelled, [0, 1, 2]) == ["a", "", "é"]
    assert pieces(spelled, [0, 1]) == ["a", "�"]


def test_blocks_are_printed_once_they_are_decided() -> None:
    out = StringIO()
    printer = BlockPrinter(Console(file=out), order=False)
    e = "é".encode()
    for forward, printed in (
        (Forward(1, 2, [(1, e[:1])]), ""),
        (Forward(2, 2, [(0, b"a")]), ""),
        (Forward(3, 4, [(3, b"c")]), "a"),
        (Forward(4, 4, [(2, e[1:])]), "a"),
    ):
        printer.see(forward)
        assert out.getvalue() == printed
    printer.end(["a", "", "é", "c"], [2, 1, 4, 3])
    assert out.getvalue() == "aéc\n"


def test_order_is_shown_in_colour() -> None:
    out = StringIO()
    printer = BlockPrinter(Console(file=out, force_terminal=True, color_system="truecolor"), order=True)
    printer.see(Forward(1, 2, [(1, b"b")]))
    printer.see(Forward(2, 2, [(0, b"a")]))
    printer.end(["a", "b"], [2, 1])
    assert len(set(out.getvalue().split("\x1b[")[1::2])) == 2


def test_a_conversation_has_a_history_until_it_is_reset(answerer) -> None:
    class Heard:
        """Answers as the model does, and keeps the chats."""

        def __init__(self) -> None:
            self.chats: list[list[dict[str, str]]] = []

        def answer(self, chat, watch):
            self.chats.append(list(chat))
            return answerer.answer(chat, watch)

    heard, out = Heard(), StringIO()
    lines = [
        QUESTION,
        FOLLOW_UP[3]["content"],
        "/reset",
        "",
        QUESTION,
        "/system Add.",
        QUESTION,
        "/what",
        "/quit",
        "no",
    ]
    talk(heard, iter(lines), Console(file=out, width=200))
    asked = [[(m["role"], m["content"]) for m in chat] for chat in heard.chats]
    user, first = ("user", QUESTION), answerer.answer(FOLLOW_UP[1:2]).text
    assert asked == [
        [user],
        [user, ("assistant", first), ("user", FOLLOW_UP[3]["content"])],
        [user],
        [("system", "Add."), user],
    ]
    assert out.getvalue().count(f"{first}\n") >= 2 and out.getvalue().count(" tokens/s\n") == 4
    assert out.getvalue().count("/reset forgets") == 2


def test_a_chat_that_is_too_long_is_refused_in_one_line(answerer) -> None:
    out = StringIO()
    long = QUESTION * 60
    talk(answerer, iter([long, QUESTION]), Console(file=out, width=400))
    assert "more than the 512 that the model reads" in out.getvalue() and out.getvalue().count(" tokens/s\n") == 1


def test_once_prints_the_answer_alone(answerer, run_command) -> None:
    run = partial(run_command, stage, "--model", STUDENT)
    code, out, err = run("--once", QUESTION, "--max-new-tokens", "30", "--block-size", "8")
    assert (code, out) == (0, answerer.answer(FOLLOW_UP[1:2]).text + "\n") and "forwards" in err
    assert run("--once", " ") == (2, "", "chat: --once is empty: give it a text to answer\n")
    code, out, err = run("--once", QUESTION, "--published")
    assert (code, out) == (2, "") and err.startswith("chat: Qwen3 has no sampler of its own here")
    code, out, err = run("--once", QUESTION, "--threshold", "0")
    assert (code, out) == (2, "") and err.startswith("chat: threshold 0.0 must be positive")


@pytest.fixture
def server(answerer) -> Iterator[PageServer]:
    """On a free port."""
    with PageServer(answerer, "demo/student") as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def post(server: PageServer, body: bytes, **headers: str) -> tuple[int, bytes]:
    """POST /answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("POST", "/answer", body, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_pages_answer_is_a_line_per_forward_and_the_end(server, answerer) -> None:
    status, body = post(server, json.dumps({"messages": FOLLOW_UP}).encode())
    *forwards, end = map(json.loads, body.splitlines())
    expected = answerer.answer(FOLLOW_UP)
    assert status == 200 and [line["forward"] for line in forwards] == list(range(1, expected.forwards + 1))
    assert (end["text"], end["pieces"], end["filled"]) == (expected.text, expected.pieces, expected.filled)
    status, body = post(server, json.dumps({"messages": [{"role": "user", "content": QUESTION * 60}]}).encode())
    assert status == 200 and "more than the 512" in json.loads(body)["error"]
    status, body = post(server, b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
    assert status == 200 and "not UTF-8" in json.loads(body)["error"]


def test_other_sites_and_other_machines_reach_nothing(server) -> None:
    good = json.dumps({"messages": FOLLOW_UP}).encode()
    assert server.server_address[0] == "127.0.0.1"
    assert post(server, good, Host=f"example.org:{server.server_port}")[0] == 403
    assert post(server, good, **{"Content-Type": "text/plain"})[0] == 404
    for bad in (b"{", b"[" * 100_000, b"[]", b'{"messages": []}', b'{"messages": [{"role": "tool", "content": ""}]}'):
        assert post(server, bad)[0] == 400
    assert post(server, b" ", **{"Content-Length": str((1 << 20) + 1)})[0] == 413  # refused before it is sent


def test_a_port_that_is_taken(server, answerer) -> None:
    with pytest.raises(BadInput, match="give another port"):
        PageServer(answerer, "x", server.server_port)


ASK = """(async text => {
  document.getElementById("text").value = text;
  let masks = 0;
  new MutationObserver(() => masks = Math.max(masks, document.querySelectorAll(".answer i").length))
    .observe(document.getElementById("chat"), { childList: true, subtree: true });
  const done = document.querySelectorAll(".cost, .error").length + 1;
  document.getElementById("form").requestSubmit();
  while (document.querySelectorAll(".cost, .error").length < done) await new Promise(ready => setTimeout(ready, 20));
  return { masks, left: document.querySelectorAll(".answer i").length,
           text: [...document.querySelectorAll(".answer")].at(-1).textContent };
})"""


@pytest.mark.skipif(chromium.BINARY is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_in_a_browser(width, server, answerer, tmp_path) -> None:
    with chromium.Page(tmp_path) as page:
        page.open(f"http://{server.address}/", width)
        first = page.run(f"{ASK}({json.dumps(QUESTION)})")
        page.run("document.getElementById('order').click()")
        second = page.run(f"{ASK}({json.dumps(FOLLOW_UP[3]['content'])})")
        assert first["text"] == answerer.answer(FOLLOW_UP[1:2]).text
        said = {"role": "assistant", "content": first["text"]}
        assert second["text"] == answerer.answer([FOLLOW_UP[1], said, FOLLOW_UP[3]]).text
        assert first["masks"] > 0 and first["left"] == second["left"] == 0
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        colours = page.run(
            "new Set([...document.querySelectorAll('.answer b')].map(b => getComputedStyle(b).boxShadow)).size"
        )
        assert colours > 1
        page.screenshot(Path(tmp_path, f"{width}.png"))
        page.run("document.getElementById('reset').click()")
        assert page.run("document.getElementById('chat').childElementCount") == 0
