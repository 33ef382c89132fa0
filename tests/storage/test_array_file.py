import multiprocessing

import numpy as np
import pytest
from safetensors.numpy import load_file

from ugt_composer.storage.array_file import arrays_beside, map_arrays, write_arrays

ARRAYS = {
    "flags": np.array([True, False, True]),
    "bytes": np.frombuffer(b"text", np.uint8),
    "empty": np.empty(0, np.int64),
    "table": np.arange(6, dtype=np.int64).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


def test_arrays_and_facts_are_read_as_written(tmp_path):
    path = tmp_path / "some.arrays"
    write_arrays(path, ARRAYS, {"hash": "ab"})
    arrays, facts = map_arrays(path)
    assert facts == {"hash": "ab"}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert [file.name for file in tmp_path.iterdir()] == ["some.arrays"]


def test_the_file_is_one_of_safetensors(tmp_path):
    write_arrays(tmp_path / "some.arrays", ARRAYS, {})
    for name, array in load_file(tmp_path / "some.arrays").items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_what_a_process_writes_stays_its_own(tmp_path):
    write_arrays(tmp_path / "some.arrays", ARRAYS, {})
    first, _ = map_arrays(tmp_path / "some.arrays")
    first["table"][0, 0] = 9
    assert map_arrays(tmp_path / "some.arrays")[0]["table"][0, 0] == 0


@pytest.mark.parametrize("size", [0, 7, 60, 300])
def test_a_file_that_is_cut_or_something_else_is_not_valid(tmp_path, size):
    path = tmp_path / "some.arrays"
    write_arrays(path, ARRAYS, {})
    path.write_bytes(path.read_bytes()[:size])
    assert map_arrays(path) is None
    path.write_text("no arrays " * 20)
    assert map_arrays(path) is None
    assert map_arrays(tmp_path / "none") is None


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "some.arrays"
    write_arrays(path, ARRAYS, {"hash": "old"})
    with pytest.raises(KeyError):
        write_arrays(path, {"complex": np.zeros(2, np.complex64)}, {})
    with pytest.raises(BufferError):
        write_arrays(path, {"bad": Unreadable()}, {})
    assert map_arrays(path)[1] == {"hash": "old"}
    assert [file.name for file in tmp_path.iterdir()] == ["some.arrays"]


class Unreadable:
    """Fails like an array while it is written."""

    dtype, shape, nbytes, itemsize = np.dtype(np.uint8), (4,), 4, 1

    def __array__(self, *_, **__):
        raise BufferError


def test_the_arrays_of_a_file_are_hidden_beside_it(tmp_path):
    assert arrays_beside(tmp_path / "catalogue.jsonl") == tmp_path / ".catalogue.jsonl.arrays"


def _first(path):
    return int(map_arrays(path)[0]["table"][1, 2])


def test_other_processes_read_them(tmp_path):
    write_arrays(tmp_path / "some.arrays", ARRAYS, {})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_first, (tmp_path / "some.arrays",)) == 5
