"""What of the rounds is finished: `state.json`, replaced atomically after each step."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ugt_composer.errors import UserError
from ugt_composer.rounds.settings import RoundsSettings

STATE, LOCK = "state.json", ".rounds.lock"
MAY_CHANGE = ("rounds", "composer", "save_folder")


class State:
    """
    Attributes:
        finished: names of the steps that are finished.
    """

    def __init__(self, settings: RoundsSettings):
        self.path = Path(settings.save_folder) / STATE
        self._settings = asdict(settings)
        self.finished: list[str] = []
        if self.path.exists():
            self._read()

    def add(self, step: str) -> None:
        self.finished.append(step)
        write_json(self.path, {"settings": self._settings, "finished": self.finished})

    def _read(self) -> None:
        try:
            content = json.loads(self.path.read_text("utf-8"))
            before, self.finished = content["settings"], list(content["finished"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: cannot be read ({error!r}); use another save_folder") from None
        for key, value in _flat(self._settings).items():
            old = _flat(before).get(key, value)
            if key not in MAY_CHANGE and old != value:
                raise UserError(
                    f"{self.path}: {key} was {old!r} when these rounds began, now it is {value!r}; set it back to "
                    "resume them, or use another save_folder"
                )


def write_json(path: Path, content: Any) -> None:
    """Writes or replaces a file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Locks the folder against a second process. Raises UserError if another one holds it, or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"save_folder {folder} cannot be written ({error.strerror}); name another one") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"save_folder {folder} is in use by another process that runs its rounds") from None
        yield
    finally:
        os.close(descriptor)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
