"""Exports a model as two programs of torch.export, for any number of rows, tokens and candidates.

B rows, S history tokens, N candidates, D width.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from ugt_composer.catalogue.seen_nodes import SeenNodes
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.codec import DECODER_COLUMNS, ENCODER_COLUMNS, REJECTED_COLUMNS, Row, encode_row
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.generation.item_log_probs import score_items, score_over_codebooks
from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.model.repeat_bias import level_biases
from ugt_composer.model.ugt import UGT
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

INPUTS = ("encoder_ids", "encoder_positions", "encoder_token_types", "encoder_mask")  # of every encoder, in order
NO_ITEMS = np.zeros((0, REJECTED_COLUMNS), np.int64)
TRIE_TENSORS = ("ids", "parents", "first", "keys")
MOST = 2**31 - 1  # rows or candidates; dynamic dimensions need an upper bound


def encoder_inputs(model: UGT) -> tuple[str, ...]:
    """The tensors of a batch that a model's encoder reads, in the order of the program's inputs."""
    actions = ("encoder_actions",) if model.action_embedding is not None else ()
    times = ("encoder_times", "decoder_times") if model.time_buckets > 0 else ()
    return (*INPUTS, *actions, *times)


class EncoderProgram(nn.Module):
    """Maps histories to user states and user vectors."""

    def __init__(self, model: UGT):
        super().__init__()
        self.model = model
        self.inputs = encoder_inputs(model)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors of a batch that `encoder_inputs` names, of which decoder_times (B, 1) → state and vector, (B, D)
        each."""
        batch: Any = dict(zip(self.inputs, tensors, strict=True))
        memory = self.model.encode(batch)
        return self.model.start_over(memory, batch), self.model.user_vector(memory)


class ScorerProgram(nn.Module):
    """The log-probabilities of given items. Includes the catalogue if the model's softmax runs over it."""

    def __init__(self, model: UGT, trie: ItemTrie | None):
        super().__init__()
        self.heads, self.item_embedding, self.level_repeats = model.heads, model.item_embedding, model.level_repeats
        self.trie = trie if model.is_over_catalogue else None
        for number, level in enumerate(self.trie.levels if self.trie is not None else ()):
            for name in TRIE_TENSORS:
                self.register_buffer(f"level{number}_{name}", getattr(level, name))

    def forward(self, state: Tensor, candidates: Tensor, history: Tensor | None = None) -> Tensor:
        """state (B, D), candidates int64 (B, N, 3) and, for a model with `repeat_bias`, the encoder's ids (B, S, 3) →
        log p(l1) + log p(l2 | l1) + log p(l3 | l1, l2), (B, N)."""
        trie = None if self.trie is None else self._trie_of_buffers(self.trie)
        biases = None
        if self.level_repeats is not None:
            assert trie is not None  # the config requires a catalogue
            assert history is not None
            biases = level_biases(self.level_repeats(state[:, None]), SeenNodes.of(history, trie))
        heads = partial(self.heads, embedding=self.item_embedding)
        if trie is None:
            return score_over_codebooks(
                lambda level, hidden, prefix, ids: heads(level, hidden, prefix, labels=ids).logps, state, candidates
            )
        return score_items(heads, state, candidates, trie, biases=biases)

    def _trie_of_buffers(self, trie: ItemTrie) -> ItemTrie:
        buffers: dict[str, Any] = dict(self.named_buffers(recurse=False))
        levels = (
            replace(level, **{name: buffers[f"level{number}_{name}"] for name in TRIE_TENSORS})
            for number, level in enumerate(trie.levels)
        )
        return replace(trie, levels=tuple(levels))


def export_programs(model: UGT, trie: ItemTrie | None) -> tuple[ExportedProgram, ExportedProgram]:
    """The encoder and the scorer of a model, in float32 on the CPU. Modifies the model: do not use it afterwards.

    Uses non-strict tracing: the modules run on an example, with its shapes as symbols.
    """
    model = model.float().cpu().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, MoEFeedForward):
            module.all_experts = True
    rows, candidates = Dim("rows", max=MOST), Dim("candidates", max=MOST)
    history = Dim("history", max=model.encoder_input.position.num_embeddings)
    user = Row("", np.zeros((3, ENCODER_COLUMNS), np.int64), np.zeros((1, DECODER_COLUMNS), np.int64), NO_ITEMS)
    batch = collate([PackedRow(0, encode_row(user, width=2))] * 2)  # sizes of 0 and 1 would become constants
    encoder = EncoderProgram(model)
    inputs = tuple(batch[name] for name in encoder.inputs)  # type: ignore[literal-required]
    state, _ = encoder(*inputs)
    items = torch.full((len(state), 3, LEVELS), NUM_SPECIAL_IDS)
    examples, shapes = [state, items], [{0: rows}, {0: rows, 1: candidates}]
    if model.level_repeats is not None:
        examples.append(batch["encoder_ids"])
        shapes.append({0: rows, 1: history})
    scorer = export(ScorerProgram(model, trie), tuple(examples), dynamic_shapes=shapes, strict=False)
    del model.heads, model.item_proj, model.level_repeats, model.user_repeats  # not for the encoder's program
    sizes = tuple({0: rows} if name == "decoder_times" else {0: rows, 1: history} for name in encoder.inputs)
    return export(encoder, inputs, dynamic_shapes=(sizes,), strict=False), scorer
