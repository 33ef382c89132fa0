"""Lines of metrics.jsonl in MLflow."""

import json
import logging

import pytest
from mlflow import MlflowClient

from tests.training.trackers.tracked import mlflow_steps
from ugt_composer.config.schema import Config, DataConfig, LoggersConfig, MlflowConfig, ModelConfig
from ugt_composer.errors import RunError
from ugt_composer.training.trackers import mlflow_tracker
from ugt_composer.training.trackers.mlflow_tracker import MlflowTracker, allowed_name


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """A store without a server; making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run_id").write_text(tmp_path.name)
    return tmp_path


@pytest.fixture
def tracked(uri, folder):
    """tracked(lines, begins_with=(), **config) → the run and its steps after a process that logs lines."""

    def log(lines, begins_with=(), resumes=True, has_ended=True, **settings):
        config = Config(loggers=LoggersConfig(mlflow=MlflowConfig(folder.name, uri)), **settings)
        tracker = MlflowTracker(config, config.loggers.mlflow)
        tracker.begin(folder.name, begins_with, resumes, is_finished=False)
        for line in lines:
            tracker.send(line)
        tracker.has_ended = has_ended
        tracker.close(None, None)
        client = MlflowClient(uri)
        [run] = client.search_runs([client.get_experiment_by_name(folder.name).experiment_id])
        return run, mlflow_steps(uri, run)

    return log


def lines(first: int, last: int, of: float = 0.0) -> list[dict]:
    return [{"batch": n, "epoch": n // 10, "loss/train/total": n + of} for n in range(first, last + 1)]


def values(of: list[dict]) -> list[tuple[int, dict]]:
    return [(line["batch"], {name: value for name, value in line.items() if name != "batch"}) for line in of]


def test_a_resumed_run_adds_only_the_steps_that_are_missing(tracked):
    first, steps = tracked(lines(1, 7), resumes=False, has_ended=False)
    assert (first.info.status, steps) == ("FAILED", values(lines(1, 7)))
    # Steps 5 to 7 are trained again. Step 3 is not in the file, as in one that was fetched from a store.
    again, steps = tracked(lines(5, 9, of=0.5), begins_with=[*lines(1, 2), *lines(4, 4)])
    assert again.info.run_id == first.info.run_id
    assert (again.info.status, steps) == ("FINISHED", values([*lines(1, 7), *lines(8, 9, of=0.5)]))
    _, steps = tracked([], begins_with=lines(1, 9))
    assert len(steps) == 9


def test_lines_that_the_tracker_has_never_had_are_sent_at_the_resume(tracked):
    _, steps = tracked(lines(1001, 1002), begins_with=lines(1, 1000))  # more than one request
    assert steps == values(lines(1, 1002))


def test_names_and_values_that_mlflow_does_not_take(tracked):
    line = {"batch": 1, "epoch": 0, "metrics/eval/recall@10": 0.5, "mine/a=b": 2.0, "loss/train/total": None}
    _, steps = tracked([line], resumes=False)
    assert steps == [(1, {"epoch": 0, "metrics/eval/recall_at_10": 0.5, "mine/a_61_b": 2.0})]
    assert allowed_name("metrics/train/samples/s") == "metrics/train/samples/s"


def test_parameters_are_the_config_and_changes_are_tags(tracked):
    long = DataConfig(catalogue="c" * 7000)
    first, _ = tracked(lines(1, 1), resumes=False, data=long, model=ModelConfig(d_model=64))
    assert first.data.params["model.d_model"] == "64"
    assert json.loads(first.data.params["model.codebook_sizes"]) == list(Config().model.codebook_sizes)
    assert first.data.params["data.catalogue"] == "c" * 6000
    assert not [name for name in first.data.params if name.startswith("loggers")]  # a URI may hold a password
    again, _ = tracked(lines(2, 2), max_duration="9ep", data=long, model=ModelConfig(d_model=64))
    assert again.data.params == first.data.params
    assert {name: value for name, value in again.data.tags.items() if name.startswith("changed.")} == {
        "changed.max_duration": "9ep"
    }


def tracker_of(address: str) -> MlflowTracker:
    config = Config(loggers=LoggersConfig(mlflow=MlflowConfig(None, address)))
    return MlflowTracker(config, config.loggers.mlflow)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "htp://nowhere"])
def test_a_new_run_does_not_begin_without_its_tracker(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=f"^loggers.mlflow: {address}: "):
        tracker_of(address).begin("id", [], resumes=False, is_finished=False)


def test_a_resumed_run_does(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow_tracker, "RETRY", 0.05)
    monkeypatch.setattr(mlflow_tracker, "CLOSE_WAIT", 0.5)
    tracker = tracker_of("http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        tracker.begin("id", lines(1, 2), resumes=True, is_finished=False)
        tracker.send(lines(3, 3)[0])
        tracker.close(None, None)
    messages = [record.message for record in caplog.records if record.name == mlflow_tracker.__name__]
    assert len(messages) == 2
    assert messages[0].startswith("loggers.mlflow: http://127.0.0.1:9: ")
    assert "training continues" in messages[0]
    assert "does not have 3 steps" in messages[1]


def test_steps_wait_while_the_store_fails(tracked, monkeypatch, caplog):
    """First a request is lost, then the answer to one that was stored."""
    monkeypatch.setattr(mlflow_tracker, "RETRY", 0.05)
    log_batch, calls = MlflowClient.log_batch, []

    def fails(self, run_id, metrics=(), **others):
        calls.extend([1] if metrics else [])
        if not metrics or len(calls) != 1:
            log_batch(self, run_id, metrics=metrics, **others)
        if metrics and len(calls) <= 2:
            raise ConnectionError("lost")

    monkeypatch.setattr(MlflowClient, "log_batch", fails)
    _, steps = tracked(lines(1, 9), resumes=False)
    assert steps == values(lines(1, 9))
    assert len(calls) >= 2
    assert caplog.text.count("training continues") == caplog.text.count("answers again") > 0


def test_one_run_of_each_save_folder(uri, folder, tracked):
    """Although both have the same name."""
    first, _ = tracked(lines(1, 3), resumes=False)
    config = Config(loggers=LoggersConfig(mlflow=MlflowConfig(f"{folder.name}-2", uri)))
    tracker = MlflowTracker(config, config.loggers.mlflow)
    tracker.begin("another", [], resumes=False, is_finished=False)
    tracker.close(None, None)
    assert tracker.run
    assert tracker.run != first.info.run_id
