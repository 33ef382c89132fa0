"""Times of a batch, and the buckets of the differences between them.

B rows, S history tokens, T target tokens. Times are int64 seconds; negative ones are unknown. All arithmetic is of
integers, so buckets are the same on every device.
"""

import torch
from torch import Tensor

from ugt_composer.data.batch import Batch
from ugt_composer.data.codec import UNKNOWN_TIME
from ugt_composer.vocabulary import USER

FRACTION_BITS = 20  # of the logarithm
OCTAVES = 31  # up to 2^31 seconds, 68 years


def time_bucket(seconds: Tensor, buckets: int) -> Tensor:
    """The bucket of a time difference: int64 (…) → int64 (…), from 0 to `buckets`, which is at least 2.

    0: unknown (a negative difference). 1: no time at all. The others are equally wide in the logarithm and reach up to
    2^31 seconds; longer differences are in the last one. With 32 buckets, bucket 2 + n begins at 2^n seconds.

    The logarithm to base 2 is linear between powers of two (Mitchell, 1962). It is read from the bits of a float64,
    which holds every difference up to 2^53 exactly: exponent and mantissa, side by side, are its integer and fraction.
    """
    bits = seconds.clamp(min=1).double().view(torch.int64)
    logarithm = (bits >> (52 - FRACTION_BITS)) - (1023 << FRACTION_BITS)
    bucket = 2 + logarithm * (buckets - 1) // (OCTAVES << FRACTION_BITS)
    return torch.where(seconds > 0, bucket.clamp(max=buckets), (seconds == 0).long())


def history_times(batch: Batch) -> Tensor:
    """The times of the history's tokens, (B, S). Padding has none, nor has a user's token: it stands for no event."""
    is_event = batch["encoder_mask"] & (batch["encoder_token_types"] != USER)
    return batch["encoder_times"].masked_fill(~is_event, UNKNOWN_TIME)


def since_token(times: Tensor, prediction_time: Tensor) -> Tensor:
    """Seconds from each token until the prediction, (B, S).

    Args:
        times: (B, S), see `history_times`.
        prediction_time: (B, 1); where it is unknown, the newest time of the history is used.
    """
    newest = times.amax(dim=1, keepdim=True)
    return difference(torch.where(prediction_time >= 0, prediction_time, newest), times)


def since_previous(times: Tensor) -> Tensor:
    """Seconds from the token before each token, (B, S); unknown for the first."""
    is_first = torch.arange(times.shape[1], device=times.device) == 0
    return difference(times, times.roll(1, dims=1).masked_fill(is_first, UNKNOWN_TIME))


def since_newest(times: Tensor, prediction_times: Tensor) -> Tensor:
    """Seconds from the newest of times (B, S) until prediction_times (B, T), (B, T)."""
    return difference(prediction_times, times.amax(dim=1, keepdim=True))


def difference(later: Tensor, earlier: Tensor) -> Tensor:
    """later − earlier, at least 0; unknown if one of them is."""
    known = (later >= 0) & (earlier >= 0)
    return torch.where(known, (later - earlier).clamp(min=0), UNKNOWN_TIME)
