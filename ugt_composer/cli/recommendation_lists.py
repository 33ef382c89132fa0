"""Lists of recommended items for batches of users, and what has to be said about them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.cli.histories import History
from ugt_composer.cli.item_lists import UserLists, unknown_items
from ugt_composer.inference.recommender import Recommender

MOST_CACHED = 1 << 18  # semantic IDs whose items are kept
Entry = dict[str, Any]  # one recommended item

# What a remark about a user is about, and how many users it concerns.
UNKNOWN_ITEMS = "have items in their history that are not in the catalogue"
UNKNOWN_IN_LIST = "have items in their `only` or `exclude` that are not in the catalogue"
NO_KNOWN_ITEM = "have no known item in their history"
MISSING_ITEMS = "have histories that lack their earliest items"
CUT = "have longer histories than the model reads"
SHORT_LIST = "have fewer recommendations than were asked for"


class Remark(NamedTuple):
    about: str  # one of the above
    sentence: str


class UserRecommendations(NamedTuple):
    user_id: str
    entries: list[Entry]
    remarks: list[Remark]


@dataclass(frozen=True)
class ListMaker:
    """Makes the lists of a batch of users.

    Attributes:
        recommender: the model.
        catalogue: None: the lists are of semantic IDs.
        k: items of a list, as asked for.
        size: semantic IDs of a list, at most as many as there are.
        width: of the beam.
        include_seen: whether items of the history may be recommended.
        recommendable: how many items may be recommended at all; 0 if that is not known, without a catalogue.
    """

    recommender: Recommender
    catalogue: Catalogue | None
    k: int
    size: int
    width: int
    include_seen: bool
    recommendable: int

    def lists(self, users: Sequence[History]) -> Iterator[UserRecommendations]:
        rows, earlier = [user.row for user in users], [user.earlier for user in users]
        own = {} if self.catalogue is None else _own_lists(users, self.catalogue)
        best = self.recommender.recommend(rows, self.size, self.width, not self.include_seen, earlier, **own)
        values = zip(users, *(values.tolist() for values in (best.ids, best.log_probs, best.scores)), strict=True)
        for user, ids, log_probs, scores in values:
            entries = list(self._entries(ids, log_probs, scores, user.own))
            yield UserRecommendations(user.row.user_id, entries, list(self._remarks(user, len(entries))))

    def _entries(
        self, ids: list[list[int]], log_probs: list[float], scores: list[float], lists: UserLists
    ) -> Iterator[Entry]:
        """The first k items of a list. Items that share a semantic ID are all listed, with the same score, except those
        that are withheld."""
        rank = 0
        for triple, log_prob, score in zip(ids, log_probs, scores, strict=True):
            if score == float("-inf"):
                return
            items = self._items_of(*triple)
            names = [item for item in items if lists.allow(item["item_id"])] if items is not None else [{}]
            for name in names:
                rank += 1
                if rank > self.k:
                    return
                levels = {f"l{level}_id": number for level, number in enumerate(triple, start=1)}
                yield {"rank": rank, **name, **levels, "log_prob": log_prob, "score": score}

    @cached_property
    def _items_of(self) -> Callable[[int, int, int], list[Entry] | None]:
        """Of a semantic ID, the ids and names of the items that may be recommended; None if it has no items. Cached,
        because most lists are of few items."""

        @lru_cache(MOST_CACHED)
        def items_of(*triple: int) -> list[Entry] | None:
            items = [] if self.catalogue is None else self.catalogue.items_of(triple)
            if self.catalogue is None or not items:
                return None
            shown = [item for item in items if not self.catalogue.is_withheld(item.item_id)]
            return [{"item_id": item.item_id, "name": item.name} for item in shown]

        return items_of

    def _remarks(self, user: History, number: int) -> Iterator[Remark]:
        """What is unusual about a user's history and list, which has this number of items."""
        if user.unknown:
            yield Remark(UNKNOWN_ITEMS, unknown_items(user.unknown, self.catalogue))
        for name, unknown in user.own.unknown.items():
            yield Remark(UNKNOWN_IN_LIST, f"`{name}`: {unknown_items(unknown, self.catalogue)}")
        if not user.items:
            yield Remark(
                NO_KNOWN_ITEM,
                "no item of the history is known, so the recommendations are the same as for any such user",
            )
        if (missing := user.missing_items) and not self.include_seen:
            were = "item, which the row lacks, is" if missing == 1 else "items, which the row lacks, are"
            sentence = f"the {missing:,} earliest {were} not excluded and can be recommended again"
            yield Remark(MISSING_ITEMS, sentence)
        if cut := user.earlier_items:
            seen = "" if self.include_seen else ", but are not recommended either"
            earlier = f"the {cut:,} earlier ones are not read" if cut > 1 else "the earlier one is not read"
            seen = seen if cut > 1 else seen.replace("are", "is")
            sentence = f"the model reads the {user.items:,} most recent of {user.items + cut:,} items; {earlier}{seen}"
            yield Remark(CUT, sentence)
        if number < min(self.k, self.recommendable):
            yield Remark(SHORT_LIST, self._why_short(number, user.own))

    def _why_short(self, number: int, lists: UserLists) -> str:
        """Why a list has only this number of items, although the catalogue has as many as were asked for."""
        seen = "" if self.include_seen else "are in the history (--include-seen recommends them again) or "
        own = "are withheld by `only` or `exclude` or " if lists.given else ""
        reason = f"{seen}{own}begin with none of the prefixes that are kept (--beam-width)"
        return f"{number:,} {'item' if number == 1 else 'items'} can be recommended; the others {reason}"


def _own_lists(users: Sequence[History], catalogue: Catalogue) -> dict[str, Any]:
    """The arguments of `Recommender.recommend` for the users' own lists; none if no user has one."""
    if not any(user.own.given for user in users):
        return {}
    lists = [user.own for user in users]
    return {
        "only": [own.only_ids(catalogue) for own in lists],
        "exclude": [own.excluded_ids(catalogue) for own in lists],
    }
