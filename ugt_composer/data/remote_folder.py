"""Downloads the manifest and index of a remote data folder, so that they are checked like local ones."""

import json
from pathlib import Path

from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.integrity import INDEX_NAME, MANIFEST_NAME, index_corruption
from ugt_composer.data.shard_files import fetch
from ugt_composer.errors import UserError
from ugt_composer.storage.file_lock import locked


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
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); local of a stream with a remote must be a writable folder"
        ) from None
    if problem is not None:
        raise UserError(f"{stream.remote.rstrip('/')}/{INDEX_NAME}: {problem}; upload the data again")


def _index_problem(manifest: Path, index: Path) -> str | None:
    try:
        recorded = str(json.loads(manifest.read_text("utf-8"))["index_hash"])
    except FileNotFoundError:
        return f"has no {MANIFEST_NAME} beside it"
    except (ValueError, KeyError, TypeError) as error:
        return f"has a {MANIFEST_NAME} beside it that convert/jsonl_to_mds.py did not write ({error!r})"
    return index_corruption(index, recorded)
