"""Composer's engine, passing an event to what listens to it."""

import os
from collections.abc import Sequence

from composer import Callback, Event
from composer.core import Engine
from composer.core.engine import Traces


class ListeningEngine(Engine):
    """Composer takes every event, twenty and more a batch, to all callbacks, and words a line for its log each time.

    A callback listens to two or three events, and many events have no listener at all.
    """

    def run_event(self, event: Event | str) -> Traces:
        event = Event(event)
        is_heard = any(listens(callback, event) for callback in self.state.callbacks) or any(
            algorithm.match(event, self.state) for algorithm in self.state.algorithms
        )
        return super().run_event(event) if is_heard or self.state.profiler is not None else {}

    def _run_callbacks(self, event: Event | str, callbacks: Sequence[Callback] | None = None) -> None:
        event = Event(event)
        callbacks = self.state.callbacks if callbacks is None else callbacks
        super()._run_callbacks(event, [callback for callback in callbacks if listens(callback, event)])

    def _debug_log(self, event: Event, msg: str) -> None:
        if "ENGINE_DEBUG" in os.environ:
            super()._debug_log(event, msg)


def listens(callback: Callback, event: Event) -> bool:
    """Whether a callback does anything at an event: has a method of its own for it, or for all of them."""
    kind, name = type(callback), event.value
    return (
        getattr(kind, name) is not getattr(Callback, name)
        or kind.run_event is not Callback.run_event
        or name in vars(callback)
    )
