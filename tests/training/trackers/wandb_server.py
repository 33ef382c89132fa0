"""The few answers of a W&B server that `wandb sync` needs, and the history that it uploads."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Keeps each run's history as W&B does: a list of lines, which an upload writes from an offset on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[str, list[dict[str, Any]]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def write(self, run: str, offset: int, lines: list[str]) -> None:
        self.history[run][offset:] = [json.loads(line) for line in lines]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "UpsertBucket":
            name = variables["name"]
            is_new = name not in self.history
            lines = len(self.history.setdefault(name, []))
            project = {"id": "P", "name": variables["project"], "entity": {"id": "E", "name": "e"}}
            bucket = {"id": "R", "name": name, "displayName": name, "description": "", "config": "{}"}
            bucket |= {"sweepName": None, "historyLineCount": lines, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/file"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = json.loads(self.content())
        if self.path.endswith("/file_stream"):
            history = body.get("files", {}).get("wandb-history.jsonl")
            if history is not None:
                self.server.write(self.path.split("/")[-2], history["offset"], history["content"])
            self.reply({"limits": {}})
            return
        operation = re.findall(r"(?:query|mutation)\s+(\w+)", body["query"])[0]
        self.reply({"data": self.server.answer(operation, body.get("variables", {}))})

    def do_PUT(self) -> None:
        self.content()
        self.reply({})

    def do_GET(self) -> None:
        self.reply({})

    def content(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def reply(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
