"""Rows of random items, for benchmarks that depend on shapes but not on what is learnt."""

from collections.abc import Sequence

import numpy as np

from ugt_composer.data.codec import DECODER_COLUMNS, ENCODER_COLUMNS, Row, encode_row
from ugt_composer.data.collate import PackedRow
from ugt_composer.vocabulary import BOS, ITEM, NUM_SPECIAL_IDS

LEVEL_OF = (0, 1, 2, 0, 0, 0, 1, 2)  # level of each column of a row; 3 and 4, position and token type, are set below


def random_row(number: int, codebooks: Sequence[int], history: int, target: int, rejected: int = 0) -> PackedRow:
    """A random row that depends only on its arguments."""
    random = np.random.default_rng(number)

    def table(length: int, columns: int) -> np.ndarray:
        sizes = [codebooks[level] for level in LEVEL_OF[:columns]]
        ids = np.stack([random.integers(NUM_SPECIAL_IDS, size, length) for size in sizes], axis=1)
        if columns > 3:
            ids[:, 3], ids[:, 4] = np.arange(length), ITEM
        return ids

    encoder, decoder = table(history, ENCODER_COLUMNS), table(target, DECODER_COLUMNS)
    decoder[0, :3] = BOS
    row = Row(str(number), encoder, decoder, table(rejected, 3))
    return PackedRow(number, encode_row(row, 2))
