"""Addresses in an object store: `s3://bucket/prefix`. Imports nothing heavy."""

import re

SCHEME = "s3://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]+)(?:/(.*))?")


def is_url(text: str) -> bool:
    """Whether this is no path of the file system."""
    return _URL.match(text) is not None


def split_url(url: str) -> tuple[str, str]:
    """Bucket and prefix, without slashes around it.

    Raises:
        ValueError: it is none of S3. The message begins with "is".
    """
    found = _S3.fullmatch(url)
    if found is None:
        raise ValueError(f"is {url!r}; expected s3://bucket/prefix: S3, and stores that speak it, are supported")
    return found.group(1), (found.group(2) or "").strip("/")
