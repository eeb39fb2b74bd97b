"""A page of this machine that shows how an answer is filled in: the standard library's server, and one file of HTML."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.conversation.answering import Answerer, Forward
from pipeline.core.errors import BadInput
from pipeline.core.log import log
from pipeline.evaluation.tables import colour

PAGE = Path(__file__).parent / "page.html"
LOOPBACK = "127.0.0.1"
LONGEST_REQUEST = 1 << 20
COLOURS = [colour(i, 12) for i in range(1, 13)]
CONTENT_POLICY = "default-src 'self' 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
ROLES = ("system", "user", "assistant")


class PageServer(ThreadingHTTPServer):
    """Serves the page and answers its chats, one at a time. Only programs of this machine reach it."""

    daemon_threads = True

    def __init__(self, answerer: Answerer, name: str, port: int = 0) -> None:
        try:
            super().__init__((LOOPBACK, port), Handler)
        except OSError as error:
            raise BadInput(f"--web {port}: {error.strerror}; give another port") from None
        self.answerer, self.turn = answerer, Lock()
        settings = {"model": name, "block": answerer.config.block_size, "colours": COLOURS}
        self.page = PAGE.read_text(encoding="utf-8").replace(
            "{{settings}}", json.dumps(settings).replace("<", "\\u003c")
        )

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """GET / is the page; POST /answer takes {"messages": [...]} and gives a line of JSON for every forward."""

    server: PageServer

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path != "/":
            return self.send_error(404)
        self._head("text/html; charset=utf-8")
        self.wfile.write(self.server.page.encode())

    def do_POST(self) -> None:
        # Other sites' pages can send forms here, but no JSON.
        if not self._is_ours():
            return
        if self.path != "/answer" or self.headers.get_content_type() != "application/json":
            return self.send_error(404)
        given = self.headers.get("Content-Length", "")
        length = int(given) if given.isdigit() else 0
        if not 0 < length <= LONGEST_REQUEST:
            return self.send_error(413)
        try:
            chat = _chat(json.loads(self.rfile.read(length)))
        except (ValueError, RecursionError) as error:
            return self.send_error(400, str(error))
        self._head("application/x-ndjson")
        try:
            with self.server.turn:
                self._answer(chat)
        except BadInput as error:
            self._line({"error": str(error)})
        except (BrokenPipeError, ConnectionResetError):
            log.info("the page went away while it was answered")

    def _answer(self, chat: list[dict[str, str]]) -> None:
        answer = self.server.answerer.answer(chat, self._forward)
        self._line({"pieces": answer.pieces, "filled": answer.filled, "text": answer.text, "cost": answer.cost})

    def _forward(self, forward: Forward) -> None:
        decided = [(i, spelled.decode("utf-8", "replace")) for i, spelled in forward.decided]
        self._line({"forward": forward.number, "opened": forward.opened, "decided": decided})

    def _line(self, value: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self.wfile.flush()

    def _head(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", CONTENT_POLICY)
        self.end_headers()

    def _is_ours(self) -> bool:
        """Whether the request names this machine: a site whose name leads here (DNS rebinding) does not."""
        if self.headers.get("Host", "").rpartition(":")[0] in (LOOPBACK, "localhost"):
            return True
        self.send_error(403)
        return False

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format % args)


def _chat(request: Any) -> list[dict[str, str]]:
    """Raises ValueError for what is no chat."""
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: a list of messages is needed")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise ValueError("messages: each has a role (system, user, assistant) and a text as content")
    return [{"role": message["role"], "content": message["content"]} for message in messages]
