"""The YAML files that an import writes for training runs."""

from pathlib import Path

import pytest

from ugt_composer.config.load import load_config
from ugt_composer.importing.run_yaml import write_run_yamls

YAMLS = Path(__file__).parents[2] / "yamls"
REPORT = {"codebook_sizes": (64, 128, 192), "histories": {}}


def written(tmp_path: Path, out: str = "data/x", positions: int = 1024, **rows: int) -> list[Path]:
    report = REPORT | {"rows": {f"{name}.jsonl": count for name, count in rows.items()}}
    write_run_yamls(tmp_path, Path(out), Path("mds"), report, positions)
    return sorted(tmp_path.glob("*.yaml"))


def test_a_first_try_with_the_small_sizes_reads_histories_of_any_length(tmp_path):
    (path,) = written(tmp_path, train=9, validation=3, positions=5000)
    config = load_config(YAMLS / "stage1.yaml", YAMLS / "demo.yaml", path)
    assert (config.model.codebook_sizes, config.model.max_seq_len) == ((64, 128, 192), 5000)
    assert config.data.train.num_canonical_nodes == 4


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fewer_rows_than_parts_of_the_order_are_one_part(tmp_path, rows):
    (path,) = written(tmp_path, train=rows, validation=0)
    config = load_config(YAMLS / "stage1.yaml", path)
    assert config.data.train.num_canonical_nodes == 1
    assert not config.data.eval.is_given  # no file, no evaluation


@pytest.mark.parametrize("out", ["data/a b", "data/a: b", "data/#1", "data/'x'", "数据", "null"])
def test_paths_of_any_kind_are_read_back(tmp_path, out):
    data, preferences = written(tmp_path, out, train=9, validation=4, train_preference=4, validation_preference=1)
    config = load_config(YAMLS / "stage3.yaml", data, preferences)
    assert config.data.catalogue == f"{out}/catalogue.jsonl"
    assert [stream.local for stream in config.data.eval.streams] == ["mds/validation", "mds/validation_preference"]


def test_without_validation_pairs_stage_3_is_evaluated_on_recommend_rows(tmp_path):
    paths = written(tmp_path, train=9, validation=4, train_preference=4)
    config = load_config(YAMLS / "stage3.yaml", *paths)
    assert [stream.local for stream in config.data.eval.streams] == ["mds/validation"]


def test_data_alone_gives_stage_3_recommend_rows(tmp_path):
    (path,) = written(tmp_path, train=9, validation=4)
    config = load_config(YAMLS / "stage3.yaml", path)
    assert (config.data.train.local, config.data.train.streams) == ("mds/train", [])
