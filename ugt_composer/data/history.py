"""How items become the lists of a JSON Lines row: shared by the programs that write data and those that serve."""

from collections.abc import Sequence

from ugt_composer.vocabulary import CLS, ITEM, LEVELS, USER

SemanticId = tuple[int, int, int]


def encoder_lists(items: Sequence[SemanticId]) -> dict[str, list[int]]:
    """The six `encoder_*` lists of a history: one user token (cls at every level), then the items, oldest first."""
    return _lists("encoder", [(CLS, CLS, CLS), *items], [USER] + [ITEM] * len(items))


def decoder_lists(items: Sequence[SemanticId]) -> dict[str, list[int]]:
    """The six `decoder_*` lists and the three `labels_*` lists of the items to predict, nearest first.

    Inputs and labels are both the targets themselves; the conversion to shards puts BOS in front of the inputs.
    """
    labels = {f"labels_l{level + 1}": [item[level] for item in items] for level in range(LEVELS)}
    return {**_lists("decoder", items, [ITEM] * len(items)), **labels}


def _lists(side: str, ids: Sequence[SemanticId], token_types: list[int]) -> dict[str, list[int]]:
    levels = {f"{side}_l{level + 1}_ids": [triple[level] for triple in ids] for level in range(LEVELS)}
    return {
        **levels,
        f"{side}_positions": list(range(len(ids))),
        f"{side}_token_types": token_types,
        f"{side}_mask": [1] * len(ids),
    }
