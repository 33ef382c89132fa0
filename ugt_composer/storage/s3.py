"""A folder in an S3-compatible object store. S3_ENDPOINT_URL is the address of a store other than Amazon's, as in
Streaming; boto3 finds credentials and region in its usual places.
"""

import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ugt_composer.errors import RunError, first_line
from ugt_composer.storage.s3_url import split_url

ATTEMPTS = 5  # for one request, with growing pauses
CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 20.0  # seconds
PAUSE = 0.5  # seconds before a body is requested again, doubled each time
MISSING = {"404", "NoSuchKey", "NotFound"}
REFUSED = {
    *("401", "403", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed", "ExpiredToken"),
    *("InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"),
}
CHANGED = {"412", "416", "PreconditionFailed", "InvalidRange"}
T = TypeVar("T")
# Held to import boto3, because another thread that imports it meanwhile may get a half of it, and to create a client,
# which several threads must not do at once.
_boto = threading.Lock()


def _renew_lock() -> None:
    global _boto
    _boto = threading.Lock()  # a thread that does not exist in the child may have held it


os.register_at_fork(after_in_child=_renew_lock)


class StoreError(RunError):
    """The store does not answer or refuses a request. The message is one line with its address."""


class MissingError(StoreError):
    """The object or bucket does not exist."""


class RefusedError(StoreError):
    """There are no credentials, or they do not allow the request."""


class ChangedError(StoreError):
    """The object is not the version that was asked for."""


class Version(NamedTuple):
    """What an object is: its size in bytes and its ETag, which is another one after each change."""

    size: int
    etag: str


class Store:
    """Objects under a prefix, by their names below it. Every method raises StoreError, after several attempts."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.bucket, self.prefix = split_url(url)

    def versions(self, folder: str = "") -> dict[str, Version]:
        """The version of each object, or of those in one folder, by name."""
        objects = self._objects(folder, f"{folder}/" if folder else "")
        return {name: Version(one["Size"], one["ETag"]) for name, one in objects.items()}

    def ages(self, start: str) -> dict[str, float]:
        """Seconds since each object whose name begins with `start` was written."""
        now = datetime.now(UTC)  # a store refuses requests of a clock that is wrong by a quarter of an hour
        return {name: (now - one["LastModified"]).total_seconds() for name, one in self._objects(start, start).items()}

    def _objects(self, place: str, start: str) -> dict[str, dict[str, Any]]:
        prefix = f"{self.prefix}/" if self.prefix else ""

        def pages() -> dict[str, dict[str, Any]]:
            pager = self._client.get_paginator("list_objects_v2")
            responses = pager.paginate(Bucket=self.bucket, Prefix=f"{prefix}{start}")
            return {o["Key"].removeprefix(prefix): o for page in responses for o in page.get("Contents", ())}

        return self._ask(place, pages)

    def list(self, folder: str = "") -> dict[str, int]:
        """The size in bytes of each object, or of those in one folder, by name."""
        return {name: version.size for name, version in self.versions(folder).items()}

    def some_names(self, folder: str = "") -> Sequence[str]:
        """The names of objects and folders in a folder, at most a thousand."""
        within = self._key(f"{folder}/" if folder else "")
        page = self._ask(
            folder, lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=within, Delimiter="/", MaxKeys=1000)
        )
        found = [entry["Key"] for entry in page.get("Contents", ())]
        found += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
        return [name for key in found if (name := key.removeprefix(within).rstrip("/"))]

    def version(self, name: str) -> Version:
        """Raises MissingError if the object does not exist."""
        head = self._ask(name, lambda: self._client.head_object(Bucket=self.bucket, Key=self._key(name)))
        return Version(head["ContentLength"], head["ETag"])

    def read_range(self, name: str, start: int, stop: int, etag: str) -> bytes:
        """Bytes `start` to `stop`, at least one, of an object. Raises ChangedError if it is not this version."""
        where = {"Bucket": self.bucket, "Key": self._key(name), "Range": f"bytes={start}-{stop - 1}", "IfMatch": etag}
        return self._ask(name, lambda: _read_body(lambda: self._client.get_object(**where)["Body"]))

    def polars_options(self) -> dict[str, str]:
        """How polars finds the same store; credentials it gets from boto3 by itself, as the region of Amazon's."""
        endpoint, region = self._client.meta.endpoint_url, self._client.meta.region_name
        if re.search(r"\.amazonaws\.com(\.cn)?$", endpoint):
            return {}
        return {
            "aws_endpoint_url": endpoint,
            "aws_region": region or "us-east-1",
            "aws_allow_http": str(endpoint.startswith("http:")).lower(),
        }

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
        with _boto:
            from boto3.session import Session
            from botocore.config import Config

            config = Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            )
            return Session().client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        with _boto:
            from boto3.exceptions import Boto3Error
            from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
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
            if code in CHANGED:
                raise ChangedError(f"{place}: changed while it was read") from None
            kind = RefusedError if code in REFUSED else StoreError
            raise kind(f"{place}: the store refuses ({first_line(error)})") from None
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise RefusedError(
                f"{place}: found no credentials for the store ({first_line(error)}); boto3 looks for them in "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in ~/.aws, and in the machine's role"
            ) from None
        except RetriesExceededError as error:
            raise StoreError(f"{place}: the store does not answer ({first_line(error.last_exception)})") from None
        except (BotoCoreError, Boto3Error, HTTPError, ConnectionError, TimeoutError) as error:
            raise StoreError(f"{place}: the store does not answer ({first_line(error)})") from None


def _read_body(request: Callable[[], Any]) -> bytes:
    """The body of a response. Boto3 tries a request again, but not the reading of its body."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    for attempt in range(ATTEMPTS):
        body = request()
        try:
            return body.read()
        except (HTTPClientError, IncompleteReadError, HTTPError, ConnectionError, TimeoutError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError


def _in_this_thread() -> Any:
    """Without boto3's threads, which Python would wait for at exit, however long the store does not answer."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(use_threads=False)
