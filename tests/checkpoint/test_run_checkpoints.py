"""Which checkpoints and leftovers are deleted, and when."""

import pytest

from tests.checkpoint.conftest import SmallShards, content_of
from ugt_composer.checkpoint.run_checkpoints import clean, corruption_of, newest_checkpoint, rotate, write_checkpoint
from ugt_composer.checkpoint.save_folder import checkpoint_path, list_checkpoints
from ugt_composer.checkpoint.sharded import put_folder_in_place, write_sharded
from ugt_composer.storage.record import RECORD, Facts, record_beside, write_record


@pytest.fixture
def five(tmp_path):
    for batch in range(1, 6):
        write_checkpoint(checkpoint_path(tmp_path, batch), content_of(batch))
    return tmp_path


def batches(folder) -> list[int]:
    return [int(path.name[2:10]) for path in list_checkpoints(folder)]


def test_rotation_includes_earlier_processes_and_removes_leftovers(five):
    (five / "best").mkdir()
    (five / "best" / "model.safetensors").write_bytes(b"best")
    rotate(five, 2, set())
    names = {path.name for path in five.iterdir()}
    assert names == {f"ba0000000{n}.pt{end}" for n in (4, 5) for end in ("", f".{RECORD}")} | {"best"}
    assert (five / "best" / "model.safetensors").read_bytes() == b"best"


def test_a_corrupted_checkpoint_does_not_count_as_kept(five):
    for batch in (5, 4):
        path = checkpoint_path(five, batch)
        path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    rotate(five, 2, set())
    assert batches(five) == [5, 4, 3, 2]
    assert newest_checkpoint(five)[0].name == "ba00000003.pt"
    rotate(five, 1, set())
    assert batches(five) == [5, 4, 3]
    write_checkpoint(checkpoint_path(five, 6), content_of(6))
    rotate(five, 1, set())
    assert batches(five) == [6]


def test_the_last_valid_checkpoint_stays_however_many_bad_ones_there_are(five):
    for batch in (2, 3, 4, 5):
        checkpoint_path(five, batch).write_bytes(b"bad")
    rotate(five, 1, {checkpoint_path(five, 5)})  # in the set of valid ones, but its size is wrong
    assert batches(five) == [5, 4, 3, 2, 1]


def test_leftovers_of_killed_saves_are_cleaned(five, sharded_content):
    write_sharded(checkpoint_path(five, 7, sharded=True), sharded_content, SmallShards())
    kept = {path.name for path in five.iterdir()}
    (five / "ba00000006.pt.tmp").write_bytes(b"half")
    (five / "ba00000008.tmp" / "shards").mkdir(parents=True)
    write_record(record_beside(checkpoint_path(five, 9)), {"ba00000009.pt": [Facts(1, "0")]})
    (five / f"ba00000006.pt.{RECORD}.tmp").write_bytes(b"{")
    for name in ("best", "latest"):
        (five / name).mkdir()
        (five / name / "model.safetensors.tmp").write_bytes(b"half")
        (five / name / ".tmpAbCdEf").write_bytes(b"half of safetensors")
    clean(five)
    assert {path.name for path in five.iterdir()} == kept | {"best", "latest"}
    assert not [*(five / "best").iterdir(), *(five / "latest").iterdir()]


def test_a_folder_is_restored_if_its_replacement_was_never_put_in_place(tmp_path, sharded_content):
    path = checkpoint_path(tmp_path, 3, sharded=True)
    write_sharded(path, sharded_content, SmallShards())
    path.rename(tmp_path / "ba00000003.replaced")  # killed here
    clean(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["ba00000003"]
    assert corruption_of(path) is None
    write_sharded(path, sharded_content, SmallShards())
    assert [found.name for found in tmp_path.iterdir()] == ["ba00000003"]
    (tmp_path / "ba00000003.tmp").mkdir()
    put_folder_in_place(tmp_path / "ba00000003.tmp", path)
    assert list(path.iterdir()) == []
