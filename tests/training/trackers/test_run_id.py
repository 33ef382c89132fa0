"""The id of a run in external loggers."""

import pytest
from composer.utils import dist

from ugt_composer.checkpoint import rank0_errors as saving
from ugt_composer.training.trackers.run_id import run_id


@pytest.fixture
def on_rank(monkeypatch):
    """on_rank(rank): the following code acts as that rank; broadcasts return what rank 0 sent before."""
    sent, received = [], iter(())

    def broadcast(objects, src):
        if dist.get_global_rank() == 0:
            sent.extend(objects)
        else:
            objects[:] = [next(received)]

    def become(rank: int) -> None:
        nonlocal received
        received = iter(list(sent))
        monkeypatch.setattr(dist, "get_global_rank", lambda: rank)

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    return become


def test_machines_without_a_shared_folder_have_one_id(on_rank, tmp_path):
    on_rank(0)
    first = run_id(str(tmp_path / "machine0/run"))
    on_rank(1)
    assert run_id(str(tmp_path / "machine1/run")) == first
    assert not (tmp_path / "machine1").exists()


def test_the_id_belongs_to_the_save_folder(tmp_path):
    one, other = (run_id(str(tmp_path / name)) for name in ("one", "other"))
    assert one == run_id(str(tmp_path / "one")) == (tmp_path / "one/run_id").read_text()
    assert one != other


def test_a_full_disk_ends_every_rank(on_rank, tmp_path, monkeypatch):
    def no_space(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", no_space)
    for rank in (0, 1):
        on_rank(rank)
        with pytest.raises(saving.RunError, match=r"cannot be written \(No space left on device\)"):
            run_id(str(tmp_path / "run"))
