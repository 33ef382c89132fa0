"""Marks as text, as they are saved with a checkpoint."""

import json
from collections.abc import Sequence

from ugt_composer.data.order.draws import State
from ugt_composer.data.order.shuffle import Marks


def pack_marks(key: Sequence[int], marks: Marks) -> str:
    """
    Args:
        key: identifies the order of an epoch.
    """
    return json.dumps({"key": list(key), "marks": [[_pack(state) for state in of_node] for of_node in marks]})


def unpack_marks(text: str, key: Sequence[int], counts: Sequence[int], state: State) -> Marks | None:
    """The marks; None if there are none, or those of another order.

    Args:
        counts: of marks, per canonical node.
        state: any of the same generator.
    """
    try:
        saved = json.loads(text) if text else {}
        if saved.get("key") != list(key) or [len(of_node) for of_node in saved["marks"]] != list(counts):
            return None
        return [[_unpack(mark, state) for mark in of_node] for of_node in saved["marks"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _pack(state: State) -> str:
    """The generator's state, in hexadecimal digits, and the half of a word that waits to be used, if any."""
    half = f"-{state['uinteger']:08x}" if state["has_uint32"] else ""
    return f"{state['state']['state']:032x}{half}"


def _unpack(text: str, state: State) -> State:
    number, _, half = text.partition("-")
    return {
        **state,
        "state": {**state["state"], "state": int(number, 16)},
        "has_uint32": int(bool(half)),
        "uinteger": int(half or "0", 16),
    }
