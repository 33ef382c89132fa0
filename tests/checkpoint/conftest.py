"""Small checkpoints of a few numbers."""

from pathlib import Path

import pytest
import torch

from ugt_composer.checkpoint.run_checkpoints import SHARDED_KEYS, WHOLE_KEYS


def content_of(batch: int, keys: set[str] = WHOLE_KEYS) -> dict:
    """Minimal content that `read_checkpoint` accepts as a training checkpoint."""
    return {**{key: {} for key in keys}, "state": {"batch": batch}, "data": [torch.full((50,), float(batch))]}


class SmallShards:
    """A fake strategy of one rank that saves two files."""

    def save_sharded(self, folder: Path) -> None:
        (folder / "deep").mkdir(parents=True)
        (folder / "a.bin").write_bytes(b"a" * 300)
        (folder / "deep" / "b.bin").write_bytes(b"b" * 200)


@pytest.fixture
def sharded_content() -> dict:
    return content_of(3, SHARDED_KEYS)
