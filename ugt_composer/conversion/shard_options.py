"""Command-line options about the form of shards, shared by the programs that write them, and their settings."""

import argparse
from typing import Any

from ugt_composer.conversion.settings import RANGE_BYTES, SIZE_LIMIT, Settings

DEFAULTS = {"compression": "none", "hashes": Settings.hashes, "size_limit": SIZE_LIMIT, "range_bytes": RANGE_BYTES}


def add_shard_options(parser: argparse.ArgumentParser, title: str = "form of the shards") -> None:
    shards = parser.add_argument_group(title).add_argument
    shards(
        "--compression",
        default=DEFAULTS["compression"],
        metavar="NAME[:LEVEL]",
        help="none, zstd, gz, br, bz2 or snappy (default none)",
    )
    shards(
        "--hashes",
        nargs="+",
        default=DEFAULTS["hashes"],
        metavar="NAME",
        help="checksums in the index: xxh64, sha256, ... or none (default xxh64)",
    )
    shards(
        "--size-limit",
        type=_bytes,
        default=DEFAULTS["size_limit"],
        metavar="BYTES",
        help="maximum size of a shard before compression, such as 1000000 or 64mb (default 64mb)",
    )
    shards("--range-bytes", type=int, default=DEFAULTS["range_bytes"], help=argparse.SUPPRESS)  # for tests


def shard_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the options, by field of `Settings`."""
    return {
        "compression": None if args.compression == DEFAULTS["compression"] else args.compression,
        "hashes": tuple(sorted(name for text in args.hashes for name in text.split(",") if name != "none")),
        "size_limit": args.size_limit,
        "range_bytes": args.range_bytes,
    }


def changed_shard_options(args: argparse.Namespace) -> list[str]:
    """The options that have another value than their default."""
    changed = [name for name, default in DEFAULTS.items() if getattr(args, name) != default]
    return [f"--{name.replace('_', '-')}" for name in changed]


def _bytes(text: str) -> int:
    """Parses a number of bytes: 500, 64kb, 64mb, 1gb."""
    number, power = text, 0
    for unit_power, unit in enumerate(("kb", "mb", "gb"), start=1):
        if text.lower().endswith(unit):
            number, power = text[: -len(unit)], unit_power
    try:
        return int(number) << 10 * power
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected bytes such as 1000000, 64kb, 64mb or 1gb") from None
