"""Addresses in an object store: `s3://bucket/prefix`. Imports nothing heavy."""

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]+)(?:/(.*))?")


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
