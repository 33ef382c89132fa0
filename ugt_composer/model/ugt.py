"""UGT: a history in, the semantic ID of the next item out.

B rows, S history tokens, T target tokens, N rejected items, n items of the catalogue, D width, V_l codebook size of
level l.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.batch import Batch
from ugt_composer.generation.item_log_probs import child_logits, score_items
from ugt_composer.model.decoder import Decoder
from ugt_composer.model.embedding import EMBEDDING_STD, InputEmbedding, ItemEmbedding
from ugt_composer.model.encoder import Encoder
from ugt_composer.model.float32_linear import Float32Linear
from ugt_composer.model.heads import LevelHeads
from ugt_composer.model.moe import RouterStats
from ugt_composer.vocabulary import BOS, ITEM, LEVELS


class UGT(nn.Module):
    """Unified Generative Transformer: HSTU-style encoder, mixture-of-experts decoder, conditional level heads.

    Args:
        codebook_sizes: ids a level has, special ids included.
        d_model: width D.
        n_heads: attention heads; divides d_model.
        n_encoder_layers, n_decoder_layers: depth of either side.
        d_ff: width of the encoder's feed-forward and of each expert.
        dropout: on embeddings, residual branches and inside feed-forwards.
        attention_dropout: on attention weights.
        attention_activation: φ of the encoder's pointwise attention.
        max_seq_len: positions an input may have.
        history_positions: counted from the oldest token, as the data has them, or from the newest one, so that what
            was done last has the same position in histories of any length.
        num_token_types: token types, each with its own γ, β in the encoder's norms.
        num_experts, top_k_experts: experts in all, and for one token.
        expert_capacity_factor: bound on an expert's share while training; None drops no token.
        user_pooling: the user vector is made of the first token's, the last one's, their sum, or the masked mean. The
            last one's carries what was done last along, the first one's is the same token for all users.
        user_activation: of the user vector; none leaves its length free, which a dot product wants.
        level_softmax: each level's probabilities are over its codebook, or over the ids that the catalogue has below
            the levels above.
        tie_embeddings: the level heads use the level embeddings as their weight.
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
        tie_embeddings: bool,
        level_softmax: Literal["codebook", "catalogue"],
    ):
        super().__init__()
        self.codebook_sizes = tuple(codebook_sizes)
        self.user_pooling = user_pooling
        self.user_activation = user_activation
        self.history_positions = history_positions
        self.is_over_catalogue = level_softmax == "catalogue"
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
        )
        self.decoder_input = InputEmbedding(d_model, max_seq_len, num_token_types, dropout)
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
        self.heads = LevelHeads(codebook_sizes, d_model, tie_embeddings)
        self.user_proj = Float32Linear(d_model, d_model)
        self.item_proj = Float32Linear(d_model, d_model)
        self._init_weights(n_encoder_layers, n_decoder_layers)

    def _init_weights(self, n_encoder_layers: int, n_decoder_layers: int) -> None:
        """Linear maps keep variance; the last map of each residual branch is shrunk with depth (GPT-2, 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or "norm" in name or name.endswith("bias"):
                continue  # norms and biases keep ones and zeros
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
                nn.init.normal_(head.prefix_proj.weight, std=1.0)  # its inputs, id vectors, start at EMBEDDING_STD
                nn.init.normal_(head.hidden_proj.weight, std=1 / math.sqrt(head.hidden_proj.in_features))
                nn.init.normal_(head.out_proj.weight, std=EMBEDDING_STD)
        for table in self.item_embedding.levels:
            table.weight.data[table.padding_idx].zero_()

    def forward(self, batch: Batch, trie: ItemTrie | None = None, with_item_vectors: bool = False) -> dict[str, Tensor]:
        """One pass over a batch, teacher-forced.

        Args:
            trie: the catalogue; needed for its item vectors and where `level_softmax` is catalogue.
            with_item_vectors: whether the vectors of all its items are wanted.

        Returns:
            l1_logits, l2_logits, l3_logits: (B, T, V_l); level l sees the labels of the levels above it. Over the
                catalogue: (B, T, C_l), see `child_logits`, and label_slots (B, T, 3) int64, the labels' places or -1.
            user_repr, item_repr: (B, D) float32, of the history and of the row's target item.
            router_counts, router_prob_sums: (decoder layers, E), see RouterStats.
            catalogue_repr: (n, D) float32, the vectors of the catalogue.
            bos_hidden: (B, D), the state that the next item is generated from.
            chosen_logps (B,), rejected_logps (B, N): only where the batch has rejected items.
        """
        memory = self.encode(batch)
        hidden, router = self.decode(batch, memory)
        target = batch["labels"][:, 0].clamp(min=0)
        outputs = self._logits(hidden, batch["labels"], trie)
        outputs |= {
            "user_repr": self.user_vector(memory, batch["encoder_mask"]),
            "item_repr": self.item_vectors(target),
            "router_counts": router.counts,
            "router_prob_sums": router.prob_sums,
            "bos_hidden": hidden[:, 0],
        }
        if with_item_vectors:
            assert trie is not None
            outputs["catalogue_repr"] = self.item_vectors(trie.items)
        if batch["rejected_ids"].shape[1] > 0:
            logps = self.item_logps(hidden[:, 0], torch.cat((target[:, None], batch["rejected_ids"]), dim=1), trie)
            outputs |= {"chosen_logps": logps[:, 0], "rejected_logps": logps[:, 1:]}
        return outputs

    def encode(self, batch: Batch) -> Tensor:
        """The encoded history, (B, S, D)."""
        types, mask, positions = batch["encoder_token_types"], batch["encoder_mask"], batch["encoder_positions"]
        if self.history_positions == "from_end":
            newest = positions.masked_fill(~mask, 0).amax(dim=1, keepdim=True)
            positions = (newest - positions).clamp(min=0)  # padding is masked, whatever its position
        x = self.encoder_input(self.item_embedding(batch["encoder_ids"]), positions, types)
        return self.encoder(x, types, mask)

    def decode(self, batch: Batch, memory: Tensor) -> tuple[Tensor, RouterStats]:
        """The decoder's hidden states (B, T, D) over the encoded history, and the router's sums."""
        vectors = self.item_embedding(batch["decoder_ids"])
        x = self.decoder_input(vectors, batch["decoder_positions"], batch["decoder_token_types"])
        return self.decoder(x, batch["decoder_mask"], memory, batch["encoder_mask"])

    def start(self, batch: Batch) -> Tensor:
        """The hidden state at BOS, (B, D): all that scoring or generating the next item needs."""
        return self.start_over(self.encode(batch), batch["encoder_mask"])

    def start_over(self, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """`start` over a history already encoded: memory (B, S, D), memory_mask (B, S) bool → (B, D)."""
        rows, device = memory.shape[0], memory.device  # len() would tie an exported program to one number of rows
        bos = self.item_embedding(torch.full((rows, 1, LEVELS), BOS, device=device))
        zeros = torch.zeros(rows, 1, dtype=torch.long, device=device)
        x = self.decoder_input(bos, zeros, zeros + ITEM)
        hidden, _ = self.decoder(x, torch.ones_like(zeros, dtype=torch.bool), memory, memory_mask)
        return hidden[:, 0]

    def _logits(self, hidden: Tensor, labels: Tensor, trie: ItemTrie | None) -> dict[str, Tensor]:
        names = [f"l{level + 1}_logits" for level in range(LEVELS)]
        if not self.is_over_catalogue:
            ids = labels.clamp(min=0)  # an ignored label conditions as PAD, the zero vector
            return {name: self.level_logits(level, hidden, ids[..., :level]) for level, name in enumerate(names)}
        assert trie is not None  # the config was refused without a catalogue
        found = child_logits(self.level_logits, hidden.flatten(0, 1), labels.flatten(0, 1), trie)
        logits = {name: one.logits.unflatten(0, labels.shape[:2]) for name, one in zip(names, found, strict=True)}
        return logits | {"label_slots": torch.stack([one.slots.view(labels.shape[:2]) for one in found], dim=-1)}

    def level_logits(
        self, level: int, hidden: Tensor, prefix: Tensor, beam: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """Logits (..., V_level) given hidden (..., D) and the ids of the levels above, prefix (..., level) int64; or of
        some ids only, see LevelHead."""
        return self.heads(level, hidden, prefix, beam, ids, embedding=self.item_embedding)

    def item_logps(self, hidden: Tensor, ids: Tensor, trie: ItemTrie | None = None) -> Tensor:
        """log p(item) (B, N) float32 of items ids (B, N, 3), given the hidden state at BOS (B, D)."""
        assert trie is not None or not self.is_over_catalogue
        return score_items(self.level_logits, hidden, ids, trie if self.is_over_catalogue else None)

    def item_vectors(self, ids: Tensor) -> Tensor:
        """What user vectors are compared with: items int64 (..., 3) → (..., D) float32."""
        return self.item_proj(self.item_embedding(ids))

    def user_vector(self, memory: Tensor, mask: Tensor) -> Tensor:
        """The pooled history, (B, D) float32; with tanh in (−1, 1)."""
        if self.user_pooling == "first":
            pooled = memory[:, 0]
        elif self.user_pooling in ("last", "first_and_last"):
            place = (mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, memory.shape[-1])
            pooled = memory.gather(1, place).squeeze(1)
            if self.user_pooling == "first_and_last":
                pooled = pooled + memory[:, 0]
        else:
            total = (memory * mask.unsqueeze(-1)).sum(1, dtype=torch.float32)
            pooled = total / mask.sum(1, keepdim=True).clamp(min=1)
        vector = self.user_proj(pooled)
        return torch.tanh(vector) if self.user_activation == "tanh" else vector
