"""A folder in an S3-compatible object store. S3_ENDPOINT_URL is the address of a store other than Amazon's, as in
Streaming; boto3 finds credentials and region in its usual places.
"""

import io
import os
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ugt_composer.errors import RunError, first_line
from ugt_composer.storage.s3_url import split_url

ATTEMPTS = 5  # for one request, with growing pauses
CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 20.0  # seconds
MISSING = {"404", "NoSuchKey", "NotFound"}
T = TypeVar("T")


class StoreError(RunError):
    """The store does not answer or refuses a request. The message is one line with its address."""


class MissingError(StoreError):
    """The object or bucket does not exist."""


class Store:
    """Objects under a prefix, by their names below it. Every method raises StoreError, after several attempts."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.bucket, self.prefix = split_url(url)

    def list(self, folder: str = "") -> dict[str, int]:
        """The size in bytes of each object, or of those in one folder, by name."""
        prefix = f"{self.prefix}/" if self.prefix else ""
        within = f"{prefix}{folder}/" if folder else prefix

        def pages() -> dict[str, int]:
            responses = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=within)
            objects = (o for page in responses for o in page.get("Contents", ()))
            return {o["Key"].removeprefix(prefix): o["Size"] for o in objects}

        return self._ask("", pages)

    def read_bytes(self, name: str) -> bytes:
        """The content of a small object. Raises MissingError if it does not exist."""
        content = io.BytesIO()
        self._fetch(name, content)
        return content.getvalue()

    def fetch(self, name: str, path: Path) -> None:
        """Downloads an object to a file. MissingError if it does not exist; OSError if the file cannot be written."""
        with path.open("wb") as file:
            self._fetch(name, file)
            file.flush()
            os.fsync(file.fileno())

    def put(self, name: str, source: BinaryIO | bytes) -> None:
        """Writes or replaces an object atomically: the old one stays until the new one is complete. Closes `source`."""
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        key = self._key(name)
        self._ask(name, lambda: self._client.upload_fileobj(file, self.bucket, key, Config=_in_this_thread()))

    def copy(self, name: str, to: str) -> None:
        """Copies an object within the store."""
        source = {"Bucket": self.bucket, "Key": self._key(name)}
        self._ask(name, lambda: self._client.copy(source, self.bucket, self._key(to)))

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects one after the other; missing ones are not an error."""
        for name in names:
            delete = partial(self._client.delete_object, Bucket=self.bucket, Key=self._key(name))
            self._ask(name, delete)

    def _fetch(self, name: str, file: Any) -> None:
        def receive() -> None:
            file.seek(0)
            file.truncate()
            self._client.download_fileobj(self.bucket, self._key(name), file)

        self._ask(name, receive)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @cached_property
    def _client(self) -> Any:
        from boto3.session import Session
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        )
        return Session().client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError
        from urllib3.exceptions import HTTPError

        place = f"{self.url}/{name}" if name else self.url
        try:
            return request()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code == "NoSuchBucket":
                raise MissingError(f"{place}: there is no bucket {self.bucket}") from None
            if code in MISSING:
                raise MissingError(f"{place}: there is no such object") from None
            raise StoreError(f"{place}: the store refuses ({first_line(error)})") from None
        except RetriesExceededError as error:
            raise StoreError(f"{place}: the store does not answer ({first_line(error.last_exception)})") from None
        except (BotoCoreError, Boto3Error, HTTPError, ConnectionError, TimeoutError) as error:
            raise StoreError(f"{place}: the store does not answer ({first_line(error)})") from None


def _in_this_thread() -> Any:
    """Without boto3's threads, which Python would wait for at exit, however long the store does not answer."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(use_threads=False)
