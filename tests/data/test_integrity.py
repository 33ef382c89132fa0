"""The integrity check of files, compared with what was done to them."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import flip_byte
from ugt_composer.data.integrity import FileFacts, corruption, index_corruption, read_index, size_mismatch
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError
from ugt_composer.storage.hashed_file import file_hash, preferred

ALGORITHMS = ["xxh64", "xxh3_64", "xxh3_128", "xxh32", "sha1", "sha256", "md5"]
on_files = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damages(draw):
    """(bytes of a file, the same bytes after an edit); None for the second if the file was removed."""
    before = draw(st.binary(max_size=300))
    after = draw(
        st.one_of(
            st.just(before),
            st.just(None),
            st.binary(max_size=300),
            st.integers(0, len(before)).map(lambda end: before[:end]),
            st.integers(0, 7).map(lambda bit: bytes([before[0] ^ 1 << bit]) + before[1:] if before else b"x"),
        )
    )
    return before, after


@on_files
@given(damages(), st.sampled_from(ALGORITHMS))
def test_a_file_is_valid_only_with_the_same_bytes(tmp_path, bytes_of, algorithm):
    before, after = bytes_of
    path = tmp_path / "file"
    path.write_bytes(before)
    facts = FileFacts("file", len(before), {algorithm: file_hash(algorithm, path)})
    path.unlink() if after is None else path.write_bytes(after)
    found = corruption(path, facts)
    assert (found is None) == (before == after)
    if found is not None:
        expected = str(len(before)) if after is None or len(after) != len(before) else facts.hashes[algorithm]
        assert expected in found
        assert (size_mismatch(path, facts) is None) == (after is not None and len(after) == len(before))


def test_hashes_are_those_of_streaming(tmp_path):
    from streaming.base.hashing import get_hash

    data = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(data)
    for algorithm in ALGORITHMS:
        assert file_hash(algorithm, tmp_path / "file") == get_hash(algorithm, data)


def test_the_fastest_known_hash_is_checked_and_unknown_ones_ignored():
    assert preferred({"sha1": "", "xxh64": "", "md5": ""}) == "xxh64"
    assert preferred({"whirl": "", "sha1": ""}) == "sha1"
    assert preferred({"whirl": ""}) is None


@on_files
@given(st.data())
def test_any_changed_byte_of_an_index_is_reported(converted, tmp_path, data):
    recorded = read_manifest(converted()).index_hash
    text = bytearray((converted() / "index.json").read_bytes())
    text[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "index.json").write_bytes(text)
    assert recorded.split(":")[1] in index_corruption(tmp_path / "index.json", recorded)


def test_a_folder_as_it_was_converted_is_accepted(converted):
    for options in ((), ("--compression", "zstd"), ("--hashes", "sha1"), ("--hashes", "none")):
        read_manifest(converted(*options))


def test_an_index_of_other_shards_is_refused(data_folder):
    folder = data_folder()
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["hashes"]["xxh64"] = "0" * 16
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))
    with pytest.raises(UserError, match=r"data/index\.json: has the xxh3_128 .*, manifest\.json records .*; convert"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["index.json", "manifest.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"shards": [{}]}', "\xff"])
def test_an_invalid_index_or_manifest_is_refused(data_folder, name, text):
    folder = data_folder()
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(f"data/{name}")):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../shard.00000.mds", "/etc/passwd", "."])
def test_an_index_with_paths_outside_its_folder_is_refused(data_folder, name):
    folder = data_folder()
    text = (folder / "index.json").read_text().replace("shard.00000.mds", name)
    (folder / "index.json").write_text(text)
    with pytest.raises(UserError, match="outside the folder"):
        read_index(folder)


@pytest.mark.parametrize("options", [(), ("--compression", "zstd")])
def test_missing_and_truncated_shards_are_reported_before_reading(data_folder, options):
    folder = data_folder(*options)
    shard: Path = sorted(folder.glob("shard.*"))[3]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(UserError, match=rf"{shard.name}: has {size - 7} bytes, index\.json records {size}; convert or"):
        read_manifest(folder)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: is missing, index\.json records {size} bytes; convert"):
        read_manifest(folder)


def test_the_bytes_of_shards_are_not_read_to_find_the_manifest(data_folder):
    folder = data_folder()
    for shard in folder.glob("shard.*"):
        flip_byte(shard)
    read_manifest(folder)
