"""How items become the lists of a JSON Lines row: shared by the programs that write data and those that serve."""

from collections.abc import Sequence

from ugt_composer.jsonl.schema import DECODER_KEYS, ENCODER_KEYS, LABEL_KEYS
from ugt_composer.vocabulary import CLS, ITEM, LEVELS, USER

SemanticId = tuple[int, int, int]


def encoder_lists(items: Sequence[SemanticId]) -> dict[str, list[int]]:
    """The six `encoder_*` lists of a history: one user token (cls at every level), then the items, oldest first."""
    return _lists(ENCODER_KEYS, [(CLS, CLS, CLS), *items], [USER] + [ITEM] * len(items))


def decoder_lists(items: Sequence[SemanticId]) -> dict[str, list[int]]:
    """The six `decoder_*` lists and the three `labels_*` lists of the items to predict, nearest first.

    Inputs and labels are both the targets themselves; the conversion to shards puts BOS in front of the inputs.
    """
    return _lists(DECODER_KEYS, items, [ITEM] * len(items)) | dict(zip(LABEL_KEYS, _levels(items), strict=True))


def _lists(keys: Sequence[str], ids: Sequence[SemanticId], token_types: list[int]) -> dict[str, list[int]]:
    return dict(zip(keys, [*_levels(ids), list(range(len(ids))), token_types, [1] * len(ids)], strict=True))


def _levels(ids: Sequence[SemanticId]) -> list[list[int]]:
    return [[triple[level] for triple in ids] for level in range(LEVELS)]
