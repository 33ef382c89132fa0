from pathlib import Path

from ugt_composer.importing.interactions import Columns, read_interactions
from ugt_composer.importing.log import Log, census
from ugt_composer.importing.plausibility import about_values


def rows(path: Path, text: str, **options) -> tuple[str, ...]:
    path.write_text("user,item_id,sku,date\n" + text)
    log = Log.of(read_interactions(path, **options))
    return about_values(path, log, census(log))


def test_columns_whose_values_show_that_they_are_something_else_are_remarked(tmp_path):
    text = "".join(f"{n % 3},{n},{n % 5},2020-01-01\n" for n in range(20))
    warnings = rows(tmp_path / "r.csv", text)
    assert "column 'item_id' has another item in each of the 20 rows" in warnings[0]
    assert warnings[0].endswith("--item-column (there is also 'sku')")
    assert "column 'date' has the same time in all 20 rows" in warnings[1]
    assert rows(tmp_path / "r.csv", text, columns=Columns(item="sku"), file_order=True) == ()


def test_times_that_are_ratings_are_remarked(tmp_path):
    lines = [(user, f"i{step}", 0, 1 + (user + step) % 5) for user in range(4) for step in range(10)]
    (warning,) = rows(tmp_path / "r.csv", "".join(",".join(map(str, line)) + "\n" for line in lines))
    assert (
        "column 'date' has only 5 different times, 1 to 5, and 20 of 40 interactions have the same time as their "
        "user's one before, so they keep the order of the file" in warning
    )
    steps = "".join(f"{user},i{step},0,{step}\n" for user in range(4) for step in range(10))
    assert rows(tmp_path / "r.csv", steps) == ()


def test_an_id_with_most_rows_is_remarked(tmp_path):
    def placed(user: str, item: str, times: int) -> tuple[str, ...]:
        others = [(n, f"i{n}-{m}", "") for n in range(1, 41) for m in range(8)]
        many = [(user, item or f"i{n % 8}", "") for n in range(times)]
        lines = [f"{user},{item},{sku},{time}" for time, (user, item, sku) in enumerate(others + many)]
        return rows(tmp_path / "r.csv", "\n".join(lines) + "\n")

    for user in ("0", "-1", "guest", "some name"):
        (warning,) = placed(user, "", 200)
        assert f"user {user!r} has 200 of 520 rows (38%; half of the users have 8 or fewer)" in warning
    assert "user 'anonymous' has 80 of 400 rows" in placed("anonymous", "", 80)[0]
    assert placed("some name", "", 80) == placed("0", "", 20) == (), "busy users"
    assert "item 'unknown' has 200 of 520 rows" in placed("guest", "unknown", 200)[1]
    assert len(placed("guest", "hit", 200)) == 1, "a popular item"
