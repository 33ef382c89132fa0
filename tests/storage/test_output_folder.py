import errno
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ugt_composer.errors import UserError
from ugt_composer.storage import output_folder
from ugt_composer.storage.output_folder import new_folder

FILES = ("a.txt", "b.txt")


def write(out, text="new", overwrite=False, failing=None):
    with new_folder(out, FILES, overwrite) as folder:
        assert folder != out
        (folder / "a.txt").write_text(text)
        if failing is not None:
            raise failing


def test_the_folder_appears_with_its_parents_and_nothing_beside_it(tmp_path):
    write(tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "a.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError):
        write(tmp_path / "out", failing=RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_earlier_files_as_they_were(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", overwrite=True, failing=KeyboardInterrupt)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_arrays_made_of_its_files_do_not_keep_a_folder_from_being_replaced(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out/.a.txt.arrays").touch()
    write(tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    (tmp_path / "out/.other.arrays").touch()
    with pytest.raises(UserError, match=r"holds \.other\.arrays, which this program did not write"):
        write(tmp_path / "out", overwrite=True)


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


def test_a_folder_in_use_needs_overwrite(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(UserError, match=r"already holds a\.txt; give --overwrite"):
        write(tmp_path / "out")
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_foreign_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which this program did not write"):
        write(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        write(tmp_path / "out", overwrite=True)


def test_an_address_is_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is an address; write to a folder"):
        write(Path("s3://bucket/out"))
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "out")


def write_shards(out, overwrite=True):
    with new_folder(out, FILES, overwrite, {"train": re.compile(r"shard\.\d+")}) as folder:
        (folder / "train").mkdir()
        (folder / "train" / "shard.1").write_text("new")


def test_folders_in_it_are_replaced_unless_they_hold_foreign_files(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    write_shards(out)
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))] == ["train", "train/shard.1"]
    write_shards(out)
    (out / "train" / "notes.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds train/notes\.txt, which this program did not write"):
        write_shards(out)
    (out / "train" / "notes.txt").unlink()
    (out / "train" / "shard.1").unlink()
    (out / "train").rmdir()
    (out / "train").write_text("a file of this name")
    with pytest.raises(UserError, match="holds train, which this program did not write"):
        write_shards(out)


KILLED = """
import os, signal, sys
from pathlib import Path
from ugt_composer.storage import output_folder
rename, renames = os.rename, int(sys.argv[2])
def killed_after(source, target):
    global renames
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    rename(source, target)
os.rename = killed_after
output_folder.shutil.rmtree = lambda folder, ignore_errors: os.kill(os.getpid(), signal.SIGKILL)
with output_folder.new_folder(Path(sys.argv[1]), ["a.txt"], True) as folder:
    (folder / "a.txt").write_text("killed")
"""


@pytest.mark.parametrize(("renames", "kept"), [(0, "old"), (1, "old"), (2, "killed")])
def test_the_next_run_removes_what_a_killed_one_left(tmp_path, renames, kept):
    """Killed before, between and after the two renames."""
    out = tmp_path / "out"
    write(out, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out), str(renames)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) > 1
    with pytest.raises(UserError, match="give --overwrite"):
        write(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "a.txt").read_text() == kept


def test_the_work_of_a_running_program_stays(tmp_path):
    out = tmp_path / "out"
    with new_folder(out, FILES, overwrite=True) as folder:
        (folder / "a.txt").write_text("first")
        write(out, "second", overwrite=True)
        assert (folder / "a.txt").exists()
    assert (out / "a.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(path):
        path.touch()
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_folder, "locked", unsupported)
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
