"""The importer's own commands, from a table of interactions to shards that a training accepts or refuses."""

import re
import shlex
from pathlib import Path

import pytest

from convert.interactions_to_jsonl import main as import_table
from convert.jsonl_to_mds import main as convert
from tests.convert.test_interactions_to_jsonl import ratings
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.shard_items import check_shards
from ugt_composer.config.load import load_config
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def imported(folder: Path, name: str, seed: int, *options: str) -> None:
    """Imports ratings that the seed determines, into a subfolder."""
    ratings(seed=seed).write_csv(folder / f"{name}.csv")
    assert import_table([str(folder / f"{name}.csv"), "--out", str(folder / name), *options]) == 0


def test_the_printed_commands_record_the_catalogue_and_a_reused_one_is_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    imported(tmp_path, "an import", 0)
    printed = capsys.readouterr().out
    commands = re.findall(r"^  ugt convert (.*)$", printed, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert convert(shlex.split(command)) == 0
    manifests = {"data.train": [read_manifest(folder) for folder in sorted((tmp_path / "mds").iterdir())]}
    catalogue = Catalogue.load("an import/catalogue.jsonl")
    assert {manifest.catalogue for manifest in manifests["data.train"]} == {catalogue.fingerprint}
    assert check_shards(manifests, catalogue, 0.0) == []
    dry_run, small = re.findall(r"^  ugt train (.*)$", printed, re.MULTILINE)
    words = shlex.split(dry_run)
    assert shlex.split(small, comments=True) == [words[0], "yamls/demo.yaml", words[1]]
    assert words == ["yamls/stage1.yaml", str(tmp_path / "an import/data.yaml"), "--dry-run"]
    config = load_config(ROOT / words[0], words[1])
    assert (config.data.train.local, config.data.eval.local) == ("mds/train", "mds/validation")
    assert config.data.catalogue == str(tmp_path / "an import/catalogue.jsonl")
    assert tuple(config.model.codebook_sizes) == manifests["data.train"][0].codebook_sizes
    third = load_config(ROOT / "yamls/stage3.yaml", words[1], tmp_path / "an import/preferences.yaml")
    assert [stream.local for stream in third.data.train.streams] == ["mds/train_preference", "mds/train"]
    assert [stream.local for stream in third.data.eval.streams] == ["mds/validation", "mds/validation_preference"]
    (keys,) = re.findall(r"a model reads with (.*)$", (tmp_path / "an import/data.yaml").read_text(), re.MULTILINE)
    assert keys == "model.num_actions=5"  # of these times only the order counts
    imported(tmp_path, "again", 1, "--codes", "an import/semantic_ids.json")
    assert check_shards(manifests, Catalogue.load("again/catalogue.jsonl"), 0.0) == []
    imported(tmp_path, "other", 1)
    with pytest.raises(
        UserError, match=r"was converted with another catalogue \(.*an import/catalogue.jsonl, fingerprint"
    ):
        check_shards(manifests, Catalogue.load("other/catalogue.jsonl"), 1.0)
