"""Names of the files in a run's save folder. Nothing heavy is imported here, so that a report can be made quickly."""

import re
from pathlib import Path

METRICS, EVENTS, RUN_ID = "metrics.jsonl", "events.jsonl", "run_id"
WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
PORTABLE = ("best", "latest")
_NAME = re.compile(r"ba(\d{8,})(\.pt)?")


def checkpoint_path(folder: str | Path, batch: int, sharded: bool = False) -> Path:
    return Path(folder) / f"ba{batch:08d}{'' if sharded else '.pt'}"


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest first, whichever process wrote them."""
    paths = [path for path in Path(folder).glob("ba*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=batch_of, reverse=True)


def batch_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match.group(1))


def is_checkpoint_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
