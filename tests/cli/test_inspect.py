"""`ugt inspect` on each kind of file and folder that a run reads or writes, valid and corrupted."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conversion.conversion_cases import SMALL, recommend_row
from tests.data.conftest import CORRUPTIONS, flip_byte
from tests.shop import SIZES, metrics_of
from ugt_composer import __version__
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.checkpoint.portable import load_portable
from ugt_composer.checkpoint.run_checkpoints import read_checkpoint
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.cli.main import main
from ugt_composer.errors import UserError
from ugt_composer.storage.record import record_beside


@pytest.fixture
def inspect(capsys):
    """inspect(path, *options) → the JSON that it prints; also checks that the tables print without an error."""

    def run(path, *options) -> dict:
        words = ["inspect", *map(str, (path, *options))]
        assert main(words) == 0
        assert str(path)[:40] in capsys.readouterr().out.replace("\n", "")
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def run_folder(stages, tmp_path):
    return shutil.copytree(stages / "stage2", tmp_path / "run")


@pytest.fixture
def data_folder(shop, tmp_path):
    """data_folder(compression) → the shop's training data in several shards."""
    from convert.jsonl_to_mds import main as convert

    def make(compression: str):
        options = ["--codebook-sizes", *map(str, SIZES), "--size-limit", "4096", "--compression", compression]
        words = [str(shop / "train.jsonl"), "--kind", "recommend", "--out", str(tmp_path / "data"), *options]
        assert convert(words) == 0
        return tmp_path / "data"

    return make


@pytest.mark.parametrize("name", ["report.json", "item_neighbours.npz"])
def test_a_file_of_the_import_is_no_catalogue_and_no_checkpoint(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".json":
        path.write_text(json.dumps({"rows": 3}, indent=1))
    else:
        np.savez(path, ids=np.arange(3))
    assert "unknown kind of file or folder; expected a model" in refused(path)


def refused(path, *options) -> str:
    with pytest.raises(UserError) as error:
        main(["inspect", *map(str, (path, *options))])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model(inspect, shop, run_folder):
    found = inspect(run_folder / "best")
    model, _, _ = load_portable(run_folder / "best")
    assert found["kind"] == "model"
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["record"] == "matches record.json"
    assert found["version"] == __version__
    assert found["sizes"]["codebooks"] == list(SIZES)
    assert found["header"]["catalogue_fingerprint"] == Catalogue.load(shop / "catalogue.jsonl").fingerprint
    (run_folder / "best" / "record.json").unlink()
    assert inspect(run_folder / "best")["record"].startswith("unchecked")


@pytest.mark.parametrize("damage", CORRUPTIONS)
def test_a_corrupted_model_is_refused_and_shown_in_its_run(inspect, run_folder, damage):
    CORRUPTIONS[damage](run_folder / "latest" / "model.safetensors")
    assert "model.safetensors" in refused(run_folder / "latest")
    states = {model["name"]: model["state"] for model in inspect(run_folder)["models"]}
    assert states["best"] == "valid"
    assert "model.safetensors" in states["latest"]


def test_a_training_checkpoint(inspect, run_folder):
    path = list_checkpoints(run_folder)[0]
    found = inspect(path)
    assert found["kind"] == "training checkpoint"
    assert path.name == f"ba{found['batch']:08d}.pt"
    assert found["version"] == __version__
    assert found["strategy"] == "ddp"
    assert (found["epoch"], found["batch"], found["batch in epoch"]) == (1, 14, 7)
    assert found["config"]["optimizer.lr"] == 0.01
    flip_byte(path, -100)
    assert path.name in refused(path)


def test_a_sharded_checkpoint(inspect, run_folder, tmp_path):
    content = dict(read_checkpoint(list_checkpoints(run_folder)[0]))
    light = {name: value for name, value in content.items() if name not in ("model", "optimizer")}
    by = {"strategy": "fsdp", "zero_stage": None, "world_size": 2}
    folder = tmp_path / "ba00000014"
    (folder / "shards").mkdir(parents=True)
    torch.save({}, folder / "shards" / "part.pt")
    torch.save(light | {"sharded": {"by": by}}, folder / "state.pt")
    found = inspect(folder)
    assert found["kind"] == "training checkpoint"
    assert found["version"] == __version__
    assert (found["strategy"], found["world size"], found["batch"]) == ("fsdp", 2, 14)
    assert found["record"].startswith("unchecked")
    shutil.rmtree(folder / "shards")
    assert "shards is missing" in refused(folder)


def test_files_that_match_their_record_but_cannot_be_loaded_are_not_valid(inspect, run_folder):
    newest, before = list_checkpoints(run_folder)[:2]
    torch.save({"model": {}}, newest)
    record_beside(newest).unlink()
    config = run_folder / "latest" / "config.yaml"
    config.write_text(config.read_text().replace("n_heads: 2", "n_headz: 2"))
    (run_folder / "latest" / "record.json").unlink()
    found = inspect(run_folder)
    states = {entry["name"]: entry["state"] for entry in (*found["checkpoints"], *found["models"])}
    assert states[before.name] == states["best"] == "valid"
    assert states[newest.name].startswith("not a training checkpoint")
    assert "model.n_headz is unknown" in states["latest"]


def test_a_run_with_a_corrupted_checkpoint_is_shown_as_such(inspect, run_folder):
    newest, before = list_checkpoints(run_folder)[:2]
    flip_byte(newest, -100)
    found = inspect(run_folder)
    states = {entry["name"]: entry["state"] for entry in found["checkpoints"]}
    assert found["kind"] == "run"
    assert found["version"] == __version__
    assert states[before.name] == "valid"
    assert "record" in states[newest.name]
    assert found["last step"] == metrics_of(run_folder)[-1]
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"batch": 9')  # an incomplete line, as while it is being written
    assert inspect(run_folder)["last step"] == found["last step"]


@pytest.mark.parametrize("name", ["run", "run/best", "run/ba00000004.pt"])
def test_what_was_written_before_there_was_a_version_is_shown_without_one(inspect, name):
    assert inspect(Path(__file__).parents[1] / "compatibility/0.1.0" / name)["version"] is None


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_data_folder(inspect, shop, data_folder, compression, capsys):
    folder = data_folder(compression)
    capsys.readouterr()
    before = sorted(path.name for path in folder.rglob("*"))
    found = inspect(folder, "--rows", "2", "--catalogue", shop / "catalogue.jsonl")
    assert found["kind"] == "shards"
    assert found["rows"] == 205
    assert found["shards"] > 1
    assert found["hashes"]
    assert sorted(path.name for path in folder.rglob("*")) == before
    first = found["first rows"]
    assert [row["user"] for row in first] == ["u0", "u1"]
    assert all(item.startswith("item-") for row in first for item in row["history"] + row["targets"])
    lengths = {entry["of"]: entry for entry in found["lengths"]}
    assert lengths["target tokens"]["least"] == lengths["target tokens"]["most"] == 2
    assert lengths["rejected items"]["mean"] == 0
    assert lengths["history tokens"]["least"] < lengths["history tokens"]["median"]


def test_lengths_and_pairs_are_those_of_the_rows(inspect, shop):
    rows = [json.loads(line) for line in (shop / "preference.jsonl").read_text().splitlines()]
    found = inspect(shop / "preference")
    history = [len(row["user_sequence"]["encoder_l1_ids"]) for row in rows]
    lengths = {entry["of"]: entry for entry in found["lengths"]}
    assert lengths["history tokens"]["mean"] == pytest.approx(np.mean(history))
    assert lengths["history tokens"]["most"] == max(history)
    rejected = rows[0]["rejected_item"]
    assert found["rows of kind"] == "preference"
    assert found["first rows"][0]["rejected"] == ["/".join(str(rejected[f"l{n}_id"]) for n in (1, 2, 3))]
    assert len(found["first rows"][0]["history"]) == history[0] - 1


def test_actions_and_times_are_named(inspect, tmp_path):
    from convert.jsonl_to_mds import main as convert

    row = recommend_row(random.Random(0), history=2, targets=1)
    row |= {"encoder_actions": [0, 2, 0], "encoder_times": [0, 86_400, 90_061], "decoder_times": [172_800]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "actions.json").write_text('["view", "buy"]')
    words = [str(tmp_path / "rows.jsonl"), "--kind", "recommend", "--out", str(tmp_path / "data"), *SMALL]
    assert convert(words) == 0
    found = inspect(tmp_path / "data")
    assert [found[f"rows with {key}"] for key in ("encoder_actions", "encoder_times", "decoder_times")] == [1] * 3
    assert (found["actions"], found["largest action"]) == (["view", "buy"], 2)
    assert found["first and last time"] == ["1970-01-02 00:00:00", "1970-01-03 00:00:00"]
    (first,) = found["first rows"]
    assert first["actions"] == ["buy", 0]
    assert first["times"] == ["1970-01-02 00:00:00", "1970-01-02 01:01:01"]
    assert first["target times"] == ["1970-01-03 00:00:00"]


@pytest.mark.parametrize("damage", CORRUPTIONS)
def test_a_corrupted_shard_is_named(data_folder, damage):
    folder = data_folder("none")
    CORRUPTIONS[damage](folder / "shard.00002.mds")
    assert "shard.00002.mds" in refused(folder)


def test_a_catalogue(inspect, shop, tmp_path):
    twins = "".join(
        json.dumps({"item_id": f"twin-{n}", "l1_id": 5, "l2_id": 6, "l3_id": 9, "name": "Twin"}) + "\n"
        for n in range(2)
    )
    (tmp_path / "catalogue.jsonl").write_text((shop / "catalogue.jsonl").read_text() + twins)
    found = inspect(tmp_path / "catalogue.jsonl", "--rows", "1")
    assert found["kind"] == "catalogue"
    assert (found["items"], found["with a name"], found["semantic ids"]) == (62, 2, 60)
    assert (found["shared semantic ids"], found["items that share one"], found["most items of one"]) == (1, 3, 3)
    assert [level["used ids"] for level in found["levels"]] == [4, 15, 60]
    assert found["first rows"] == [{"item_id": "item-0", "semantic ID": "5/5/5", "name": ""}]
    assert inspect(shop / "catalogue.jsonl")["most items of one"] == 1
    assert "retired" not in found
    line = {"item_id": "old", "l1_id": 5, "l2_id": 5, "l3_id": 70, "retired": True}
    (tmp_path / "catalogue.jsonl").write_text(json.dumps(line) + "\n" + (shop / "catalogue.jsonl").read_text())
    found = inspect(tmp_path / "catalogue.jsonl", "--rows", "1")
    assert (found["retired"], found["first rows"][0]["retired"]) == (1, "yes")


def test_anything_else_is_refused_with_what_was_expected(shop, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "nowhere"):
        assert "expected a model" in refused(path)
    assert "did you mean" not in refused(tmp_path)
    assert f"did you mean {shop / 'eval'}, " in refused(shop)
    assert "item_id" in refused(shop / "eval.jsonl")
    assert "--rows" in refused(shop / "eval", "--rows", "-1")


def test_an_option_without_effect_is_refused(shop, stages):
    catalogue = shop / "catalogue.jsonl"
    assert "best is a model" in refused(stages / "stage2/best", "--rows", "3")
    assert "stage2 is a run" in refused(stages / "stage2", "--catalogue", catalogue)
    assert "is a catalogue" in refused(catalogue, "--catalogue", catalogue)


def test_the_table_has_the_names_of_all_actions(tmp_path, capsys):
    from convert.jsonl_to_mds import main as convert

    row = recommend_row(random.Random(0), history=2, targets=1) | {"encoder_actions": [0, 2, 12]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "actions.json").write_text(json.dumps([f"act{number}" for number in range(1, 13)]))
    words = [str(tmp_path / "rows.jsonl"), "--kind", "recommend", "--out", str(tmp_path / "data"), *SMALL]
    assert convert(words) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert [number for number in range(1, 13) if f"act{number}" not in shown] == []
