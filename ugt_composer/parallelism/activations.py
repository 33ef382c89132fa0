"""Estimates the peak memory of a microbatch's activations on a GPU, in bytes, in addition to weights, gradients and
optimizer state.

There is a closed form for each part of the model: the tensors that autograd keeps for the backward pass, and the
temporary memory of the part's backward pass. The sums count large tensors only: an index, a mean or a key mask is
neglected next to a vector of the model's width. Every row is assumed to have the full length.

B rows, S history tokens, T target tokens, N rejected items, D width, F width of a feed-forward, E experts, V_l codebook
size of level l.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from ugt_composer import kernels
from ugt_composer.config.schema import LossConfig, ModelConfig
from ugt_composer.generation.beam_search import ITEM_BYTES, MEMORY_BOUND
from ugt_composer.generation.catalogue_scores import BLOCK_BYTES as SCORE_BLOCK_BYTES
from ugt_composer.generation.catalogue_vectors import BLOCK_BYTES, are_held
from ugt_composer.losses.catalogue_contrastive import LOGITS_BYTES, VECTORS_BYTES
from ugt_composer.losses.level_distillation import PROBABILITIES_BYTES
from ugt_composer.model.label_scores import PIECE_BYTES as LOGIT_PIECE_BYTES
from ugt_composer.model.moe import FEW_TOKENS
from ugt_composer.model.pair_products import BLOCK_BYTES as PAIR_BLOCK_BYTES
from ugt_composer.model.pointwise_product import PIECE_BYTES
from ugt_composer.parallelism.memory import FLOAT, HALF
from ugt_composer.vocabulary import LEVELS

INDEX = 8  # bytes of an int64
# Bytes in a batch: ids, position, type, time, mask; action, or labels; place.
HISTORY_TOKEN, TARGET_TOKEN = 8 * INDEX + 1, 10 * INDEX + 1


class Shape(NamedTuple):
    """The sizes of a microbatch; each row is as long as the longest."""

    rows: int
    history: int
    target: int
    rejected: int


class Dtypes(NamedTuple):
    """Bytes per number.

    Attributes:
        residual: in the residual stream between layers.
        product: in the inputs of matrix products.
        norm: in the input and output of a layer norm.
    """

    residual: int
    product: int
    norm: int


FLOAT32 = Dtypes(FLOAT, FLOAT, FLOAT)
AUTOCAST = Dtypes(FLOAT, HALF, FLOAT)
ALL_HALF = Dtypes(HALF, HALF, HALF)  # DeepSpeed casts the model and has no autocast


class Part(NamedTuple):
    """The memory of a part of the model, in bytes.

    Attributes:
        kept: held from the forward pass to the backward pass.
        extra: the peak of its backward pass, in addition to all that is kept.
    """

    kept: int
    extra: int


@dataclass(frozen=True)
class Activations:
    """
    Attributes:
        model, loss: sections of the config.
        dtypes: of the computation.
        casts: the number of parameters whose half-precision copies, made by autocast, autograd keeps: in the whole
            model, and in the largest layer of encoder or decoder.
        checkpointing: activation checkpointing is on: only a layer's input is kept until its backward pass.
        world_size: number of ranks whose user and item vectors a contrastive loss gathers.
        items: number of items in the catalogue.
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
        """The peak of a training step: the largest of its memory at the start of the backward pass (that of the loss),
        at the end of the forward pass together with the reference's forward pass, and at the starts of the backward
        passes of decoder and encoder.

        Autocast holds its copies of the weights until the end of the forward pass; autograd may keep them longer.
        """
        model, r = self.model, self.dtypes.residual
        encoder, decoder = encoder_layer(model, self.dtypes, shape), decoder_layer(model, self.dtypes, shape)
        history, target = shape.rows * shape.history * model.d_model, shape.rows * shape.target * model.d_model
        logits = self._logits(shape)
        pairs = self._group(shape) if self.loss.uses_group else self._pairs(shape)
        masks = int(model.dropout > 0)
        # Inputs before and after their norm, and the outputs of the last norms.
        inputs_and_norms = (3 * r + masks) * (history + target) + self._batch(shape) + logits.held
        casts, layer_casts = (self.dtypes.product * n for n in self.casts)
        if self.checkpointing:
            encoder_kept, decoder_kept = (r * n for n in (history, target))
        else:
            encoder_kept, decoder_kept, layer_casts = encoder.kept, decoder.kept, casts
        below = inputs_and_norms + model.n_encoder_layers * encoder_kept
        whole = below + model.n_decoder_layers * decoder_kept
        at_loss = self._heads(shape) + logits.kept + pairs.kept + self._contrastive(shape)
        recomputed = self.checkpointing
        # Freed when the backward pass of the encoder's layers begins: the encoder's result, the last norm's input, and
        # the output of a recomputed layer.
        freed = r * history * (2 + recomputed)
        return max(
            whole + at_loss + (0 if recomputed else casts) + max(logits.extra, pairs.extra),
            whole + at_loss + casts + (self.of_forward(shape) if self.loss.needs_reference_model else 0),
            whole + layer_casts + recomputed * decoder.kept + decoder.extra,
            below - freed + layer_casts + recomputed * encoder.kept + encoder.extra,
        )

    def of_forward(self, shape: Shape) -> int:
        """The peak of a forward pass without gradients, such as the reference's: its widest layer."""
        model, (r, h, n) = self.model, self.dtypes
        tokens, target = shape.rows * shape.history * model.d_model, shape.rows * shape.target * model.d_model
        ff_ratio, slots = model.d_ff / model.d_model, _slots(model, self.dtypes, shape)
        pieces = 0 if _has_kernels(model, self.dtypes) else PIECE_BYTES["cuda"]
        encoder = tokens * (2 * r + n + h * (3 + max(2 * ff_ratio, 8))) + pieces
        decoder = tokens * (r + 3 * h) + target * (2 * r + 2 * n) + slots * h * (1 + 2 * ff_ratio)
        scores = self._group(shape) if self.loss.uses_group else self._pairs(shape)
        return int(max(encoder, decoder)) + scores.extra

    def of_evaluation(self, shape: Shape) -> int:
        """The peak of an evaluation batch: forward passes of model and reference, the loss, and beam search."""
        logits, pairs, group = self._logits(shape), self._pairs(shape), self._group(shape)
        width, scores = self.model.d_model, MEMORY_BOUND
        if not self.ranks_by_vectors or are_held(self.items, width):
            scores += ITEM_BYTES * self.items
        if self.ranks_by_vectors and are_held(self.items, width):
            scores += 3 * FLOAT * self.items * width  # item vectors; scaled; without their mean
        elif self.ranks_by_vectors:  # vectors of a block, their lengths, scores of a block
            scores += 4 * BLOCK_BYTES["cuda"] + 2 * FLOAT * self.items + 8 * SCORE_BLOCK_BYTES["cuda"]
        results = logits.held + logits.kept + pairs.kept + group.kept + self._batch(shape)
        # At most half of the weights are copied at once: a stack of experts.
        return self.of_forward(shape) + results + max(scores, self._contrastive(shape)) + 2 * self.casts[1]

    def _logits(self, shape: Shape) -> "Logits":
        """The logits, (B, T, V_l) float32, which the trainer keeps until those of the next microbatch, and their
        cross-entropy. This is an upper bound for a softmax over the catalogue, which computes fewer logits but also
        gathers the vectors for their products. Those of a softmax over the codebook exist in pieces only; the anchor
        keeps the reference's states and code tables, and computes its logits beside the policy's."""
        positions = shape.rows * shape.target
        sizes, h = self.model.codebook_sizes, self.dtypes.product
        if self.model.level_softmax == "codebook":
            anchored, piece = self.loss.anchor_weight > 0, self._logit_piece(positions)
            copies = self.model.d_model * h * (LEVELS * positions + sum(sizes)) + FLOAT * sum(sizes)
            return Logits(0, anchored * copies, (1 + anchored) * piece)
        count, largest = positions * sum(sizes), positions * max(sizes)
        smoothing = (2 * FLOAT + 1) * count if self.loss.label_smoothing > 0 else 0
        gathered = 2 * h * count
        # The reference's logits, their log-softmax, the policy's, and the difference of the two with its mask.
        anchor = (4 * FLOAT + 1) * count if self.loss.anchor_weight > 0 else 0
        # The previous microbatch's logits, then this one's log-softmax.
        kept = FLOAT * count + smoothing + gathered + anchor
        pairs = 3 * PAIR_BLOCK_BYTES if self.model.pair_buckets else 0  # the products' gradients, block by block
        return Logits(FLOAT * count, kept, 2 * FLOAT * largest + pairs)

    def _pairs(self, shape: Shape) -> Part:
        """The logits of each row's chosen and rejected items, of a softmax over the codebook in pieces; their
        log-softmax is recomputed."""
        if shape.rejected == 0:
            return Part(0, 0)
        items = shape.rows * (1 + shape.rejected)
        if self.model.level_softmax == "codebook":
            return Part(0, self._logit_piece(items))
        first, *others = self.model.codebook_sizes
        count = shape.rows * first + items * sum(others)
        return Part(FLOAT * count, 2 * FLOAT * count)

    def _logit_piece(self, tokens: int) -> int:
        """While a piece of the logits of the largest level is computed: its logits, the products that they are made of,
        their gradients in the products' dtype, and the gradient of the level's table with that of the piece."""
        width, h, size = self.model.d_model, self.dtypes.product, max(self.model.codebook_sizes)
        piece = min(LOGIT_PIECE_BYTES["cuda"], FLOAT * tokens * size)
        return piece + 2 * piece * h // FLOAT + size * width * (FLOAT + h)

    def _group(self, shape: Shape) -> Part:
        """The logits at the items of each row's group, an upper bound, as if every prefix had a whole codebook below
        it: the policy's and the reference's log-softmax and what their divergence keeps, an index each, and whole
        logits while the backward pass of a level computes them."""
        count = _group_logits(self.model, self.loss, shape)
        return Part((6 * FLOAT + INDEX) * count, 2 * FLOAT * count)

    def _heads(self, shape: Shape) -> int:
        """Inputs of the heads' linear layers and norms, and code tables minus their mean."""
        width, (r, h, _) = self.model.d_model, self.dtypes
        scored = 1 + (self.loss.group_size if self.loss.uses_group else shape.rejected)
        tokens = shape.rows * (shape.target + scored * (shape.rejected > 0))
        return width * (LEVELS * tokens * (r + 5 * h) + sum(self.model.codebook_sizes) * h)

    def _contrastive(self, shape: Shape) -> int:
        if self.loss.lambda_contrastive == 0:
            return 0
        width = self.model.d_model
        if self.loss.has_catalogue_negatives:
            # Sums of embeddings, their projection, its cosines, these minus their mean, and the gradients of each; of a
            # large catalogue those of a block, and tables with their gradients.
            vectors = 6 * FLOAT * self.items * width
            if not are_held(self.items, width):
                vectors = 6 * VECTORS_BYTES + 4 * FLOAT * sum(self.model.codebook_sizes) * width
            logits = (4 + self.model.repeat_bias) * min(LOGITS_BYTES, FLOAT * shape.rows * self.items)
            if self.loss.lambda_distillation > 0:  # item vectors minus their mean; log-probabilities, and probabilities
                vectors += FLOAT * self.items * width if are_held(self.items, width) else 0  # of items and nodes
                logits = max(logits, 4 * min(PROBABILITIES_BYTES, FLOAT * shape.rows * self.items))
            return vectors + logits
        candidates = min(self.world_size * shape.rows, self.loss.num_negatives + 1)
        return 6 * FLOAT * max(shape.rows, candidates) * 2 * width

    @staticmethod
    def _batch(shape: Shape) -> int:
        return shape.rows * (shape.history * HISTORY_TOKEN + shape.target * TARGET_TOKEN)


class Logits(NamedTuple):
    held: int  # by the trainer, during the whole step
    kept: int
    extra: int


def encoder_layer(model: ModelConfig, dtypes: Dtypes, shape: Shape) -> Part:
    (r, h, n), ff_ratio, masks = dtypes, model.d_ff / model.d_model, int(model.dropout > 0)
    tokens = shape.rows * shape.history * model.d_model
    # Feed-forward: inputs of the two linear layers and of SiLU; without dropout SiLU's output is the second's input.
    feed_forward = h * (1 + 2 * ff_ratio) + masks * (1 + ff_ratio)
    second_linear = r + h * (1 + ff_ratio)
    if _has_kernels(model, dtypes):
        # Attention: input, four projections, input of the norm, input of the output projection. In the backward pass,
        # the gradients at the feed-forward's second linear layer are the most.
        attention = h * (1 + 4 + 1 + 1) + masks
        return Part(int(tokens * (feed_forward + attention + 2 * r)), int(tokens * second_linear))
    # Attention: input, four projections, copies of three of them split into heads, φ of the gate, input of the output
    # projection; input and output of the norm; the residual stream after each half of the layer.
    attention = h * (1 + 4 + 3 + 1 + 1) + 2 * n + masks
    weights = _attention_weights(model, dtypes, shape)
    kept = tokens * (feed_forward + attention + 2 * r) + weights
    scores = shape.rows * model.n_heads * shape.history**2 * h
    # The largest of: the gradients at the feed-forward's second linear layer; four float32 copies of all tokens in the
    # backward pass of the feed-forward's norm, after the feed-forward's activations are freed; and the gradients of
    # kept attention weights.
    norm = 2 * r + 4 * FLOAT - feed_forward
    extra = max(tokens * second_linear, tokens * norm, (2 * scores - tokens * feed_forward) if weights else 0)
    if model.relative_time_bias:
        # With weights the biases of all pairs and their gradient; without, per piece the biases, the gradients of
        # scores as float32, and which pairs are in which bucket, beside the scores and their gradients.
        pairs = shape.rows * shape.history**2 * FLOAT
        numbers = max(model.n_heads, 1 + model.time_buckets) * pairs
        pieces = 2 * model.n_heads * pairs if weights else 4 * min(PIECE_BYTES["cuda"], numbers)
    else:
        pieces = 0 if weights else 2 * min(PIECE_BYTES["cuda"], scores)
    return Part(int(kept), int(extra) + pieces)


def decoder_layer(model: ModelConfig, dtypes: Dtypes, shape: Shape) -> Part:
    (r, h, _), ff_ratio, masks, k = dtypes, model.d_ff / model.d_model, int(model.dropout > 0), model.top_k_experts
    target, history = (shape.rows * length * model.d_model for length in (shape.target, shape.history))
    slots = _slots(model, dtypes, shape)
    # Self-attention keeps its input, three projections and its output; cross-attention its input, query and output;
    # the router float32 tokens; the gates the experts' outputs; and the residual stream is kept after each of the
    # three sublayers.
    stream = 3 * (r + masks) + h * (5 + 3 + k) + FLOAT
    experts = h * (1 + 2 * ff_ratio) + masks * ff_ratio
    memory = h * (2 + (h < r))  # keys and values, and the cast copy of the memory that autocast makes for them
    router = shape.rows * shape.target * (3 * FLOAT * model.num_experts + 8 * INDEX * k)
    kept = target * stream + slots * experts + history * memory + router
    extra = target * (r + k * h) + slots * h * (1 + ff_ratio) + history * (2 * h + r)
    return Part(int(kept), int(extra))


def _has_kernels(model: ModelConfig, dtypes: Dtypes) -> bool:
    """Whether the encoder's attention and norms are computed by kernels, see `PointwiseAttention`."""
    fits = kernels.attention_fits(model.d_model, model.n_heads) and model.num_token_types <= kernels.MAX_TYPES
    fits = fits and not model.relative_time_bias
    return dtypes.product == HALF and fits and kernels.are_expected()


def _slots(model: ModelConfig, dtypes: Dtypes, shape: Shape) -> int:
    """Numbers in the experts' slots, D per slot; without a capacity there is a slot per assignment.

    In a batch with rejected items the first token of each row is not dropped. Without grouped products that do not wait
    for the GPU, all experts compute it, if it is cheap.
    """
    k, experts = model.top_k_experts, model.num_experts
    if model.expert_capacity_factor is None:
        return shape.rows * shape.target * k * model.d_model
    kept = 0 if shape.rejected == 0 else shape.rows
    assignments = (shape.rows * shape.target - kept) * k
    slots = experts * math.ceil(model.expert_capacity_factor * assignments / experts)
    is_grouped = dtypes.product == HALF and kernels.are_expected()
    return (slots + kept * (experts if kept <= FEW_TOKENS and not is_grouped else k)) * model.d_model


def _attention_weights(model: ModelConfig, dtypes: Dtypes, shape: Shape) -> int:
    """Bytes of (B, H, S, S): scores, dropout mask and weights. Without attention dropout they exist only in pieces."""
    if model.attention_dropout == 0:
        return 0
    return shape.rows * model.n_heads * shape.history**2 * (2 * dtypes.product + 1)


def _group_logits(model: ModelConfig, loss: LossConfig, shape: Shape) -> int:
    if not loss.uses_group:
        return 0
    first, *others = model.codebook_sizes
    return shape.rows * (first + (1 + loss.group_size) * sum(others))
