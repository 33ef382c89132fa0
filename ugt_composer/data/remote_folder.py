"""Downloads the manifest and index of a remote data folder, so that they are checked like local ones."""

import json
import logging
from pathlib import Path

from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.integrity import CATALOGUE_COPY, INDEX_NAME, MANIFEST_NAME, index_corruption
from ugt_composer.data.shard_files import fetch
from ugt_composer.errors import UserError
from ugt_composer.storage.file_lock import locked

log = logging.getLogger(__name__)


def fetch_descriptions(stream: StreamConfig) -> None:
    """Downloads a stream's manifest and index if they are missing in its folder or do not match each other.

    Raises:
        UserError: the store does not have them or does not answer, or they do not match each other there.
    """
    if stream.remote is None:
        return
    folder = Path(str(stream.local))
    manifest, index = folder / MANIFEST_NAME, folder / INDEX_NAME
    if _index_problem(manifest, index) is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{MANIFEST_NAME}.lock"):
            if _index_problem(manifest, index) is None:  # another process has downloaded them meanwhile
                return
            for path in (manifest, index):
                fetch(stream.remote, path, path.name, lambda part: None)
            problem = _index_problem(manifest, index)
            if problem is None:
                _fetch_catalogue(stream.remote, manifest)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); local of a stream with a remote must be a writable folder"
        ) from None
    if problem is not None:
        raise UserError(f"{stream.remote.rstrip('/')}/{INDEX_NAME}: {problem}; upload the data again")


def _fetch_catalogue(remote: str, manifest: Path) -> None:
    """Downloads the copy of the catalogue, if the manifest has one. It is only needed for a larger catalogue, so that a
    store without it is accepted."""
    if "copy" not in (json.loads(manifest.read_text("utf-8")).get("catalogue") or {}):
        return
    try:
        fetch(remote, manifest.with_name(CATALOGUE_COPY), CATALOGUE_COPY, lambda part: None)
    except UserError as error:
        log.warning("%s; the rows can only be used with the catalogue that they were converted with", error)


def _index_problem(manifest: Path, index: Path) -> str | None:
    try:
        recorded = str(json.loads(manifest.read_text("utf-8"))["index_hash"])
    except FileNotFoundError:
        return f"has no {MANIFEST_NAME} beside it"
    except (ValueError, KeyError, TypeError) as error:
        return f"has a {MANIFEST_NAME} beside it that ugt convert did not write ({error!r})"
    return index_corruption(index, recorded)
