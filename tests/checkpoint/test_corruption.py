"""Corruption of any file of a checkpoint is detected, and the newest valid checkpoint is used."""

import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.conftest import SmallShards, content_of
from ugt_composer.checkpoint.run_checkpoints import (
    SHARDS,
    STATE,
    VERSION,
    corruption_of,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from ugt_composer.checkpoint.save_folder import checkpoint_path
from ugt_composer.checkpoint.sharded import write_sharded
from ugt_composer.errors import UserError
from ugt_composer.storage.record import RECORD, record_beside

SHARD_FILES = (STATE, f"{SHARDS}/a.bin", f"{SHARDS}/deep/b.bin", RECORD)
FILE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def flip(path, place: float, bit: int) -> int:
    content = bytearray(path.read_bytes())
    at = min(int(place * len(content)), len(content) - 1)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return at


@pytest.fixture
def three(tmp_path):
    for batch in (1, 2, 3):
        write_checkpoint(checkpoint_path(tmp_path, batch), content_of(batch))
    return tmp_path


@pytest.fixture
def sharded(tmp_path, sharded_content):
    path = checkpoint_path(tmp_path, 3, sharded=True)
    write_sharded(path, sharded_content, SmallShards())
    return path


def test_a_checkpoint_says_which_version_wrote_it_or_does_not_and_is_read(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    for content in (content_of(1), content_of(1) | {VERSION: "9.0"}):
        write_checkpoint(path, content)
        assert read_checkpoint(path).get(VERSION) == content.get(VERSION)
    write_checkpoint(path, content_of(1) | {"another": 1})
    with pytest.raises(UserError, match="not a training checkpoint"):
        read_checkpoint(path)


@FILE
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_byte_of_a_checkpoint_is_detected(three, place, bit):
    path = checkpoint_path(three, 3)
    whole = path.read_bytes()
    flip(path, place, bit)
    with pytest.raises(UserError, match=r"ba00000003\.pt: has the xxh64 \w+, record\.json records"):
        read_checkpoint(path)
    assert newest_checkpoint(three)[0].name == "ba00000002.pt"
    path.write_bytes(whole)
    assert newest_checkpoint(three)[0] == path


@FILE
@given(name=st.sampled_from(SHARD_FILES), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_byte_of_a_sharded_checkpoint_is_detected(sharded, name, place, bit):
    path = sharded / name
    whole = path.read_bytes()
    flip(path, place, bit)
    corruption = corruption_of(sharded)
    assert corruption is not None
    assert name in corruption
    path.write_bytes(whole)
    assert corruption_of(sharded) is None


@FILE
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_corrupted_record_does_not_invalidate_its_checkpoint(three, caplog, place, bit):
    record = record_beside(checkpoint_path(three, 3))
    whole = record.read_bytes()
    caplog.clear()
    flip(record, place, bit)
    assert newest_checkpoint(three)[0].name == "ba00000003.pt"
    assert record.name in caplog.text
    record.write_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, record.json records"),
        (lambda path: path.write_bytes(b""), "has 0 bytes, record.json records"),
        (lambda path: flip(path, 0.5, 3), "has the xxh64"),
    ],
)
def test_each_bad_checkpoint_is_named_with_its_reason(three, caplog, damage, reason):
    damage(checkpoint_path(three, 3))
    damage(checkpoint_path(three, 2))
    path, content = newest_checkpoint(three)
    assert path.name == "ba00000001.pt"
    assert content["state"] == {"batch": 1}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all(reason in warning for warning in warnings)
    assert "ba00000003.pt" in warnings[0]
    damage(path)
    with pytest.raises(UserError, match="no checkpoint can be read") as error:
        newest_checkpoint(three)
    assert all(f"ba0000000{n}.pt: " in str(error.value) for n in (1, 2, 3))


@pytest.mark.parametrize("name", [STATE, f"{SHARDS}/a.bin", f"{SHARDS}/deep/b.bin", f"{SHARDS}/deep", SHARDS])
def test_a_missing_file_of_a_sharded_checkpoint_is_named(sharded, name):
    path = sharded / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"ba00000003: its \S+ is missing") as error:
        read_checkpoint(sharded)
    assert name in str(error.value)


def test_a_checkpoint_without_a_record_is_checked_by_its_own_checksums(three):
    path = checkpoint_path(three, 3)
    record_beside(path).unlink()
    assert newest_checkpoint(three)[0] == path
    # In the middle of a tensor: torch.load would not notice.
    content = path.read_bytes()
    at = content.index(torch.full((50,), 3.0).numpy().tobytes()) + 11
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    assert newest_checkpoint(three)[0].name == "ba00000002.pt"
    path.write_bytes(content[:-30])
    assert newest_checkpoint(three)[0].name == "ba00000002.pt"


def test_a_sharded_checkpoint_without_a_record_must_have_its_shards(sharded):
    (sharded / RECORD).unlink()
    assert corruption_of(sharded) is None
    shutil.rmtree(sharded / SHARDS)
    assert corruption_of(sharded) == "its folder shards is missing or empty"
