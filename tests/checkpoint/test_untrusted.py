"""Nothing in a checkpoint is executed, not even in a malicious one."""

import pickle
import tarfile

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from tests.checkpoint.conftest import content_of
from ugt_composer.checkpoint.run_checkpoints import SHARDED_KEYS, SHARDS, STATE, newest_checkpoint
from ugt_composer.checkpoint.save_folder import checkpoint_path
from ugt_composer.checkpoint.untrusted import forbidden, names_called
from ugt_composer.errors import UserError
from ugt_composer.storage.record import RECORD, facts_of, record_beside, write_record


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.fixture(autouse=True)
def nothing_is_executed(capsys):
    yield
    assert "executed" not in capsys.readouterr().out


def recorded(path) -> None:
    """Writes a matching record, as an attacker would: hashes detect corruption, not intent."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        write_record(path / RECORD, {file.relative_to(path).as_posix(): [facts_of(file)] for file in files})
    else:
        write_record(record_beside(path), {path.name: [facts_of(path)]})


def sharded(tmp_path, state: object = None):
    path = checkpoint_path(tmp_path, 1, sharded=True)
    (path / SHARDS).mkdir(parents=True)
    torch.save(content_of(1, SHARDED_KEYS) | {"rng": state}, path / STATE)
    return path


def test_a_malicious_pickle_in_a_file_is_refused(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    torch.save(content_of(1) | {"rng": Malicious()}, path)
    recorded(path)
    with pytest.raises(UserError, match=r"ba00000001\.pt: cannot be read as a checkpoint \(Weights only load failed"):
        newest_checkpoint(tmp_path)


def test_a_malicious_pickle_in_a_sharded_state_is_refused(tmp_path):
    path = sharded(tmp_path, Malicious())
    (path / SHARDS / "__0_0.distcp").write_bytes(b"")
    recorded(path)
    with pytest.raises(UserError, match=r"ba00000001.state\.pt: cannot be read as a checkpoint"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("form", ["old", "new", "metadata"])
def test_a_malicious_pickle_among_the_shards_is_refused(tmp_path, form):
    path = sharded(tmp_path)
    if form == "metadata":
        (path / SHARDS / ".metadata").write_bytes(pickle.dumps(Malicious()))
    else:
        file = path / SHARDS / "engine.pt"
        torch.save({"a": Malicious()}, file, _use_new_zipfile_serialization=form == "new")
    recorded(path)
    with pytest.raises(UserError, match=r"its shards/\S+ calls builtins\.print, which no checkpoint needs"):
        newest_checkpoint(tmp_path)


def test_metadata_that_leads_to_a_pickle_is_refused(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata({"weight": BytesStorageMetadata()})))
    assert "BytesStorageMetadata" in forbidden(tmp_path)


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("reach", ["torch.FloatStorage.from_file", "torch.hub.load", "builtins.eval"])
def test_lookalikes_of_harmless_names_are_refused(tmp_path, protocol, reach):
    module, _, name = reach.replace(".from_file", "|from_file").rpartition(".")
    name = name.replace("|", ".")
    if protocol == 4:
        reached = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"
        (tmp_path / ".metadata").write_bytes(b"\x80\x04" + reached + b".")
    else:
        (tmp_path / ".metadata").write_bytes(f"c{module}\n{name}\n.".encode())
    assert f"calls {module}.{name}" in forbidden(tmp_path)


def test_a_tar_file_is_refused(tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps(Malicious()))
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    assert "a.pt cannot be read" in forbidden(tmp_path)


@pytest.mark.parametrize("new", [True, False])
def test_tensors_and_plain_data_are_harmless(tmp_path, new):
    parameter = torch.nn.Parameter(torch.ones(3))
    content = {"a": torch.ones(3, dtype=torch.bfloat16), "b": [parameter, torch.Size([2]), torch.float16], "c": {1, 2}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    assert ("torch._utils", "_rebuild_tensor_v2") in names_called(tmp_path / "a.pt")
    assert forbidden(tmp_path) is None
