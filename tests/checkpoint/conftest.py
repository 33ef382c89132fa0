"""Small checkpoints of a few numbers, and an S3 store on loopback."""

import tempfile
import uuid
from pathlib import Path

import pytest
import torch

from tests.storage.s3_server import ENVIRONMENT, Proxy, server
from ugt_composer.checkpoint import remote as stored
from ugt_composer.checkpoint.run_checkpoints import SHARDED_KEYS, WHOLE_KEYS
from ugt_composer.storage.s3 import Store


def content_of(batch: int, keys: set[str] = WHOLE_KEYS) -> dict:
    """Minimal content that `read_checkpoint` accepts as a training checkpoint."""
    return {**{key: {} for key in keys}, "state": {"batch": batch}, "data": [torch.full((50,), float(batch))]}


class SmallShards:
    """A fake strategy of one rank that saves two files."""

    def save_sharded(self, folder: Path) -> None:
        (folder / "deep").mkdir(parents=True)
        (folder / "a.bin").write_bytes(b"a" * 300)
        (folder / "deep" / "b.bin").write_bytes(b"b" * 200)


@pytest.fixture
def sharded_content() -> dict:
    return content_of(3, SHARDED_KEYS)


@pytest.fixture(scope="session")
def s3_port():
    with server() as port:
        yield port


@pytest.fixture
def proxy(s3_port, monkeypatch):
    """The proxy to the S3 server that this process and its children use."""
    way = Proxy(s3_port)
    for name, value in {**ENVIRONMENT, "S3_ENDPOINT_URL": f"http://127.0.0.1:{way.port}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stored, "PAUSES", (0.0, 0.0))
    with tempfile.TemporaryDirectory() as models:  # not tmp_path, which is too long for the sockets of data workers
        monkeypatch.setattr(tempfile, "tempdir", models)
        yield way
        way.close()


@pytest.fixture
def url(proxy):
    """An empty prefix in a new bucket."""
    bucket = f"b{uuid.uuid4().hex[:12]}"
    Store(f"s3://{bucket}")._client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one"
