"""The settings of a conversion: limits of the rows, form of the shards, handling of bad rows."""

import math
from dataclasses import dataclass
from typing import Any

from ugt_composer.data.codec import LARGEST_ACTION, width_for
from ugt_composer.errors import UserError, nearest
from ugt_composer.jsonl.schema import PREFERENCE, RECOMMEND
from ugt_composer.storage.hashed_file import available_hashes
from ugt_composer.vocabulary import (
    DEFAULT_CODEBOOK_SIZES,
    LEVELS,
    MAX_HISTORY,
    MAX_POSITIONS,
    MAX_TARGET,
    NUM_SPECIAL_IDS,
)

KINDS = (RECOMMEND, PREFERENCE)
FAIL, QUARANTINE = "fail", "quarantine"

LARGEST_COUNT = 0xFFFF  # the codec keeps the number of tokens in 16 bits
LARGEST_POSITION = (1 << 30) - 1  # in the file; --max-positions limits the stored ones
LARGEST_CODEBOOK = 1 << 31
SMALLEST_SIZE_LIMIT = 1 << 12
LARGEST_SIZE_LIMIT = (1 << 32) - 1  # MDS keeps offsets in 32 bits

RANGE_BYTES = 1 << 25  # input bytes that a worker converts at a time: a shard of some 10 MB
SIZE_LIMIT = 1 << 26
MAX_LINE_BYTES = 1 << 24

# The compression algorithms of the MDS format (the first part of `--compression`) and their levels.
COMPRESSION_LEVELS = {"br": range(12), "bz2": range(1, 10), "gz": range(10), "snappy": range(0), "zstd": range(1, 23)}


@dataclass(frozen=True)
class Settings:
    """One conversion. The fields are named like the command-line options; only tests change `range_bytes`.

    A `catalogue` of None is looked for beside the input; "none" means that items are not checked. The same holds for
    `actions`, the file of their names; `largest_action` follows from it and is no option.
    """

    kind: str
    codebook_sizes: tuple[int, ...] = DEFAULT_CODEBOOK_SIZES
    max_history: int = MAX_HISTORY
    max_target: int = MAX_TARGET
    max_positions: int = MAX_POSITIONS
    on_error: str = FAIL
    max_error_rate: float = 0.01
    catalogue: str | None = None
    max_fraction_outside_catalogue: float = 0.05
    actions: str | None = None
    largest_action: int = LARGEST_ACTION
    max_line_bytes: int = MAX_LINE_BYTES
    compression: str | None = None
    hashes: tuple[str, ...] = ("xxh64",)
    size_limit: int = SIZE_LIMIT
    range_bytes: int = RANGE_BYTES

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"--kind {self.kind} is unknown; {nearest(self.kind, list(KINDS))}")
        if len(self.codebook_sizes) != LEVELS:
            raise UserError(f"--codebook-sizes takes {LEVELS} sizes, one per level; found {len(self.codebook_sizes)}")
        for size in self.codebook_sizes:
            _check("--codebook-sizes", size, NUM_SPECIAL_IDS + 1, LARGEST_CODEBOOK)
        _check("--max-history", self.max_history, 1, LARGEST_COUNT)
        _check("--max-target", self.max_target, 1, LARGEST_COUNT)
        _check("--max-positions", self.max_positions, 2, LARGEST_CODEBOOK)
        _check("--max-line-bytes", self.max_line_bytes, 1, 1 << 40)
        _check("--size-limit", self.size_limit, SMALLEST_SIZE_LIMIT, LARGEST_SIZE_LIMIT)
        if not math.isfinite(self.max_error_rate) or not 0 <= self.max_error_rate <= 1:
            raise UserError(f"--max-error-rate {self.max_error_rate} is outside 0..1")
        if not 0 <= self.max_fraction_outside_catalogue <= 1:
            raise UserError(f"--max-fraction-outside-catalogue {self.max_fraction_outside_catalogue} is outside 0..1")
        _check_compression(self.compression)
        _check_hashes(self.hashes)

    @property
    def width(self) -> int:
        """Bytes per integer of a packed row: the same for all rows of a folder, whatever their values."""
        return width_for(max(*self.codebook_sizes, self.max_positions) - 1)


def limits_for(history: int, targets: int) -> dict[str, Any]:
    """The limits, by field of `Settings`, that cut no row with at most so many items: the default ones, or larger."""
    tokens = history + 1  # the user token is one of them
    return {
        "max_history": max(MAX_HISTORY, tokens),
        "max_target": max(MAX_TARGET, targets),
        "max_positions": max(MAX_POSITIONS, tokens, targets),
    }


def _check(option: str, value: int, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        raise UserError(f"{option} {value} is outside {smallest}..{largest}")


def _check_compression(compression: str | None) -> None:
    if compression is None:
        return
    family, _, level = compression.partition(":")
    if family not in COMPRESSION_LEVELS:
        raise UserError(f"--compression {compression} is unknown; {nearest(family, ['none', *COMPRESSION_LEVELS])}")
    levels = COMPRESSION_LEVELS[family]
    if ":" in compression and not (level.isdecimal() and int(level) in levels):
        allowed = f"levels {levels[0]}..{levels[-1]}" if levels else "no levels"
        raise UserError(f"--compression {compression}: {family} has {allowed}")


def _check_hashes(hashes: tuple[str, ...]) -> None:
    for name in hashes:
        if name not in available_hashes():
            raise UserError(f"--hashes {name} is unknown; {nearest(name, ['none', *available_hashes()])}")
    if list(hashes) != sorted(set(hashes)):
        raise UserError(f"--hashes {' '.join(hashes)}: expected each name once, in alphabetical order")
