"""What of the rounds is finished: `state.json`, replaced atomically after each step."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yaml import YAMLError

from ugt_composer.checkpoint.resumable import config_differences, is_free
from ugt_composer.config.checks import is_within
from ugt_composer.config.load import config_yaml
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.rounds.settings import RoundsSettings

STATE, LOCK = "state.json", ".rounds.lock"
# `stage` and `overrides` are compared by the keys that they set.
MAY_CHANGE = ("rounds", "composer", "save_folder", "stage", "overrides", "preferences.batch_size")
EVALUATION = "evaluation"  # free in a run, but the metrics of all rounds are compared


class State:
    """
    Args:
        config: of the trainings, the same for all rounds.

    Attributes:
        finished: names of the steps that are finished.

    Raises:
        UserError: steps were finished with other settings, or another config; with the key and both values.
    """

    def __init__(self, settings: RoundsSettings, config: Config):
        self.path = Path(settings.save_folder) / STATE
        self._settings, self._config = asdict(settings), config
        self.finished: list[str] = []
        if self.path.exists():
            self._read()

    def add(self, step: str) -> None:
        self.finished.append(step)
        content = {"settings": self._settings, "config": config_yaml(self._config), "finished": self.finished}
        write_json(self.path, content)

    def _read(self) -> None:
        try:
            content = json.loads(self.path.read_text("utf-8"))
            self.finished = list(content["finished"])
            changed = self._changed_settings(content["settings"]) | self._changed_keys(content["config"])
        except KeyError as error:
            raise UserError(
                f"{self.path}: has no key {error.args[0]!r}: an earlier version began these rounds, or the file was "
                f"edited; they cannot be resumed: {self._way_out}"
            ) from None
        except (OSError, ValueError, TypeError, AttributeError, YAMLError) as error:
            raise UserError(f"{self.path}: cannot be read ({type(error).__name__}); {self._way_out}") from None
        for key, (value, now) in changed.items():
            raise UserError(
                f"{self.path}: {key} was {value!r} when these rounds began, now it is {now!r}; set it back to resume "
                "them, or use another save_folder"
            )

    @property
    def _way_out(self) -> str:
        return f"use another save_folder, or delete {self.path.parent} to begin again"

    def _changed_settings(self, before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """{key: (value before, value now)} of the keys of the rounds that differ and must not."""
        old, new = _flat(before), _flat(self._settings)
        values = {key: (old.get(key, value), value) for key, value in new.items() if key not in MAY_CHANGE}
        return {key: (value, now) for key, (value, now) in values.items() if value != now}

    def _changed_keys(self, config: str) -> dict[str, tuple[Any, Any]]:
        """The same of the keys of the trainings, whose config was `config`, as YAML."""
        return {
            f"{key} of the stage": values
            for key, values in config_differences(config, self._config).items()
            if is_within(key, (EVALUATION,)) or not is_free(key)
        }


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
