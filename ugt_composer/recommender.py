"""Recommends from packed rows: collation, encoder, one decoder step, beam search."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from ugt_composer.data.codec import Row, encode_row, width_for
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.generation.beam_search import Recommendations, beam_search
from ugt_composer.generation.trie import ItemTrie
from ugt_composer.model.ugt import UGT


class Recommender:
    """A model in evaluation mode and the catalogue it recommends from.

    Args:
        model: the model.
        trie: the catalogue; None recommends from the whole code space.
    """

    def __init__(self, model: UGT, trie: ItemTrie | None):
        self.device = next(model.parameters()).device
        self.model = model.eval()
        self.trie = None if trie is None else trie.to(self.device)
        self.width = width_for(max(*model.codebook_sizes, model.encoder_input.position.num_embeddings))

    @torch.inference_mode()
    def recommend(self, rows: Sequence[Row], k: int, beam_width: int, exclude_seen: bool) -> Recommendations:
        """The k best items of each row, (B, k, 3); with `exclude_seen` none of the row's history."""
        batch = collate([PackedRow(i, encode_row(row, self.width)) for i, row in enumerate(rows)])
        batch = {key: value.to(self.device) for key, value in batch.items()}  # type: ignore[attr-defined, assignment]
        seen = batch["encoder_ids"] if exclude_seen else None
        return beam_search(self.model.level_logits, self.model.start(batch), self.trie, k, max(k, beam_width), seen)


def batched(rows: Iterator, size: int) -> Iterator[list]:
    """Lists of up to `size` of an iterator's items."""
    while piece := list(islice(rows, size)):
        yield piece
