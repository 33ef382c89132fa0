import pytest

from ugt_composer.data.integrity import MANIFEST_NAME
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError


def test_a_folder_of_an_import_names_its_folders_of_shards(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_NAME).write_text("{}")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    assert str(error.value).endswith(f"made by ugt convert; did you mean {tmp_path}/test, {tmp_path}/train?")
    with pytest.raises(UserError, match=r"made by ugt convert$"):
        read_manifest(tmp_path / "other")
