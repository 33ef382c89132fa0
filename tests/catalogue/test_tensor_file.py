import numpy as np
import pytest
import torch

from ugt_composer.catalogue.tensor_file import read_array
from ugt_composer.errors import UserError

CODES = np.array([[1, 2, 3], [4, 5, 6]], np.int32)


def saved(folder, name: str, content):
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, content, allow_pickle=True)
    elif name.endswith(".npz"):
        np.savez(path, **content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", CODES),
        ("a.npz", {"codes": CODES}),
        ("a.pt", torch.tensor(CODES)),
        ("a.pth", torch.tensor(CODES).to(torch.bfloat16)),
        ("a.pt", torch.nn.Parameter(torch.tensor(CODES).float())),
        ("a.pt", {"epoch": 3, "codes": torch.tensor(CODES)}),
        ("a.pt", CODES.tolist()),
        ("a.pt", list(torch.tensor(CODES))),
    ],
)
def test_the_only_array_of_a_file_is_read(tmp_path, name, content):
    assert read_array(saved(tmp_path, name, content)).tolist() == CODES.tolist()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npz", {"a": CODES, "b": CODES}, r"found a \(2, 3\), b \(2, 3\); expected exactly one array"),
        ("a.pt", {"epoch": 3}, "found no array; expected exactly one array"),
        ("a.pt", "text", "found str, expected one array"),
        ("a.pt", [[1, 2], [3]], "found list, expected one array"),
        ("a.npy", np.array([object()]), "it holds Python objects, which could run code"),
        ("a.pt", CODES, "it holds Python objects, which could run code"),
    ],
)
def test_other_content_is_named(tmp_path, name, content, said):
    with pytest.raises(UserError, match=said) as error:
        read_array(saved(tmp_path, name, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.npy", "a.pt"])
def test_files_that_are_absent_or_cut_are_named(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        read_array(tmp_path / name)
    path = saved(tmp_path, name, CODES if name == "a.npy" else torch.tensor(CODES))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be read"):
        read_array(path)
