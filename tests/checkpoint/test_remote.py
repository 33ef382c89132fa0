"""Checkpoints, models and shards in an S3 store on loopback."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoint.conftest import SmallShards, content_of
from tests.shop import ROOT, comparable, metrics_of, stage_arguments
from tests.spark.cluster import wait_until
from tests.storage.s3_server import environment
from tests.training.callbacks.test_preemption import WarnIn
from tests.training.trackers.tracked import comparable as tracked
from tests.training.trackers.tracked import expected, mlflow_run, mlflow_steps, offline_folders
from ugt_composer.checkpoint import remote as stored
from ugt_composer.checkpoint.portable import load_portable
from ugt_composer.checkpoint.remote import fetch_newest, model_folder
from ugt_composer.checkpoint.run_checkpoints import corruption_of, rotate, write_checkpoint
from ugt_composer.checkpoint.save_folder import checkpoint_path, list_checkpoints
from ugt_composer.checkpoint.sharded import write_sharded
from ugt_composer.checkpoint.uploads import Uploads
from ugt_composer.errors import EXIT_ERROR, EXIT_PREEMPTED, RunError, UserError
from ugt_composer.storage import at_once
from ugt_composer.storage import s3 as store_module
from ugt_composer.storage.record import RECORD
from ugt_composer.storage.s3 import Store, StoreError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.trackers.offline_steps import steps_of

QUICK = ("eval_interval=100ba", "max_duration=8ba")


def uploads_of(folder: Path, url: str, keep: int = 3) -> Uploads:
    return Uploads(Store(url), folder, keep, set())


def train(config, batches: int | None = None) -> None:
    trainer = build_trainer(config)
    trainer.fit(duration=f"{batches}ba") if batches else trainer.train()
    trainer.close()


def write(folder: Path, *batches: int) -> None:
    for batch in batches:
        write_checkpoint(checkpoint_path(folder, batch), content_of(batch))


def names(store: Store) -> set[str]:
    return set(store.list())


def test_a_fresh_machine_resumes_bit_for_bit_over_a_bad_network(stage_config, tmp_path, url, proxy):
    """Connections that break in the middle of a body, and slow answers, change nothing."""
    own = ("model.dropout=0.2", "data.train.num_workers=1", f"checkpoint.remote={url}")
    train(stage_config(tmp_path / "whole", 1, None, *own[:2], "max_duration=10ba"))
    proxy.drop_up, proxy.drop_down, proxy.delay = 2, 0, 0.005
    train(stage_config(tmp_path / "first", 1, None, *own, "max_duration=10ba"), 5)
    assert proxy.drops == 2
    wanted = {"ba00000003.pt", "ba00000005.pt", "config.yaml", "metrics.jsonl", f"best/{RECORD}", f"latest/{RECORD}"}
    assert wanted <= names(Store(url))
    proxy.drop_down = 2
    train(stage_config(tmp_path / "second", 1, None, *own, "max_duration=10ba"))
    assert proxy.drops == 4
    assert [line["batch"] for line in metrics_of(tmp_path / "second")] == list(range(1, 11))
    assert comparable(tmp_path / "second") == comparable(tmp_path / "whole")
    assert load_portable(tmp_path / "second" / "best")


@pytest.mark.slow
def test_a_preempted_run_has_its_checkpoint_in_the_store(shop, tmp_path, url, proxy):
    slow = ["max_duration=400ba", "save_interval=1000ba", "eval_interval=1000ba", f"checkpoint.remote={url}"]
    launcher = [str(Path(sys.executable).parent / "composer"), "-n", "2", str(ROOT / "train.py")]
    process = subprocess.Popen(
        [*launcher, *stage_arguments(shop, tmp_path / "run", 1), *slow],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(proxy.port),
    )  # two ranks: the second waits for the uploads of the first
    record = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (record.exists() and len(record.read_text().splitlines()) >= 3):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED, output
    newest = list_checkpoints(tmp_path / "run")[0].name
    assert {newest, f"{newest}.{RECORD}"} <= names(Store(url))
    assert Store(url).read_bytes("metrics.jsonl") == record.read_bytes()
    assert "does not have" not in output


@pytest.mark.parametrize("damage", ["cut", "flipped", "without record"])
def test_a_bad_newest_checkpoint_is_logged_and_the_previous_one_used(tmp_path, url, caplog, damage):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    store = Store(url)
    write(tmp_path / "a", 1, 2)
    uploads_of(tmp_path / "a", url).finish()
    whole = store.read_bytes("ba00000002.pt")
    if damage == "without record":
        store.delete([f"ba00000002.pt.{RECORD}"])
    else:
        store.put("ba00000002.pt", whole[:-9] if damage == "cut" else whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    damaged = fetch_newest(store, tmp_path / "b")
    assert [path.name for path in list_checkpoints(tmp_path / "b")] == ["ba00000001.pt"]
    assert any(
        f"{url}/ba00000002.pt: " in r.getMessage() and "trying the checkpoint" in r.getMessage() for r in caplog.records
    )
    assert damaged == (set() if damage == "without record" else {"ba00000002.pt"})
    assert corruption_of(tmp_path / "b" / "ba00000001.pt") is None
    assert not list(tmp_path.rglob("*.tmp"))


def test_if_none_in_the_store_is_valid_all_are_listed(tmp_path, url):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", 1, 2)
    uploads_of(tmp_path / "a", url).finish()
    for name in ("ba00000001.pt", "ba00000002.pt"):
        Store(url).put(name, b"bad")
    with pytest.raises(UserError, match="no checkpoint can be read") as error:
        fetch_newest(Store(url), tmp_path / "b")
    assert all(f"{url}/ba0000000{n}.pt: has 3 bytes" in str(error.value) for n in (1, 2))


def test_nothing_is_fetched_if_the_folder_is_as_new(tmp_path, url, proxy):
    write(tmp_path, 1, 2)
    uploads_of(tmp_path, url).finish()
    Store(url).put("metrics.jsonl", b"of the store")
    fetch_newest(Store(url), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    checkpoint_path(tmp_path, 2).write_bytes(b"bad")
    fetch_newest(Store(url), tmp_path)
    assert corruption_of(checkpoint_path(tmp_path, 2)) is None
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"of the store"


def test_a_sharded_checkpoint_survives_upload_and_fetch(tmp_path, url, sharded_content):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = checkpoint_path(tmp_path / "a", 3, sharded=True)
    write_sharded(path, sharded_content, SmallShards())
    uploads_of(tmp_path / "a", url).finish()
    fetch_newest(Store(url), tmp_path / "b")
    files = [p.relative_to(path) for p in path.rglob("*") if p.is_file()]
    assert len(files) == 4
    assert all((path / f).read_bytes() == (tmp_path / "b" / "ba00000003" / f).read_bytes() for f in files)


def test_rotation_in_the_store_includes_earlier_processes(tmp_path, url):
    store = Store(url)
    for first in (1, 3, 5):
        write(tmp_path, first, first + 1)
        uploads_of(tmp_path, url, keep=2).finish()  # as a new process each time
        rotate(tmp_path, 2, set())
    kept = {f"ba0000000{n}.pt{end}" for n in (5, 6) for end in ("", f".{RECORD}")}
    assert names(store) == kept
    store.put("ba00000006.pt", b"cut")
    store.put("ba00000004.pt", b"left by a killed upload")
    write(tmp_path, 7)
    uploads_of(tmp_path, url, keep=1).finish()
    assert names(store) == {"ba00000007.pt", f"ba00000007.pt.{RECORD}"}


def test_the_old_checkpoint_stays_until_the_new_one_is_uploaded(tmp_path, url, proxy, monkeypatch):
    """A killed upload leaves no checkpoint that would be used."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", 1)
    uploads_of(tmp_path / "a", url, keep=1).finish()
    write(tmp_path / "a", 2)
    rotate(tmp_path / "a", 1, set())
    put = Store.put

    def killed(self, name, source):
        if name.endswith(RECORD):
            raise StoreError("killed")
        put(self, name, source)

    monkeypatch.setattr(Store, "put", killed)
    with pytest.raises(RunError, match=r"does not have ba00000002\.pt"):
        uploads_of(tmp_path / "a", url, keep=1).finish()
    assert {"ba00000001.pt", f"ba00000001.pt.{RECORD}", "ba00000002.pt"} == names(Store(url))
    fetch_newest(Store(url), tmp_path / "b")
    assert [path.name for path in list_checkpoints(tmp_path / "b")] == ["ba00000001.pt"]
    monkeypatch.undo()


def test_a_store_that_was_unreachable_gets_everything_later(stage_config, tmp_path, url, proxy, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "ATTEMPTS", 1)
    trainer = build_trainer(stage_config(tmp_path, 1, None, *QUICK, f"checkpoint.remote={url}"))
    proxy.is_open = False
    trainer.fit(duration="4ba")
    assert not trainer.checkpoints.uploads.wait(30)
    assert "it is in the save folder, and the next save tries again" in caplog.text
    assert len(list_checkpoints(tmp_path)) == 2
    proxy.is_open = True
    trainer.train()
    trainer.close()
    assert {f"ba0000000{n}.pt" for n in (4, 6, 8)} <= names(Store(url))


def test_a_preempted_run_exits_within_the_grace_if_the_store_hangs(
    stage_config, tmp_path, url, proxy, monkeypatch, capsys
):
    config = stage_config(tmp_path, 1, None, *QUICK, f"checkpoint.remote={url}", "preemption.grace=6")
    trainer = build_trainer(config)
    trainer.fit(duration="1ba")
    assert trainer.checkpoints.uploads.wait(30)
    proxy.delay = 60.0
    trainer.state.callbacks.append(signal_sent := WarnIn("batch_end", 2))
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert time.monotonic() - signal_sent.at < 6
    assert end.value.code == EXIT_PREEMPTED
    newest = list_checkpoints(tmp_path)[0].name
    said = capsys.readouterr().out
    assert newest != "ba00000001.pt"
    assert f"{newest}; run the same command again" in said.split(f"; {url} does not have ")[1]
    assert "ba00000001.pt" not in said
    trainer.until_closed.close()


def test_a_reader_never_gets_a_mix_of_two_models(stages, tmp_path, url, monkeypatch):
    """A reader fetches the model before and after each object that is written."""
    seen, put, whose = [], Store.put, {}
    for stage in ("stage1", "stage2"):
        shutil.copytree(stages / stage / "best", tmp_path / stage / "best")
        whose[(tmp_path / stage / "best" / "model.safetensors").read_bytes()] = stage

    def watched(self, name, source):
        put(self, name, source)
        try:
            folder = model_folder(f"{url}/best")
            seen.append(whose[(folder / "model.safetensors").read_bytes()])
            shutil.rmtree(folder)  # the next reader has no cached model
        except UserError:
            seen.append(None)

    monkeypatch.setattr(Store, "put", watched)
    monkeypatch.setattr(at_once, "AT_ONCE", 1)
    monkeypatch.setattr(stored, "PAUSES", (0.0,))
    for stage in ("stage1", "stage2"):
        uploads_of(tmp_path / stage, url).finish()
    # The first file is the catalogue's copy, which is the same for both.
    assert seen == [None, None, None, "stage1", "stage1", None, None, "stage2"]


def test_a_run_ends_with_an_error_if_the_store_stays_unreachable(stage_config, tmp_path, url, proxy, monkeypatch):
    monkeypatch.setattr(store_module, "ATTEMPTS", 1)
    trainer = build_trainer(stage_config(tmp_path, 1, None, *QUICK, f"checkpoint.remote={url}"))
    proxy.is_open = False
    trainer.train()
    with pytest.raises(RunError, match=rf"{url} does not have .*ba00000008\.pt.*\(.*does not answer") as error:
        trainer.close()
    assert "\n" not in str(error.value)


def test_an_unreachable_store_at_the_start_ends_the_run(shop, tmp_path, url, proxy):
    proxy.is_open = False
    arguments = [*stage_arguments(shop, tmp_path / "run", 1), f"checkpoint.remote={url}"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    env = environment(proxy.port)
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert result.returncode == EXIT_ERROR, result.stderr
    assert f"error: {url}: the store does not answer" in result.stderr
    assert "Traceback" not in result.stderr
    assert "metrics.jsonl" not in {path.name for path in (tmp_path / "run").iterdir()}
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert dry.returncode == 0, dry.stderr


def test_a_fresh_start_moves_the_files_in_the_store_aside(stage_config, tmp_path, url):
    own = (*QUICK, f"checkpoint.remote={url}")
    train(stage_config(tmp_path / "a", 1, None, *own))
    before = {name for name in names(Store(url)) if not name.startswith("run_id")}
    train(stage_config(tmp_path / "b", 1, None, *own, "autoresume=false", "max_duration=3ba"))
    assert {f"earlier-1/{name}" for name in before} <= names(Store(url))
    assert stored.stored_checkpoints(Store(url).list()) == ["ba00000003.pt"]


@pytest.fixture
def model_url(stages, url):
    """s3://…/best with the model of stage 2."""
    for path in (stages / "stage2" / "best").iterdir():
        Store(f"{url}/best").put(path.name, path.read_bytes())
    return f"{url}/best"


def test_stage_3_starts_from_models_in_the_store(stages, stage_config, tmp_path, model_url):
    train(stage_config(tmp_path / "here", 3, stages / "stage2" / "best", "max_duration=2ba"))
    both = (f"init_from={model_url}", f"loss.reference_from={model_url}")
    config = stage_config(tmp_path / "there", 3, stages / "stage2" / "best", "max_duration=2ba", *both)
    assert config.init_from == model_url
    train(config)
    assert comparable(tmp_path / "there") == comparable(tmp_path / "here")


def test_a_model_is_fetched_once_and_again_after_a_change(stages, model_url, monkeypatch):
    fetched = []
    fetch = Store.fetch
    monkeypatch.setattr(Store, "fetch", lambda self, name, path: (fetched.append(name), fetch(self, name, path)))
    first = model_folder(model_url)
    assert model_folder(model_url) == first
    assert len(fetched) == 3
    for path in (stages / "stage1" / "best").iterdir():
        Store(model_url).put(path.name, path.read_bytes())
    second = model_folder(model_url)
    assert (second / RECORD).read_bytes() == (stages / "stage1" / "best" / RECORD).read_bytes()
    assert not first.exists()
    (second / "config.yaml").write_text("damaged here")
    assert load_portable(model_folder(model_url))
    Store(model_url).put("config.yaml", b"a mix with another model")
    shutil.rmtree(second)
    with pytest.raises(UserError, match=r"config\.yaml has"):
        model_folder(model_url)


def test_recommend_takes_a_model_of_the_store(stages, shop, model_url, capsys):
    from ugt_composer.cli.main import main

    outputs = []
    for place in (str(stages / "stage2" / "best"), model_url):
        assert main(["recommend", "--checkpoint", place, "--history", str(shop / "eval.jsonl"), "--json"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 41
    with pytest.raises(UserError, match="there is no such object; expected a model") as error:
        main(["recommend", "--checkpoint", f"{model_url}-none", "--history", "-"])
    assert "\n" not in str(error.value)


def test_shards_of_the_store_give_the_same_rows(shop, stage_config, tmp_path, url):
    for path in (shop / "train").rglob("*"):
        if path.is_file():
            Store(f"{url}/mds").put(str(path.relative_to(shop / "train")), path.read_bytes())
    train(stage_config(tmp_path / "here", 1, None, *QUICK))
    remote = (f"data.train.local={tmp_path / 'cache'}", f"data.train.remote={url}/mds")
    train(stage_config(tmp_path / "there", 1, None, *QUICK, *remote))
    assert comparable(tmp_path / "there") == comparable(tmp_path / "here")


def test_an_empty_machine_continues_the_same_run_of_the_trackers(stage_config, tmp_path, url, monkeypatch):
    """Its id and metrics.jsonl come from the store, so that W&B's new offline folder has all steps."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    own = (*QUICK, "scheduler.name=constant", "scheduler.t_warmup=0%", f"checkpoint.remote={url}")
    own += ("loggers.wandb.project=p", f"loggers.mlflow.tracking_uri={uri}")
    train(stage_config(tmp_path / "a", 1, None, *own, "max_duration=3ba"))
    first = mlflow_run(uri, tmp_path / "a")
    train(stage_config(tmp_path / "b", 1, None, *own, "max_duration=6ba"))
    again = mlflow_run(uri, tmp_path / "b")
    assert again.info.run_id == first.info.run_id
    lines = [line["batch"] for line in metrics_of(tmp_path / "b")]
    assert lines == sorted({1, 2, 3, 4, 5, 6} & set(lines))
    assert tracked(mlflow_steps(uri, again)) == expected(tmp_path / "b", rename=True)
    [folder] = offline_folders(tmp_path / "b")
    assert folder.name.endswith((tmp_path / "a" / "run_id").read_text())
    [file] = folder.glob("*.wandb")
    wait_until(lambda: steps_of(file) == lines, "W&B has written its file")
