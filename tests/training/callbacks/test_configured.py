"""`callbacks` in the YAML: Composer's and a user's own, and what is said of mistakes."""

import inspect
import json

import composer.callbacks
import pytest
from composer import Callback

from tests.shop import metrics_of
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.callbacks.configured import REFUSED, composer_callbacks, configured_callbacks
from ugt_composer.training.dry_run import describe
from ugt_composer.training.preflight import check_run

OWN = '''
import json
from pathlib import Path

from composer import Callback


class Recorder(Callback):
    """Writes the number of each batch."""

    def __init__(self, path: str, every: int = 1):
        self.path, self.every, self.batches = Path(path), every, []

    def batch_end(self, state, logger):
        if state.timestamp.batch.value % self.every == 0:
            self.batches.append(state.timestamp.batch.value)

    def fit_end(self, state, logger):
        self.path.write_text(json.dumps(self.batches))


class NoCallback:
    pass
'''


@pytest.fixture
def own_module(module_in_cwd) -> str:
    return module_in_cwd("own_callbacks", OWN)


def test_every_callback_of_composer_has_a_name():
    classes = {
        kind for _, kind in inspect.getmembers(composer.callbacks, inspect.isclass) if issubclass(kind, Callback)
    }
    names = composer_callbacks()
    assert set(names.values()) == classes
    assert {"speed_monitor", "lr_monitor", "nan_monitor", "oom_observer", "early_stopper", "memory_monitor"} <= set(
        names
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("path: 1e5", "path is 100000.0 to YAML, but Recorder expects text; put what you mean in quotes"),
        ("path: on", "path is True to YAML, but Recorder expects text"),
        ("path: a, every: b", "every is 'b'; Recorder expects a number"),
    ],
)
def test_an_argument_of_another_type_than_the_class_declares_is_refused(own_module, arguments, message):
    config = load_config(overrides=[f"callbacks[{own_module}.Recorder]={{{arguments}}}"])
    with pytest.raises(UserError) as error:
        configured_callbacks(config.callbacks)
    assert f"callbacks.{own_module}.Recorder.{message}" in str(error.value)


def test_composers_callbacks_run_and_log(stage_config, tmp_path):
    callbacks = {
        "speed_monitor": {"window_size": 2},
        "lr_monitor": None,
        "nan_monitor": True,
        "runtime_estimator": {},
        "optimizer_monitor": {"batch_log_interval": 1},
        "memory_monitor": False,
    }
    config = stage_config(tmp_path / "run", 1, None, f"callbacks={json.dumps(callbacks)}", "max_duration=4ba")
    trainer = build_trainer(config)
    trainer.train()
    trainer.close()
    keys = set().union(*metrics_of(tmp_path / "run"))
    assert any(key.startswith("throughput/") for key in keys)
    assert any(key.startswith("lr-") for key in keys)
    assert any(key.startswith("l2_norm/") for key in keys)
    assert not any(type(callback).__name__ == "MemoryMonitor" for callback in trainer.state.callbacks)


def test_a_run_that_is_stopped_early_keeps_its_last_batch(stage_config, tmp_path):
    stop = {"threshold_stopper": {"monitor": "recall@5", "dataloader_label": "eval", "threshold": -1.0}}
    config = stage_config(tmp_path / "run", 1, None, f"callbacks={json.dumps(stop)}", "eval_interval=2ba")
    trainer = build_trainer(config)
    trainer.train()
    batch = trainer.state.timestamp.batch.value
    trainer.close()
    assert batch < trainer.length.total
    assert (tmp_path / f"run/ba{batch:08}.pt").exists()


def test_a_users_callback_runs_with_its_arguments(stage_config, tmp_path, own_module):
    own = {f"{own_module}.Recorder": {"path": str(tmp_path / "batches.json"), "every": 2}}
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, f"callbacks={json.dumps(own)}", "max_duration=4ba"))
    trainer.train()
    trainer.close()
    assert json.loads((tmp_path / "batches.json").read_text()) == [2, 4]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ({"speed_monitr": {}}, r"callbacks\.speed_monitr is unknown; did you mean speed_monitor\?"),
        ({"speed_monitor": {"window": 1}}, r"callbacks\.speed_monitor\.window is unknown; did you mean window_size\?"),
        ({"lr_monitor": {"interval": 1}}, r"callbacks\.lr_monitor\.interval is unknown; LRMonitor takes no arguments"),
        ({"speed_monitor": 3}, r"callbacks\.speed_monitor is 3; expected arguments such as"),
        ({"early_stopper": {"monitor": "loss"}}, r"callbacks\.early_stopper\.dataloader_label is missing"),
        ({"{module}.Recordr": {}}, r"Recordr does not exist in own_callbacks_\w+; did you mean Recorder\?"),
        ({"{module}.NoCallback": {}}, r"NoCallback is not a Callback in own_callbacks_\w+; .*Recorder"),
        ({"{module}.Recorder": {"evry": 1}}, r"Recorder\.evry is unknown; did you mean every\?"),
        ({"{module}.Recorder": {}}, r"Recorder\.path is missing"),
        ({"nowhere.to.Be": {}}, r"callbacks\.nowhere\.to\.Be: nowhere\.to cannot be imported from .*No module named"),
        ({".own.Recorder": {}}, r"callbacks\.\.own\.Recorder is unknown; valid here: "),
        ({"checkpoint_saver": {"folder": "x"}}, r"callbacks\.checkpoint_saver cannot be used: .*save_interval"),
        ({"composer.callbacks.CheckpointSaver": {}}, r"CheckpointSaver cannot be used: .*save_interval"),
        ({"activation_monitor": {}}, r"callbacks\.activation_monitor cannot be used: .*modules that take and return"),
    ],
)
def test_a_mistake_is_named_with_the_nearest(callbacks, message, own_module):
    named = {name.replace("{module}", own_module): arguments for name, arguments in callbacks.items()}
    with pytest.raises(UserError, match=message):
        configured_callbacks(named)
    with pytest.raises(UserError, match=message):
        check_run(load_config(overrides=[f"callbacks={json.dumps(named)}"]))


def test_a_callback_that_refuses_its_arguments_is_a_mistake(stage_config, tmp_path):
    config = stage_config(tmp_path / "run", 1, None, 'callbacks={"runtime_estimator": {"time_unit": "fortnights"}}')
    with pytest.raises(
        UserError, match=r"callbacks\.runtime_estimator: RuntimeEstimator cannot be created: .*fortnights"
    ):
        build_trainer(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class Broken(:\n", r"SyntaxError: .*invalid syntax"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(.*broken_\w+\.py:1\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(.*broken_\w+\.py:2\)"),
    ],
)
def test_a_module_that_fails_is_a_mistake(module_in_cwd, text, reason):
    name = module_in_cwd("broken", text)
    with pytest.raises(UserError, match=rf"callbacks\.{name}\.Broken: {name} cannot be imported from .*{reason}"):
        configured_callbacks({f"{name}.Broken": {}})


def test_a_state_that_no_checkpoint_can_hold_is_a_mistake_before_the_first_batch(stage_config, tmp_path, module_in_cwd):
    name = module_in_cwd(
        "stateful",
        "from composer import Callback\n\n\nclass Stateful(Callback):\n"
        "    def state_dict(self):\n        return {'itself': Thing()}\n\n\nclass Thing:\n    pass\n",
    )
    every = ("max_duration=4ba", "save_interval=2ba")
    config = stage_config(tmp_path / "run", 1, None, f"callbacks={json.dumps({f'{name}.Stateful': {}})}", *every)
    trainer = build_trainer(config)
    with pytest.raises(UserError, match=rf"state_dict of Stateful cannot be part of .*holds a {name}\.Thing; expected"):
        trainer.train()
    trainer.close()
    assert trainer.state.timestamp.batch.value == 0


@pytest.mark.parametrize(
    ("stopper", "message"),
    [
        (
            {"monitor": "recal@5", "dataloader_label": "eval"},
            r"early_stopper\.monitor is 'recal@5'; did you mean recall@5",
        ),
        ({"monitor": "recall@5", "dataloader_label": "val"}, r"dataloader_label is 'val'; expected eval, whose"),
    ],
)
def test_a_monitored_metric_has_to_exist(stage_config, tmp_path, stopper, message):
    config = stage_config(tmp_path / "run", 1, None, f"callbacks={json.dumps({'early_stopper': stopper})}")
    with pytest.raises(UserError, match=message):
        build_trainer(config)


def test_a_dry_run_creates_the_callbacks_and_knows_the_metrics(stage_config, tmp_path, module_in_cwd):
    name = module_in_cwd(
        "failing",
        "from composer import Callback\n\n\nclass Failing(Callback):\n"
        "    def __init__(self):\n        raise OSError('no')\n",
    )
    with pytest.raises(UserError, match=r"Failing cannot be created: OSError: no"):
        describe(stage_config(tmp_path / "run", 1, None, f"callbacks={json.dumps({f'{name}.Failing': {}})}"))
    with pytest.raises(UserError, match=r"save_best_on is 'recal@10'; did you mean recall@10\?"):
        describe(stage_config(tmp_path / "run", 1, None, "save_best_on=recal@10"))
    assert "# config" in describe(stage_config(tmp_path / "run", 1, None, "save_best_on=coverage@10"))


def test_what_is_refused_exists():
    assert set(REFUSED) <= set(composer_callbacks().values())
