"""Usual names of actions: which of them are choices of a user, and which columns hold actions.

Words are compared without case and punctuation: `Add to Cart` and `add_to_cart` are the same.
"""

import re
from collections.abc import Collection

from ugt_composer.importing import chinese_names as chinese
from ugt_composer.importing.ids import MISSING

# What was shown or disliked is no choice of the user.
NEGATIVE = (
    *("impression", "impressions", "impr", "imp", "expose", "exposed", "exposure", "exposures", "show"),
    *("shows", "shown", "showed", "display", "displayed", "seen", "noclick", "nonclick", "notclick"),
    *("notclicked", "unclicked", "nonclicked", "ignore", "ignored", "skip", "skips", "skipped", "dislike"),
    *("dislikes", "disliked", "downvote", "downvoted", "thumbsdown", "thumbdown", "negative", "reject"),
    *("rejected", "hide", "hidden", "bounce", "0", "minus1", "false", "no", "nointerest", "notinterested"),
    *chinese.NEGATIVE,
)
NEGATIVE_ENDINGS = ("impression", "impressions", "exposure", "exposures", "曝光")  # of adimpression
REMOVAL = (
    *("cancel", "canceled", "cancelled", "cancellation", "refund", "refunded", "return", "returned"),
    *("uncollect", "unstar", "unsave", "unsaved", "unsubscribe", "unsubscribed", "undo", "unbookmark"),
    *chinese.REMOVAL,
)
REMOVAL_STARTS = (
    *("remov", "delet", "unlike", "unfollow", "unfav", "cartremov"),  # of removedfromwishlist
    *chinese.REMOVAL_STARTS,
)
VIEW = (
    *("view", "views", "viewed", "pv", "pageview", "pageviews", "browse", "browsed", "detailview", "itemview"),
    *chinese.VIEW,
)
CHOICE = (
    *("click", "clicks", "clicked", "clickthrough", "buy", "buys", "bought", "purchase", "purchases", "purchased"),
    *("order", "ordered", "transaction", "checkout", "conversion", "converted", "cart", "addtocart", "addedtocart"),
    *("wishlist", "addtowishlist", "addedtowishlist", "like", "likes", "liked", "superlike", "love", "loved", "upvote"),
    *("upvoted", "thumbsup", "thumbup", "fav", "favorite", "favorited", "favourite", "favourited", "addtofavorites"),
    *("bookmark", "bookmarked", "save", "saved", "collect", "share", "shared", "follow", "followed", "subscribe"),
    *("subscribed", "download", "downloaded", "install", "installed", "play", "played", "watch", "watched", "listen"),
    *("listened", "stream", "streamed", "read", "comment", "commented", "rate", "rated", "review", "reviewed"),
    *chinese.CHOICE,
)
# Alone, these do not make a column of actions.
AMBIGUOUS = ("0", "minus1", "false", "no", "show", "shows", "negative", "否")
MOST_ACTIONS = 50


def is_negative(action: str) -> bool:
    word = _plain(action)
    return word in NEGATIVE or word.endswith(NEGATIVE_ENDINGS)


def is_removal(action: str) -> bool:
    word = _plain(action)
    return word in REMOVAL or word.startswith(REMOVAL_STARTS)


def is_view(action: str) -> bool:
    return _plain(action) in VIEW


def are_actions(values: Collection[str]) -> bool:
    """Whether the values of a column are actions: few different ones, of which more than half are usual names."""
    actions = {value.strip().casefold() for value in values if value not in MISSING} - {""}
    known = [action for action in actions if _plain(action) not in AMBIGUOUS and _is_known(action)]
    return len(actions) <= MOST_ACTIONS and len(known) * 2 > len(actions)


def _is_known(action: str) -> bool:
    return is_negative(action) or is_removal(action) or is_view(action) or _plain(action) in CHOICE


def _plain(action: str) -> str:
    chinese_part = re.sub(r"[^\u4e00-\u9fff]", "", action)  # of 取消收藏 (fav), which is no fav
    return chinese_part or re.sub(r"[^a-z0-9]", "", re.sub(r"^-", "minus", action.casefold()))
