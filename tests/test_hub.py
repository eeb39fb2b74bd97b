"""An export goes to the hub with its card; a server of this machine stands in for the hub."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard

from pipeline.core.errors import BadInput
from pipeline.models.card import add_scores
from pipeline.models.hub import push
from tests.test_models_export import SCORES, export_student


class Hub(ThreadingHTTPServer):
    """Keeps what is committed; knows one user."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.files: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"


class Requests(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer good":
            return self.reply({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.reply({"url": f"{self.server.address}/me/student"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply(
                {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.address}/me/student/commit/0"}
            )
        else:
            self.reply({"errors": [], "warnings": []})  # of the card

    def reply(self, value: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path) -> Path:
    export_student(tmp_path / "student")
    add_scores(tmp_path / "student", SCORES)
    return tmp_path / "student"


def test_every_file_arrives_and_the_card_says_all(hub, folder) -> None:
    api = HfApi(endpoint=hub.address, token="good")
    assert push(folder, "me/student", private=True, licence="apache-2.0", api=api) == f"{hub.address}/me/student"
    assert hub.created["visibility"] == "private" and hub.created["name"] == "student"
    there = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == there and "custom_generate/generate.py" in there
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.eval_results[0].metric_value == 0.5
    table = ("| sums | exact_match | 0.500 |", "Alarm, chats: a third is cut off.")
    assert all(part in card.text for part in ("sums (CC0-1.0)", *table, '"recipe": {'))


@pytest.mark.parametrize("name", ["me/student", "not a name"])
def test_what_the_hub_refuses_is_one_line(name, hub, folder) -> None:
    with pytest.raises(BadInput, match=f"--push-to {name}: .*; {folder} is written: `hf auth login`") as error:
        push(folder, name, private=True, api=HfApi(endpoint=hub.address, token="bad"))
    assert "\n" not in str(error.value) and hub.files == {}


def test_a_hub_that_is_away(folder) -> None:
    with pytest.raises(BadInput, match="--push-to me/student: "):
        push(folder, "me/student", private=True, api=HfApi(endpoint="http://127.0.0.1:9", token="good"))
