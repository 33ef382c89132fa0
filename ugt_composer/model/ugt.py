"""The UGT model: predicts the semantic ID of the next item from a history.

B rows, S history tokens, T target tokens, M labelled ones of all rows, N rejected items, n items of the catalogue, D
width, V_l codebook size of level l.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ugt_composer.catalogue.seen_nodes import SeenNodes
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.batch import Batch
from ugt_composer.generation.catalogue_vectors import CatalogueVectors, are_held
from ugt_composer.generation.item_log_probs import child_logits, score_items, score_over_codebooks
from ugt_composer.generation.item_samples import draw_group
from ugt_composer.generation.item_scores import SeenItems
from ugt_composer.generation.node_biases import NodeBiases
from ugt_composer.model.decoder import Decoder
from ugt_composer.model.embedding import EMBEDDING_STD, InputEmbedding, ItemEmbedding
from ugt_composer.model.encoder import Encoder
from ugt_composer.model.float32_linear import Float32Linear
from ugt_composer.model.heads import LevelHeads
from ugt_composer.model.history_tokens import EncodedHistory, HistoryTokens
from ugt_composer.model.label_scores import LabelScores, LevelSoftmax
from ugt_composer.model.moe import RouterStats
from ugt_composer.model.repeat_bias import RepeatBias, level_biases
from ugt_composer.model.time_buckets import history_times, since_newest, since_previous, since_token, time_bucket
from ugt_composer.model.zero_embedding import ZeroEmbedding
from ugt_composer.row_random import RowNoise
from ugt_composer.vocabulary import BOS, ITEM, LEVELS

# The weights, all zero at first, that only some models have, by the key that adds them.
OPTIONAL_WEIGHTS = {
    "pair_buckets": ("pairs",),
    "repeat_bias": ("level_repeats", "user_repeats"),
    "num_actions": ("action_embedding",),
    "time_buckets": ("since_embedding", "gap_embedding", "elapsed_embedding"),
    "relative_time_bias": ("time_bias",),
}


def is_added_by(weight: str, keys: Iterable[str]) -> bool:
    """Whether a weight, by its name in the state dict, is one that these keys add."""
    return any(name in weight.split(".") for key in keys for name in OPTIONAL_WEIGHTS[key])


class UGT(nn.Module):
    """Unified Generative Transformer: HSTU-style encoder, mixture-of-experts decoder, conditional level heads.

    Args:
        codebook_sizes: number of ids per level, including special ids.
        d_model: width D.
        n_heads: attention heads; divides d_model.
        n_encoder_layers: number of layers of the encoder.
        n_decoder_layers: number of layers of the decoder.
        d_ff: width of the encoder's feed-forward and of each expert.
        dropout: on embeddings, residual branches and inside feed-forwards.
        attention_dropout: on attention weights.
        attention_activation: φ of the encoder's pointwise attention.
        max_seq_len: maximum number of positions of an input.
        history_positions: from_start counts from the oldest token, like the data; from_end from the newest one, so that
            the latest token has the same position in histories of any length.
        num_token_types: token types, each with its own γ, β in the encoder's norms.
        num_experts: experts of a decoder layer.
        top_k_experts: experts that compute a token.
        expert_capacity_factor: bound on an expert's tokens in training, relative to an equal distribution; None: no
            bound, no token is dropped.
        user_pooling: the encoder output that makes the user vector: that of the first token, of the last one, their
            sum, or the masked mean. The first token is the same for all users; the last one is the user's latest.
        user_activation: activation of the user vector; none does not bound its length, as suits a dot product.
        level_softmax: each level's probabilities are over its codebook, or over the ids that the catalogue has below
            the ids of the levels above.
        decoder_start: user adds a projection of the pooled encoder output (`user_pooling`) to BOS, from which the next
            item is generated; with bos it comes from cross-attention alone.
        tie_embeddings: the level heads use the level embeddings as their weight.
        pair_buckets: rows of the table of vectors of (L1, L2) pairs, see `LevelHead`; 0: none. For a softmax over the
            catalogue.
        repeat_bias: learns how likely a user takes an item of the history again, see `repeat_bias.py`. For a softmax
            over the catalogue.
        num_actions: number of actions, with ids from 1, that the encoder reads; 0: it reads none.
        time_buckets: buckets of the times since a token and since the one before it, which the encoder reads, and of
            the time since the newest token, which the decoder reads; 0: neither reads times. See `time_bucket`.
        relative_time_bias: adds a bias for the time between two tokens to the encoder's attention; needs time_buckets.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        d_model: int,
        n_heads: int,
        n_encoder_layers: int,
        n_decoder_layers: int,
        d_ff: int,
        dropout: float,
        attention_dropout: float,
        attention_activation: Literal["silu", "relu"],
        max_seq_len: int,
        history_positions: Literal["from_start", "from_end"],
        num_token_types: int,
        num_experts: int,
        top_k_experts: int,
        expert_capacity_factor: float | None,
        user_pooling: Literal["first", "last", "first_and_last", "mean"],
        user_activation: Literal["tanh", "none"],
        decoder_start: Literal["bos", "user"],
        tie_embeddings: bool,
        level_softmax: Literal["codebook", "catalogue"],
        pair_buckets: int,
        repeat_bias: bool,
        num_actions: int,
        time_buckets: int,
        relative_time_bias: bool,
    ):
        super().__init__()
        self.codebook_sizes = tuple(codebook_sizes)
        self.user_pooling = user_pooling
        self.user_activation = user_activation
        self.history_positions = history_positions
        self.is_over_catalogue = level_softmax == "catalogue"
        self.time_buckets = time_buckets
        self.has_time_bias = relative_time_bias
        self.item_embedding = ItemEmbedding(codebook_sizes, d_model)
        self.encoder_input = InputEmbedding(d_model, max_seq_len, num_token_types, dropout)
        self.encoder = Encoder(
            n_encoder_layers,
            d_model,
            num_token_types,
            n_heads=n_heads,
            d_ff=d_ff,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation=attention_activation,
            bias_buckets=time_buckets if relative_time_bias else 0,
        )
        self.decoder_input = InputEmbedding(d_model, max_seq_len, num_token_types, dropout)
        self.start_proj = nn.Linear(d_model, d_model) if decoder_start == "user" else None
        self.decoder = Decoder(
            n_decoder_layers,
            d_model,
            n_heads=n_heads,
            d_ff=d_ff,
            num_experts=num_experts,
            top_k=top_k_experts,
            capacity_factor=expert_capacity_factor,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.heads = LevelHeads(codebook_sizes, d_model, tie_embeddings, pair_buckets)
        self.user_proj = Float32Linear(d_model, d_model)
        self.item_proj = Float32Linear(d_model, d_model)
        self.level_repeats = RepeatBias(d_model, LEVELS) if repeat_bias else None
        self.user_repeats = RepeatBias(d_model, 1) if repeat_bias else None
        self.action_embedding = ZeroEmbedding(1 + num_actions, d_model) if num_actions > 0 else None
        has_times = time_buckets > 0
        self.since_embedding = ZeroEmbedding(1 + time_buckets, d_model) if has_times else None
        self.gap_embedding = ZeroEmbedding(1 + time_buckets, d_model) if has_times else None
        self.elapsed_embedding = ZeroEmbedding(1 + time_buckets, d_model) if has_times else None
        self._init_weights(n_encoder_layers, n_decoder_layers)

    def _init_weights(self, n_encoder_layers: int, n_decoder_layers: int) -> None:
        """Linear layers keep the variance; the last of each residual branch is scaled down with depth (GPT-2, 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or "norm" in name or name.endswith("bias") or is_added_by(name, OPTIONAL_WEIGHTS):
                continue  # they stay at ones and zeros
            if "embedding" in name or "position" in name or "token_type" in name or name.startswith("heads."):
                nn.init.normal_(parameter, std=EMBEDDING_STD)
            else:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))
        for layers, branches in (
            (self.encoder.layers, 2 * n_encoder_layers),
            (self.decoder.layers, 3 * n_decoder_layers),
        ):
            for name, parameter in layers.named_parameters():
                if name.endswith(("out_proj.weight", "down.weight", "ff.down")):
                    parameter.data.div_(math.sqrt(branches))
        for level, head in enumerate(self.heads.heads):
            if level > 0:
                # The inputs of prefix_proj, id vectors, have std EMBEDDING_STD at first.
                nn.init.normal_(head.prefix_proj.weight, std=1.0)
                nn.init.normal_(head.hidden_proj.weight, std=1 / math.sqrt(head.hidden_proj.in_features))
                nn.init.normal_(head.out_proj.weight, std=EMBEDDING_STD)
        for table in self.item_embedding.levels:
            table.weight.data[table.padding_idx].zero_()

    def forward(
        self,
        batch: Batch,
        trie: ItemTrie | None = None,
        with_item_vectors: bool = False,
        group_size: int = 0,
        noise: RowNoise | None = None,
        with_logits: bool = False,
        anchors: Sequence[LevelSoftmax] | None = None,
    ) -> dict[str, Any]:
        """A teacher-forced forward pass over a batch.

        Args:
            trie: the catalogue; required for its item vectors, and if `level_softmax` is catalogue.
            with_item_vectors: whether to compute the vectors of all items of the catalogue.
            group_size: G, items to draw from the model for each row, with `noise`; if `level_softmax` is catalogue.
            with_logits: whether to return the logits of whole codebooks; losses do not need them.
            anchors: the reference's `label_softmaxes`, to compare the model's with.

        Returns:
            label_logps, label_hits, label_mean_logps, label_divergences, or l1_logits, l2_logits, l3_logits: see
                `target_outputs`.
            user_repr, item_repr: (B, D) float32, vectors of the history and of the row's target item.
            router_counts, router_prob_sums: (decoder layers, E), see RouterStats.
            catalogue_repr: see `catalogue_vectors`.
            bos_hidden: (B, D), the hidden state that the next item is generated from.
            bos_biases, seen_items: `NodeBiases` of that state, and `SeenItems`; only with `repeat_bias`.
            chosen_logps (B,), rejected_logps (B, N): only if the batch has rejected items; not in training with a
                group, whose loss does not read them.
            group_…: the group and its target, see `draw_group`; only with a group_size.
        """
        memory = self.encode(batch)
        hidden, router = self.decode(batch, memory, scores_items=group_size > 0)
        target = batch["labels"][:, 0].clamp(min=0)
        seen = self.seen_nodes(batch, trie)
        biases = self.repeat_biases(hidden[:, :1], seen)
        outputs: dict[str, Any] = self.target_outputs(hidden, batch, trie, seen, with_logits, anchors)
        outputs |= {
            "user_repr": self.user_vector(memory),
            "item_repr": self.item_vectors(target),
            "router_counts": router.counts,
            "router_prob_sums": router.prob_sums,
            "bos_hidden": hidden[:, 0],
        }
        if seen is not None:
            outputs |= {"bos_biases": biases, "seen_items": self.seen_items(outputs["user_repr"], seen)}
        if with_item_vectors:
            assert trie is not None
            outputs["catalogue_repr"] = self.catalogue_vectors(trie)
        if group_size:
            assert trie is not None
            assert noise is not None
            outputs |= draw_group(self.level_logits, hidden[:, 0], target, trie, group_size, noise, biases)
        if batch["rejected_ids"].shape[1] > 0 and not (group_size and self.training):
            ids = torch.cat((target[:, None], batch["rejected_ids"]), dim=1)
            logps = self.item_logps(hidden[:, 0], ids, trie, biases)
            outputs |= {"chosen_logps": logps[:, 0], "rejected_logps": logps[:, 1:]}
        return outputs

    def encode(self, batch: Batch) -> EncodedHistory:
        """The encoded history."""
        tokens, positions = HistoryTokens.of(batch), batch["encoder_positions"]
        if self.history_positions == "from_end":
            newest = positions.masked_fill(~tokens.mask, 0).amax(dim=1, keepdim=True)
            positions = (newest - positions).clamp(min=0)  # padding is masked, so its position does not matter
        vectors = self.item_embedding(tokens.select(batch["encoder_ids"]))
        if self.action_embedding is not None:
            vectors = vectors + self.action_embedding(tokens.select(batch["encoder_actions"]))
        times = history_times(batch) if self.time_buckets > 0 else None
        if times is not None:
            vectors = vectors + self._time_vectors(times, batch["decoder_times"][:, :1], tokens)
        types = tokens.select(batch["encoder_token_types"])
        x = self.encoder_input(vectors, tokens.select(positions), types)
        return EncodedHistory(self.encoder(x, types, tokens, times if self.has_time_bias else None), tokens)

    def _time_vectors(self, times: Tensor, prediction_time: Tensor, tokens: HistoryTokens) -> Tensor:
        """What is added to the encoder's tokens for their times (B, S), until the prediction's (B, 1)."""
        assert self.since_embedding is not None
        assert self.gap_embedding is not None
        since, gap = (
            tokens.select(time_bucket(seconds, self.time_buckets))
            for seconds in (since_token(times, prediction_time), since_previous(times))
        )
        return self.since_embedding(since) + self.gap_embedding(gap)

    def _with_elapsed(self, vectors: Tensor, batch: Batch) -> Tensor:
        """The vectors (B, T, D) of the first T target tokens, with what is added for the time since the history."""
        if self.elapsed_embedding is None:
            return vectors
        elapsed = since_newest(history_times(batch), batch["decoder_times"][:, : vectors.shape[1]])
        return vectors + self.elapsed_embedding(time_bucket(elapsed, self.time_buckets))

    def decode(self, batch: Batch, memory: EncodedHistory, scores_items: bool = False) -> tuple[Tensor, RouterStats]:
        """The decoder's hidden states (B, T, D) over the encoded history, and the router's sums.

        Items are scored from the state at BOS. In a batch with rejected items, or with `scores_items`, no expert drops
        that token, so that an item's score depends neither on the other rows nor on the capacity, as in evaluation and
        generation.
        """
        scores_items = scores_items or batch["rejected_ids"].shape[1] > 0
        vectors = self._with_elapsed(self.item_embedding(batch["decoder_ids"]), batch)
        x = self.decoder_input(vectors, batch["decoder_positions"], batch["decoder_token_types"])
        return self.decoder(self._started(x, memory), batch["decoder_mask"], memory, scores_items)

    def start(self, batch: Batch) -> Tensor:
        """The hidden state at BOS, (B, D): all that scoring or generating the next item needs."""
        return self.start_over(self.encode(batch), batch)

    def start_over(self, memory: EncodedHistory, batch: Batch) -> Tensor:
        """Like `start`, for the encoded history of a batch."""
        mask = memory.tokens.mask
        rows, device = mask.shape[0], mask.device  # len() would fix the number of rows of an exported program
        bos = self.item_embedding(torch.full((rows, 1, LEVELS), BOS, device=device))
        zeros = torch.zeros(rows, 1, dtype=torch.long, device=device)
        x = self.decoder_input(self._with_elapsed(bos, batch), zeros, zeros + ITEM)
        hidden, _ = self.decoder(self._started(x, memory), torch.ones_like(zeros, dtype=torch.bool), memory)
        return hidden[:, 0]

    def _started(self, x: Tensor, memory: EncodedHistory) -> Tensor:
        """The decoder's input (B, T, D), to whose first token the user is added if `decoder_start` is user."""
        if self.start_proj is None:
            return x
        first = x[:, :1] + self.start_proj(self._pooled(memory)).unsqueeze(1)
        return torch.cat((first, x[:, 1:]), dim=1)

    def seen_nodes(self, batch: Batch, trie: ItemTrie | None) -> SeenNodes | None:
        """What the histories of a batch hold, if the model has a bias for it."""
        if self.level_repeats is None:
            return None
        assert trie is not None  # the config requires a catalogue
        return SeenNodes.of(batch["encoder_ids"], trie)

    def repeat_biases(self, hidden: Tensor, seen: SeenNodes | None) -> NodeBiases | None:
        """The biases of B · T rows, given the hidden states (B, T, D)."""
        if self.level_repeats is None or seen is None:
            return None
        # Two-dimensional, as in `score_items`, so that a policy and a reference with equal weights are bitwise equal.
        strengths = self.level_repeats(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return level_biases(strengths, seen)

    def seen_items(self, users: Tensor, seen: SeenNodes | None) -> SeenItems | None:
        """The items of the histories, with their biases in the score of the user vectors (B, D)."""
        if self.user_repeats is None or seen is None:
            return None
        return SeenItems(seen.nodes[-1], self.user_repeats(users))

    def target_outputs(
        self,
        hidden: Tensor,
        batch: Batch,
        trie: ItemTrie | None,
        seen: SeenNodes | None,
        with_logits: bool = False,
        anchors: Sequence[LevelSoftmax] | None = None,
    ) -> dict[str, Tensor]:
        """What losses read of the labels, given hidden states (B, T, D). Level l is conditioned on the labels above.

        If `level_softmax` is catalogue:
            l1_logits, l2_logits, l3_logits: (B, T, C_l), see `child_logits`.
            label_slots: int64 (B, T, 3), the slots of the labels, or -1.
        If it is codebook, of the M tokens that the batch's `label_tokens` names; without these of all, (B, T, …):
            l1_logits, l2_logits, l3_logits: (M, V_l); only `with_logits`, otherwise
            label_logps: float32 (M, 3), log p of the labels.
            label_hits: bool (M, 3), whether a label is the level's most probable id.
            label_mean_logps: float32 (M, 3), the mean of log p over the level's ids.
            label_divergences: float32 (M, 3), KL(anchor ‖ model) of each level; only with anchors.
        """
        labels = batch["labels"]
        if self.is_over_catalogue:
            assert trie is not None  # the config requires a catalogue
            return self._logits_over_catalogue(hidden, labels, trie, seen)
        hidden, labels = _labelled(hidden, batch)
        ids = labels.clamp(min=0)  # an ignored label is conditioned on as PAD, the zero vector
        if with_logits:
            return {
                f"l{level + 1}_logits": self.level_logits(level, hidden, ids[..., :level]) for level in range(LEVELS)
            }
        hidden, ids = hidden.flatten(0, -2), ids.flatten(0, -2)
        levels = [
            self.level_scores(level, hidden, ids[:, :level], ids[:, level, None], anchor)
            for level, anchor in enumerate(anchors or (None,) * LEVELS)
        ]
        outputs = {
            "label_logps": torch.cat([level.logps for level in levels], dim=1),
            "label_hits": torch.cat([level.is_best for level in levels], dim=1),
            "label_mean_logps": torch.stack([level.mean_logps for level in levels], dim=1),
        }
        if anchors is not None:
            values = [level.divergences for level in levels if level.divergences is not None]
            outputs["label_divergences"] = torch.stack(values, dim=1)
        return {name: values.view(labels.shape) for name, values in outputs.items()}

    def label_softmaxes(self, hidden: Tensor, batch: Batch) -> tuple[LevelSoftmax, ...]:
        """The softmaxes over codebooks of the tokens of `target_outputs`, given hidden states (B, T, D), without
        gradient."""
        hidden, labels = _labelled(hidden, batch)
        hidden, ids = hidden.flatten(0, -2), labels.clamp(min=0).flatten(0, -2)
        levels = range(LEVELS)
        embedding = self.item_embedding
        return tuple(
            self.heads(level, hidden, ids[:, :level], as_softmax=True, embedding=embedding) for level in levels
        )

    def _logits_over_catalogue(
        self, hidden: Tensor, labels: Tensor, trie: ItemTrie, seen: SeenNodes | None
    ) -> dict[str, Tensor]:
        biases = self.repeat_biases(hidden, seen)
        levels = child_logits(self.level_logits, hidden.flatten(0, 1), labels.flatten(0, 1), trie, biases=biases)
        logits = {
            f"l{n}_logits": level.logits.unflatten(0, labels.shape[:2]) for n, level in enumerate(levels, start=1)
        }
        return logits | {"label_slots": torch.stack([level.slots.view(labels.shape[:2]) for level in levels], dim=-1)}

    def level_logits(
        self, level: int, hidden: Tensor, prefix: Tensor, beam: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """Logits (..., V_level) given hidden (..., D) and the ids of the levels above, prefix (..., level) int64; or
        only those of some ids, see LevelHead."""
        return self.heads(level, hidden, prefix, beam, ids, embedding=self.item_embedding)

    def level_scores(
        self, level: int, hidden: Tensor, prefix: Tensor, ids: Tensor, anchor: LevelSoftmax | None = None
    ) -> LabelScores:
        """Of ids (M, K) int64 over the level's codebook, given hidden (M, D) and the ids of the levels above, prefix
        (M, level) int64."""
        return self.heads(level, hidden, prefix, labels=ids, anchor=anchor, embedding=self.item_embedding)

    def level_log_probs(self, level: int, hidden: Tensor, prefix: Tensor, ids: Tensor) -> Tensor:
        """The log-probabilities of `level_scores`, (M, K) float32."""
        return self.level_scores(level, hidden, prefix, ids).logps

    def item_logps(
        self, hidden: Tensor, ids: Tensor, trie: ItemTrie | None = None, biases: NodeBiases | None = None
    ) -> Tensor:
        """log p(item), (B, N) float32, of the items ids (B, N, 3), given the hidden state at BOS, (B, D), and its
        `repeat_biases`."""
        assert (biases is None) == (self.level_repeats is None)
        if not self.is_over_catalogue:
            return score_over_codebooks(self.level_log_probs, hidden, ids)
        assert trie is not None  # the config requires a catalogue
        return score_items(self.level_logits, hidden, ids, trie, biases=biases)

    def item_vectors(self, ids: Tensor) -> Tensor:
        """The item vectors that user vectors are compared with: ids int64 (..., 3) → (..., D) float32."""
        return self.item_proj(self.item_embedding(ids))

    def catalogue_vectors(self, trie: ItemTrie) -> Tensor | CatalogueVectors:
        """The item vectors of a catalogue: (n, D) float32, or `CatalogueVectors` if these were too large."""
        if are_held(len(trie), self.item_proj.out_features):
            return self.item_vectors(trie.items)
        tables = (self.item_proj(self.item_embedding.table(level), with_bias=level == 0) for level in range(LEVELS))
        return CatalogueVectors.of(trie, tuple(tables))

    def user_vector(self, memory: EncodedHistory) -> Tensor:
        """The user vector, pooled from the encoded history: (B, D) float32; in (−1, 1) with tanh."""
        vector = self.user_proj(self._pooled(memory))
        return torch.tanh(vector) if self.user_activation == "tanh" else vector

    def _pooled(self, memory: EncodedHistory) -> Tensor:
        """The encoder's output of the tokens that `user_pooling` names, (B, D)."""
        vectors, tokens = memory
        if self.user_pooling == "first":
            return tokens.first(vectors)
        if self.user_pooling == "last":
            return tokens.last(vectors)
        if self.user_pooling == "first_and_last":
            return tokens.last(vectors) + tokens.first(vectors)
        return tokens.mean(vectors)


def _labelled(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states (B, T, D) and labels of the batch's `label_tokens`, (M, D) and (M, 3), or of all tokens."""
    labels = batch["labels"]
    if "label_tokens" not in batch:
        return hidden, labels
    chosen = batch["label_tokens"]
    return hidden.flatten(0, 1).index_select(0, chosen), labels.flatten(0, 1).index_select(0, chosen)
