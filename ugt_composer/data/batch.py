"""The batch that `collate` builds and the model receives.

B rows, S history tokens, T target tokens, N rejected items, M valid history tokens of all rows, 3 levels.
"""

from typing import TypedDict

from torch import Tensor


class _Required(TypedDict):
    encoder_ids: Tensor  # (B, S, 3) int64
    encoder_positions: Tensor  # (B, S) int64
    encoder_token_types: Tensor  # (B, S) int64
    encoder_mask: Tensor  # (B, S) bool, False on padding
    encoder_actions: Tensor  # (B, S) int64, what the user did with the token, 0 where unknown or padding
    encoder_times: Tensor  # (B, S) int64 seconds, -1 where unknown or padding
    decoder_ids: Tensor  # (B, T, 3) int64, BOS first
    decoder_positions: Tensor  # (B, T) int64
    decoder_token_types: Tensor  # (B, T) int64
    decoder_mask: Tensor  # (B, T) bool
    decoder_times: Tensor  # (B, T) int64 seconds, when each label is predicted, -1 where unknown or padding
    labels: Tensor  # (B, T, 3) int64, -100 ignored; labels[:, 0] is the row's target item
    rejected_ids: Tensor  # (B, N, 3) int64, N = 0 where no row of the batch has a rejected item
    rejected_mask: Tensor  # (B, N) bool
    preference_score: Tensor  # (B,) float32
    row_ids: Tensor  # (B,) int64, the row's index in its data set
    row_mask: Tensor  # (B,) bool, False on filler rows, which give every rank the same number of rows


class Batch(_Required, total=False):
    reference_logps: Tensor  # (B, 1 + N) float32, log p of the chosen and rejected items; only if all pairs have it
    label_members: Tensor  # (B, T) int64, each label's number among the items that share its semantic ID, -1: unknown
    batch_totals: Tensor  # (6,) float32, see losses.normalization
    step: Tensor  # () int64, the number of the training step; absent in evaluation
    # (M,) int64, the places b·S + s of the valid history tokens, ascending; without it the model computes padding too
    encoder_tokens: Tensor
    # int64, the places b·T + t of the target tokens with a label of any level, ascending; without it the model computes
    # what losses need of all tokens
    label_tokens: Tensor
    encoder_lengths: list[int]  # per row, for `split_batch`; on the CPU, so no device sync
    decoder_lengths: list[int]
    label_counts: list[int]  # per row, the number of its `label_tokens`
