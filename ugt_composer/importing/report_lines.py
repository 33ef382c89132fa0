"""Lines of the printed report about the interactions, for all programs that read them."""

from typing import Any

MOST_ACTIONS = 12  # actions that are listed


def lines_about_interactions(report: dict[str, Any]) -> list[str]:
    """The range of times; actions, ratings and repeats with their counts; what was left out of the histories.

    Args:
        report: with the facts of a Corpus.
    """
    lines = []
    if "times" in report:
        times = report["times"]
        lines.append(f"from {times['first']} to {times['last']} ({times['written_as']})")
    if "actions" in report:
        counts = [f"{name or '(empty)'} {count:,}" for name, count in report["actions"].items()]
        lines.append("actions: " + ", ".join(counts[:MOST_ACTIONS]) + (" …" if len(counts) > MOST_ACTIONS else ""))
    ratings, repeats = report["ratings"], report["repeats"]
    if ratings is not None and "lowest" in ratings:
        range_of_ratings = f"ratings from {ratings['lowest']:g} to {ratings['highest']:g}"
        lines.append(f"{range_of_ratings}, {ratings['missing']:,} rows without one")
    if report["duplicates"]:
        lines.append(f"duplicates of an earlier row: {report['duplicates']:,}")
    if repeats["interactions"]:
        lines.append(
            f"{repeats['interactions']:,} interactions of {repeats['users']:,} users repeat an item of the same user "
            f"(--repeats {repeats['kept']})"
        )
    if "k_core" in report:
        core = report["k_core"]
        lines.append(
            f"{core['k']}-core: {core['users_removed']:,} users, {core['items_removed']:,} items and "
            f"{core['interactions_removed']:,} interactions removed in {core['rounds']} rounds"
        )
    return lines
