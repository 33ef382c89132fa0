"""The events that a run records beside its metrics."""

import json
from datetime import UTC, datetime

from ugt_composer.checkpoint.run_events import BEST, CHECKPOINT, END, RESUME, START, RunEvents
from ugt_composer.checkpoint.save_folder import EVENTS
from ugt_composer.training.build import build_trainer


def events_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / EVENTS).read_text("utf-8").splitlines()]


def test_a_line_that_a_kill_cut_short_stays_alone(tmp_path):
    (tmp_path / EVENTS).write_text('{"time": "2026-01-01T00:00:00.000+00:00", "event": "sta')
    RunEvents(tmp_path, writes=True).add(RESUME, 4, rows=64)
    RunEvents(tmp_path, writes=True).add(END, 8, rows=128)
    cut, *lines = (tmp_path / EVENTS).read_text().splitlines()
    assert cut.endswith("sta")
    assert [(line["event"], line["batch"], line["rows"]) for line in map(json.loads, lines)] == [
        (RESUME, 4, 64),
        (END, 8, 128),
    ]
    written = datetime.fromisoformat(json.loads(lines[0])["time"])
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60


def test_only_one_rank_writes(tmp_path):
    RunEvents(tmp_path, writes=False).add(START, 0)
    assert not (tmp_path / EVENTS).exists()


def test_a_folder_that_cannot_be_written_is_logged_once(tmp_path, caplog):
    events = RunEvents(tmp_path / "gone", writes=True)
    for batch in range(3):
        events.add(CHECKPOINT, batch)
    assert len(caplog.records) == 1
    assert "events.jsonl cannot be written" in caplog.text


def test_a_resumed_run_appends_to_the_events_of_the_first(stage_config, tmp_path):
    for duration in ("4ba", "6ba"):
        options = (f"max_duration={duration}", "save_interval=2ba", "eval_interval=2ba", "scheduler.name=constant")
        trainer = build_trainer(stage_config(tmp_path, 1, None, *options))
        trainer.train()
        trainer.close()
    events = events_of(tmp_path)
    shown = [(event["event"], event["batch"], event["rows"]) for event in events if event["event"] != BEST]
    first = [(START, 0, 0), (CHECKPOINT, 2, 64), (CHECKPOINT, 4, 128), (END, 4, 128)]
    assert shown == [*first, (RESUME, 4, 128), (CHECKPOINT, 6, 192), (END, 6, 192)]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert all(event["metric"] for event in events if event["event"] == BEST)
