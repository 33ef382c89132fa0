"""Addresses in an object store: `s3://bucket/prefix`. Imports nothing heavy."""

import re
from dataclasses import dataclass
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]+)(?:/(.*))?")
_INPUT = re.compile(r"s3a?://")  # s3a:// is what Hadoop calls it


@dataclass(frozen=True)
class Address:
    """What a user named of a store, as input: an object, a prefix or a pattern. Its text is the address."""

    url: str

    def __str__(self) -> str:
        return self.url.rstrip("/")

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]


def input_path(text: str) -> Path | Address:
    """A path of this machine, or an address if the text starts with s3:// or s3a://."""
    return Address(_INPUT.sub("s3://", text, count=1)) if _INPUT.match(text) else Path(text)


def is_url(text: str) -> bool:
    """Whether this is a URL and not a file system path."""
    return _URL.match(text) is not None


def split_url(url: str) -> tuple[str, str]:
    """Splits a URL into bucket and prefix, the latter without slashes around it.

    Raises:
        ValueError: it is not an S3 URL. The message begins with "is".
    """
    match = _S3.fullmatch(url)
    if match is None:
        raise ValueError(f"is {url!r}; expected s3://bucket/prefix; only S3 and S3-compatible stores are supported")
    return match.group(1), (match.group(2) or "").strip("/")
