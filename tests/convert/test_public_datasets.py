"""The commands of `--help` for public data sets, on made-up files of their form."""

import gzip
import json
import shlex
from pathlib import Path

import pytest

from convert.interactions_to_jsonl import main
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.cli.import_table import EPILOG

USERS, ITEMS, EACH = 12, 10, 6
# user, item, stars, seconds
RATINGS = [
    (user, (user * 3 + step * 7) % ITEMS, 1 + (user + step) % 5, 978_300_000 + 60 * step + user)
    for user in range(USERS)
    for step in range(EACH)
]


def write(path: str, text: str, encoding: str = "utf-8") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "wt", encoding=encoding) as file:
        file.write(text)


def write_objects(path: str, objects: list[dict]) -> None:
    write(path, "".join(json.dumps(item) + "\n" for item in objects))


def movielens_1m() -> None:
    write("ml-1m/ratings.dat", "".join(f"{u}::{i}::{s}::{t}\n" for u, i, s, t in RATINGS))
    write("ml-1m/movies.dat", "".join(f'{i}::Café "{i}" (1995)::Drama|War\n' for i in range(ITEMS)), "latin-1")


def movielens_100k() -> None:
    write("ml-100k/u.data", "".join(f"{u}\t{i}\t{s}\t{t}\n" for u, i, s, t in RATINGS))
    genres = "|0" * 19
    write("ml-100k/u.item", "".join(f'{i}|Café "{i}" (1995)|01-Jan-1995||x{genres}\n' for i in range(ITEMS)), "latin-1")


def amazon_2018() -> None:
    reviews = [
        {"overall": s + 0.0, "reviewTime": "01 1, 2001", "reviewerID": f"A{u}", "asin": f"B{i}", "unixReviewTime": t}
        | {"style": {"Size:": "1"}, "reviewText": 'a\n"b"'}
        for u, i, s, t in RATINGS
    ]
    write_objects("All_Beauty_5.json.gz", reviews)
    items = [
        {
            "category": ["Care", "Hair"],
            "description": ["Soft &amp; mild"],
            "title": f'Café "{i}" (1995)',
            "asin": f"B{i}",
        }
        for i in range(ITEMS)
    ]
    write_objects("meta_All_Beauty.json.gz", items)


def amazon_2023() -> None:
    reviews = [
        {"rating": s + 0.0, "title": "x", "asin": f"V{i}", "parent_asin": f"B{i}", "user_id": f"A{u}"}
        | {"timestamp": t * 1000, "images": [], "verified_purchase": True}
        for u, i, s, t in RATINGS
    ]
    write_objects("All_Beauty.jsonl.gz", reviews)
    items = [
        {"main_category": "Beauty", "title": f'Café "{i}" (1995)', "features": ["mild"], "description": []}
        | {"price": None, "categories": ["Care", "Hair"], "details": {"Brand": "b"}, "parent_asin": f"B{i}"}
        for i in range(ITEMS)
    ]
    write_objects("meta_All_Beauty.jsonl.gz", items)


def recbole() -> None:
    rows = "".join(f"{u}\t{i}\t{s}.0\t{t}.0\n" for u, i, s, t in RATINGS)
    write("ml-100k/ml-100k.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + rows)
    items = "".join(f'{i}\tCafé "{i}" (1995)\tDrama War\n' for i in range(ITEMS))
    write("ml-100k/ml-100k.item", "item_id:token\tmovie_title:token_seq\tclass:token_seq\n" + items)


def command_of(name: str) -> list[str]:
    """The arguments of the example with this comment in the help."""
    text = EPILOG.partition(f"# {name}\n")[2].partition("\n\n")[0]
    assert all(len(line) <= 120 for line in text.splitlines())
    text = text.replace("\\\n", " ")
    words = shlex.split(text)
    assert words[:2] == ["ugt", "import"]
    return words[2:]


@pytest.mark.parametrize(
    ("name", "make", "text"),
    [
        ("MovieLens-1M", movielens_1m, "Drama|War"),
        ("MovieLens-100k", movielens_100k, None),
        ("Amazon reviews of 2018", amazon_2018, "Soft & mild | Care, Hair"),
        ("Amazon reviews of 2023", amazon_2023, "Care, Hair | mild | Beauty"),
        ("RecBole", recbole, "Drama War"),
    ],
)
def test_a_public_data_set_is_imported_by_its_command(tmp_path, monkeypatch, capsys, name, make, text):
    from ugt_composer.importing import run

    texts = []
    read = run.read_items
    monkeypatch.setattr(run, "read_items", lambda *args: texts.append(read(*args)) or texts[0])
    monkeypatch.chdir(tmp_path)
    make()
    command = command_of(name)
    assert main([*command, "--dimensions", "4", "--clusters", "2", "3"]) == 0
    out = Path(command[command.index("--out") + 1])
    report = json.loads((out / "report.json").read_text())
    assert (report["interactions"], report["users"], report["skipped_rows"]) == (len(RATINGS), USERS, 0)
    names = [item.name for item in Catalogue.load(out / "catalogue.jsonl").items]
    assert names == [f'Café "{i}" (1995)' for i in range(ITEMS)]
    assert texts[0].texts[0] == 'Café "0" (1995)' + ("" if text is None else f" | {text}")
    assert report["preferences"]["chosen_min"] == 4, "ratings are read as numbers"


def test_mind_is_imported_by_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    times = [f"11/{day}/2019 1:05:58 PM" for day in range(10, 15)]
    lines = [
        f"{number}\tU{user}\t{time}\tN{user % ITEMS}\tN{(user + step + 6) % ITEMS}-0 N{(user + step + 1) % ITEMS}-1\n"
        for number, (user, (step, time)) in enumerate((u, pair) for u in range(USERS) for pair in enumerate(times))
    ]
    write("MIND/behaviors.tsv", "".join(lines))
    write(
        "MIND/news.tsv",
        "".join(f'N{i}\tsports\tgolf\tCafé "{i}"\tA text.\thttps://x/{i}\t[]\t[]\n' for i in range(ITEMS)),
    )
    command = command_of("MIND: clicks are histories, and preferred to impressions of the same time")
    assert main([*command, "--dimensions", "4", "--clusters", "2", "3"]) == 0
    report = json.loads(Path("data/mind/report.json").read_text())
    assert report["actions"] == {"click": 6 * USERS, "impression": 5 * USERS}
    assert (report["positive"], report["interactions"], report["skipped_rows"]) == (6 * USERS, 11 * USERS, 0)
    assert report["times"]["last"] == "2019-11-14 13:05:58"
    assert report["rows"]["train_preference.jsonl"] > 0
    names = [item.name for item in Catalogue.load("data/mind/catalogue.jsonl").items]
    assert names == [f'Café "{i}"' for i in range(ITEMS)]
