import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from convert.interactions_to_jsonl import main
from convert.jsonl_to_mds import main as to_shards
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.item_matrix import read_catalogue_vectors
from ugt_composer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the shared data sets are not at {REAL}")
FILES = [
    "catalogue.jsonl",
    "item_neighbours.npz",
    "item_vectors.npy",
    "report.json",
    "semantic_ids.json",
    "semantic_ids.npz",
    "test.jsonl",
    "train.jsonl",
]
PREFERENCES = ["train_preference.jsonl", "validation_preference.jsonl"]
USERS, ITEMS, EACH = 30, 40, 12
CLICKS = ["--chosen-actions", "click", "--rejected-actions", "view"]


def ratings(changed: int = 0, seed: int = 0) -> pl.DataFrame:
    """Ratings at times 0, 1, … per user; a user's last interactions can be replaced by others."""
    random = np.random.default_rng(seed)
    items = np.stack([random.permutation(ITEMS)[:EACH] for _ in range(USERS)])
    stars = random.integers(1, 6, (USERS, EACH))
    if changed:
        items[:, -changed:] = (items[:, -changed:] + 1) % ITEMS
        stars[:, -changed:] = 6 - stars[:, -changed:]
    user = np.repeat(np.arange(USERS), EACH)
    time = np.tile(np.arange(EACH), USERS)
    table = pl.DataFrame({"user_id": user, "item_id": items.ravel(), "rating": stars.ravel(), "timestamp": time})
    return table.sample(fraction=1, shuffle=True, seed=1)


@pytest.fixture
def source(tmp_path) -> Path:
    ratings().write_csv(tmp_path / "ratings.csv")
    words = ["red", "blue", "nail", "skin", "oil", "brush", "soap"]
    titles = [f"{words[n % 7]} {words[n % 3]} {n}" for n in range(ITEMS + 2)]
    pl.DataFrame({"item_id": range(ITEMS + 2), "title": titles}).write_csv(tmp_path / "items.csv")
    return tmp_path / "ratings.csv"


def run(source: Path, name: str, *options: str | Path) -> Path:
    out = source.parent / name
    assert main([str(source), "--out", str(out), *map(str, options)]) == 0
    return out


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class Decoder:
    """Semantic IDs back to item ids."""

    def __init__(self, out: Path):
        self.item_of = {item.triple: item.item_id for item in Catalogue.load(out / "catalogue.jsonl").items}

    def items(self, row: dict, side: str) -> list[str]:
        triples = zip(*(row[f"{side}_l{level}_ids"] for level in (1, 2, 3)), strict=True)
        return [self.item_of[triple] for triple in triples if triple != (1, 1, 1)]

    def item(self, item: dict) -> str:
        return self.item_of[item["l1_id"], item["l2_id"], item["l3_id"]]


def sequences(least: int = 0) -> dict[str, list[str]]:
    table = ratings().filter(pl.col("rating") >= least).sort("user_id", "timestamp")
    grouped = table.group_by("user_id", maintain_order=True).agg("item_id")
    return {str(user): list(map(str, items)) for user, items in grouped.iter_rows()}


def test_rows_are_the_histories_left_one_out(source):
    out = run(source, "out", "--cuts-per-user", "all", "--max-targets", "3")
    decoder, expected = Decoder(out), sequences()

    def read(name: str) -> list[tuple]:
        read = rows(out / f"{name}.jsonl")
        return [(row["user_id"], decoder.items(row, "encoder"), decoder.items(row, "decoder")) for row in read]

    assert read("test") == [(user, items[:-1], items[-1:]) for user, items in expected.items()]
    assert read("validation") == [(user, items[:-2], items[-2:-1]) for user, items in expected.items()]
    assert read("train") == [
        (user, items[:cut], items[cut : min(cut + 3, EACH - 2)])
        for user, items in expected.items()
        for cut in range(1, EACH - 2)
    ]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (1, ["train.jsonl", "validation.jsonl", *PREFERENCES, "semantic_ids.json", "catalogue.jsonl"]),
        (2, ["train.jsonl", "semantic_ids.json", "catalogue.jsonl"]),
    ],
)
def test_held_out_items_change_nothing_that_comes_before_them(source, changed, same):
    options = "--items", source.with_name("items.csv")
    before = run(source, "before", *options)
    ratings(changed).write_csv(source)
    after = run(source, "after", *options)
    for name in same:
        assert (before / name).read_bytes() == (after / name).read_bytes(), name
    reports = [json.loads((out / "report.json").read_text()) for out in (before, after)]
    assert reports[0]["quality"] == reports[1]["quality"]
    if changed == 1:
        assert reports[0]["popularity"]["validation"] == reports[1]["popularity"]["validation"]
    assert (before / "test.jsonl").read_bytes() != (after / "test.jsonl").read_bytes()


@pytest.mark.parametrize("gap", [None, 1.0])
def test_preferences_follow_the_ratings_and_train_on_the_past_alone(source, gap):
    options = [] if gap is None else ["--rating-gap", gap]
    out = run(source, "out", "--items", source.with_name("items.csv"), "--pairs-per-user", "all", *options)
    decoder = Decoder(out)
    stars = {(str(u), str(i)): (r, t) for u, i, r, t in ratings().iter_rows()}
    for name, held_out in (("train_preference.jsonl", False), ("validation_preference.jsonl", True)):
        read = rows(out / name)
        assert read
        for row in read:
            user = row["user_id"]
            rating, time = stars[user, decoder.item(row["chosen_item"])]
            assert gap or rating >= 4
            assert (time == EACH - 2) == held_out
            rejected = [stars[user, decoder.item(item)] for item in row["rejected_items"]]
            assert all(other <= (rating - gap if gap else 2) for other, _ in rejected)
            assert all(when < EACH - 1 - (not held_out) for _, when in rejected)
            history = decoder.items(row["user_sequence"], "encoder")
            assert history == sequences()[user][: min(time, *(when for _, when in rejected))]
    assert any(len(row["rejected_items"]) > 1 for row in rows(out / "train_preference.jsonl"))


def test_nothing_of_held_out_users_trains(source):
    out = run(source, "out", "--held-out-users", "0.2")
    training = {row["user_id"] for name in ("train", "train_preference") for row in rows(out / f"{name}.jsonl")}
    validating = {row["user_id"] for row in rows(out / "validation_preference.jsonl")}
    assert not training & validating
    assert len(training) <= USERS * 0.8
    assert len(rows(out / "test.jsonl")) == USERS


def test_by_time_nothing_late_trains(source):
    out = run(source, "out", "--split", "time", "--validation-from", "8", "--test-from", "10", "--every-target")
    decoder, expected = Decoder(out), sequences()
    for row in rows(out / "train.jsonl"):
        items = expected[row["user_id"]]
        assert max(map(items.index, decoder.items(row, "encoder") + decoder.items(row, "decoder"))) < 8
    tested = [(row["user_id"], *decoder.items(row, "decoder")) for row in rows(out / "test.jsonl")]
    assert tested == [(user, item) for user, items in expected.items() for item in items[10:]]
    report = json.loads((out / "report.json").read_text())
    assert report["parts"] == {"train": 8 * USERS, "validation": 2 * USERS, "test": 2 * USERS}


def test_only_what_was_liked_makes_histories(source):
    out = run(source, "out", "--min-rating", "4")
    decoder, expected = Decoder(out), sequences(least=4)
    tested = {row["user_id"]: decoder.items(row, "encoder") for row in rows(out / "test.jsonl")}
    assert tested == {user: items[:-1] for user, items in expected.items() if len(items) >= 3}


def test_clicks_against_impressions(source):
    table = ratings().with_columns(
        pl.when(pl.col("rating") > 2).then(pl.lit("click")).otherwise(pl.lit("impression")).alias("event")
    )
    path = source.with_name("events.parquet")
    table.drop("rating").write_parquet(path)
    actions = "--positive-actions", "click", "--chosen-actions", "click", "--rejected-actions", "impression"
    out = run(path, "out", *actions)
    decoder, clicked = Decoder(out), sequences(least=3)
    for row in rows(out / "train_preference.jsonl"):
        assert decoder.item(row["chosen_item"]) in clicked[row["user_id"]]
        assert not {decoder.item(item) for item in row["rejected_items"]} & set(clicked[row["user_id"]])


def contents(path: Path) -> bytes:
    """A file of an import, without the path of its folder."""
    return path.read_bytes().replace(str(path.parent).encode(), b"OUT")


def test_the_same_bytes_each_time_and_others_for_another_seed(source):
    first, second, other = (
        run(source, name, "--cuts-per-user", "3", "--seed", seed) for name, seed in zip("abc", "112", strict=True)
    )
    for path in first.iterdir():
        assert contents(path) == contents(second / path.name), path.name
    assert (first / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


def test_the_files_convert_and_their_fingerprint_is_the_catalogues(source):
    out = run(source, "out")
    report = json.loads((out / "report.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*FILES, "actions.json", "data.yaml", "preferences.yaml", *PREFERENCES, "validation.jsonl"]
    )
    catalogue = Catalogue.load(out / "catalogue.jsonl")
    assert catalogue.fingerprint == report["fingerprint"]
    assert len(read_catalogue_vectors(out / "item_vectors.npy", catalogue)) == len(catalogue.items)
    for name in report["rows"]:
        kind = "preference" if name in PREFERENCES else "recommend"
        sizes = list(map(str, report["codebook_sizes"]))
        command = [
            str(out / name),
            "--kind",
            kind,
            "--codebook-sizes",
            *sizes,
            "--out",
            str(source.parent / "mds" / name),
        ]
        assert to_shards(command) == 0
        assert report["rows"][name] == len(rows(out / name)) > 0


def test_ids_from_codes_from_a_bundle_and_from_vectors(source):
    codes = {str(n): [f"<a_{n % 4}>", f"<b_{n % 5}>", f"<c_{n}>", "<d_0>"] for n in range(ITEMS + 3)}
    index = source.with_name("index.json")
    index.write_text(json.dumps(codes))
    by_codes = run(source, "codes", "--codes", index)
    triples = {item.item_id: item.triple for item in Catalogue.load(by_codes / "catalogue.jsonl").items}
    assert len(triples) == ITEMS + 3, "all that have codes exist"
    assert triples["7"][:2] == (7 % 4 + 5, 7 % 5 + 5)
    by_bundle = run(source, "bundle", "--codes", by_codes / "semantic_ids.json")
    assert (by_bundle / "train.jsonl").read_bytes() == (by_codes / "train.jsonl").read_bytes()
    assert (by_bundle / "catalogue.jsonl").read_bytes() == (by_codes / "catalogue.jsonl").read_bytes()
    np.save(source.with_name("codes.npy"), [[n % 4, n % 5, n, 0] for n in range(ITEMS + 3)])
    source.with_name("order.txt").write_text("\n".join(codes))
    by_array = run(
        source, "array", "--codes", source.with_name("codes.npy"), "--code-items", source.with_name("order.txt")
    )
    for path in by_codes.iterdir():
        assert contents(by_array / path.name) == contents(path), path.name
    np.save(source.with_name("v.npy"), np.random.default_rng(0).standard_normal((ITEMS + 2, 6)))
    vectors = "--items", source.with_name("items.csv"), "--vectors", source.with_name("v.npy"), "--clusters", "4", "8"
    made = json.loads((run(source, "vectors", *vectors) / "report.json").read_text())["made"]
    assert (made["method"], made["clusters"]) == ("vectors", [4, 8])


def test_items_written_as_floats_are_those_of_the_table(source, capsys):
    items = "--items", source.with_name("items.csv")
    expected = run(source, "whole", *items)
    table = pl.read_csv(source).with_columns(pl.col("item_id").cast(pl.Float64))
    table.write_csv(source)
    table.write_parquet(source.with_suffix(".parquet"))
    for path, name in ((source, "floats"), (source.with_suffix(".parquet"), "parquet")):
        out = run(path, name, *items)
        assert (out / "catalogue.jsonl").read_bytes() == (expected / "catalogue.jsonl").read_bytes()
        assert (out / "train.jsonl").read_bytes() == (expected / "train.jsonl").read_bytes()
    report = json.loads((source.with_name("floats") / "report.json").read_text())
    assert report["item_matches"]["not_in_table"] == 0
    assert report["item_columns"] == {"item": "item_id", "name": "title", "text": ["title"], "unused": []}
    assert "column 'item_id': all ids are whole numbers" in report["warnings"][0]
    printed = capsys.readouterr()
    assert "columns of " in printed.err
    assert "2 without interactions; 0 of the 40 items of the interactions are not in it" in printed.out


def test_items_without_a_code_are_refused_or_left_out(source):
    index = source.with_name("index.json")
    index.write_text(json.dumps({str(n): [1, 2, n] for n in range(1, ITEMS)}))
    with pytest.raises(UserError, match=r"item '0' of the interactions has no code or vector \(1 of 40 items"):
        run(source, "out", "--codes", index)
    index.with_name("other.json").write_text(json.dumps({f"item-{n}": [1, 2, n] for n in range(ITEMS)}))
    for options in ((), ("--drop-items-without",)):
        with pytest.raises(UserError, match="40 of them match without regard to the letters before the number"):
            run(source, "out", "--codes", index.with_name("other.json"), *options)
    for name, more in (("out", ()), ("seen", ("--only-seen-items",))):
        out = run(source, name, "--codes", index, "--drop-items-without", *more)
        report = json.loads((out / "report.json").read_text())
        assert "item '0' of the interactions has no code or vector" in report["warnings"][0]
        left_out = sum(items.count("0") for items in sequences().values())
        assert report["interactions_without_id"] == left_out > 0
        assert "0" not in Catalogue.load(out / "catalogue.jsonl")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--user-column", "usr_id"], "ratings.csv: has no column 'usr_id' (--user-column); did you mean user_id?"),
        (["--min-interactions", "2"], "--min-interactions 2"),
        (["--min-rating", "9"], "no positive interaction is left"),
        (["--codes", "none.json"], "none.json: cannot be read"),
        (["--codes", "a", "--vectors", "b"], "expected only one of them"),
        (["--chosen-min", "2", "--rejected-max", "3"], "--rejected-max 3 is not below --chosen-min 2"),
        (["--rating-gap", "0"], "--rating-gap 0: expected a number above 0"),
        (["--rating-gap", "nan"], "--rating-gap nan: expected a number above 0"),
        (["--rating-gap", "1", "--chosen-min", "4"], "--rating-gap: not together with --chosen-min"),
        (["--rating-gap", "1", *CLICKS], "--rating-gap: not together with --chosen-actions, --rejected-actions"),
        ([*CLICKS, "--chosen-min", "4"], "--chosen-actions: not together with --chosen-min"),
        ([*CLICKS, "--rejected-max", "2"], "--chosen-actions: not together with --rejected-max"),
        (["--no-preferences", "--chosen-min", "0"], "--no-preferences: not together with --chosen-min"),
        (["--no-preferences", "--rating-gap", "1"], "--no-preferences: not together with --rating-gap"),
        (["--no-preferences", *CLICKS], "--no-preferences: not together with --chosen-actions, --rejected-actions"),
        (["--no-preferences", "--pairs-per-user", "all"], "--no-preferences: not together with --pairs-per-user"),
        (
            ["--no-preferences", "--preference-window", "5", "--rejected-per-chosen", "1"],
            "--no-preferences: not together with --preference-window, --rejected-per-chosen",
        ),
        (["--positive-actions", "click"], "--positive-actions: no column of actions was found"),
        (["--codebook-sizes", "5", "5", "5"], "--codebook-sizes 5 5 5: expected 3 sizes above 5"),
        (["--codebook-sizes", "6", "6", "6"], "--codebook-sizes 6 6 6: room for 1 item, but there are 40"),
        (["--clusters", "2000", "9"], "--clusters: level 1: found 2000, expected 1 to 1019"),
        (["--cuts-per-user", "0"], "--cuts-per-user 0: expected at least 1"),
        (["--split", "time", "--test-from", "0.1"], "the first must be earlier"),
        (["--split", "time", "--test-from", "soon"], "--test-from soon: expected a fraction"),
        (["--validation-from", "0.5"], "--split leave-one-out: not together with --validation-from"),
        (["--split", "time", "--min-interactions", "5"], "--split time: not together with --min-interactions"),
        (["--split", "time", "--file-order"], "--split time: expected timestamps"),
        (["--max-unmatched", "2"], "--max-unmatched 2: expected a fraction from 0 to 1"),
        (["--items", "items.xyz"], "items.xyz: found no such file"),
        (["--held-out-users", "1"], "--held-out-users 1.0: expected a fraction"),
    ],
)
def test_mistakes_are_named_and_nothing_is_left_behind(source, options, said):
    before = sorted(path.name for path in source.parent.iterdir())
    with pytest.raises(UserError) as error:
        run(source, "out", *options)
    assert said in str(error.value)
    assert sorted(path.name for path in source.parent.iterdir()) == before


def test_an_earlier_run_is_replaced_only_with_overwrite(source):
    run(source, "out")
    with pytest.raises(UserError, match="--overwrite"):
        run(source, "out")
    out = run(source, "out", "--overwrite", "--no-preferences")
    assert not (out / "train_preference.jsonl").exists()


def test_the_program_has_help_and_one_line_errors(source):
    def program(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "convert/interactions_to_jsonl.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = program("--help")
    assert shown.returncode == 0
    assert "examples:" in shown.stdout
    failed = program(str(source) + ".none", "--out", "out", "--format", "csv")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.splitlines()[-1].startswith("error: ")


def test_numbers_that_cannot_be_parsed_are_named_as_typed(source, capsys):
    with pytest.raises(SystemExit):
        run(source, "out", "--cuts-per-user", "many")
    assert "--cuts-per-user: found 'many', expected a whole number or all" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        to_shards([str(source), "--kind", "recommend", "--out", "out", "--size-limit", "64 MiB"])
    assert "--size-limit: found '64 MiB', expected bytes such as 1000000, 64kb" in capsys.readouterr().err


@needs_real
def test_real_sequences(tmp_path):
    data = REAL / "amazon_beauty"
    arguments = [str(data / "sequences.txt"), "--items", str(data / "items.tsv"), "--dimensions", "16"]
    assert main([*arguments, "--cuts-per-user", "1", "--clusters", "16", "64", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["parts"] == {"train": 198_502 - 2 * 22_363, "validation": 22_363, "test": 22_363}
    assert report["rows"] == {"train.jsonl": 22_363, "validation.jsonl": 22_363, "test.jsonl": 22_363}
    assert report["popularity"]["test"] == pytest.approx({"recall@10": 0.0115, "ndcg@10": 0.0055}, abs=2.5e-4)
    assert report["quality"]["items"] == 12_101
    assert report["quality"]["collisions"]["items"] == 0
    near = report["quality"]["neighbours"]["texts"]
    assert near["share_l1"] > 5 * near["random_l1"]


@needs_real
def test_real_ratings(tmp_path):
    data = REAL / "ml-latest-small"
    # The row of user 5 and film 39 is corrupted in some copies of this file, so such rows are left out.
    options = ["--items", str(data / "movies.csv"), "--min-rating", "4", "--on-error", "skip", "--dimensions", "16"]
    assert main([str(data / "ratings.csv"), *options, "--clusters", "16", "64", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["interactions"] + report["skipped_rows"] == 100_836
    assert (report["users"], report["quality"]["items"]) == (610, 9742)
    assert report["preferences"]["chosen_min"] == 4
    assert report["preferences"]["rejected_max"] == 2
    assert report["rows"]["train_preference.jsonl"] > 5000
    assert report["rows"]["validation_preference.jsonl"] > 300
