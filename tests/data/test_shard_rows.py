import numpy as np
import pytest
from streaming import LocalDataset, MDSWriter

from ugt_composer.data import shard_rows
from ugt_composer.data.shard_rows import OpenShards, ShardRows
from ugt_composer.errors import UserError


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
    for at in np.random.default_rng(1).permutation(100):
        shard_id, number = dataset.spanner[int(at)]
        path = folder / dataset.shards[shard_id].raw_data.basename
        assert opened.row(path, number) == dataset[int(at)]["row"]


def test_a_file_that_is_cut_short_is_named(folder):
    opened, path = OpenShards(), sorted(folder.glob("*.mds"))[0]
    opened.row(path, 0)
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match=f"{path.name}: was cut short"):
        [opened.row(path, number) for number in range(20)]


def test_only_so_many_files_are_kept_open(folder, monkeypatch):
    monkeypatch.setattr(shard_rows, "MOST_OPEN", 2)
    opened, paths = OpenShards(), sorted(folder.glob("*.mds"))
    for path in (paths[0], paths[1], paths[0], paths[2]):
        opened.row(path, 0)
    assert list(opened._open) == [paths[0], paths[2]]


def test_a_file_that_was_replaced_is_read_anew_once_it_is_forgotten(folder):
    opened, (first, second, *_) = OpenShards(), sorted(folder.glob("*.mds"))
    before = opened.row(first, 3)
    second.replace(first)
    assert opened.row(first, 3) == before  # an open file stays whole
    opened.forget(first)
    assert opened.row(first, 3) == ShardRows(first)[3] != before
    first.unlink()
    opened.forget(first)
    with pytest.raises(FileNotFoundError):
        opened.row(first, 0)
