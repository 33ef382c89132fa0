import numpy as np
import pytest
from streaming import LocalDataset, MDSWriter

from ugt_composer.data import shard_rows
from ugt_composer.data.shard_rows import OpenShards, ShardRows
from ugt_composer.errors import UserError

FIRST, FOURTH = np.array([0]), np.array([3])


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    with MDSWriter(out=str(tmp_path / "mds"), columns={"row": "bytes"}, size_limit=4000) as writer:
        for _ in range(100):
            writer.write({"row": random.bytes(int(random.integers(0, 300)))})
    return tmp_path / "mds"


def test_rows_are_those_that_streaming_reads(folder):
    dataset, opened = LocalDataset(str(folder)), OpenShards()
    assert len(dataset.shards) > 3
    files = sorted(folder.glob("*.mds"))
    for shard_id, (shard, file) in enumerate(zip(dataset.shards, files, strict=True)):
        numbers = np.random.default_rng(1).permutation(shard.samples)
        first = int(dataset.spanner.shard_bounds[shard_id])
        wanted = [dataset[first + int(number)]["row"] for number in numbers]
        assert opened.rows(file, numbers) == wanted


def test_a_truncated_file_is_named(folder):
    opened, path = OpenShards(), sorted(folder.glob("*.mds"))[0]
    opened.rows(path, FIRST)
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match=f"{path.name}: is truncated"):
        opened.rows(path, np.arange(20))


def test_only_so_many_files_are_kept_open(folder, monkeypatch):
    monkeypatch.setattr(shard_rows, "MOST_OPEN", 2)
    opened, paths = OpenShards(), sorted(folder.glob("*.mds"))
    for path in (paths[0], paths[1], paths[0], paths[2]):
        opened.rows(path, FIRST)
    assert list(opened._open) == [paths[0], paths[2]]


def test_a_replaced_file_is_read_again_after_it_is_forgotten(folder):
    opened, (first, second, *_) = OpenShards(), sorted(folder.glob("*.mds"))
    before = opened.rows(first, FOURTH)
    second.replace(first)
    assert opened.rows(first, FOURTH) == before  # the open file keeps its old content
    opened.forget(first)
    assert opened.rows(first, FOURTH) == ShardRows(first).rows(FOURTH) != before
    first.unlink()
    opened.forget(first)
    with pytest.raises(FileNotFoundError):
        opened.rows(first, FIRST)
