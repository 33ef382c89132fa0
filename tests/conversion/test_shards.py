"""Our shards equal those of MDSWriter, and Streaming reads a converted folder."""

import json
import random

import numpy as np
import pytest

from tests.conversion.conversion_cases import SMALL, contents, main, packed_rows, recommend_row, write_rows
from ugt_composer.conversion import settings as conversion_settings
from ugt_composer.conversion.shards import ShardWriter, write_index


def write_both(tmp_path, rows, compression, hashes, size_limit):
    from streaming import MDSWriter

    with MDSWriter(
        out=str(tmp_path / "theirs"),
        columns={"row": "bytes"},
        compression=compression,
        hashes=hashes,
        size_limit=size_limit,
    ) as writer:
        for row in rows:
            writer.write({"row": row})
    ours = tmp_path / "ours"
    ours.mkdir()
    shards = ShardWriter(ours, compression, hashes, size_limit)
    half = len(rows) // 2
    heads = [len(row).to_bytes(4, "little") + row for row in rows[:half]]
    shards.add_rows(b"".join(heads), np.array([len(row) for row in rows[:half]]))
    for row in rows[half:]:
        shards.add_row(row)
    shards.close()
    write_index(ours, shards.shards)
    return contents(ours), contents(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("compression", "hashes"),
    [
        (None, ["xxh64"]),
        (None, []),
        ("zstd", ["sha1", "xxh3_64"]),
        ("zstd:9", ["xxh64"]),
        ("br:2", []),
        ("bz2", []),
        ("snappy", ["sha256"]),
    ],
)
def test_shards_and_index_are_byte_for_byte_those_of_mds_writer(tmp_path, compression, hashes):
    rng = random.Random(0)
    rows = [rng.randbytes(rng.choice([0, 1, 7, 100, 900])) for _ in range(300)]
    ours, theirs = write_both(tmp_path, rows, compression, hashes, size_limit=1 << 13)
    assert len(ours) > 5
    assert ours == theirs


def test_gzip_shards_hold_no_time(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name, "gz", [], 1 << 20)
        writer.add_row(b"row")
        writer.close()
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_streaming_reads_a_converted_folder(tmp_path):
    from streaming import LocalDataset, StreamingDataset

    rng = random.Random(0)
    source = write_rows(tmp_path / "rows.jsonl", [recommend_row(rng, f"user {at}") for at in range(300)])
    out = tmp_path / "out"
    options = ["--kind", "recommend", "--size-limit", "8kb", "--range-bytes", "50000", *SMALL]
    assert main([str(source), "--out", str(out), *options]) == 0
    rows = packed_rows(out)
    index = json.loads((out / "index.json").read_text())
    names = [shard["raw_data"]["basename"] for shard in index["shards"]]
    assert names == [f"shard.{at:05}.mds" for at in range(len(names))]
    assert len(names) > 3
    dataset = StreamingDataset(local=str(out), shuffle=False, batch_size=1)
    assert [dataset[at]["row"] for at in range(len(dataset))] == rows
    whole = LocalDataset(str(out))
    assert [whole[at]["row"] for at in range(len(whole))] == rows


def test_names_of_compressions_and_hashes_are_those_of_streaming():
    from streaming.base.compression import get_compressions
    from streaming.base.hashing import get_hashes

    ours = set()
    for family, levels in conversion_settings.COMPRESSION_LEVELS.items():
        ours |= {family, *(f"{family}:{level}" for level in levels)}
    assert ours == get_compressions()
    assert conversion_settings.available_hashes() <= get_hashes()
    assert {"xxh64", "xxh3_64", "sha1", "sha256", "md5"} <= conversion_settings.available_hashes()
