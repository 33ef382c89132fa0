"""Hashes of files, with the algorithms that the MDS format supports."""

import hashlib
from pathlib import Path
from typing import Any

import xxhash

BLOCK = 1 << 16  # bytes read at a time: small enough for the cache of a core


def preferred(hashes: dict[str, str]) -> str | None:
    """The algorithm to verify with: one of xxhash's if recorded, because those are much faster; the first by name among
    equals. None if no recorded algorithm is available."""
    known = [name for name in hashes if name in available_hashes()]
    return min(known, key=lambda name: (not name.startswith("xxh"), name), default=None)


def file_hash(algorithm: str, path: Path) -> str:
    """The hash of a file in hexadecimal digits, as the index of MDS shards records it."""
    hasher = new_hasher(algorithm)
    block = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            hasher.update(block[:count])
    return hasher.hexdigest()


def new_hasher(algorithm: str) -> Any:
    """An object with update() and hexdigest(), as hashlib's, for one of `available_hashes`."""
    return xxhash.__dict__[algorithm]() if algorithm in xxhash.algorithms_available else hashlib.new(algorithm)


def available_hashes() -> set[str]:
    """The names of the algorithms that the MDS format supports."""
    fixed_length = {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_")}
    return fixed_length | set(xxhash.algorithms_available)
