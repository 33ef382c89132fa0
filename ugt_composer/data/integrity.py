"""Checks the files of a data folder against its index and manifest. Imports neither torch nor Streaming."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ugt_composer.errors import UserError
from ugt_composer.storage.hashed_file import file_hash, preferred

INDEX_NAME = "index.json"
MANIFEST_NAME = "manifest.json"
CATALOGUE_COPY = "catalogue.jsonl.zst"  # of the catalogue that a folder of shards, or a model, was made with
ADVICE = "convert or copy the data again"
PLAIN_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the index records about a file: its name in the folder, its size in bytes, its hashes by algorithm."""

    name: str
    size: int
    hashes: dict[str, str]


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """A shard: the file that rows are read from and, in a compressed folder, the one that it is unpacked from."""

    rows: int
    raw: FileFacts
    zipped: FileFacts | None
    compression: str | None

    @property
    def stored(self) -> FileFacts:
        """The file that the conversion wrote."""
        return self.zipped or self.raw


def read_index(folder: Path) -> list[ShardFacts]:
    """The shards that a folder's index names.

    Raises:
        UserError: the index is missing or is not an index of MDS shards.
    """
    path = folder / INDEX_NAME
    try:
        status = path.stat()
        return list(_parsed_index(path, status.st_ino, status.st_size, status.st_mtime_ns))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {ADVICE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as the index of MDS shards ({error!r}); {ADVICE}") from None


@lru_cache(maxsize=16)
def _parsed_index(path: Path, *version: int) -> tuple[ShardFacts, ...]:
    """An index, parsed once for all who read it: it may name a hundred thousand shards."""
    return tuple(map(_checked, json.loads(path.read_text("utf-8"), object_hook=_facts)["shards"]))


def _facts(facts: dict[str, Any]) -> Any:
    """Facts of an object of the index as soon as it is parsed: they take a fraction of its memory."""
    if "basename" in facts:
        return _file(facts)
    if "raw_data" in facts:
        return ShardFacts(int(facts["samples"]), facts["raw_data"], facts["zip_data"], facts["compression"])
    return facts


def _checked(shard: ShardFacts) -> ShardFacts:
    if not isinstance(shard.raw, FileFacts) or not isinstance(shard.zipped, FileFacts | None):
        raise TypeError("a shard without files")
    return shard


def _file(facts: dict[str, Any]) -> FileFacts:
    name = facts["basename"]
    if not PLAIN_NAME.fullmatch(name):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:  # the index may come from an untrusted store
            raise ValueError(f"the shard {name!r} lies outside the folder")
        name = str(path)
    return FileFacts(name, int(facts["bytes"]), {str(k): str(v) for k, v in facts["hashes"].items()})


def corruption(path: Path, facts: FileFacts) -> str | None:
    """What is wrong with a file, such as "has 12 bytes, index.json records 20"; None if nothing. Reads all of it."""
    if (problem := size_mismatch(path, facts)) is not None:
        return problem
    algorithm = preferred(facts.hashes)
    if algorithm is None:
        return None
    try:
        digest = file_hash(algorithm, path)
    except FileNotFoundError:  # evicted since by another run that shares the folder
        return size_mismatch(path, facts)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest != facts.hashes[algorithm]:
        return f"has the {algorithm} {digest}, {INDEX_NAME} records {facts.hashes[algorithm]}"
    return None


def size_mismatch(path: Path, facts: FileFacts) -> str | None:
    """What is wrong with a file without reading it: that it is missing, or has another size; None if neither."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"is missing, {INDEX_NAME} records {facts.size} bytes"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if size == facts.size else f"has {size} bytes, {INDEX_NAME} records {facts.size}"


def index_corruption(path: Path, recorded: str) -> str | None:
    """What is wrong with an index whose hash the manifest records as `recorded` ("xxh3_128:3f…"); None if nothing."""
    algorithm, _, expected = recorded.partition(":")
    if preferred({algorithm: expected}) is None:
        return f"cannot be checked: {MANIFEST_NAME} records its hash as {recorded!r}"
    try:
        digest = file_hash(algorithm, path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if digest == expected else f"has the {algorithm} {digest}, {MANIFEST_NAME} records {expected}"
