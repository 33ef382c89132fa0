import numpy as np
import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.vectors import read_vectors

VECTORS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float16)


@pytest.fixture
def matrix(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    return tmp_path / "v.npy"


@pytest.mark.parametrize("order", ["b\na\n", '["b", "a"]', "b\r\na\r\n\n"])
def test_rows_are_named_by_a_file(matrix, order):
    named = matrix.with_name("order.txt")
    named.write_text(order)
    items, vectors = read_vectors(matrix, named, None)
    assert items.to_list() == ["b", "a"]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == VECTORS.tolist()


def test_rows_are_in_the_order_of_the_table_of_items(matrix):
    assert read_vectors(matrix, None, pl.Series(["x", "y"]))[0].to_list() == ["x", "y"]


@pytest.mark.parametrize(
    ("values", "items", "said"),
    [
        (VECTORS, None, "the item of each row is not known"),
        (VECTORS, ["a"], "found 2 vectors, but the table of items has 1 items"),
        (np.array([1.0, 2.0]), ["a", "b"], "expected numbers of shape (items, dimensions)"),
        (np.array([["x"], ["y"]]), ["a", "b"], "expected numbers of shape"),
        (np.array([[1.0], [np.nan]]), ["a", "b"], "row 1 (item 'b') holds a number that is not finite"),
        (np.array([[1], [object()]], object), ["a", "b"], "cannot be read as a .npy file"),
    ],
)
def test_mistakes_are_named(tmp_path, values, items, said):
    np.save(tmp_path / "v.npy", values, allow_pickle=True)
    with pytest.raises(UserError) as error:
        read_vectors(tmp_path / "v.npy", None, None if items is None else pl.Series(items))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x93NUMPY", "is not text in UTF-8; expected one item id per line, or a JSON list"),
        (b'{"a": 0, "b": 1}', "found a JSON object; expected one item id per line"),
        (b'["a", ', "expected one item id per line, or a JSON list"),
        (b"a\n\nb\n", "line 2: found nothing, expected an item id"),
        (None, "cannot be read (No such file or directory); expected one item id per line"),
    ],
)
def test_a_file_of_ids_in_another_form_is_refused(matrix, content, said):
    named = matrix.with_name("order.txt")
    if content is not None:
        named.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_vectors(matrix, named, None)
    assert said in str(error.value)
