"""Recommends items for rows: collation, encoder, one decoder step, beam search."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ugt_composer.catalogue.neighbours import ItemNeighbours
from ugt_composer.catalogue.open_nodes import OnlyItems
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.codec import Row, encode_row, width_for
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.data.history import SemanticId
from ugt_composer.data.recent_history import with_recent_history
from ugt_composer.generation.beam_search import Recommendations, beam_search
from ugt_composer.generation.catalogue_vectors import CatalogueVectors
from ugt_composer.generation.item_scores import ItemScores, NeighbourScores, Similarity
from ugt_composer.model.ugt import UGT
from ugt_composer.vocabulary import LEVELS


class Recommender:
    """A model in evaluation mode and the catalogue it recommends from.

    Args:
        model: the model.
        trie: the catalogue; None: all combinations of ids can be recommended.
        item_score_weight: weight of the user-item score (`ItemScores`) in the ranking; above 0 it needs a trie.
        temperature: that of the contrastive loss, for that score.
        similarity: likewise.
        neighbours: of the catalogue's items, and their fraction of that score; None: it is that of the vectors alone.
        max_history: items of a row's history that the model reads, the most recent ones; None: all.
    """

    def __init__(
        self,
        model: UGT,
        trie: ItemTrie | None,
        item_score_weight: float = 0.0,
        temperature: float = 0.07,
        similarity: Similarity = "cosine",
        max_history: int | None = None,
        neighbours: tuple[ItemNeighbours, float] | None = None,
    ):
        self.device = next(model.parameters()).device
        self.model = model.eval()
        self.trie = None if trie is None else trie.to(self.device)
        self.item_score_weight = item_score_weight
        self.temperature = temperature
        self.similarity: Similarity = similarity
        self.max_history = max_history
        self.neighbours = None if neighbours is None else (neighbours[0].to(self.device), neighbours[1])
        self.item_vectors: Tensor | CatalogueVectors | None = None
        if item_score_weight > 0:
            assert self.trie is not None
            with torch.inference_mode():
                self.item_vectors = model.catalogue_vectors(self.trie)
                if isinstance(self.item_vectors, CatalogueVectors) and similarity == "cosine":
                    self.item_vectors = self.item_vectors.normalised()
        self.width = width_for(max(*model.codebook_sizes, model.encoder_input.position.num_embeddings))

    @torch.inference_mode()
    def recommend(
        self,
        rows: Sequence[Row],
        k: int,
        beam_width: int,
        exclude_seen: bool,
        earlier: Sequence[Sequence[SemanticId]] | None = None,
        exclude: Sequence[Sequence[SemanticId]] | None = None,
        only: Sequence[Sequence[SemanticId] | None] | None = None,
    ) -> Recommendations:
        """The k best items of each row, (B, k, 3).

        Args:
            exclude_seen: recommend no item of the row's history or of the user's `earlier` items, which the row does
                not hold.
            exclude: semantic IDs that are not recommended to each user.
            only: the only ones that may be recommended to each user, None where there is no such list; needs a trie.
        """
        batch = collate([PackedRow(i, encode_row(row, self.width)) for i, row in enumerate(rows)])
        batch = {key: value.to(self.device) for key, value in batch.items()}  # type: ignore[attr-defined, assignment]
        excluded = [self._padded(ids) for ids in (earlier if exclude_seen else None, exclude) if ids is not None]
        if exclude_seen:
            excluded.insert(0, batch["encoder_ids"])
        closed = torch.cat(excluded, dim=1) if excluded else None
        opened = None
        if only is not None and any(ids is not None for ids in only):
            applies = torch.tensor([ids is not None for ids in only], device=self.device)
            opened = OnlyItems(self._padded([ids or () for ids in only]), applies)
        if self.max_history is not None:
            batch = with_recent_history(batch, self.max_history + 1)  # and the user's token
        memory = self.model.encode(batch)
        seen = self.model.seen_nodes(batch, self.trie)
        scores = None
        if self.item_vectors is not None:
            users = self.model.user_vector(memory)
            weight = self.item_score_weight
            counted = None
            if self.neighbours is not None:
                assert self.trie is not None
                counted = NeighbourScores.of(batch, self.trie, *self.neighbours)
            repeats = self.model.seen_items(users, seen)
            scores = ItemScores(users, self.item_vectors, self.temperature, weight, self.similarity, counted, repeats)
        hidden = self.model.start_over(memory, batch)
        biases = self.model.repeat_biases(hidden[:, None], seen)
        heads, width, over_catalogue = self.model.level_logits, max(k, beam_width), self.model.is_over_catalogue
        return beam_search(
            heads, hidden, self.trie, k, width, closed, scores, over_catalogue, only=opened, biases=biases
        )

    def _padded(self, lists: Sequence[Sequence[SemanticId]]) -> Tensor:
        """int64 (B, X, 3): each list of semantic IDs, padded with zeros."""
        tensors = [torch.tensor(ids, dtype=torch.int64).view(-1, LEVELS) for ids in lists]
        return pad_sequence(tensors, batch_first=True).to(self.device)


def batched(rows: Iterator, size: int) -> Iterator[list]:
    """Splits an iterator into lists of up to `size` items."""
    while piece := list(islice(rows, size)):
        yield piece
