"""The learning rate of a run that resumes with another length: a question, and then exactly what was chosen."""

import math
import warnings
from pathlib import Path

import pytest

from tests.shop import comparable
from ugt_composer.checkpoint.run_checkpoints import newest_checkpoint
from ugt_composer.config.load import config_yaml, load_config
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.run_length import length_of
from ugt_composer.training.schedule import is_schedule_changed

PEAK, FLOOR = 0.01, 0.001
RATE = "metrics/train/learning rate"
RARELY = ("eval_interval=100ba", "scheduler.t_warmup=2ba", "scheduler.max_warmup_ratio=1")


def cosine(batch: int, end: int, warmup: int = 2) -> float:
    if batch < warmup:
        return PEAK * batch / warmup
    done = min(1.0, (batch - warmup) / (end - warmup))
    return FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * done)) / 2


@pytest.fixture
def run(stage_config, tmp_path):
    """run(name, batches, *overrides) → metrics after the run was started once, for so many batches or to its end."""

    def start(name: str, batches: int | None, *overrides: str) -> list[dict]:
        trainer = build_trainer(stage_config(tmp_path / name, 1, None, *RARELY, *overrides))
        if batches is None:
            trainer.train()
        else:
            trainer.fit(duration=f"{batches}ba")
        trainer.close()
        return comparable(tmp_path / name)

    return start


def test_a_run_extended_at_the_end_of_an_epoch_prints_no_warnings_of_libraries(run):
    run("run", None, "max_duration=1ep")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run("run", None, "max_duration=2ep", "scheduler.t_max=2ep")
    texts = [str(warning.message) for warning in seen]
    assert not [text for text in texts if "learning rate" in text or "No batches" in text]


def rates(lines: list[dict]) -> dict[int, float]:
    """By the number of batches before it, the learning rate of each batch."""
    return {line["batch"] - 1: line[RATE] for line in lines}


def test_a_longer_run_asks_and_then_follows_the_chosen_curve_through_later_resumes(run, tmp_path):
    run("run", None, "max_duration=4ba")
    with pytest.raises(UserError) as error:
        run("run", None, "max_duration=10ba")
    assert str(error.value).endswith(
        "ba00000004.pt: max_duration was 4ba, now it is 10ba: the cosine schedule ended at batch 4, now it ends at "
        "batch 10, and at batch 4 the learning rate would jump from 0.001 to 0.008682. Add scheduler.t_max=10ba to "
        "follow the new curve, which starts at 0.008682 here; or scheduler.t_max=4ba to keep the old one, whose "
        "learning rate is 0.001 from batch 4 on"
    )
    assert load_config(tmp_path / "run" / "config.yaml").max_duration == "4ba"
    for name, end in (("new", 10), ("old", 4)):
        chosen = ("max_duration=10ba", f"scheduler.t_max={end}ba")
        run(f"{name}-parts", None, "max_duration=4ba")
        run(f"{name}-parts", 3, *chosen)
        parts = run(f"{name}-parts", None, *chosen)
        run(f"{name}-whole", None, "max_duration=4ba")
        whole = run(f"{name}-whole", None, *chosen)
        seen = rates(whole)
        assert {batch: seen[batch] for batch in range(4)} == pytest.approx({b: cosine(b, 4) for b in range(4)})
        assert {b: seen[b] for b in range(4, 10)} == pytest.approx({b: cosine(b, end) for b in range(4, 10)})
        # The first part evaluated at its end.
        assert [{k: v for k, v in line.items() if "eval" not in k} for line in parts] == [
            {k: v for k, v in line.items() if "eval" not in k} for line in whole
        ]


def test_leaving_the_choice_out_later_asks_again_where_it_makes_a_difference(run):
    run("run", None, "max_duration=4ba")
    run("run", 2, "max_duration=10ba", "scheduler.t_max=4ba")
    with pytest.raises(
        UserError, match=r"scheduler.t_max was 4ba, now it is null: the cosine schedule ended at batch 4"
    ):
        run("run", 0, "max_duration=10ba")
    run("run", 1, "max_duration=10ba", "scheduler.t_max=10ba")
    run("run", None, "max_duration=10ba")  # the same curve


CONFIG = ["global_train_batch_size=10", "scheduler.t_warmup=2ba", "scheduler.max_warmup_ratio=1", "max_duration=100ba"]


def changed(batch: int, *overrides: str, before: tuple[str, ...] = ()):
    """`is_schedule_changed` of a run with 50 batches per epoch that resumes after `batch` batches."""
    content = {
        "config": config_yaml(load_config(overrides=[*CONFIG, *before])),
        "state": {"timestamp": {"Timestamp": {"batch": batch}}},
    }
    config = load_config(overrides=[*CONFIG, *before, *overrides])
    return is_schedule_changed(Path("ba"), content, config, length_of(config.max_duration, config.scheduler, 50))


@pytest.mark.parametrize(
    ("batch", "overrides", "before"),
    [
        (100, ["max_duration=200ba"], []),
        (60, ["max_duration=200ba"], []),  # not finished
        (60, ["max_duration=80ba"], []),  # shorter
        (60, ["max_duration=4ep"], []),
        (60, ["max_duration=101ba"], ["scheduler.name=linear"]),
        (4, ["max_duration=200ba"], ["scheduler.t_warmup=10%"]),
        (4, ["max_duration=200ba"], ["scheduler.t_warmup=10%", "scheduler.name=constant"]),
        (4, ["max_duration=200ba"], ["scheduler.t_warmup=50ba", "scheduler.max_warmup_ratio=0.1"]),
        (60, ["max_duration=200ba", "scheduler.t_max=null"], ["scheduler.t_max=100ba"]),
    ],
)
def test_a_jump_of_the_learning_rate_needs_a_choice(batch, overrides, before):
    with pytest.raises(UserError, match="would jump from"):
        changed(batch, *overrides, before=tuple(before))
    assert changed(batch, *overrides, "scheduler.t_max=180ba", before=tuple(before))
    assert changed(batch, *overrides, "resume_despite=[scheduler]", before=tuple(before))
    assert not changed(batch, *overrides, "scheduler.t_max=100ba", before=tuple(before))


@pytest.mark.parametrize(
    ("batch", "overrides", "before"),
    [
        (100, ["max_duration=2ep"], []),  # the same number of batches
        (60, ["max_duration=200ba"], ["scheduler.name=constant"]),
        (60, ["max_duration=200ba"], ["scheduler.min_lr_ratio=1"]),
        (1, ["max_duration=200ba"], []),  # in the warm-up, which is as long as before
        (60, ["max_duration=200ba"], ["scheduler.t_max=300ba"]),
        (60, ["max_duration=50ba"], []),  # already longer: nothing is trained
        (60, [], []),
    ],
)
def test_without_a_jump_nothing_is_asked(batch, overrides, before):
    assert not changed(batch, *overrides, before=tuple(before))


def test_a_learning_rate_of_0_is_said_to_train_nothing():
    with pytest.raises(UserError, match="is 0 from batch 100 on, with which nothing is trained"):
        changed(100, "max_duration=200ba", before=("scheduler.min_lr_ratio=0",))


def test_a_checkpoint_of_a_version_without_t_max_resumes(run, tmp_path):
    run("run", 3, "max_duration=4ba")
    path, content = newest_checkpoint(tmp_path / "run")
    text = content["config"].replace("  t_max: null\n", "")
    assert text != content["config"]
    config = load_config(tmp_path / "run" / "config.yaml", overrides=["max_duration=6ba"])
    with pytest.raises(UserError, match="max_duration was 4ba, now it is 6ba: the cosine"):
        is_schedule_changed(path, content | {"config": text}, config, length_of("6ba", config.scheduler, 7))
