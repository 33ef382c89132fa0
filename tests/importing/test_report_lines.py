from ugt_composer.importing.report_lines import lines_about_interactions


def test_what_was_found_has_a_line_each():
    report = {
        "times": {"first": "2018-01-01", "last": "2019-01-01", "written_as": "seconds since 1970"},
        "actions": {"click": 1200, "": 3},
        "ratings": {"missing": 7, "lowest": 0.5, "highest": 5.0},
        "duplicates": 2,
        "repeats": {"interactions": 5, "users": 4, "kept": "keep"},
        "k_core": {"k": 5, "rounds": 2, "users_removed": 1, "items_removed": 3, "interactions_removed": 9},
    }
    assert lines_about_interactions(report) == [
        "from 2018-01-01 to 2019-01-01 (seconds since 1970)",
        "actions: click 1,200, (empty) 3",
        "ratings from 0.5 to 5, 7 rows without one",
        "duplicates of an earlier row: 2",
        "5 interactions of 4 users repeat an item of the same user (--repeats keep)",
        "5-core: 1 user, 3 items and 9 interactions removed in 2 rounds",
    ]
    report["repeats"] = {"interactions": 1, "users": 1, "kept": "keep"}
    assert "1 interaction of 1 user repeats an item of the same user (--repeats keep)" in lines_about_interactions(
        report
    )
    nothing = {"ratings": None, "duplicates": 0, "repeats": {"interactions": 0, "users": 0, "kept": "keep"}}
    assert lines_about_interactions(nothing) == []
