"""An S3 server on loopback, and a proxy to it that can be slow or drop connections."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from ugt_composer.storage.s3 import Store


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server() -> Iterator[int]:
    """Runs the server. Yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


REQUEST = re.compile(rb"((?:GET|PUT|POST|HEAD|DELETE) /\S*) HTTP/1\.1\r\n")


class Proxy:
    """Forwards connections to a server.

    Attributes:
        drop_up, drop_down: how many more connections to drop in the middle of a body, on the way to the server or
            back from it.
        after: bytes that such a connection transfers before it is dropped.
        delay: seconds before each response.
        is_open: False refuses every connection.
        drops: number of connections dropped so far.
        requests: method and path of each request so far, such as "GET /bucket/name".
    """

    def __init__(self, target: int):
        self.target = target
        self.drop_up = self.drop_down = self.drops = 0
        self.after, self.delay, self.is_open = 3000, 0.0, True
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self.is_open:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                for source, sink, way in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pass, args=(source, sink, way), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(1024):
                if way == "down" and self.delay:
                    time.sleep(self.delay)
                if way == "up" and (request := REQUEST.match(data)):  # a client sends one after the other
                    self.requests.append(request.group(1).decode())
                carried += len(data)
                if not self.is_open or (carried > self.after and self._takes_a_drop(way)):
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _takes_a_drop(self, way: str) -> bool:
        with self._lock:
            left = getattr(self, f"drop_{way}")
            if left > 0:
                setattr(self, f"drop_{way}", left - 1)
                self.drops += 1
            return left > 0


ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def loopback_bucket() -> Iterator[Store]:
    """Runs the server, to which this process's environment leads. Yields its only bucket, s3://bucket."""
    with server() as port, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        store = Store("s3://bucket")
        store._client.create_bucket(Bucket="bucket")
        yield store


@pytest.fixture(scope="module")
def bucket() -> Iterator[Store]:
    """The bucket of a module's tests."""
    with loopback_bucket() as store:
        yield store


@pytest.fixture
def store(bucket: Store) -> Store:
    """The bucket, emptied."""
    bucket.delete(list(bucket.list()))
    return bucket


def executor_environment() -> dict[str, str]:
    """Settings of Spark: its Java process may have been started without the store's variables."""
    return {f"spark.executorEnv.{name}": os.environ[name] for name in (*ENVIRONMENT, "S3_ENDPOINT_URL")}


def upload(store: Store, folder: Path, prefix: str) -> None:
    """Writes the files of a folder and its subfolders to a prefix."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def environment(port: int) -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}", "OMP_NUM_THREADS": "1"}
