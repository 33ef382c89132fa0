"""Which column of a table is the user, the item, a text, …: by the name that the user gave, else by usual names.

Names are compared in a plain form: without case, blanks, punctuation and RecBole's types, so that `Movie Title`,
`movie-title` and `movie_title:token_seq` are the same name.
"""

import re
from collections.abc import Mapping, Sequence

from ugt_composer.errors import UserError, nearest
from ugt_composer.importing import chinese_names as chinese
from ugt_composer.storage.remote_files import InputPath

# What tables call their items, the more specific thing first: a table of songs also has albums and artists.
THINGS = (
    *("movie", "film", "book", "news", "article", "video", "song", "track", "episode", "show", "series", "anime"),
    *("manga", "game", "app", "recipe", "business", "restaurant", "hotel", "course", "job", "paper", "story", "post"),
    *("podcast", "beer", "wine", "venue", "poi", "listing", "document", "doc", "content", "goods"),
    *("ad", "album", "artist"),
)
MOST_LISTED = 12
ID_ENDINGS = ("id", "code", "no", "number", "key", "idx", "index")

ITEM_IDS = (
    *("itemid", "iid", "movieid", "parentasin", "asin", "productid", *(f"{thing}id" for thing in THINGS)),
    *("gmapid", "isbn", "isbn13", "isbn10", "sku"),
    *(f"{thing}{key}" for key in ID_ENDINGS[1:] for thing in ("item", "product", *THINGS)),
    *(f"{place}id" for place in ("place", "location", "store", "shop")),
    *chinese.ITEM_IDS,
)
# The item where there is no other column for it, else its name.
ITEM_WORDS = (
    *("product", "movie", "film", "book", "article", "song", "track", "game", "anime", "hotel", "artist"),
    *chinese.ITEM_WORDS,
)

# Usual names of a column in plain form, in order of preference.
USUAL_NAMES = {
    "user": (
        *("user", "userid", "uid", "reviewerid", "customerid", "visitorid", "memberid", "username", "customer"),
        *("userno", "usernumber", "userkey", "usercode", "useridx", "userindex", "usersid", "usersha1", "clientid"),
        *("accountid", "profileid", "buyerid", "readerid", "viewerid", "listenerid", "subscriberid", "playerid"),
        *(
            "personid",
            "reviewer",
            "reviewername",
            "msno",
            "steamid",
            "memberno",
            "studentid",
            "learnerid",
            "sessionid",
            "session",
            "deviceid",
        ),
        *chinese.USER_NAMES,
    ),
    "item": ("item", *ITEM_IDS, *ITEM_WORDS),
    "timestamp": (
        *("timestamp", "ts", "time", "datetime", "date", "unixreviewtime", "unixtime", "unixtimestamp", "timestampms"),
        *("timems", "timestamps", "eventtime", "eventtimestamp", "interactiontime", "clicktime", "playedat"),
        *("listenedat", "ratedat", "createdat", "createdtime", "creationdate", "created", "reviewtime", "reviewdate"),
        *("dateadded", "updatedat", "dateupdated", "visitdate", "purchasedate", "orderdate", "transactiondate"),
        *("checkintime", "utctime", "tdat", "epoch", "eventdate", "eventts", "clickdate", "clicktimestamp"),
        *("actiontime", "actiondate", "interactiondate", "interactiontimestamp", "servertime", "servertimestamp"),
        *("watchedat", "viewedat", "clickedat", "purchasedat", "starttime", "startedat"),
        *chinese.TIMES,
    ),
    "rating": (
        *("rating", "ratings", "overall", "stars", "score", "ratingvalue", "starrating", "userrating", "bookrating"),
        *("movierating", "reviewrating", "reviewoverall", "reviewscore", "ratingscore", "rate"),
        *chinese.RATINGS,
    ),
    "action": (
        *("action", "event", "eventtype", "behavior", "behaviour", "behaviortype", "behaviourtype", "actiontype"),
        *("eventname", "interaction", "interactiontype", "activitytype", "click", "clicked", "isclick", "isclicked"),
        *("label", "useraction", "operationtype", "feedbacktype", "liked", "islike", "isliked", "purchased"),
        *("ispurchase", "ispurchased", "bought", "isbought", "converted", "isconverted", "conversion", "isconversion"),
        *chinese.ACTIONS,
    ),
}
# In a table of items "id" is the item; in a table of interactions it numbers the rows.
ITEM_TABLE_NAMES = ("item", *ITEM_IDS, "id", "编号", *ITEM_WORDS)
NAMED = ("item", "product", "prod", *THINGS, "place", "location", "store", "shop")
NAME_COLUMNS = (
    *("title", "name", "itemname", "producttitle", "productname", "headline"),
    *(f"{thing}{ending}" for thing in NAMED for ending in ("title", "name") if thing not in ("album", "artist")),
    *chinese.NAMES,
    *("originaltitle", "albumname", "albumtitle", "artistname", "caption", *ITEM_WORDS),
)
TEXT_COLUMNS = (
    *NAME_COLUMNS,
    *("text", "description", "abstract", "attributes", "genres", "genre", "categories", "category", "subcategory"),
    *("brand", "features", "tags", "keywords", "author", "authors", "artist", "publisher", "developer"),
    *("subtitle", "overview", "summary", "synopsis", "plot", "body", "content", "detaildesc", "productdescription"),
    *("itemdescription", "moviegenres", "moviegenre", "class", "maincategory", "subcategories", "productcategory"),
    *("categoryname", "categorynames", "producttype", "producttypename"),
    *("bookauthor", "bookpublisher", "bookdescription"),
    *("director", "directors", "actors", "cast", "studio", "studios", "topic", "topics", "feature", "cuisine"),
    *("ingredients", "specs"),
    *chinese.TEXTS,
)


def plain(name: str) -> str:
    """A column's name without case, blanks, punctuation and ":type"."""
    return re.sub(r"[\W_]+", "", name.partition(":")[0].casefold() or name.casefold())


def named_column(name: str, columns: Sequence[str], path: InputPath, option: str) -> str:
    """The column that the user named: the one of exactly this name, else the only one of this name in plain form."""
    if name in columns:
        return name
    alike = [column for column in columns if plain(column) == plain(name)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        listed = " and ".join(map(repr, alike))
        raise UserError(f"{path}: {option} {name!r} can mean {listed}; give one of them as it is written there")
    raise UserError(f"{path}: has no column {name!r} ({option}); {nearest(name, list(columns))}")


def usual_columns(usual: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The columns that have one of the `usual` names, in the order of these names; of two alike, the first."""
    by_name = {plain(column): column for column in reversed(columns)}
    return [by_name[name] for name in dict.fromkeys(usual) if name in by_name]


def find_column(
    role: str,
    given: str | None,
    columns: Sequence[str],
    path: InputPath,
    option: str,
    usual: Sequence[str] | None = None,
) -> str | None:
    """The column of a role (user, item, …): the one `given`, else one with a usual name, else None.

    Args:
        usual: its usual names, in order of preference; None: USUAL_NAMES of the role.
    """
    if given is not None:
        return named_column(given, columns, path, option)
    return next(iter(usual_columns(USUAL_NAMES[role] if usual is None else usual, columns)), None)


def need_column(
    role: str,
    given: str | None,
    columns: Sequence[str],
    path: InputPath,
    option: str,
    usual: Sequence[str] | None = None,
    names_option: str | None = None,
) -> str:
    """Like find_column, but raises UserError if there is no such column.

    Args:
        names_option: the option that names the columns of a file without a header line, if this can be one.
    """
    column = find_column(role, given, columns, path, option, usual)
    if column is None:
        names = ", ".join(columns)
        hint = ""
        if names_option is not None:
            example = "item,title" if names_option != "--columns" else _example(len(columns))
            hint = (
                f", or if the file has no header line, name its columns in order with {names_option}, as in {example}"
            )
            separator = next((sign for sign in ";|\t" if any(sign in name for name in columns)), None)
            if separator is not None:
                given = "tab" if separator == "\t" else f"'{separator}'"
                hint += f", or separate them otherwise with {names_option.replace('columns', 'separator')} {given}"
        raise UserError(f"{path}: none of its columns ({names}) looks like the {role}; name it with {option}{hint}")
    return column


def _example(columns: int) -> str:
    """Names for the first columns of a file, which fit the public data sets with that many."""
    return "user,item,rating,timestamp" if columns > 3 else "user,item,timestamp"


def about_columns(path: InputPath | str, used: Mapping[str, str | Sequence[str] | None], unused: Sequence[str]) -> str:
    """A sentence: which column was used for what, which others look like it, and which were not used.

    Args:
        used: role → column or columns.
    """
    parts = []
    for role, columns in used.items():
        names = [columns] if isinstance(columns, str) else list(columns or ())
        others = usual_columns(USUAL_NAMES.get(role, ()), unused)
        also = f" (not {', '.join(map(repr, others))})" if others else ""
        if names:
            parts.append(f"{role} = {', '.join(map(repr, names))}{also}")
    more = f" and {len(unused) - MOST_LISTED:,} more" if len(unused) > MOST_LISTED else ""
    rest = f"; not used: {', '.join(map(repr, unused[:MOST_LISTED]))}{more}" if unused else ""
    return f"columns of {path}: {', '.join(parts)}{rest}"
