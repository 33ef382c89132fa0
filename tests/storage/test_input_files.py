import pytest

from ugt_composer.errors import UserError
from ugt_composer.storage.input_files import check_given_once, visible_files


def test_files_of_subfolders_come_in_the_order_of_their_names_without_hidden_ones(tmp_path):
    names = ("b.csv", "a.csv", "a/z.csv", "_SUCCESS", ".part.crc", "_temporary/c.csv", "a/.hidden/d.csv")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in visible_files(tmp_path)] == ["a.csv", "a/z.csv", "b.csv"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    for name in ("in", "other", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.csv").touch()
    (tmp_path / "in/link.csv").symlink_to(tmp_path / "in/in.csv")
    for link, target in (("in/to", "other"), ("other/to", "third"), ("third/to", "other"), ("third/up", "in")):
        (tmp_path / link).symlink_to(tmp_path / target)
    found = [path.relative_to(tmp_path / "in").as_posix() for path in visible_files(tmp_path / "in")]
    assert found == ["in.csv", "link.csv", "to/other.csv", "to/to/third.csv"]
    (tmp_path / "third/lost.csv").symlink_to("missing.csv")
    with pytest.raises(UserError, match=r"lost\.csv: is a link to missing\.csv, which does not exist"):
        visible_files(tmp_path / "in")


def test_a_file_under_two_names_is_refused_with_both(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    check_given_once([tmp_path / "a.csv", tmp_path / "b.csv"])
    with pytest.raises(UserError, match=r"link\.csv: given twice \(first as .*a\.csv\)"):
        check_given_once([tmp_path / "a.csv", tmp_path / "link.csv"])
    with pytest.raises(UserError, match="given twice"):
        check_given_once(["a.csv"] * 2)
