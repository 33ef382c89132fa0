"""Hashes of files, with the algorithms that the MDS format supports."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import xxhash


def preferred(hashes: dict[str, str]) -> str | None:
    """The algorithm to verify with: one of xxhash's if recorded, because those are much faster; the first by name among
    equals. None if no recorded algorithm is available."""
    known = [name for name in hashes if name in available_hashes()]
    return min(known, key=lambda name: (not name.startswith("xxh"), name), default=None)


def file_hash(algorithm: str, path: Path) -> str:
    """The hash of a file in hexadecimal digits, as the index of MDS shards records it."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, partial(hash_of, algorithm)).hexdigest()


def hash_of(algorithm: str, data: bytes = b"") -> Any:
    """An object with update() and hexdigest(), as hashlib's, for one of `available_hashes`."""
    known = xxhash.algorithms_available
    return xxhash.__dict__[algorithm](data) if algorithm in known else hashlib.new(algorithm, data)


def available_hashes() -> set[str]:
    """The names of the algorithms that the MDS format supports."""
    fixed_length = {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_")}
    return fixed_length | set(xxhash.algorithms_available)
