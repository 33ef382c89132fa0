"""Shards are fetched, decompressed, verified and repaired, by one process or several."""

import multiprocessing
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import CORRUPTIONS, flip_byte
from ugt_composer.config.schema import StreamConfig
from ugt_composer.data import shard_files
from ugt_composer.data.integrity import corruption
from ugt_composer.data.remote_folder import fetch_descriptions
from ugt_composer.data.shard_files import ShardFiles
from ugt_composer.errors import UserError

SHARD = "shard.00002.mds"
FORMS = [(), ("--compression", "zstd"), ("--compression", "gz", "--hashes", "sha1")]


def cache_of(remote, folder) -> ShardFiles:
    fetch_descriptions(StreamConfig(local=str(folder), remote=str(remote)))
    return ShardFiles(folder, str(remote))


def whole(files: ShardFiles) -> bool:
    return all(corruption(files.folder / name, shard.raw) is None for name, shard in files.shards.items())


def leftovers(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix in (".part", ".lock", ".tmp")]


@pytest.mark.parametrize("options", FORMS)
def test_a_valid_folder_is_unchanged_except_for_decompressed_shards(data_folder, options):
    folder = data_folder(*options)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = ShardFiles(folder, None)
    for name in files.shards:
        files.ensure(name)
    assert whole(files)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before}
    assert after == before
    assert not leftovers(folder)


@pytest.mark.parametrize("damage", CORRUPTIONS)
@pytest.mark.parametrize("options", FORMS)
def test_a_corrupted_shard_without_a_remote_is_reported(data_folder, options, damage):
    folder = data_folder(*options)
    files = ShardFiles(folder, None)
    stored = files.shards[SHARD].stored
    CORRUPTIONS[damage](folder / stored.name)
    words = {"flipped": next(iter(stored.hashes.values())), "cut": "has", "missing": "is missing"}
    with pytest.raises(UserError, match=rf"{stored.name}: .*{words[damage]}.*; convert or copy") as error:
        files.ensure(SHARD)
    assert "\n" not in str(error.value)
    files.ensure("shard.00001.mds")


@pytest.mark.parametrize("options", FORMS)
def test_a_corrupted_decompressed_shard_is_decompressed_again(data_folder, options):
    files = ShardFiles(data_folder(*options), None)
    if files.shards[SHARD].zipped is None:
        return
    files.ensure(SHARD)
    flip_byte(files.folder / SHARD)
    files.ensure(SHARD)
    assert corruption(files.folder / SHARD, files.shards[SHARD].raw) is None


@pytest.mark.parametrize("damage", CORRUPTIONS)
@pytest.mark.parametrize("options", FORMS)
def test_a_corrupted_shard_is_fetched_again_once(converted, tmp_path, monkeypatch, options, damage):
    remote = converted(*options)
    files = cache_of(remote, tmp_path / "cache")
    grown = sum(files.ensure(name) for name in files.shards)
    assert whole(files)
    assert grown == sum(shard.raw.size for shard in files.shards.values())  # compressed files are not kept
    CORRUPTIONS[damage](files.folder / SHARD)
    fetched = []
    real = shard_files._download
    monkeypatch.setattr(shard_files, "_download", lambda source, part: (fetched.append(source), real(source, part)))
    for name in files.shards:
        files.ensure(name)
    assert fetched == [f"{remote}/{files.shards[SHARD].stored.name}"]
    assert whole(files)
    assert not leftovers(files.folder)


@pytest.mark.parametrize("damage", CORRUPTIONS)
def test_a_shard_corrupted_in_the_store_is_reported_and_not_kept(data_folder, tmp_path, damage):
    remote = data_folder()
    files = cache_of(remote, tmp_path / "cache")
    CORRUPTIONS[damage](remote / SHARD)
    with pytest.raises(UserError, match=rf"{remote}/{SHARD}: "):
        files.ensure(SHARD)
    assert not (files.folder / SHARD).exists()


def test_a_dropped_connection_is_retried(converted, tmp_path, monkeypatch):
    from streaming.base.storage import CloudDownloader

    monkeypatch.setattr(shard_files, "PAUSES", (0.0, 0.0))
    real, failures = CloudDownloader.direct_download, [ConnectionError("reset by peer")] * 2

    def download(source, target, timeout):
        if SHARD in source and failures:
            with open(target, "wb") as file:
                file.write(b"half")
            raise failures.pop()
        real(source, target, timeout)

    monkeypatch.setattr(CloudDownloader, "direct_download", download)
    files = cache_of(converted(), tmp_path / "cache")
    for name in files.shards:
        files.ensure(name)
    assert whole(files)
    failures += [ConnectionError("reset by peer")] * 3
    (files.folder / SHARD).unlink()
    with pytest.raises(UserError, match=rf"{SHARD}: cannot be fetched \(reset by peer\)"):
        files.ensure(SHARD)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(sorted(CORRUPTIONS))), max_size=6))
def test_a_corrupted_cache_is_repaired(converted, tmp_path, damages):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    files = cache_of(converted(), tmp_path / "cache")
    for number, damage in damages:
        path = files.folder / f"shard.{number:05}.mds"
        if path.name in files.shards and path.exists() and path.stat().st_size:
            CORRUPTIONS[damage](path)
        files.ensure(path.name) if path.name in files.shards and damage != "missing" else None
    for name in files.shards:
        files.ensure(name)
    assert whole(files)


def test_an_index_that_does_not_belong_to_its_manifest_is_fetched_again(converted, data_folder, tmp_path):
    files = cache_of(converted(), tmp_path / "cache")
    flip_byte(files.folder / "index.json", 40)
    files = cache_of(converted(), tmp_path / "cache")
    assert (files.folder / "index.json").read_bytes() == (converted() / "index.json").read_bytes()
    remote = data_folder(name="remote")
    flip_byte(remote / "index.json", 40)
    with pytest.raises(UserError, match=rf"{remote}/index\.json: has the xxh3_128 .*; upload the data again"):
        cache_of(remote, tmp_path / "other")


def _ensure_all(remote, folder, start):
    start.wait()
    files = ShardFiles(folder, str(remote))
    for name in files.shards:
        files.ensure(name)
    os._exit(0 if whole(files) else 1)


@pytest.mark.parametrize("options", FORMS[:2])
def test_processes_that_share_a_cache_do_not_interfere(converted, tmp_path, options):
    remote, folder = converted(*options), tmp_path / "cache"
    cache_of(remote, folder)
    context = multiprocessing.get_context("fork")
    start = context.Event()
    processes = [context.Process(target=_ensure_all, args=(remote, folder, start)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert not leftovers(folder)


def test_leftovers_of_a_killed_fetch_are_overwritten(converted, tmp_path):
    files = cache_of(converted(), tmp_path / "cache")
    (files.folder / f"{SHARD}.part").write_bytes(b"half of it")
    (files.folder / f"{SHARD}.lock").touch()
    files.ensure(SHARD)
    assert corruption(files.folder / SHARD, files.shards[SHARD].raw) is None
    assert not leftovers(files.folder)


def test_a_folder_that_cannot_be_written_is_reported(converted, data_folder, monkeypatch):
    files = ShardFiles(data_folder("--compression", "zstd"), None)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shard_files, "locked", refuse)
    with pytest.raises(UserError, match=rf"{SHARD}: is missing, .* cannot be written \(Permission denied\)"):
        files.ensure(SHARD)
