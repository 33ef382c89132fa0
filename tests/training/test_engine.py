"""Callbacks get the same events as from Composer's own engine, in the same order."""

import pytest
from composer import Callback, Event
from composer.core import Engine
from composer.loggers import LoggerDestination

from ugt_composer.training.engine import ListeningEngine, listens
from ugt_composer.training.trainer import build_trainer


class Deaf(Callback):
    pass


class Two(Callback):
    def __init__(self, events):
        self.events = events

    def batch_start(self, state, logger):
        self.events.append((type(self).__name__, "batch_start", state.timestamp.batch.value))

    def after_loss(self, state, logger):
        self.events.append((type(self).__name__, "after_loss", state.timestamp.batch.value))


class Three(Two):
    """Inherits two event methods."""

    def eval_end(self, state, logger):
        self.events.append((type(self).__name__, "eval_end", state.timestamp.batch.value))


class All(Callback):
    def __init__(self, events):
        self.events = events

    def run_event(self, event, state, logger):
        self.events.append((type(self).__name__, event.value, state.timestamp.batch.value))


class Destination(LoggerDestination):
    def __init__(self, events):
        self.events = events

    def batch_end(self, state, logger):
        self.events.append((type(self).__name__, "batch_end", state.timestamp.batch.value))


def events_under(engine, config, further):
    events = []
    trainer = build_trainer(config)
    assert type(trainer.engine) is ListeningEngine
    trainer.engine.__class__ = engine
    late = Deaf()
    late.epoch_end = lambda state, logger: events.append(("late", "epoch_end", state.timestamp.batch.value))
    trainer.state.callbacks[:0] = [Destination(events), Three(events), late]
    trainer.state.callbacks.extend([*(kind(events) for kind in further), Deaf(), Two(events)])
    trainer.train()
    trainer.close()
    return events


@pytest.mark.parametrize("further", [[], [All]])
def test_all_callbacks_get_the_same_events_in_the_same_order(stage_config, tmp_path, further):
    mine, composers = (
        events_under(engine, stage_config(tmp_path / engine.__name__, 1, None, "max_duration=1ep"), further)
        for engine in (ListeningEngine, Engine)
    )
    names = {"Destination", "Three", "Two", "late", *(kind.__name__ for kind in further)}
    assert {name for name, _, _ in mine} == names
    if further:
        assert len({event for name, event, _ in mine if name == "All"}) > 20
    assert mine == composers


@pytest.mark.parametrize("event", Event)
def test_a_callback_without_methods_gets_no_events(event):
    assert not listens(Deaf(), event)
    assert listens(All([]), event)
    assert listens(Three([]), event) == (event in (Event.BATCH_START, Event.AFTER_LOSS, Event.EVAL_END))
