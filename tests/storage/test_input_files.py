import pytest

from ugt_composer.errors import UserError
from ugt_composer.storage.input_files import check_given_once, visible_files


def test_files_of_subfolders_come_in_the_order_of_their_names_without_hidden_ones(tmp_path):
    names = ("b.csv", "a.csv", "a/z.csv", "_SUCCESS", ".part.crc", "_temporary/c.csv", "a/.hidden/d.csv")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in visible_files(tmp_path)] == ["a.csv", "a/z.csv", "b.csv"]


def test_a_file_under_two_names_is_refused_with_both(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    check_given_once([tmp_path / "a.csv", tmp_path / "b.csv"])
    with pytest.raises(UserError, match=r"link\.csv: given twice \(first as .*a\.csv\)"):
        check_given_once([tmp_path / "a.csv", tmp_path / "link.csv"])
    with pytest.raises(UserError, match="given twice"):
        check_given_once(["a.csv"] * 2)
