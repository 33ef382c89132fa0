"""Manifest and index of a remote data folder, brought to this machine so that they are checked like local ones."""

import json
from pathlib import Path

from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.integrity import INDEX_NAME, MANIFEST_NAME, index_flaw
from ugt_composer.data.shard_files import fetch
from ugt_composer.errors import UserError
from ugt_composer.storage.file_lock import locked


def fetch_descriptions(stream: StreamConfig) -> None:
    """Fetches both where they are not here or do not belong together. Nothing without a remote.

    Raises:
        UserError: the store has none or does not answer, or what it has does not belong together.
    """
    if stream.remote is None:
        return
    folder = Path(str(stream.local))
    manifest, index = folder / MANIFEST_NAME, folder / INDEX_NAME
    if _index_flaw(manifest, index) is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{MANIFEST_NAME}.lock"):
            if _index_flaw(manifest, index) is None:  # another process has been faster
                return
            for path in (manifest, index):
                fetch(stream.remote, path, path.name, lambda part: None)
            found = _index_flaw(manifest, index)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); expected a folder to fetch into") from None
    if found is not None:
        raise UserError(f"{stream.remote.rstrip('/')}/{INDEX_NAME}: {found}; upload the data again")


def _index_flaw(manifest: Path, index: Path) -> str | None:
    try:
        recorded = str(json.loads(manifest.read_text("utf-8"))["index_hash"])
    except FileNotFoundError:
        return f"comes without {MANIFEST_NAME}"
    except (ValueError, KeyError, TypeError) as error:
        return f"comes with a {MANIFEST_NAME} that is none of the conversion ({error!r})"
    return index_flaw(index, recorded)
