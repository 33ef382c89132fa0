"""Runs with corrupted data or killed data workers end with a message that says why."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.conftest import CORRUPTIONS, flip_byte
from tests.shop import ROOT, SIZES, comparable, stage_arguments
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer

SHARD = "shard.00002.mds"


@pytest.fixture(scope="module")
def small_shards(shop, tmp_path_factory) -> Path:
    """The shop's train and eval data in shards of about 35 rows."""
    from convert.jsonl_to_mds import main as convert

    folder = tmp_path_factory.mktemp("small-shards")
    for name, limit in (("train", "4096"), ("eval", "4096")):
        options = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32", "--size-limit", limit]
        words = [str(shop / f"{name}.jsonl"), "--kind", "recommend", "--out", str(folder / name), *options]
        assert convert(words) == 0
    return folder


@pytest.fixture
def run(shop, small_shards, tmp_path):
    """run.data: copies of the data that a test may corrupt; run.arguments(*overrides): of a run on them."""

    class Run:
        data = Path(shutil.copytree(small_shards, tmp_path / "data"))
        out = tmp_path / "out"

        def arguments(self, *overrides: str) -> list[str]:
            data = [f"data.train.local={self.data / 'train'}", f"data.eval.streams=[{{local: {self.data / 'eval'}}}]"]
            return [*stage_arguments(shop, self.out, 1), *data, *overrides]

        def trainer(self, *overrides: str):
            path, *rest = self.arguments(*overrides)
            return build_trainer(load_config(path, overrides=rest))

    return Run()


def train(command: list[str], arguments: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [*command, str(ROOT / "train.py"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.mark.parametrize("damage", ["cut", "missing"])
@pytest.mark.parametrize("name", ["train", "eval"])
def test_missing_and_truncated_shards_are_reported_before_training(run, name, damage):
    shard = sorted((run.data / name).glob("shard.*"))[-1]
    CORRUPTIONS[damage](shard)
    with pytest.raises(UserError, match=rf"{name}/{shard.name}: (is missing|has \d+ bytes), index\.json records \d+"):
        run.trainer()
    assert not run.out.exists()


@pytest.mark.parametrize("name", ["train", "eval"])
def test_an_index_that_differs_from_the_manifest_is_reported_at_the_start(run, name):
    index = run.data / name / "index.json"
    index.write_text(index.read_text().replace("4096", "4097"))
    with pytest.raises(UserError, match=rf"{name}/index\.json: has the xxh3_128 \w+, manifest\.json records \w+"):
        run.trainer()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_flipped_byte_ends_the_run_when_its_shard_is_read(run, name, workers):
    shard = sorted((run.data / name).glob("shard.*"))[-1]
    flip_byte(shard)
    trainer = run.trainer(f"data.{name}.num_workers={workers}")
    with pytest.raises(UserError) as error:
        trainer.train()
    trainer.close()
    sentence = str(error.value)
    assert re.fullmatch(rf"{shard}: has the xxh64 \w+, index\.json records \w+; convert or copy .*", sentence)


def test_a_corrupted_cache_is_fetched_again_and_gives_the_same_numbers(run, tmp_path):
    trainer = run.trainer("max_duration=4ba")
    trainer.train()
    trainer.close()
    cache = tmp_path / "cache"
    for name in ("train", "eval"):
        shutil.copytree(run.data / name, cache / name)
        for damage, shard in zip(CORRUPTIONS.values(), sorted((cache / name).glob("shard.*")), strict=False):
            damage(shard)
    remotes = (
        f"data.train.local={cache / 'train'}",
        f"data.train.remote={run.data / 'train'}",
        f"data.eval.streams=[{{local: {cache / 'eval'}, remote: {run.data / 'eval'}}}]",
        f"save_folder={tmp_path / 'other'}",
    )
    trainer = run.trainer("max_duration=4ba", *remotes, "data.train.num_workers=2")
    trainer.train()
    trainer.close()
    assert comparable(tmp_path / "other") == comparable(run.out)


def test_the_only_copy_of_the_data_is_never_evicted(run):
    with pytest.raises(UserError, match=r"data\.train\.cache_limit is 1gb, but .* has no remote"):
        run.trainer("data.train.cache_limit=1gb")


def test_the_program_ends_with_one_sentence_and_status_2(run):
    flip_byte(run.data / "train" / SHARD)
    result = train([sys.executable], run.arguments("data.train.num_workers=2"))
    assert result.returncode == 2, result.stderr[-3000:]
    assert f"error: {run.data / 'train' / SHARD}: has the xxh64" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_two_ranks_end_when_one_of_them_reads_a_damaged_shard(run):
    flip_byte(run.data / "train" / SHARD)
    command = [str(Path(sys.executable).parent / "composer"), "-n", "2", "--master_port", "29641"]
    started = time.monotonic()
    result = train(command, run.arguments("data.train.num_workers=1", "dist_timeout=60"))
    assert result.returncode != 0
    assert time.monotonic() - started < 90
    assert f"error: {run.data / 'train' / SHARD}: has the xxh64" in result.stdout + result.stderr


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_run_and_is_named(run):
    command = [sys.executable, str(ROOT / "train.py")]
    arguments = run.arguments("data.train.num_workers=2", "max_duration=10000ep", "dist_timeout=60")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *arguments], text=True, stderr=subprocess.PIPE, env=environment) as process:
        try:
            worker = first_worker(process.pid, run.out / "metrics.jsonl")
            os.kill(worker, signal.SIGKILL)
            killed = time.monotonic()
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1, errors[-3000:]
    assert time.monotonic() - killed < 60
    assert re.search(rf"DataLoader worker \(pid.*{worker}.*(is killed by signal|exited)", errors)


def first_worker(pid: int, record: Path) -> int:
    """Waits until the trainer trains. Returns the first of its data workers: its children that run the same program."""
    own = Path(f"/proc/{pid}/cmdline")
    for _ in range(600):
        if record.exists():
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() == own.read_bytes():
                    return int(child)
        time.sleep(0.1)
    raise AssertionError("the run has no data worker")
