"""Lines of the printed report about the interactions, for all programs that read them."""

from typing import Any

from ugt_composer.terminal import counted

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
        lines.append(f"actions: {_counts(report['actions'])}")
    ratings, repeats = report["ratings"], report["repeats"]
    if ratings is not None and "lowest" in ratings:
        range_of_ratings = f"ratings from {ratings['lowest']:g} to {ratings['highest']:g}"
        lines.append(f"{range_of_ratings}, {counted(ratings['missing'], 'row')} without one")
    if report["duplicates"]:
        lines.append(f"duplicates of an earlier row: {report['duplicates']:,}")
    if repeats["interactions"]:
        repeat = "repeats" if repeats["interactions"] == 1 else "repeat"
        lines.append(
            f"{counted(repeats['interactions'], 'interaction')} of {counted(repeats['users'], 'user')} "
            f"{repeat} an item of the same user (--repeats {repeats['kept']})"
        )
    if "k_core" in report:
        core = report["k_core"]
        lines.append(
            f"{core['k']}-core: {counted(core['users_removed'], 'user')}, {counted(core['items_removed'], 'item')} and "
            f"{counted(core['interactions_removed'], 'interaction')} removed in {counted(core['rounds'], 'round')}"
        )
    return lines


def lines_about_histories(facts: dict[str, Any]) -> list[str]:
    """What histories hold beside positive items.

    Args:
        facts: those of a Timeline.
    """
    lines = []
    if facts["not_positive"]:
        lines.append(
            f"{facts['not_positive']:,} interactions that are not positive are in histories too "
            f"(--history {facts['hold']})"
        )
    if "actions" in facts:
        lines.append(f"actions of the rows: {_counts(facts['actions'])}")
    if "why_no_times" in facts:
        lines.append(f"rows have no times: {facts['why_no_times']}")
    return lines


def _counts(actions: dict[str, int]) -> str:
    counts = [f"{name or '(empty)'} {count:,}" for name, count in actions.items()]
    return ", ".join(counts[:MOST_ACTIONS]) + (" …" if len(counts) > MOST_ACTIONS else "")
