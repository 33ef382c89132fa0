"""Checks the files of a data folder against its index and manifest. Imports neither torch nor Streaming."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ugt_composer.errors import UserError
from ugt_composer.storage.hashed_file import file_hash, preferred

INDEX_NAME = "index.json"
MANIFEST_NAME = "manifest.json"
CATALOGUE_COPY = "catalogue.jsonl.zst"  # of the catalogue that a folder of shards, or a model, was made with
ADVICE = "convert or copy the data again"


@dataclass(frozen=True)
class FileFacts:
    """What the index records about a file: its name in the folder, its size in bytes, its hashes by algorithm."""

    name: str
    size: int
    hashes: dict[str, str]


@dataclass(frozen=True)
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
        return [_shard(shard) for shard in json.loads(path.read_text("utf-8"))["shards"]]
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {ADVICE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as the index of MDS shards ({error!r}); {ADVICE}") from None


def _shard(shard: dict[str, Any]) -> ShardFacts:
    zipped = shard["zip_data"]
    return ShardFacts(
        rows=int(shard["samples"]),
        raw=_file(shard["raw_data"]),
        zipped=None if zipped is None else _file(zipped),
        compression=shard["compression"],
    )


def _file(facts: dict[str, Any]) -> FileFacts:
    name = PurePosixPath(facts["basename"])
    if name.is_absolute() or ".." in name.parts or not name.parts:  # the index may come from an untrusted store
        raise ValueError(f"the shard {str(name)!r} lies outside the folder")
    return FileFacts(str(name), int(facts["bytes"]), {str(k): str(v) for k, v in facts["hashes"].items()})


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
