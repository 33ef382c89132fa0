"""What an import prints: its report, and the commands to type next."""

import shlex
from pathlib import Path
from typing import Any

from ugt_composer.conversion.import_shards import ENDING
from ugt_composer.conversion.settings import Settings as ShardSettings
from ugt_composer.importing.quality import summary
from ugt_composer.importing.report_lines import lines_about_histories, lines_about_interactions
from ugt_composer.importing.run import CATALOGUE
from ugt_composer.importing.run_yaml import DATA_YAML, PREFERENCES_YAML, about_signals
from ugt_composer.jsonl.schema import PREFERENCE, RECOMMEND
from ugt_composer.terminal import counted

STAGE_1, SMALL_SIZES = "yamls/stage1.yaml", "yamls/demo.yaml"


def print_report(report: dict[str, Any]) -> None:
    for text, number in (
        ("rows skipped because they could not be parsed", report["skipped_rows"]),
        ("interactions skipped because their items have no code or vector", report["interactions_without_id"]),
    ):
        if number:
            print(f"{text}: {number:,}")
    if report["first_skipped"]:
        print(f"the first of them: {report['first_skipped']}")
    if "item_matches" in report:
        matches, table = report["item_matches"], report["item_table"]
        print(
            f"{table['items']:,} items in the table of items, {table['items_without_text']:,} without text, "
            f"{matches['table_without_interactions']:,} without interactions; "
            f"{matches['not_in_table']:,} of the {matches['items_of_interactions']:,} items of the interactions are "
            "not in it"
        )
    parts = ", ".join(f"{count:,} {part}" for part, count in report["parts"].items())
    users = report["users"] + report.get("k_core", {"users_removed": 0})["users_removed"]
    print(f"{counted(report['interactions'], 'interaction')} of {counted(users, 'user')}")
    for line in lines_about_interactions(report):
        print(line)
    print(f"{report['positive']:,} of them in histories: {parts}")
    for line in lines_about_histories(report["histories"]):
        print(line)
    if report["training_after_median_test_time"] is not None:
        fraction = report["training_after_median_test_time"]
        print(f"{fraction:.1%} of the training interactions are later than the median test interaction")
    if "validation_from_date" in report:
        print(f"validation from {report['validation_from_date']}, test from {report['test_from_date']}")
    for name, count in report["rows"].items():
        print(f"{name}: {counted(count, 'row')}")
    print_preferences(report)
    for part, scores in report["popularity"].items():
        print(f"popularity on {part}: " + ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
    print(summary(report["quality"]))


def print_preferences(report: dict[str, Any]) -> None:
    facts = report["preferences"]
    if "why_none" in facts:
        print(f"no preference rows: {facts['why_none']}")
        return
    if "chosen_min" in facts:
        by = f"rated {facts['chosen_min']:g} or more against {facts['rejected_max']:g} or less"
    elif "rating_gap" in facts:
        by = f"any rating against those lower by {facts['rating_gap']:g} or more"
    else:
        by = f"{', '.join(facts['chosen_actions'])} against {', '.join(facts['rejected_actions'])}"
    print(f"preferences: {by}; validation by {facts['validation_by']}")
    if not any(name.startswith("train_preference") for name in report["rows"]):
        print(f"no training pairs among {facts['chosen']:,} chosen and {facts['rejected']:,} rejected; no file written")


def print_next(report: dict[str, Any], out: Path, shards: Path, limits: dict[str, Any]) -> None:
    """The commands that convert the files and check a run on them, to be copied into a shell.

    Args:
        shards: the folder to convert JSON Lines to.
        limits: of the conversion; those that are not its defaults are named.
    """
    sizes, catalogue = [str(size) for size in report["codebook_sizes"]], str(out / CATALOGUE)
    print(f"\nAll in {out}; the catalogue is {catalogue}, fingerprint {report['fingerprint'][:12]}. Next:")
    names = [name for name, count in report["rows"].items() if count and name.endswith(ENDING)]
    larger = {key: value for key, value in limits.items() if value > getattr(ShardSettings, key)}
    more = [text for key, value in larger.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    for name in names:
        stem = name.removesuffix(ENDING)
        kind = PREFERENCE if PREFERENCE in stem else RECOMMEND
        command = ["ugt", "convert", str(out / name), "--kind", kind, "--codebook-sizes", *sizes]
        command += [*more, "--catalogue", catalogue, "--out", str(shards / stem)]
        print("  " + shlex.join(command))
    if not Path(STAGE_1).exists():
        print("  ugt init .")
    data = str(out / DATA_YAML)
    print("  " + shlex.join(["ugt", "train", STAGE_1, data, "--dry-run"]))
    print("  " + shlex.join(["ugt", "train", STAGE_1, SMALL_SIZES, data]) + "  # small sizes, to try without a GPU")
    if (pairs := out / PREFERENCES_YAML).is_file():
        print(f"Stage 3 takes {pairs} after {DATA_YAML}, with the preference rows")
    if about := about_signals(report):
        print(about)
