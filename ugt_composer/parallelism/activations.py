"""What the activations of a microbatch take of a GPU at the step's highest point, in bytes, on top of weights,
gradients and optimizer state.

A closed form for each part of the model: the tensors that autograd keeps for the backward pass, and what the backward
pass of the part takes beside them. Sums of large tensors: an index, a mean or a mask of keys is left out where a vector
of the model's width stands beside it. Every row has the full length.

B rows, S history tokens, T target tokens, N rejected items, D width, F width of a feed-forward, E experts, V_l codebook
size of level l.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from ugt_composer.config.schema import LossConfig, ModelConfig
from ugt_composer.generation.beam_search import ITEM_BYTES, MEMORY_BOUND
from ugt_composer.losses.catalogue_contrastive import LOGITS_BYTES
from ugt_composer.model.pointwise_product import PIECE_BYTES
from ugt_composer.parallelism.memory import FLOAT, HALF
from ugt_composer.vocabulary import LEVELS

INDEX = 8  # bytes of an int64
HISTORY_TOKEN, TARGET_TOKEN = 5 * INDEX + 1, 8 * INDEX + 1  # in a batch: ids, position, type and mask; also labels


class Shape(NamedTuple):
    """Of a microbatch, each row as long as the longest."""

    rows: int
    history: int
    target: int
    rejected: int


class Dtypes(NamedTuple):
    """Bytes of a number.

    Attributes:
        residual: of the stream between layers.
        product: of what enters matrix products.
        norm: of what enters and leaves a layer norm.
    """

    residual: int
    product: int
    norm: int


FLOAT32 = Dtypes(FLOAT, FLOAT, FLOAT)
AUTOCAST = Dtypes(FLOAT, HALF, FLOAT)
ALL_HALF = Dtypes(HALF, HALF, HALF)  # DeepSpeed casts the model and has no autocast


class Part(NamedTuple):
    """
    Attributes:
        kept: from the forward pass to the backward pass.
        extra: the most that its backward pass takes beside everything kept before it.
    """

    kept: int
    extra: int


@dataclass(frozen=True)
class Activations:
    """
    Attributes:
        model, loss: the config's.
        dtypes: of the computation.
        casts: parameters whose copy in half precision autocast makes and autograd keeps: of the whole model, and
            of the largest layer, which is an encoder's or a decoder's.
        checkpointing: a layer's input is all that is kept of it, until its backward pass.
        world_size: ranks whose user and item vectors a contrastive loss gathers.
        items: of the catalogue.
        ranks_by_vectors: evaluation adds a score of user and item vectors to the ranking (`ItemScores`).
    """

    model: ModelConfig
    loss: LossConfig
    dtypes: Dtypes
    casts: tuple[int, int]
    checkpointing: bool
    world_size: int
    items: int
    ranks_by_vectors: bool

    def of_training(self, shape: Shape) -> int:
        """The most that exists at once, of these moments: the start of the backward pass, which is the loss's, the end
        of the forward pass with the reference's on top, and the starts of the decoder's and the encoder's backward
        passes. Autocast holds the weights' copies to the end of the forward pass, autograd further if it keeps them."""
        model, r = self.model, self.dtypes.residual
        encoder, decoder = encoder_layer(model, self.dtypes, shape), decoder_layer(model, self.dtypes, shape)
        history, target = shape.rows * shape.history * model.d_model, shape.rows * shape.target * model.d_model
        logits, pairs = self._logits(shape), self._pairs(shape)
        masks = int(model.dropout > 0)
        # Inputs before and after their norm, and what the last norms return.
        around = (3 * r + masks) * (history + target) + self._batch(shape) + logits.held
        casts, layer_casts = (self.dtypes.product * n for n in self.casts)
        if self.checkpointing:
            encoder_kept, decoder_kept = (r * n for n in (history, target))
        else:
            encoder_kept, decoder_kept, layer_casts = encoder.kept, decoder.kept, casts
        below = around + model.n_encoder_layers * encoder_kept
        whole = below + model.n_decoder_layers * decoder_kept
        at_loss = self._heads(shape) + logits.kept + pairs.kept + self._contrastive(shape)
        again = self.checkpointing
        # When the backward pass of the encoder's layers begins: its result, the last norm's input, and of a layer
        # computed again what it returns, which is not needed.
        gone = r * history * (2 + again)
        return max(
            whole + at_loss + (0 if again else casts) + max(logits.extra, pairs.extra),
            whole + at_loss + casts + (self.of_forward(shape) if self.loss.needs_reference_model else 0),
            whole + layer_casts + again * decoder.kept + decoder.extra,
            below - gone + layer_casts + again * encoder.kept + encoder.extra,
        )

    def of_forward(self, shape: Shape) -> int:
        """Of a forward pass that keeps nothing for a backward one, such as the reference's: its widest layer."""
        model, (r, h, n) = self.model, self.dtypes
        tokens, target = shape.rows * shape.history * model.d_model, shape.rows * shape.target * model.d_model
        wide, slots = model.d_ff / model.d_model, _slots(model, shape)
        encoder = tokens * (2 * r + n + h * (3 + max(2 * wide, 8))) + PIECE_BYTES["cuda"]
        decoder = tokens * (r + 3 * h) + target * (2 * r + 2 * n) + slots * h * (1 + 2 * wide)
        return int(max(encoder, decoder)) + 2 * FLOAT * _pair_logits(model, shape)

    def of_evaluation(self, shape: Shape) -> int:
        """Of an evaluation batch: the model's forward pass, then the reference's, the loss's and beam search's."""
        logits, pairs = self._logits(shape), self._pairs(shape)
        scores = MEMORY_BOUND + ITEM_BYTES * self.items
        if self.ranks_by_vectors:
            scores += 3 * FLOAT * self.items * self.model.d_model  # item vectors, scaled, and without their mean
        results = logits.held + logits.kept + pairs.kept + self._batch(shape)
        # A half of the weights at most is copied at once: a stack of experts.
        return self.of_forward(shape) + results + max(scores, self._contrastive(shape)) + 2 * self.casts[1]

    def _logits(self, shape: Shape) -> "Logits":
        """The logits, (B, T, V_l) float32, which the trainer keeps until the next microbatch has its own, and their
        cross-entropy. Over a catalogue they are fewer, with the vectors that they are products of: at most these."""
        places = shape.rows * shape.target
        sizes, h = self.model.codebook_sizes, self.dtypes.product
        numbers, most = places * sum(sizes), places * max(sizes)
        smoothing = (2 * FLOAT + 1) * numbers if self.loss.label_smoothing > 0 else 0
        gathered = 2 * h * numbers if self.model.level_softmax == "catalogue" else 0
        kept = FLOAT * numbers + smoothing + gathered  # the microbatch's before, then this one's log-softmax
        return Logits(FLOAT * numbers, kept, 2 * FLOAT * most)

    def _pairs(self, shape: Shape) -> Part:
        """The logits of each row's chosen and rejected items, whose log-softmax is computed again."""
        numbers = _pair_logits(self.model, shape)
        return Part(FLOAT * numbers, 2 * FLOAT * numbers)

    def _heads(self, shape: Shape) -> int:
        """Inputs of the heads' maps and norms, and tables whose rows have lost their mean."""
        width, (r, h, _) = self.model.d_model, self.dtypes
        tokens = shape.rows * (shape.target + (1 + shape.rejected) * (shape.rejected > 0))
        return width * (LEVELS * tokens * (r + 5 * h) + sum(self.model.codebook_sizes) * h)

    def _contrastive(self, shape: Shape) -> int:
        if self.loss.lambda_contrastive == 0:
            return 0
        width = self.model.d_model
        if self.loss.contrastive_negatives == "catalogue":
            # Sums of embeddings, their map, its cosines, these without their mean, and the gradients of each.
            vectors = 6 * FLOAT * self.items * width
            return vectors + 4 * min(LOGITS_BYTES, FLOAT * shape.rows * self.items)
        return 6 * FLOAT * self.world_size * shape.rows * 2 * width

    @staticmethod
    def _batch(shape: Shape) -> int:
        return shape.rows * (shape.history * HISTORY_TOKEN + shape.target * TARGET_TOKEN)


class Logits(NamedTuple):
    held: int  # throughout, by the trainer
    kept: int
    extra: int


def encoder_layer(model: ModelConfig, dtypes: Dtypes, shape: Shape) -> Part:
    (r, h, n), wide, masks = dtypes, model.d_ff / model.d_model, int(model.dropout > 0)
    tokens = shape.rows * shape.history * model.d_model
    # Feed-forward: inputs of the two maps and of SiLU; without dropout SiLU's result is the second map's input.
    feed_forward = h * (1 + 2 * wide) + masks * (1 + wide)
    # Attention: input, four projections, copies of three of them in heads, φ of the gate, input of the last map; the
    # norm's input and result; the stream after either half of the layer.
    attention = h * (1 + 4 + 3 + 1 + 1) + 2 * n + masks
    weights = _attention_weights(model, dtypes, shape)
    kept = tokens * (feed_forward + attention + 2 * r) + weights
    scores = shape.rows * model.n_heads * shape.history**2 * h
    # The gradients at the feed-forward's second map, or four float32 copies of all tokens in the backward pass of the
    # feed-forward's norm, when what the feed-forward kept is gone; or the gradients of kept attention weights.
    begins = r + h * (1 + wide)
    norm = 2 * r + 4 * FLOAT - feed_forward
    extra = max(tokens * begins, tokens * norm, (2 * scores - tokens * feed_forward) if weights else 0)
    pieces = 0 if weights else 2 * min(PIECE_BYTES["cuda"], scores)
    return Part(int(kept), int(extra) + pieces)


def decoder_layer(model: ModelConfig, dtypes: Dtypes, shape: Shape) -> Part:
    (r, h, _), wide, masks, k = dtypes, model.d_ff / model.d_model, int(model.dropout > 0), model.top_k_experts
    target, history = (shape.rows * length * model.d_model for length in (shape.target, shape.history))
    slots = _slots(model, shape)
    # Self-attention keeps its input, three projections and its result, cross-attention input, query and result, the
    # router float32 tokens, the gates what the experts return; and the stream after each of the three.
    stream = 3 * (r + masks) + h * (5 + 3 + k) + FLOAT
    experts = h * (1 + 2 * wide) + masks * wide
    memory = h * (2 + (h < r))  # keys and values, and the memory that they are made of where autocast has cast it
    router = shape.rows * shape.target * (3 * FLOAT * model.num_experts + 8 * INDEX * k)
    kept = target * stream + slots * experts + history * memory + router
    extra = target * (r + k * h) + slots * h * (1 + wide) + history * (2 * h + r)
    return Part(int(kept), int(extra))


def _slots(model: ModelConfig, shape: Shape) -> int:
    """Numbers of the width D in the experts' slots; without a capacity as many slots as there are assignments."""
    assignments = shape.rows * shape.target * model.top_k_experts
    if model.expert_capacity_factor is None:
        return assignments * model.d_model
    slots = model.num_experts * math.ceil(model.expert_capacity_factor * assignments / model.num_experts)
    return slots * model.d_model


def _attention_weights(model: ModelConfig, dtypes: Dtypes, shape: Shape) -> int:
    """(B, H, S, S): scores, mask and what is left of the weights; without dropout on them they exist in pieces only."""
    if model.attention_dropout == 0:
        return 0
    return shape.rows * model.n_heads * shape.history**2 * (2 * dtypes.product + 1)


def _pair_logits(model: ModelConfig, shape: Shape) -> int:
    if shape.rejected == 0:
        return 0
    first, *others = model.codebook_sizes
    return shape.rows * (first + (1 + shape.rejected) * sum(others))
