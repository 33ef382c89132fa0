"""Lists that a model reads and rows lack, and the names of their actions."""

import json
from collections.abc import Iterable, Mapping, Sequence

from ugt_composer.config.schema import ModelConfig
from ugt_composer.data.manifest import Manifest
from ugt_composer.errors import UserError
from ugt_composer.jsonl.schema import DECODER_TIMES, ENCODER_ACTIONS, ENCODER_TIMES

ACTION_NAMES = "actions"  # of the facts of a portable model


MISSING = {
    ENCODER_ACTIONS: "every action is unknown to the model",
    ENCODER_TIMES: "every time is unknown to the model",
    DECODER_TIMES: "the model takes the time of the last item for the moment of prediction",
}


def missing_inputs(model: ModelConfig, key: str, manifests: Sequence[Manifest]) -> list[str]:
    """Warnings about lists that the model reads, but that no row of the folders has.

    Args:
        key: of the folders, for the message.
    """
    totals = {name: sum(manifest.rows_with.get(name, 0) for manifest in manifests) for name in MISSING}
    return missing_lists(model, key, totals) if manifests else []


def missing_lists(
    model: ModelConfig, place: str, rows_with: Mapping[str, int], shown: Mapping[str, str] | None = None
) -> list[str]:
    """Warnings about lists that the model reads, but that no row has.

    Args:
        place: of the rows, for the message.
        rows_with: rows by list.
        shown: other names for the lists in the message.
    """
    times = f"model.time_buckets is {model.time_buckets}"
    reads = {
        ENCODER_ACTIONS: (model.num_actions > 0, f"model.num_actions is {model.num_actions}"),
        ENCODER_TIMES: (model.time_buckets > 0, times),
        # Without any times, the moment of prediction says nothing, and one warning is enough.
        DECODER_TIMES: (model.time_buckets > 0 and bool(rows_with.get(ENCODER_TIMES)), times),
    }
    return [
        f"no row of {place} has {(shown or {}).get(name, name)}, although {setting}: {MISSING[name]}"
        for name, (is_read, setting) in reads.items()
        if is_read and not rows_with.get(name)
    ]


def common_action_names(names: Iterable[tuple[str, Sequence[str]]]) -> tuple[str, ...]:
    """The names of the actions 1, 2, … in folders of shards and models, which may have named only the first of them.

    Args:
        names: folders and their names, empty for a folder that has none.

    Raises:
        UserError: two of them give different names to the same number.
    """
    longest: tuple[str, Sequence[str]] = ("", ())
    for folder, of_folder in names:
        for number, pair in enumerate(zip(longest[1], of_folder, strict=False), start=1):
            if pair[0] != pair[1]:
                raise UserError(
                    f"action {number} is {pair[0]} in {longest[0]}, but {pair[1]} in {folder}; expected the same names "
                    "in the same order: convert the rows again with the same --actions"
                )
        if len(of_folder) > len(longest[1]):
            longest = folder, of_folder
    return tuple(longest[1])


def named_actions(manifests: Iterable[Manifest]) -> list[tuple[str, Sequence[str]]]:
    """Folders and their names, for `common_action_names`."""
    return [(manifest.folder, manifest.actions) for manifest in manifests]


def actions_of_model(facts: Mapping[str, str]) -> tuple[str, ...]:
    """The names that a portable model's facts record; empty if its data had none."""
    return tuple(json.loads(facts.get(ACTION_NAMES, "[]")))


def action_facts(names: Sequence[str]) -> dict[str, str]:
    """The facts of a portable model that was trained on actions with these names."""
    return {ACTION_NAMES: json.dumps(list(names))} if names else {}
