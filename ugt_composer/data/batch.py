"""The batch that `collate` builds and the model receives."""

from typing import TypedDict

from torch import Tensor


class _Required(TypedDict):
    encoder_ids: Tensor
    encoder_positions: Tensor
    encoder_token_types: Tensor
    encoder_mask: Tensor
    encoder_actions: Tensor
    encoder_times: Tensor
    decoder_ids: Tensor
    decoder_positions: Tensor
    decoder_token_types: Tensor
    decoder_mask: Tensor
    decoder_times: Tensor
    labels: Tensor
    rejected_ids: Tensor
    rejected_mask: Tensor
    preference_score: Tensor
    row_ids: Tensor
    row_mask: Tensor


class Batch(_Required, total=False):
    """A dict of tensors; the keys from `reference_logps` on may be absent.

    B rows, S history tokens, T target tokens, N rejected items, M valid history tokens of all rows, 3 levels.

    Attributes:
        encoder_ids: int64 (B, S, 3), the history.
        encoder_positions: int64 (B, S).
        encoder_token_types: int64 (B, S).
        encoder_mask: bool (B, S), False on padding.
        encoder_actions: int64 (B, S), what the user did with the token, 0 where unknown or padding.
        encoder_times: int64 (B, S), in seconds, -1 where unknown or padding.
        decoder_ids: int64 (B, T, 3), BOS first.
        decoder_positions: int64 (B, T).
        decoder_token_types: int64 (B, T).
        decoder_mask: bool (B, T), False on padding.
        decoder_times: int64 (B, T), in seconds, when each label is predicted, -1 where unknown or padding.
        labels: int64 (B, T, 3), -100 where ignored; labels[:, 0] is the row's target item.
        rejected_ids: int64 (B, N, 3), N = 0 where no row of the batch has a rejected item.
        rejected_mask: bool (B, N), False on padding.
        preference_score: float32 (B,), weight of the row's pairs in the preference loss.
        row_ids: int64 (B,), the row's index in its data set.
        row_mask: bool (B,), False on filler rows, which give every rank the same number of rows.
        reference_logps: float32 (B, 1 + N), log p of the chosen and rejected items; only if all pairs have it.
        label_members: int64 (B, T), each label's number among the items that share its semantic ID, -1: unknown.
        batch_totals: float32 (6,), what means of the whole batch divide by: see `losses.normalization`.
        step: int64 (), the number of the training step; absent in evaluation.
        encoder_tokens: int64 (M,), the places b·S + s of the valid history tokens, ascending; without it the model
            computes padding too.
        label_tokens: int64, the places b·T + t of the target tokens with a label of any level, ascending; without it
            the model computes what losses need of all tokens.
        encoder_lengths: of each row, for `split_batch`; on the CPU, so that nothing waits for the device.
        decoder_lengths: as `encoder_lengths`, of the targets.
        label_counts: of each row, the number of its `label_tokens`.
    """

    reference_logps: Tensor
    label_members: Tensor
    batch_totals: Tensor
    step: Tensor
    encoder_tokens: Tensor
    label_tokens: Tensor
    encoder_lengths: list[int]
    decoder_lengths: list[int]
    label_counts: list[int]
