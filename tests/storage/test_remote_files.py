"""Objects as input files: found as files and folders are, read by ranges in one version."""

import random
from glob import glob
from pathlib import Path

import pytest
from botocore.stub import Stubber

from tests.storage.s3_server import Proxy, loopback_bucket, upload
from ugt_composer.errors import UserError
from ugt_composer.storage import remote_files, s3
from ugt_composer.storage.input_files import visible_files
from ugt_composer.storage.remote_files import file_in, find_object, matching_objects, named_file, objects_below
from ugt_composer.storage.s3 import Store, StoreError
from ugt_composer.storage.s3_url import Address, input_path

pytestmark = pytest.mark.processes
NAMES = (
    *(
        "b.csv",
        "a.csv",
        "a-b/c.csv",
        "a/z.csv",
        "a/b/é +%41.csv",
        "a/.hidden/x.csv",
        ".x.csv",
        "_SUCCESS",
        "a/_t/y.csv",
    ),
    *("a/[x].csv", "b/1.json", "b/2.csv"),
)


@pytest.fixture(scope="module")
def store():
    with loopback_bucket() as store:
        yield store


@pytest.fixture(scope="module")
def tree(store, tmp_path_factory) -> Path:
    """A folder that is also the prefix s3://bucket/tree, which has the objects with which consoles show folders too."""
    folder = tmp_path_factory.mktemp("tree")
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    upload(store, folder, "tree")
    for name in ("tree/", "tree/a/"):
        store._client.put_object(Bucket="bucket", Key=name, Body=b"")
    store.put("trees.csv", b"of another prefix")
    return folder


def below(files) -> list[str]:
    return [str(file).removeprefix("s3://bucket/tree/") for file in files]


def test_a_prefix_has_the_files_of_the_folder_in_their_order(tree):
    for folder in (".", "a", "a/b"):
        address = Address(f"s3://bucket/tree/{folder}".removesuffix("/."))
        files = objects_below(address)
        assert below(files) == [path.relative_to(tree).as_posix() for path in visible_files(tree / folder)]
        assert [file.size for file in files] == [(tree / name).stat().st_size for name in below(files)]
    assert below(objects_below(Address("s3://bucket/tree/a/"))) == below(objects_below(Address("s3://bucket/tree/a")))


@pytest.mark.parametrize(
    "pattern",
    ["*.csv", "a*/*.csv", "**", "**/*.csv", "a/**/*.csv", "**/b/*", ".*", "?.csv", "a/[[]x].csv", "[ab]/*[!n]"],
)
def test_patterns_match_as_glob_does(tree, pattern):
    paths = sorted(Path(path) for path in glob(pattern, root_dir=tree, recursive=True) if (tree / path).is_file())
    assert below(matching_objects(Address(f"s3://bucket/tree/{pattern}"))) == list(map(str, paths)) != []


def test_an_object_is_found_by_its_name_and_read_anywhere(store, monkeypatch):
    monkeypatch.setattr(remote_files, "LEAST_BYTES", 1000)
    monkeypatch.setattr(remote_files, "MOST_BYTES", 9000)
    data = random.Random(1).randbytes(200_000)
    store.put("data.bin", data)
    file = named_file("s3a://bucket/data.bin")
    assert (str(file), file.name, file.size) == ("s3://bucket/data.bin", "data.bin", len(data))
    with file.open() as remote:
        assert remote.read() == data
        for start, count in ((0, 1), (199_990, 50), (5000, 100_000), (200_000, 1), (60, 0)):
            assert remote.seek(start) == start
            assert remote.read(count) == data[start : start + count]
        remote.seek(-10, 2)
        assert remote.read() == data[-10:]
        remote.seek(777)
        assert b"".join(remote) == data[777:]
    assert find_object(Address("s3://bucket/none")) is None
    assert find_object(Address("s3://bucket/data.bin/")) is None, "the address of a prefix"
    store.put("empty.bin", b"")
    with named_file("s3://bucket/empty.bin").open() as remote:
        assert remote.read() == b""


def test_an_object_that_changes_is_not_read_on(store):
    store.put("log.csv", bytes(2_000_000))
    file = find_object(Address("s3://bucket/log.csv"))
    with file.open() as remote:
        remote.read(10)
        file.check_unchanged()
        store.put("log.csv", bytes(1_999_999) + b"1")
        with pytest.raises(UserError, match=r"^s3://bucket/log\.csv: changed while it was read; start again when"):
            remote.read()
    with pytest.raises(UserError, match="changed while it was read"):
        file.check_unchanged()
    store.delete(["log.csv"])
    with pytest.raises(UserError, match=r"^s3://bucket/log\.csv: there is no such object"), file.open() as remote:
        remote.read()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://bucket/tree/bb.csv", "found no such object or prefix; did you mean s3://bucket/tree/b.csv?"),
        ("s3://bucket/treee", "found no such object or prefix; did you mean s3://bucket/tree?"),
        ("s3://bucket/9", "s3://bucket/9: found no such object or prefix"),
        ("s3://nowhere/x", "there is no bucket nowhere"),
        ("s3://Bucket/x", "s3://Bucket/x: expected an address such as s3://bucket/prefix"),
    ],
)
def test_what_does_not_exist_is_named(tree, address, said):
    with pytest.raises(UserError) as error:
        _ = find_object(Address(address)) or objects_below(Address(address))
    assert said in str(error.value)


def test_missing_and_refused_credentials_are_said(store, monkeypatch, tmp_path):
    monkeypatch.setattr(remote_files, "bucket_store", lambda bucket, endpoint: Store(f"s3://{bucket}"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match=r"^s3://bucket/x: found no credentials for the store \(Unable to locate"):
        find_object(Address("s3://bucket/x"))
    refusing = Store("s3://bucket")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setattr(remote_files, "bucket_store", lambda bucket, endpoint: refusing)
    with Stubber(refusing._client) as stubber:
        for _ in range(2):
            stubber.add_client_error("head_object", "403", "Forbidden", 403)
        with pytest.raises(UserError, match=r"^s3://bucket/x: the store refuses \(.*403.*Forbidden"):
            find_object(Address("s3://bucket/x"))
        # S3 also answers so where there is no such object, to users who may not list.
        assert file_in(Address("s3://bucket/rows"), "catalogue.jsonl") is None


def test_a_dropped_connection_is_made_again_and_a_silent_store_is_no_error_of_the_user(store, monkeypatch):
    monkeypatch.setattr(s3, "PAUSE", 0.0)
    monkeypatch.setattr(s3, "ATTEMPTS", 3)
    store.put("long.csv", bytes(100_000))
    proxy = Proxy(int(store._client.meta.endpoint_url.rpartition(":")[2]))
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    try:
        file = find_object(Address("s3://bucket/long.csv"))
        proxy.drop_down = 2
        assert file.read(0, 100_000) == bytes(100_000)
        assert proxy.drops == 2
        proxy.is_open = False
        with pytest.raises(StoreError, match=r"^s3://bucket/long\.csv: the store does not answer"):
            file.read(0, 100_000)
    finally:
        proxy.close()


def test_addresses_and_paths_are_told_apart():
    assert input_path("s3a://bucket/x//") == Address("s3://bucket/x//")
    assert str(input_path("s3://bucket/x/")) == "s3://bucket/x"
    assert input_path("s3/x") == Path("s3/x")
    assert input_path("gs://x") == Path("gs://x")
